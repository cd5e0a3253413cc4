"""Which kernel attention is computed with (``model.attention``).

    sdpa                torch's fused kernels: any device, any precision, masks too
    math                plain matrix products; on a CPU the fastest to train with (docs/log.md)
    flash_attention_2   the package flash-attn, extra [flash]
    flash_attention_3   the same for Hopper GPUs, built from its source
    auto                the fastest of these that works here

The flash kernels want a GPU and 16 bits. They serve the published models whose library can use them (FLUX, the MLLM;
CLIP where it computes in 16 bits); the MLLM's masks are handled by transformers, which leaves out the masked tokens.
The blocks of modules/layers.py, whose masks such a kernel does not take, and the QFormer stay with ``sdpa``; so does
always what prepares records, so that features on disk are the same whatever trains with them.
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
from reasonbrain.errors import UserError
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
    """Why a flash kernel does not work here, found out by trying it; None if it does."""
    if not FLASH[name]():
        return "its package is not installed or sees no GPU"
    qkv = torch.zeros(1, 8, 1, 64, device=device, dtype=dtype)
    try:
        with attention_backend(NAMES[name][0]):
            dispatch_attention_fn(qkv, qkv, qkv)
    except Exception as e:  # packages, their kernels and CUDA have no error in common
        return str(e).splitlines()[0] if str(e) else type(e).__name__
    return None


@cache
def choose(name: str, device: torch.device, dtype: torch.dtype, training: bool = False) -> str:
    """The kernel that ``name`` means here; what ``auto`` takes is logged once.

    Raises UserError for a kernel that does not work here."""
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


def set_attention(model: ReasonBrain, name: str, training: bool = False, autocast: torch.dtype | None = None) -> str:
    """Lets every slot compute attention as ``model.attention`` says, and returns the kernel's name.

    To be called where the model is on its device. ``autocast``: the precision that the caller computes in, None for
    that of the weights. Raises UserError like ``choose``."""
    lowest = next((p.dtype for p in model.parameters() if p.dtype in HALF), torch.float32)
    found = choose(name, model.device, autocast or lowest, training)
    for slot in model.parts.values():
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
    """``part`` is a whole published model, or a layer of ours."""
    for_diffusers, for_transformers = NAMES[name]
    if isinstance(part, PreTrainedModel):
        part.set_attn_implementation(for_transformers)
        return
    for module in part.modules():
        if name in FLASH and isinstance(module, nn.RMSNorm) and _keep_precision not in module._forward_hooks.values():
            module.register_forward_hook(_keep_precision)
        if hasattr(module, "plain_attention"):
            module.plain_attention = name == "math"
        # what diffusers' set_attention_backend does too, but that changes the default of the whole process as well
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = for_diffusers


def _keep_precision(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
    """Autocast lets the norm of queries and keys give float32, which no flash kernel takes."""
    return out.to(args[0].dtype)
