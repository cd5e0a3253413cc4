"""Stage 1 of the embedded default: a KL autoencoder (diffusers' AutoencoderKL, FLUX's layout) on ReasonMini.

    python -m reasonbrain.train.tiny.autoencoder -o runs/tiny/vae
    python -m reasonbrain.train.tiny.autoencoder --version 2 --steps 5000 --bf16 -o runs/tiny2/vae

``--version 2`` is for the default's second edition: images of 128 x 128 and FLUX's factor of 8, where version 1 has
images of 64 x 64 and a factor of 4. Writes a diffusers folder. ``scaling_factor`` and ``shift_factor`` are set so that
latents have mean 0 and standard deviation 1.
"""

from __future__ import annotations

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from reasonbrain.config.schema import TrainConfig
from reasonbrain.modules.data.reasonmini.canvas import PALETTE, Canvas, Color
from reasonbrain.modules.data.reasonmini.versions import WORLDS
from reasonbrain.modules.data.reasonmini.world import BACKGROUNDS, FLOOR
from reasonbrain.modules.data.reasonmini2.world import jumble
from reasonbrain.train.loop import Loop

ARCHITECTURE = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CHANNELS = {1: [16, 32, 64], 2: [32, 64, 128, 128]}  # by version of ReasonMini


def architecture(version: int) -> dict[str, Any]:
    """The configuration of diffusers' AutoencoderKL."""
    levels = len(CHANNELS[version])
    return ARCHITECTURE | {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": CHANNELS[version],
        "sample_size": WORLDS[version].size,
    }


def scribble(rng: np.random.Generator) -> Image.Image:
    """Draws random shapes, 64 x 64 pixels, so that the autoencoder generalises beyond ReasonMini's scenes."""
    canvas = Canvas(WORLDS[1].size)
    wall, floor = BACKGROUNDS[str(rng.choice(list(BACKGROUNDS)))]
    canvas.rect((0, 0, 1, 1), wall)
    canvas.rect((0, FLOOR, 1, 1), floor)
    for _ in range(int(rng.integers(3, 9))):
        red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
        color: Color = str(rng.choice(list(PALETTE))) if rng.random() < 0.7 else (red, green, blue)
        x, y, w, h = rng.uniform(0, 1, 2).tolist() + rng.uniform(0.04, 0.3, 2).tolist()
        shape = int(rng.integers(0, 5))
        if shape == 0:
            canvas.rect((x - w, y - h, x + w, y + h), color)
        elif shape == 1:
            canvas.ellipse((x - w, y - h, x + w, y + h), color)
        elif shape == 2:
            canvas.polygon([tuple(p) for p in rng.uniform(-0.3, 0.3, (3, 2)) + (x, y)], color)
        elif shape == 3:
            canvas.line([tuple(p) for p in rng.uniform(0, 1, (2, 2))], float(rng.uniform(0.01, 0.06)), color)
        else:
            canvas.star((x, y), w, color)
    return canvas.image()


def batch(step: int, size: int, version: int = 1, seed: int = 0, jumbled: float = 0.15) -> Tensor:
    """The images of one step, [size, 3, H, W] in -1..1: sources, targets, and a share ``jumbled`` of other images
    (``scribble``, in version 2 ``jumble``)."""
    rng = np.random.default_rng([seed, step])
    world, other = WORLDS[version], {1: scribble, 2: jumble}[version]
    pictures: list[Image.Image] = []
    while len(pictures) < size:
        if rng.random() < jumbled:
            pictures.append(other(rng))
        else:
            sample = world.make("train", int(rng.integers(0, 1 << 30)), size=world.size)
            pictures += [sample.source, sample.target]
    array = np.stack([np.asarray(p) for p in pictures[:size]]).transpose(0, 3, 1, 2).copy()
    return torch.from_numpy(array).float() / 127.5 - 1


def losses(vae: AutoencoderKL, pictures: Tensor, kl_weight: float = 1e-6) -> dict[str, Tensor]:
    """L1 error, squared error and a weighted KL divergence of the posterior from a standard normal."""
    posterior = vae.encode(pictures).latent_dist
    decoded = vae.decode(posterior.sample()).sample
    l1 = (decoded - pictures).abs().mean()
    kl = posterior.kl().mean()
    return {"loss": l1 + (decoded - pictures).square().mean() + kl_weight * kl, "l1": l1 / 2, "kl": kl}


@torch.no_grad()
def normalise(vae: AutoencoderKL, count: int = 512, version: int = 1) -> None:
    """Sets the scaling and shift factors that give latents mean 0 and standard deviation 1."""
    latents = torch.cat([vae.encode(batch(10**6 + i, 32, version)).latent_dist.mode() for i in range(count // 32)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))


def main() -> None:
    """Trains and writes the autoencoder: the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--jumbled", type=float, default=0.15, help="fraction of images that are not of the data set")
    parser.add_argument("--version", type=int, choices=sorted(WORLDS), default=1, help="of ReasonMini")
    parser.add_argument("--bf16", action="store_true", help="faster on GPUs, and on CPUs with AMX")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(architecture(args.version)).to(memory_format=torch.channels_last)
    loop = Loop(vae, TrainConfig(steps=args.steps, lr=args.lr, save_every=200, bf16=args.bf16), args.output)
    loop.resume()

    def batches(step: int, part: int) -> Tensor:
        made = batch(step, args.batch_size, args.version, jumbled=args.jumbled)
        return made.contiguous(memory_format=torch.channels_last)

    loop.fit(batches, partial(losses, vae))
    loop.engine.use_average()
    normalise(vae.eval(), version=args.version)
    vae.save_pretrained(args.output)


if __name__ == "__main__":
    main()
