"""The storage precision of a plug-in's frozen base model: the parameter ``precision``.

    float32
    bfloat16   half the memory of float32
    nf4        about an eighth: linear layers of the repeated blocks in 4 bits, the rest of the base in bfloat16.
               Layers whose input size is not a multiple of 64 stay in bfloat16 (none in FLUX, Qwen and LLaVA).

Trainable parameters are held in float32. Beside a base below float32 they compute under autocast. A plug-in that was
cast to one dtype, for editing, computes in that dtype without autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from diffusers.hooks import apply_layerwise_casting
from torch import Tensor, nn

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Inputs
from reasonbrain.plugin import Plugin

NOT_IN_FP8 = ("norm", "lora_")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "nf4": torch.bfloat16}


class PublishedBase(Plugin):
    """A plug-in around a published base model, with the parameter ``precision``."""

    @classmethod
    def memory_options(cls, params: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {"quantised": {"precision": "nf4"}} if params.get("precision") != "nf4" else {}

    def compress(self, kind: str) -> None:
        """Stores the linear layers of the repeated blocks as ``fp8`` or ``nf4``; those in nf4 already stay so. They
        compute in bfloat16. Raises UserError like ``hold_base``."""
        if self.config.precision == "nf4":
            return
        if kind == "nf4":
            _quantise(self.repeated(), self.slot)
            return
        for block in self.repeated():
            apply_layerwise_casting(block, torch.float8_e4m3fn, torch.bfloat16, skip_modules_pattern=NOT_IN_FP8)

    @classmethod
    def check_partitioned_loading(cls, params: dict[str, Any]) -> None:
        if params.get("precision") == "nf4":
            raise UserError(
                f"model.{cls.slot}.precision: 'nf4' cannot be read from train.start under ZeRO-3, which loads one "
                f"tensor at a time; leave out train.start, choose bfloat16, or use ZeRO-2"
            )


def base_dtype(precision: str, slot: str) -> torch.dtype:
    """The dtype to load a base model in. Raises UserError for an unknown precision."""
    if precision not in PRECISIONS:
        raise UserError(f"model.{slot}.precision: '{precision}' is not one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def hold_base(base: nn.Module, blocks: Iterable[nn.Module], precision: str, slot: str) -> None:
    """Converts a base model to ``precision``, in place. State dicts loaded later are cast to match.

    Call it before adding trainable modules to the base.

    Args:
        base: the base model
        blocks: the modules of ``base`` whose linear layers nf4 quantises
        precision: a key of ``PRECISIONS``
        slot: the plug-in's slot, for error messages

    Raises:
        UserError: if the precision is unknown, bitsandbytes is not installed, or no layer can be quantised
    """
    dtype = base_dtype(precision, slot)
    if precision == "nf4":
        _quantise(blocks, slot)
    for p in base.parameters():  # buffers stay: position tables need float32
        if p.is_floating_point():
            p.data = p.data.to(dtype)
    if dtype != torch.float32:
        base.register_load_state_dict_pre_hook(_load_in_own_precision)


def train_in_float32(module: nn.Module) -> None:
    """Casts trainable parameters to float32, since small updates are lost in 16 bits.

    peft creates adapters in the dtype of the base model.
    """
    for p in module.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the dtype of the layers that read it; unchanged under autocast, which casts by itself."""
    kind = x.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not on meta
    return x if casts else x.to(dtype)


def computes(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a plug-in method that runs the base model: autocast if some of the weights are held in 16 bits and
    others are not. The method's first argument is a tensor or Inputs."""

    @wraps(method)
    def run(self: Plugin, first: Tensor | Inputs, *args: Any, **kwargs: Any) -> Any:
        held = {p.dtype for p in self.parameters() if p.is_floating_point()}
        half = held & {torch.bfloat16, torch.float16}
        if not half or held == half:
            return method(self, first, *args, **kwargs)
        device = first.device if isinstance(first, Tensor) else first.images.device  # weights may be offloaded
        with torch.autocast(device.type, half.pop()):
            return method(self, first, *args, **kwargs)

    return run


def _quantise(blocks: Iterable[nn.Module], slot: str) -> None:
    try:
        from reasonbrain.modules.common.nf4 import BLOCK, Nf4Linear
    except ImportError as e:
        raise UserError(
            f"model.{slot}.precision: 'nf4' needs bitsandbytes ({e}): pip install 'reasonbrain[train]', "
            f"or choose float32 or bfloat16"
        ) from None
    named = ((b, name, m) for b in blocks for name, m in b.named_modules() if "lora_" not in name)
    linears = [(b, name, m) for b, name, m in named if isinstance(m, nn.Linear)]
    fitting = [(b, name, m) for b, name, m in linears if m.in_features % BLOCK == 0]
    if not fitting:
        raise UserError(
            f"model.{slot}.precision: 'nf4' needs layers whose input size is a multiple of {BLOCK}, but this "
            f"model has none; choose float32 or bfloat16"
        )
    for block, name, linear in fitting:
        block.set_submodule(name, Nf4Linear(linear))


def _load_in_own_precision(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, p in module.named_parameters():
        key = prefix + name
        if p.is_floating_point() and key in state and state[key].is_floating_point():
            state[key] = state[key].to(p.dtype)
