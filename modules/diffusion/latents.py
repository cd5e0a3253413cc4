"""Images to the latents of an autoencoder of diffusers and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reasonbrain.modules.common.precision import cast


def shift(vae: Any) -> float:
    """The VAE's shift of latents. Only those made for FLUX have one."""
    return vae.config.get("shift_factor") or 0.0


@torch.no_grad()
def encode(vae: Any, images: Tensor) -> Tensor:
    """images [B, 3, H, W] in 0..1 -> latents [B, C, h, w], (z - shift_factor) * scaling_factor, in the dtype of the
    images."""
    encoded = vae.encode(cast(images * 2 - 1, vae.dtype))
    latents = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()  # AutoencoderTiny, others
    return (latents.to(images.dtype) - shift(vae)) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """latents [B, C, h, w] -> images [B, 3, H, W], clamped to 0..1; the inverse of ``encode``."""
    latents = unscaled(vae, latents)
    return (vae.decode(cast(latents, vae.dtype)).sample.to(latents.dtype) / 2 + 0.5).clamp(0, 1)


def unscaled(vae: Any, latents: Tensor) -> Tensor:
    """The latents that the VAE itself reads and writes."""
    return latents / vae.config.scaling_factor + shift(vae)
