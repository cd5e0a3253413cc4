"""The precision that the published, frozen base of a plug-in is held in: the parameter ``precision``.

    float32
    bfloat16   half the bytes
    nf4        an eighth: the Linear layers of the repeated blocks in 4 bits, all the rest of the base in bfloat16.
               A layer whose inputs are no multiple of 64 stays in bfloat16; in FLUX, Qwen and LLaVA there is none.

What trains beside it is held in float32. A base below float32 computes in bfloat16, under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from reasonbrain.errors import UserError
from reasonbrain.plugin import Plugin

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "nf4": torch.bfloat16}


class PublishedBase(Plugin):
    """A plug-in around a published base that takes the parameter ``precision``."""

    @classmethod
    def memory_options(cls, params: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {"quantised": {"precision": "nf4"}} if params.get("precision") != "nf4" else {}

    @classmethod
    def check_partitioned_loading(cls, params: dict[str, Any]) -> None:
        if params.get("precision") == "nf4":
            raise UserError(
                f"model.{cls.slot}.precision: 'nf4' cannot be read from train.start under ZeRO-3, which takes a tensor "
                f"at a time; leave train.start out, choose bfloat16, or take ZeRO-2"
            )


def base_dtype(precision: str, slot: str) -> torch.dtype:
    """What to load a base in. Raises UserError for an unknown precision."""
    if precision not in PRECISIONS:
        raise UserError(f"model.{slot}.precision: '{precision}' is not one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def hold_base(base: nn.Module, blocks: Iterable[nn.Module], precision: str, slot: str) -> None:
    """Brings a base into its precision, before anything that trains is added to it; what is loaded into it later
    follows. ``blocks``: those of its modules that nf4 quantises.

    Raises UserError for nf4 without bitsandbytes, or where no layer takes it."""
    dtype = base_dtype(precision, slot)
    if precision == "nf4":
        _quantise(blocks, slot)
    for p in base.parameters():  # not the buffers: positions need float32
        if p.is_floating_point():
            p.data = p.data.to(dtype)
    if dtype != torch.float32:
        base.register_load_state_dict_pre_hook(_load_in_own_precision)


def train_in_float32(module: nn.Module) -> None:
    """Sixteen bits are too few to add small steps to; peft gives adapters the precision of the base."""
    for p in module.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def computes(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a plug-in that runs its base: in bfloat16 where the base is held below float32."""

    @wraps(method)
    def run(self: Plugin, *args: Any, **kwargs: Any) -> Any:
        if self.config.precision == "float32":
            return method(self, *args, **kwargs)
        with torch.autocast(self.device.type, torch.bfloat16):
            return method(self, *args, **kwargs)

    return run


def _quantise(blocks: Iterable[nn.Module], slot: str) -> None:
    try:
        from reasonbrain.modules.common.nf4 import BLOCK, Nf4Linear
    except ImportError as e:
        raise UserError(
            f"model.{slot}.precision: 'nf4' needs bitsandbytes ({e}): pip install 'reasonbrain[train]', "
            f"or choose float32 or bfloat16"
        ) from None
    linears = [(b, name, m) for b in blocks for name, m in b.named_modules() if isinstance(m, nn.Linear)]
    fitting = [(b, name, m) for b, name, m in linears if m.in_features % BLOCK == 0]
    if not fitting:
        raise UserError(
            f"model.{slot}.precision: 'nf4' takes layers with a multiple of {BLOCK} inputs, and this model has none; "
            f"choose float32 or bfloat16"
        )
    for block, name, linear in fitting:
        block.set_submodule(name, Nf4Linear(linear))


def _load_in_own_precision(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, p in module.named_parameters():
        key = prefix + name
        if p.is_floating_point() and key in state and state[key].is_floating_point():
            state[key] = state[key].to(p.dtype)
