"""The autoencoder of the embedded default's second edition: FLUX's geometry (diffusers' AutoencoderKL, factor 8, 16
channels) at small size, trained on ReasonMini 2.

    python -m reasonbrain.train.tiny2.autoencoder -o runs/tiny2/vae

Writes a diffusers folder. ``scaling_factor`` and ``shift_factor`` are set so that latents have mean 0 and standard
deviation 1.
"""

from __future__ import annotations

import argparse
import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from reasonbrain.config.schema import TrainConfig
from reasonbrain.modules.data.reasonmini2.world import SIZE, jumble, make
from reasonbrain.train.loop import Loop

ARCHITECTURE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 96],
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "sample_size": SIZE,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def batch(step: int, size: int, seed: int = 0, jumbles: float = 0.2) -> Tensor:
    """The images of one step, [size, 3, 128, 128] in -1..1: sources and targets, and things jumbled together so that
    the autoencoder does not depend on where they usually stand."""
    rng = np.random.default_rng([seed, step])
    pictures: list[np.ndarray] = []
    while len(pictures) < size:
        if rng.random() < jumbles:
            pictures.append(np.asarray(jumble(rng)))
        else:
            sample = make("train", int(rng.integers(0, 1 << 30)))
            pictures += [np.asarray(sample.source), np.asarray(sample.target)]
    array = np.stack(pictures[:size]).transpose(0, 3, 1, 2).copy()
    return torch.from_numpy(array).float() / 127.5 - 1


def losses(vae: AutoencoderKL, pictures: Tensor, kl_weight: float = 1e-6) -> dict[str, Tensor]:
    """L1 error, squared error and a weighted KL divergence of the posterior from a standard normal."""
    posterior = vae.encode(pictures).latent_dist
    decoded = vae.decode(posterior.sample()).sample
    l1 = (decoded - pictures).abs().mean()
    kl = posterior.kl().mean()
    return {"loss": l1 + (decoded - pictures).square().mean() + kl_weight * kl, "l1": l1 / 2, "kl": kl}


@torch.no_grad()
def normalise(vae: AutoencoderKL, count: int = 512) -> None:
    """Sets the scaling and shift factors that give latents mean 0 and standard deviation 1."""
    latents = torch.cat([vae.encode(batch(10**6 + i, 32)).latent_dist.mode() for i in range(count // 32)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))


def main() -> None:
    """Trains and writes the autoencoder: the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(ARCHITECTURE).to(memory_format=torch.channels_last)
    loop = Loop(vae, TrainConfig(steps=args.steps, lr=args.lr, save_every=200), args.output)
    loop.resume()

    def batches(step: int, part: int) -> Tensor:
        return batch(step, args.batch_size).contiguous(memory_format=torch.channels_last)

    loop.fit(batches, partial(losses, vae))
    loop.engine.use_average()
    normalise(vae.eval())
    vae.save_pretrained(args.output)


if __name__ == "__main__":
    main()
