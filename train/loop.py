"""The one training loop: every stage of every run takes its steps here.

A batch is a function of (seed, step) and torch's random state is set from the same pair before each step,
so a resumed run needs no saved random state: it continues bit for bit where it was stopped.
State lives in ``RUN/state.safetensors`` (trained tensors, their averages, the optimizers' moments), written atomically.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reasonbrain.config import TrainConfig
from reasonbrain.errors import UserError

OPTIMIZERS = ("adamw", "muon")

log = logging.getLogger(__name__)


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """The rate of optimizer step ``step`` (0-based)."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    progress = min((step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1), 1.0)
    return cfg.lr * (cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def fastest_attention(device: str) -> AbstractContextManager[None]:
    """On a CPU, attention in plain matrix products: the backward of torch's fused kernel for CPUs takes a third of a
    step's time (docs/log.md). Elsewhere torch chooses."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()


def rank() -> int:
    """This process's number among those of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(params: list[Tensor]) -> None:
    """The mean over all processes, in one exchange; a parameter without a gradient has none anywhere."""
    if world() == 1:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for grad, mean in zip(grads, (flat / world()).split([g.numel() for g in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def is_hidden(name: str, p: Tensor) -> bool:
    """Whether a parameter is a weight matrix between hidden layers: one inside a numbered block, no adapter."""
    return p.ndim == 2 and bool(re.search(r"\.\d+\.", name)) and ".lora_" not in name


def optimizers(trained: dict[str, Tensor], cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """What ``train.optimizer`` names. ``muon`` (Jordan et al. 2024): orthogonalised momentum for the matrices between
    hidden layers, its step scaled to AdamW's size so that one rate serves both (Liu et al. 2025); AdamW for all
    the rest. Vectors do not decay.

    Raises UserError for another name."""
    if cfg.optimizer not in OPTIMIZERS:
        raise UserError(f"train.optimizer: '{cfg.optimizer}' is not one of {', '.join(OPTIMIZERS)}")
    hidden = [p for n, p in trained.items() if cfg.optimizer == "muon" and is_hidden(n, p)]
    ids = {id(p) for p in hidden}
    decay = [p for p in trained.values() if p.ndim > 1 and id(p) not in ids]
    plain = [p for p in trained.values() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": cfg.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.99))]
    if hidden:
        made.append(torch.optim.Muon(hidden, cfg.lr, cfg.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return made


class Loop:
    """Warm-up, cosine, clipping, weight averaging and exact resume over a module's trainable tensors."""

    def __init__(self, module: nn.Module, cfg: TrainConfig, run: Path) -> None:
        self.module, self.cfg, self.run = module, cfg, run
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.optimizers = optimizers(self.trained, cfg)
        self.average = {n: p.detach().clone() for n, p in self.trained.items()}
        self.step = 0

    @property
    def state_file(self) -> Path:
        return self.run / "state.safetensors"

    def save(self) -> None:
        """Writes the state beside the old one, then takes its place in one move."""
        tensors: dict[str, Tensor] = {}
        for name, p in self.trained.items():
            tensors[f"param/{name}"] = p.detach()
            tensors[f"average/{name}"] = self.average[name]
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(p, {}).items():
                    tensors[f"optimizer.{key}/{name}"] = value
        self.run.mkdir(parents=True, exist_ok=True)
        new = self.state_file.with_suffix(".new")
        save_file({k: v.contiguous() for k, v in tensors.items()}, new, metadata={"step": str(self.step)})
        os.replace(new, self.state_file)

    def resume(self) -> bool:
        """Continues from the run's state where there is one; says whether it did."""
        if not self.state_file.exists():
            return False
        with safe_open(self.state_file, "pt") as f:
            self.step = int(f.metadata()["step"])
            for name, p in self.trained.items():
                p.data.copy_(f.get_tensor(f"param/{name}"))
                self.average[name].copy_(f.get_tensor(f"average/{name}"))
            for stored in f.keys():  # noqa: SIM118 - safetensors' handle is no mapping
                kind, name = stored.split("/", 1)
                if kind.startswith("optimizer."):
                    key, p = kind.removeprefix("optimizer."), self.trained[name]
                    owner = next(o for o in self.optimizers if any(p is q for g in o.param_groups for q in g["params"]))
                    device = "cpu" if key == "step" else p.device
                    owner.state[p][key] = f.get_tensor(stored).to(device, copy=True)
        return True

    def use_average(self) -> None:
        """Puts the averaged weights into the module (at the end, or to evaluate)."""
        for name, p in self.trained.items():
            p.data.copy_(self.average[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the module for a while (to save or evaluate them)."""
        kept = {n: p.detach().clone() for n, p in self.trained.items()}
        self.use_average()
        yield
        for name, p in self.trained.items():
            p.data.copy_(kept[name])

    def fit(self, losses: Callable[[int], dict[str, Tensor]], on_save: Callable[[], None] | None = None) -> None:
        """Trains up to ``cfg.steps``. ``losses(step)`` returns named scalars; ``loss`` is minimised.

        One JSON line every ``log_every`` steps goes to ``RUN/log.jsonl``. Raises FloatingPointError on a
        non-finite loss, naming the step."""
        cfg = self.cfg
        self.run.mkdir(parents=True, exist_ok=True)
        params = list(self.trained.values())
        sums: dict[str, float] = {}
        count, start = 0, time.monotonic()
        while self.step < cfg.steps:
            for group in (g for o in self.optimizers for g in o.param_groups):
                group["lr"] = learning_rate(cfg, self.step)
            torch.manual_seed(cfg.seed * 1_000_003 + self.step + rank() * 1_000_000_007)
            device = params[0].device.type
            with fastest_attention(device):
                with torch.autocast(device, torch.bfloat16, enabled=cfg.bf16):
                    out = losses(self.step)
                if not torch.isfinite(out["loss"]):
                    raise FloatingPointError(f"step {self.step}: the loss is {out['loss'].item()}")
                out["loss"].backward()
            average_gradients(params)
            norm = torch.nn.utils.clip_grad_norm_(params, cfg.grad_clip)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"step {self.step}: the gradients' norm is {norm.item()}")
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.step += 1
            weight = 1 - min(cfg.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in params], weight)
            for key, value in out.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())
            count += 1
            if rank() == 0 and (self.step % cfg.log_every == 0 or self.step == cfg.steps):
                line = {"step": self.step, **{k: round(v / count, 5) for k, v in sums.items()}}
                line["seconds_per_step"] = round((time.monotonic() - start) / count, 3)
                log.info(" ".join(f"{k}={v}" for k, v in line.items()))
                with (self.run / "log.jsonl").open("a") as f:
                    f.write(json.dumps(line) + "\n")
                sums, count, start = {}, 0, time.monotonic()
            if rank() == 0 and (self.step % cfg.save_every == 0 or self.step == cfg.steps):
                self.save()
                if on_save:
                    on_save()
