"""Stage 1 of the embedded default: a KL autoencoder (diffusers' AutoencoderKL, FLUX's layout) on ReasonMini.

    python -m reasonbrain.train.tiny.autoencoder -o runs/tiny/vae

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
from reasonbrain.modules.data.reasonmini.canvas import PALETTE, Canvas, Color
from reasonbrain.modules.data.reasonmini.world import BACKGROUNDS, FLOOR, make
from reasonbrain.train.loop import Loop

SIZE = 64
ARCHITECTURE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "sample_size": SIZE,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def scribble(rng: np.random.Generator) -> np.ndarray:
    """Draws random shapes, [64, 64, 3] uint8, so that the autoencoder generalises beyond ReasonMini's scenes."""
    canvas = Canvas(SIZE)
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
    return np.asarray(canvas.image())


def batch(step: int, size: int, seed: int = 0, scribbles: float = 0.15) -> Tensor:
    """The images of one step, [size, 3, 64, 64] in -1..1: sources, targets and scribbles."""
    rng = np.random.default_rng([seed, step])
    pictures: list[np.ndarray] = []
    while len(pictures) < size:
        if rng.random() < scribbles:
            pictures.append(scribble(rng))
        else:
            sample = make("train", int(rng.integers(0, 1 << 30)), size=SIZE)
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
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--scribbles", type=float, default=0.15, help="fraction of images with random shapes")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(ARCHITECTURE).to(memory_format=torch.channels_last)
    loop = Loop(vae, TrainConfig(steps=args.steps, lr=args.lr, save_every=200), args.output)
    loop.resume()

    def batches(step: int, part: int) -> Tensor:
        return batch(step, args.batch_size, scribbles=args.scribbles).contiguous(memory_format=torch.channels_last)

    loop.fit(batches, partial(losses, vae))
    loop.engine.use_average()
    normalise(vae.eval())
    vae.save_pretrained(args.output)


if __name__ == "__main__":
    main()
