"""The training engine: plain torch data parallelism. zero.py has the same interface on DeepSpeed's ZeRO.

    engine.backward(loss); engine.step(number) -> norms, rates; engine.gather(what, name); engine.restore(...)

``what`` is "param", "average" or a key of the optimizer state. ``gather`` and ``restore`` use full tensors in full
precision, so that a checkpoint does not depend on the engine that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reasonbrain.config.schema import TrainConfig
from reasonbrain.train.distributed import processes
from reasonbrain.train.optim import hold_in_float32, make_optimizers, set_rates, slot_of, trained_parameters


class Engine:
    """Data parallelism in plain torch: each process holds a full replica, and gradients are averaged."""

    def __init__(self, module: nn.Module, cfg: TrainConfig) -> None:
        self.module, self.cfg = module, cfg
        self.trained = trained_parameters(module, cfg)
        hold_in_float32(self.trained)
        self.optimizers = make_optimizers(self.trained, cfg)
        self.average: dict[str, Tensor] = {n: p.detach().clone() for n, p in self.trained.items()}

    @property
    def model(self) -> nn.Module:
        """The module to call in a forward pass."""
        return self.module

    @property
    def device(self) -> torch.device:
        return next(iter(self.trained.values())).device

    def forward(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Calls ``losses``, under bfloat16 autocast with ``train.bf16``, and returns the named losses."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.bf16):
            return losses()

    def backward(self, loss: Tensor, parts: int) -> None:
        """Accumulates the gradients of one of the ``parts`` passes of a step."""
        (loss / parts).backward()

    def discard(self) -> None:
        """Discards the gradients accumulated so far."""
        for p in self.trained.values():
            p.grad = None

    def step(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """Takes optimizer step ``step``; returns gradient norms before clipping and learning rates, both by slot.

        If a norm is NaN or infinite, the weights, the average and the optimizer state are left unchanged.
        """
        params = list(self.trained.values())
        processes.average_gradients(params)
        slots: dict[str, list[Tensor]] = {}
        for name, p in self.trained.items():
            if p.grad is not None:
                slots.setdefault(slot_of(name), []).append(p.grad)
        norms = torch.stack([nn.utils.get_total_norm(grads) for grads in slots.values()])
        total = norms.norm()
        rates = set_rates(self.optimizers, step)
        if torch.isfinite(total):
            if self.cfg.grad_clip:
                nn.utils.clip_grads_with_norm_(params, self.cfg.grad_clip, total)
            for optimizer in self.optimizers:
                optimizer.step()
            weight = averaging_weight(self.cfg, step)
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in params], weight)
        self.discard()
        return dict(zip(slots, norms.tolist(), strict=True)), rates

    def kinds(self, name: str) -> list[str]:
        """The kinds of tensors to save for a trained parameter."""
        return ["param", "average", *self._state(name)]

    def _state(self, name: str) -> dict[str, Tensor]:
        p = self.trained[name]
        return next((o.state[p] for o in self.optimizers if p in o.state), {})

    def gather(self, what: str, name: str) -> Tensor:
        """Returns a full tensor. Collective: all processes must call it."""
        if what == "param":
            return self.trained[name].detach()
        if what == "average":
            return self.average[name]
        value = torch.as_tensor(self._state(name)[what])
        return value.clone() if what.startswith("qmap") else value  # shared by all parameters in bitsandbytes

    def restore(self, what: str, name: str, value: Tensor) -> None:
        """Sets a tensor from its full value; the inverse of ``gather``."""
        p = self.trained[name]
        if what == "param":
            p.data.copy_(value)
        elif what == "average":
            self.average[name].copy_(value)
        else:
            owner = next(o for o in self.optimizers if any(p is q for g in o.param_groups for q in g["params"]))
            counts = what == "step" and value.dtype == torch.int64  # bitsandbytes keeps it as an int
            owner.state[p][what] = (
                value.item() if counts else value.to("cpu" if what == "step" else p.device, copy=True)
            )

    def use_average(self) -> None:
        """Copies the averaged weights into the module."""
        for name, p in self.trained.items():
            p.data.copy_(self.average[name])


def averaging_weight(cfg: TrainConfig, step: int) -> float:
    """The weight of the parameters after step ``step`` in their moving average; it is larger in early steps."""
    return 1 - min(cfg.ema, (2 + step) / (11 + step))
