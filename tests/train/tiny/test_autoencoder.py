"""Stage 1 of the embedded default, for both versions of ReasonMini."""

import pytest
import torch
from diffusers import AutoencoderKL

from reasonbrain.modules.data.reasonmini.versions import WORLDS
from reasonbrain.train.tiny.autoencoder import architecture, batch, losses


@pytest.mark.parametrize("version", WORLDS)
def test_a_step(version):
    """A batch depends on its step alone, latents have 16 channels and 16 x 16 positions, and a step lowers the loss."""
    pictures = batch(5, 4, version)
    assert pictures.shape == (4, 3, *[WORLDS[version].size] * 2) and pictures.abs().max() <= 1
    assert torch.equal(pictures, batch(5, 4, version)) and not torch.equal(pictures, batch(6, 4, version))
    assert not torch.equal(batch(5, 4, version, jumbled=1), pictures)
    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(architecture(version))
    assert vae.encode(pictures).latent_dist.mode().shape == (4, 16, 16, 16)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    seen = []
    for _ in range(4):
        found = losses(vae, pictures)["loss"]
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(found.item())
    assert seen[-1] < seen[0]
