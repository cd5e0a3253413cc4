"""The attention kernel (``model.attention``).

    sdpa                torch's fused kernels: any device, any precision, with masks
    math                plain matrix products; the fastest for training on a CPU (docs/log.md)
    flash_attention_2   the package flash-attn, extra [flash]
    flash_attention_3   the same for Hopper GPUs, built from source
    auto                the fastest of these that works on this device

The flash kernels need a GPU and 16-bit precision. They are used in the published models whose libraries support them:
FLUX, the MLLM, and CLIP when it runs in 16 bits. For the MLLM, transformers removes the masked tokens. The blocks of
modules/common/layers.py, whose masks flash kernels do not support, and the QFormer use ``sdpa``. Modules that prepare
records always use ``sdpa``, so that cached features do not depend on the setting.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from reasonbrain.config.schema import ATTENTION
from reasonbrain.errors import UserError, first_line
from reasonbrain.model import ReasonBrain

NAMES = {  # ours -> diffusers', transformers'
    "sdpa": (AttentionBackendName.NATIVE, "sdpa"),
    "math": (AttentionBackendName._NATIVE_MATH, "eager"),
    "flash_attention_2": (AttentionBackendName.FLASH, "flash_attention_2"),
    "flash_attention_3": (AttentionBackendName._FLASH_3, "flash_attention_3"),
}
FLASH = {
    "flash_attention_3": is_flash_attn_3_available,
    "flash_attention_2": is_flash_attn_2_available,
}  # fastest first
HALF = (torch.bfloat16, torch.float16)

log = logging.getLogger(__name__)


@cache
def trouble(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Tries a flash kernel on the device. Returns None if it works, otherwise the reason why not."""
    if not FLASH[name]():
        return "its package is not installed or sees no GPU"
    qkv = torch.zeros(1, 8, 1, 64, device=device, dtype=dtype)
    try:
        with attention_backend(NAMES[name][0]):
            dispatch_attention_fn(qkv, qkv, qkv)
    except Exception as e:  # packages, kernels and CUDA raise different types
        return first_line(e)
    return None


@cache
def choose(name: str, device: torch.device, dtype: torch.dtype, training: bool = False) -> str:
    """Resolves ``name`` to the kernel for this device. The choice of ``auto`` is logged once.

    Raises UserError for a kernel that does not work on this device."""
    if name in FLASH and (reason := trouble(name, device, dtype)):
        raise UserError(
            f"model.attention: '{name}' does not work on {device} in {str(dtype).removeprefix('torch.')}: {reason}; "
            f"choose from {', '.join(ATTENTION)}"
        )
    if name != "auto":
        return name
    rest = "math" if training and device.type == "cpu" else "sdpa"
    found = next((flash for flash in FLASH if trouble(flash, device, dtype) is None), rest)
    log.info("attention: %s, on %s in %s", found, device, str(dtype).removeprefix("torch."))
    return found


def set_attention(
    model: ReasonBrain,
    name: str,
    training: bool = False,
    autocast: torch.dtype | None = None,
    device: torch.device | None = None,
) -> str:
    """Sets the attention kernel of every slot and returns its name.

    name: the value of ``model.attention``. autocast: the dtype of the caller's autocast; None for the dtype of the
    weights. device: where the model computes; None for the device of its weights. Raises UserError like ``choose``."""
    lowest = next((p.dtype for p in model.parameters() if p.dtype in HALF), torch.float32)
    found = choose(name, device or model.device, autocast or lowest, training)
    for slot in model.parts.values():
        if slot.reference:  # it is used as published
            continue
        for part in slot.children():
            _use(part, "sdpa" if found in FLASH and not _takes_flash(part, autocast) else found)
        for part in slot.prepares().values():
            _use(part, "sdpa")
    return found


def _takes_flash(part: nn.Module, autocast: torch.dtype | None) -> bool:
    if isinstance(part, PreTrainedModel) and not part._supports_flash_attn:
        return False
    floats = (p.dtype for p in part.parameters() if p.is_floating_point())
    return (autocast or next(floats, torch.float32)) in HALF


def _use(part: nn.Module, name: str) -> None:
    """Sets the kernel of a published model or of one of our layers, unless the user has chosen another since."""
    for_diffusers, for_transformers = NAMES[name]
    if isinstance(part, PreTrainedModel):
        if getattr(part, "set_here", None) in (None, part.config._attn_implementation):
            part.set_attn_implementation(for_transformers)
            part.set_here = for_transformers  # type: ignore[assignment]
        return
    for module in part.modules():
        if name in FLASH and isinstance(module, nn.RMSNorm) and _keep_precision not in module._forward_hooks.values():
            module.register_forward_hook(_keep_precision)
        if hasattr(module, "plain_attention"):
            module.plain_attention = name == "math"
        # diffusers' set_attention_backend does the same, but also changes the default of the whole process
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            if processor._attention_backend == getattr(processor, "set_here", None):
                processor._attention_backend = processor.set_here = for_diffusers


def _keep_precision(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
    """Casts back the query/key norm, which returns float32 under autocast. Flash kernels do not accept float32."""
    return out.to(args[0].dtype)
