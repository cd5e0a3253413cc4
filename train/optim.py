"""Trainable parameters, learning rate schedules and optimizers.

``train.slots`` overrides the learning rate, weight decay and warm-up of a slot, or freezes it; the defaults come from
``train``. The published weights of a slot, with the adapters on them, may have a rate of their own. Schedules count
optimizer steps, regardless of the number of processes.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reasonbrain.config.schema import SlotTrainConfig, TrainConfig
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.plugin import Plugin

BETAS = (0.9, 0.99)
MUON: dict[str, Any] = {"momentum": 0.95, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}

Group = dict[str, Any]  # a parameter group of torch.optim


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """The learning rate of optimizer step ``step`` (0-based): linear warm-up, then cosine decay to ``final_lr``."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    progress = min((step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1), 1.0)
    return cfg.lr * (cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def slot_of(name: str) -> str:
    """The slot of a ReasonBrain parameter, with "_" for its dot; "" for parameters of any other module."""
    return name.split(".")[1] if name.startswith("parts.") else ""


def trained_parameters(module: nn.Module, cfg: TrainConfig) -> dict[str, nn.Parameter]:
    """Freezes the slots that ``train.slots`` excludes, and returns the trainable parameters by name. Those of
    ``Plugin.published`` are marked as ``published``."""
    for part in (m for m in module.modules() if isinstance(m, Plugin)):
        for p in (p for path in part.published for p in part.get_submodule(path).parameters()):
            p.published = True
    for name, p in module.named_parameters():
        if not cfg.slots.get(slot_of(name), SlotTrainConfig()).train:
            p.requires_grad_(False)
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def check_trains(model: ReasonBrain, cfg: TrainConfig) -> None:
    """Raises UserError if ``cfg`` has settings for a null slot, or if nothing is left to train."""
    for name in sorted({*cfg.slots, *cfg.checkpointing, *cfg.compile} - set(model.parts.keys())):
        raise UserError(f"train: slot '{name}' is null, so there is nothing to set for it")
    loss = any(part.gives_loss() for part in model.parts.values())
    if not loss or not trained_parameters(model, cfg):
        raise UserError("model: nothing is left to train: every slot is frozen, or mllm and diffusion are null")


def dimensions(p: Tensor) -> int:
    """Number of dimensions of the full parameter, also if ZeRO-3 has partitioned it."""
    return len(getattr(p, "ds_shape", p.shape))


def hold_in_float32(trained: dict[str, nn.Parameter]) -> None:
    """Casts the trained parameters to float32, since small updates are lost in 16 bits. Published weights that are
    trained in full are in the precision of their files until then."""
    for p in trained.values():
        p.data = p.data.float()


def numel(p: Tensor) -> int:
    """Number of elements of the full parameter, also if ZeRO-3 has partitioned it."""
    return getattr(p, "ds_numel", p.numel())


def is_hidden(name: str, p: Tensor) -> bool:
    """Whether a parameter is a hidden weight matrix: 2-D, inside a numbered block, and not a LoRA adapter."""
    return dimensions(p) == 2 and bool(re.search(r"\.\d+\.", name)) and ".lora_" not in name


def param_groups(trained: dict[str, nn.Parameter], cfg: TrainConfig) -> list[Group]:
    """Groups parameters by slot and kind: matrices, vectors (no weight decay), and hidden matrices with muon.

    Each group holds its training configuration as ``schedule``, and the name of its rate as ``rate``.
    """
    groups: dict[tuple[str, str], Group] = {}
    for name, p in trained.items():
        slot = slot_of(name)
        own = cfg.slots.get(slot, SlotTrainConfig())
        changes = {k: getattr(own, k) for k in ("lr", "weight_decay", "warmup") if getattr(own, k) is not None}
        published = own.published_lr is not None and getattr(p, "published", False)
        schedule = replace(cfg, **changes | ({"lr": own.published_lr} if published else {}))
        matrices = "hidden" if cfg.optimizer == "muon" and is_hidden(name, p) else "matrices"
        kind = matrices if dimensions(p) > 1 else "vectors"
        decay = 0.0 if kind == "vectors" else schedule.weight_decay
        rate = f"{slot}/published" if published else slot
        empty = {"params": [], "slot": slot, "rate": rate, "kind": kind, "schedule": schedule, "lr": 0.0}
        groups.setdefault((rate, kind), empty | {"weight_decay": decay})["params"].append(p)
    return list(groups.values())


def make_optimizers(trained: dict[str, nn.Parameter], cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """Creates the optimizers of ``train.optimizer``.

    - ``adamw``: torch's AdamW
    - ``adamw_8bit``: bitsandbytes' AdamW with 8-bit moments
    - ``muon`` (Jordan et al. 2024): orthogonalised momentum for hidden matrices, AdamW for all other parameters. Muon's
      updates are scaled to the RMS of AdamW's, so that both share a learning rate (Liu et al. 2025)

    Raises UserError if the library is not installed.
    """
    groups = param_groups(trained, cfg)
    hidden = [g for g in groups if g["kind"] == "hidden"]
    rest = [g for g in groups if g["kind"] != "hidden"]
    made: list[torch.optim.Optimizer] = []
    if rest:
        made.append(_adamw(cfg.optimizer)(rest, betas=BETAS))
    if hidden:
        made.append(torch.optim.Muon(hidden, **MUON))
    return made


def _adamw(name: str) -> type[torch.optim.Optimizer]:
    if name != "adamw_8bit":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError("train.optimizer=adamw_8bit needs bitsandbytes: pip install 'reasonbrain[train]'") from None
    return AdamW8bit


def set_rates(optimizers: list[torch.optim.Optimizer], step: int) -> dict[str, float]:
    """Sets the learning rate of every group for ``step``, and returns the rates by slot; that of its
    published weights, if different, as ``slot/published``."""
    rates = {}
    for group in (g for o in optimizers for g in o.param_groups):
        rates[group["rate"]] = group["lr"] = learning_rate(group["schedule"], step)
    return rates
