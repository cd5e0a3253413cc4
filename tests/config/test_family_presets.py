"""The configurations of ReasonBrain's family, built at true size on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reasonbrain.config.loading import load_config
from reasonbrain.interfaces import Condition
from reasonbrain.model import ReasonBrain

UNET, VAE, TEXT = 859_532_484, 83_653_863, 123_060_480
SD = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def meta(name: str, *overrides: str) -> ReasonBrain:
    with torch.device("meta"):
        return ReasonBrain.from_config(load_config(name, list(overrides)).model, weights=False)


def count(module: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


@pytest.mark.parametrize("start", [[], [f"model.diffusion.pretrained={SD}"]])
def test_instructpix2pix(start) -> None:
    """Also from Stable Diffusion 1.5, whose UNet has no inputs for the source."""
    model = meta("instructpix2pix", *start)
    sd = model.slot("diffusion")
    assert count(sd.unet) == UNET and count(sd.vae) == VAE
    assert count(model.slot("encoders")) == TEXT
    assert count(model, trained=True) == UNET
    with torch.device("meta"):
        latents, words = sd.encode(torch.rand(1, 3, 256, 256)), torch.rand(1, 77, 768)
        assert latents.shape == (1, 4, 32, 32)
        condition = Condition(words[:, :0], words, torch.rand(1, 768), null=words)
        assert [t.shape for t in sd.errors(condition, latents, latents, [1], 2)] == [(2,), (2,)]
