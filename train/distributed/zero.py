"""A training engine on DeepSpeed's ZeRO, with the interface of engine.Engine.

deepspeed train/train.py --config tiny --deepspeed configs/deepspeed/zero3.json -o RUN
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reasonbrain.config.schema import TrainConfig
from reasonbrain.errors import UserError
from reasonbrain.plugin import Plugin
from reasonbrain.plugin_folder import Partition
from reasonbrain.train.distributed import processes
from reasonbrain.train.distributed.flat import FlatMuon, Piece
from reasonbrain.train.distributed.zero_json import import_deepspeed
from reasonbrain.train.engine import averaging_weight
from reasonbrain.train.optim import (
    hold_in_float32,
    is_hidden,
    make_optimizers,
    param_groups,
    set_rates,
    trained_parameters,
)


def set_apart(module: nn.Module) -> None:
    """Hides the modules that prepare records (autoencoder, SAM, frozen vision towers) from DeepSpeed.

    They run only in processes whose records are not cached yet, but a partitioned module must run in all processes at
    once. So each process keeps a full copy, and the features are the same with every engine.
    """
    for part in [m for m in module.modules() if isinstance(m, Plugin)]:
        for path, prepares in part.prepares().items():
            owner, _, name = path.rpartition(".")
            holder = part.get_submodule(owner)
            holder.__dict__[name] = prepares
            del holder._modules[name]


def partitioner(deepspeed_config: dict[str, Any]) -> Partition:
    """Returns a function that partitions one parameter over the processes (ZeRO-3), so that none holds a full model.

    Call it for each parameter, in the same order in all processes. The values are broadcast from rank 0.
    """
    deepspeed = import_deepspeed()
    deepspeed.init_distributed()  # otherwise it assumes a single process
    init = deepspeed.zero.Init(config_dict_or_path=deepspeed_config)
    bf16 = deepspeed_config["bf16"]["enabled"]

    def partition(p: nn.Parameter) -> None:
        if p.ndim == 0:  # CLIP's unused temperature: DeepSpeed cannot partition scalars
            p.data = p.data.view(1)
        if bf16 and p.is_floating_point():
            p.data = p.data.bfloat16()
        elif p.requires_grad:
            hold_in_float32({"": p})
        init._convert_to_zero_parameters([p])

    return partition


class ZeroEngine:
    """DeepSpeed's ZeRO stage 1, 2 or 3, with the interface of Engine. Raises UserError for ``adamw_8bit``."""

    def __init__(self, module: nn.Module, cfg: TrainConfig, deepspeed_config: dict[str, Any]) -> None:
        if cfg.optimizer == "adamw_8bit":
            raise UserError(
                "train.optimizer: adamw_8bit keeps its state in blocks that ZeRO would cut; "
                "with --deepspeed use adamw or muon"
            )
        self.module, self.cfg = module, cfg
        self.trained = trained_parameters(module, cfg)
        if not cfg.bf16:
            hold_in_float32(self.trained)
        groups = param_groups(self.trained, cfg)
        names = {p: name for name, p in self.trained.items()}
        inside = [[names[p] for p in group["params"]] for group in groups]
        muon = FlatMuon(groups) if cfg.optimizer == "muon" else None
        optimizer = muon or make_optimizers(self.trained, cfg)[0]
        self.stage = deepspeed_config["zero_optimization"]["stage"]
        set_apart(module)
        for p in module.parameters():
            if p.ndim == 0:
                p.data = p.data.view(1)  # as in ``partitioner``
        if cfg.bf16:  # inside ``forward``, because on a GPU DeepSpeed switches autocast off around it
            kind = import_deepspeed().get_accelerator().device_name()
            module.forward = torch.autocast(kind, torch.bfloat16)(module.forward)
        if not dist.is_initialized():  # without a launcher, DeepSpeed would look for MPI
            dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
            os.environ.setdefault("LOCAL_RANK", "0")  # a launcher sets it
        self.engine, *_ = import_deepspeed().initialize(model=module, optimizer=optimizer, config=deepspeed_config)
        self.zero = self.engine.optimizer
        self.inner: torch.optim.Optimizer = self.zero.optimizer
        flats = self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
        self.average = {flat: flat.detach().clone() for flat in flats}
        if self.stage == 3:  # ZeRO-3 splits large groups
            inside = [[names[p] for p in group] for group in self.zero.fp16_groups]
        if muon:
            muon.device = self.device
            parts = [[(self._shape(name), self.piece(name)) for name in group] for group in inside]
            muon.matrices = dict(zip(flats, parts, strict=True))

    @property
    def model(self) -> nn.Module:
        return self.engine

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def forward(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Calls ``losses`` and returns the named losses. With ``train.bf16`` the model runs under autocast."""
        return losses()

    def backward(self, loss: Tensor, parts: int) -> None:
        """Accumulates gradients; DeepSpeed divides by ``parts``."""
        last = (self.engine.micro_steps + 1) % parts == 0
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)
        if not last:
            self.engine.step()

    def discard(self) -> None:
        self.zero.zero_grad()
        self.engine.micro_steps -= self.engine.micro_steps % self.engine.gradient_accumulation_steps()
        if self.stage < 3:
            self.zero.micro_step_id = -1  # as after a step: the next pass replaces what was accumulated, does not add
            self.zero.averaged_gradients.clear()
            self.zero.all_grad_tensors.clear()  # of the passes before the last one
            if self.zero.cpu_offload:
                self.zero.reset_cpu_buffers()

    def norms(self) -> dict[str, float]:
        """Gradient norms by slot before clipping; call it after the last pass of a step."""
        zero = self.zero
        slots = [group["slot"] for group in self.inner.param_groups]
        if self.stage == 3:
            groups = zero._get_norm_groups()  # a group with many parameters is split into several
            slots = [slots[zero.sub_group_to_group_id[i]] for i in range(len(groups))]
        elif zero.cpu_offload:
            groups = [zero.complete_grad_norm_calculation_for_cpu_offload(p) for p in zero.params_in_partition]
        else:
            parts = zip(zero.averaged_gradients.values(), zero.params_in_partition, strict=True)
            groups = [zero.get_grad_norm_direct(grads, params) for grads, params in parts]
        squares: dict[str, float] = {}
        for slot, norm in zip(slots, groups, strict=True):
            square = float(norm) ** 2 if norm >= 0 else math.nan  # DeepSpeed returns -1 for NaN or infinite gradients
            squares[slot] = squares.get(slot, 0.0) + square
        return {slot: math.sqrt(square) for slot, square in squares.items()}

    def step(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        rates, norms = set_rates([self.inner], step), self.norms()
        if not all(map(math.isfinite, norms.values())):
            self.discard()
            return norms, rates
        self.engine.step()
        weight = averaging_weight(self.cfg, step)
        for flat, average in self.average.items():
            average.lerp_(flat.detach(), weight)
        return norms, rates

    def piece(self, name: str) -> Piece | None:
        """Locates this process's shard of a parameter; None if it has none."""
        p = self.trained[name]
        if self.stage == 3:
            group, at, size = self.zero.grad_position[self.zero.get_param_id(p)]
            start = processes.rank() * size
            size = max(0, min(size, p.ds_numel - start))  # the last shard is padded
            return Piece(self.zero.fp32_partitioned_groups_flat[group], at, start, size) if size else None
        mapping = p._hp_mapping
        if mapping is None:
            return None
        flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
        ours, theirs = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Piece(flat, ours.start, theirs.start, theirs.numel)

    def _shape(self, name: str) -> torch.Size:
        return self.trained[name].ds_shape if self.stage == 3 else self.trained[name].shape

    def _flat(self, what: str, flat: Tensor) -> Tensor:
        """The flat tensor of kind ``what`` for ``flat``; optimizer state is created if it does not exist yet."""
        if what == "param":
            return flat.data
        if what == "average":
            return self.average[flat]
        return self.inner.state[flat].setdefault(what, torch.zeros_like(flat))

    def kinds(self, name: str) -> list[str]:
        if self.cfg.optimizer == "muon" and is_hidden(name, self.trained[name]):
            return ["param", "average", "momentum_buffer"]
        return ["param", "average", "step", "exp_avg", "exp_avg_sq"]

    def gather(self, what: str, name: str) -> Tensor:
        if what == "step":
            return torch.as_tensor(float(next(s["step"] for s in self.inner.state.values() if "step" in s)))
        whole = torch.zeros(self._shape(name).numel(), dtype=torch.float32, device=self.device)
        piece = self.piece(name)
        if piece:
            whole.narrow(0, piece.start, piece.size).copy_(piece.of(self._flat(what, piece.flat)))
        dist.all_reduce(whole)
        return whole.view(self._shape(name))

    def restore(self, what: str, name: str, value: Tensor) -> None:
        if what == "step":
            for flat in self.average:
                self.inner.state[flat]["step"] = value.clone()
            return
        piece = self.piece(name)
        if piece:
            part = value.flatten().narrow(0, piece.start, piece.size)
            piece.of(self._flat(what, piece.flat)).copy_(part)
            if what == "param" and self.stage == 3:
                self.trained[name].ds_tensor.data.narrow(0, 0, piece.size).copy_(part)
        if what == "param" and self.stage < 3:
            self.trained[name].data.copy_(value)
