"""What trains, at which rate, and the optimizer that moves it.

``train.slots`` gives a slot its own rate, decay and warm-up, or takes it out of training; what is not said there is
the run's own. The schedule counts optimizer steps, whatever the number of processes.
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

OPTIMIZERS = ("adamw", "adamw_8bit", "muon")
BETAS = (0.9, 0.99)
MUON: dict[str, Any] = {"momentum": 0.95, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}

Group = dict[str, Any]  # of parameters, as torch.optim takes them


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """The rate of optimizer step ``step`` (0-based)."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    progress = min((step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1), 1.0)
    return cfg.lr * (cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def slot_of(name: str) -> str:
    """The slot that a parameter of ReasonBrain belongs to, its dot written as "_"; "" in any other module."""
    return name.split(".")[1] if name.startswith("parts.") else ""


def trained_parameters(module: nn.Module, cfg: TrainConfig) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; those of slots that ``train.slots`` freezes are frozen here."""
    for name, p in module.named_parameters():
        if not cfg.slots.get(slot_of(name), SlotTrainConfig()).train:
            p.requires_grad_(False)
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def check_trains(model: ReasonBrain, cfg: TrainConfig) -> None:
    """Raises UserError where ``cfg`` says something about a null slot, and if nothing is left to train."""
    for name in sorted({*cfg.slots, *cfg.checkpointing, *cfg.compile} - set(model.parts.keys())):
        raise UserError(f"train: slot '{name}' is null, so there is nothing to set for it")
    loss = any(part.gives_loss() for part in model.parts.values())
    if not loss or not trained_parameters(model, cfg):
        raise UserError("model: nothing is left to train: every slot is frozen, or mllm and diffusion are null")


def dimensions(p: Tensor) -> int:
    """Of the whole parameter, where ZeRO-3 has left only a part of it here."""
    return len(getattr(p, "ds_shape", p.shape))


def numel(p: Tensor) -> int:
    """Of the whole parameter, too."""
    return getattr(p, "ds_numel", p.numel())


def is_hidden(name: str, p: Tensor) -> bool:
    """Whether a parameter is a weight matrix between hidden layers: one inside a numbered block, no adapter."""
    return dimensions(p) == 2 and bool(re.search(r"\.\d+\.", name)) and ".lora_" not in name


def param_groups(trained: dict[str, nn.Parameter], cfg: TrainConfig) -> list[Group]:
    """One group for each slot and way of moving: matrices, vectors (no decay), hidden matrices under muon. A group
    carries its slot's schedule as ``schedule``."""
    groups: dict[tuple[str, str], Group] = {}
    for name, p in trained.items():
        slot = slot_of(name)
        own = cfg.slots.get(slot, SlotTrainConfig())
        changes = {k: getattr(own, k) for k in ("lr", "weight_decay", "warmup") if getattr(own, k) is not None}
        schedule = replace(cfg, **changes)
        matrices = "hidden" if cfg.optimizer == "muon" and is_hidden(name, p) else "matrices"
        kind = matrices if dimensions(p) > 1 else "vectors"
        decay = 0.0 if kind == "vectors" else schedule.weight_decay
        empty = {"params": [], "slot": slot, "kind": kind, "schedule": schedule, "lr": 0.0, "weight_decay": decay}
        groups.setdefault((slot, kind), empty)["params"].append(p)
    return list(groups.values())


def make_optimizers(trained: dict[str, nn.Parameter], cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """What ``train.optimizer`` names: ``adamw``; ``adamw_8bit`` (bitsandbytes: moments in 8 bits); ``muon`` (Jordan et
    al. 2024): orthogonalised momentum for the matrices between hidden layers, its step scaled to AdamW's size so that
    one rate serves both (Liu et al. 2025), and AdamW for all the rest.

    Raises UserError for another name and for a library that is not installed."""
    if cfg.optimizer not in OPTIMIZERS:
        raise UserError(f"train.optimizer: '{cfg.optimizer}' is not one of {', '.join(OPTIMIZERS)}")
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
    """Gives every group its rate of this step, and returns the rates by slot."""
    rates = {}
    for group in (g for o in optimizers for g in o.param_groups):
        rates[group["slot"]] = group["lr"] = learning_rate(group["schedule"], step)
    return rates
