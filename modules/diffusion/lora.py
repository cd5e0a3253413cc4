"""LoRA of FLUX's transformer in diffusers' key names, in and out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from reasonbrain.errors import UserError, reason

OWN = "default"  # peft's name for the adapters that are trained here
PREFIX = "transformer."

log = logging.getLogger(__name__)


def add_lora(transformer: Any, source: str | Path | dict[str, Tensor], name: str, **where: Any) -> None:
    """Adds published adapters beside those that are there. Any form that FluxPipeline reads: diffusers', kohya's.

    source: a file, a folder, a hub id or tensors. name: of the adapters, for ``transformer.set_adapters``. where:
    ``weight_name`` and other arguments of ``FluxPipeline.lora_state_dict``.

    Raises UserError for a name that is taken, and for adapters that cannot be read or do not fit this transformer."""
    if name in getattr(transformer, "peft_config", {}):
        raise UserError(f"LoRA '{name}': there are adapters of this name; choose another name, or unload them")
    layers = [layer for layer in transformer.modules() if isinstance(layer, LoraLayer)]
    active = layers[0].active_adapters if layers else []
    shown = "tensors" if isinstance(source, dict) else source
    try:
        given = dict(source) if isinstance(source, dict) else str(source)
        state, alphas = FluxLoraLoaderMixin.lora_state_dict(given, return_alphas=True, use_safetensors=True, **where)
        fits = {key: value for key, value in state.items() if key.startswith(PREFIX)}
        if not fits:
            raise ValueError("it has no layers of FLUX's transformer")
        first = f"{PREFIX}x_embedder.lora_A.weight"
        if first in fits:  # the inputs added here are its last
            fits[first] = F.pad(fits[first], (0, transformer.x_embedder.in_features - fits[first].shape[1]))
        transformer.load_lora_adapter(fits, network_alphas=alphas, adapter_name=name)
    except Exception as e:  # readers and peft raise whatever a strange file leads to
        remove_lora(transformer, name)
        for layer in layers:
            layer.set_adapter(active)
        raise UserError(f"LoRA '{shown}' cannot be loaded: {reason(e)}") from None
    transformer.set_adapters([*active, name])
    for key, p in transformer.named_parameters():
        if f".{name}." in key:
            p.requires_grad_(False)
    if left_out := len(state) - len(fits):
        log.warning("LoRA '%s': %d tensors of text encoders are left out; FLUX reads none here", shown, left_out)


def remove_lora(transformer: Any, name: str) -> None:
    """Removes adapters that ``add_lora`` added, and the layers that were there for them alone."""
    if name in getattr(transformer, "peft_config", {}):
        transformer.delete_adapters(name)
    for path, layer in list(transformer.named_modules()):
        if isinstance(layer, LoraLayer) and not layer.lora_A:
            transformer.set_submodule(path, layer.get_base_layer())


def added(transformer: Any) -> list[str]:
    """The names of adapters that ``add_lora`` added."""
    return [name for name in getattr(transformer, "peft_config", {}) if name != OWN]


def own_lora(transformer: nn.Module) -> dict[str, Tensor]:
    """The adapters trained here, as ``FluxPipeline.load_lora_weights`` reads them. Their scale is 1. Raises UserError
    if there are none."""
    found = {
        f"{PREFIX}{path}.{part}.weight": getattr(layer, part)[OWN].weight.detach().contiguous()
        for path, layer in transformer.named_modules()
        if isinstance(layer, LoraLayer) and OWN in layer.lora_A
        for part in ("lora_A", "lora_B")
    }
    if not found:
        raise UserError("model.diffusion has no LoRA adapters; train it with model.diffusion.trained=lora")
    return found
