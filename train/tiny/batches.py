"""ReasonMini batches for training the embedded default. A batch depends on (seed, step) alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reasonbrain.config.schema import AugmentConfig
from reasonbrain.modules.data.reasonmini.versions import WORLDS
from reasonbrain.train import augment as augmentation

AUGMENT = AugmentConfig(share=0.5, drop=0.08, replace=0.04)  # as in configs/tiny.yaml


def augment(text: str, rng: np.random.Generator, version: int = 1) -> str:
    """Augments an instruction as ``data.augment`` does in configs/tiny.yaml. version: of ReasonMini."""
    return augmentation.augment(text, AUGMENT, np.array(WORLDS[version].vocabulary()), rng)


def samples(
    step: int, size: int, seed: int = 0, records: int = 1 << 20, version: int = 1
) -> tuple[list[Any], np.random.Generator]:
    """Returns ``size`` training samples of a step, and the generator for the step's other random draws."""
    rng, make = np.random.default_rng([seed, step]), WORLDS[version].make
    return [make("train", int(rng.integers(0, records))) for _ in range(size)], rng


def pictures(images: list[Image.Image]) -> Tensor:
    """Stacks images into a tensor [B, 3, H, W] in 0..1."""
    array = np.stack([np.asarray(i) for i in images]).transpose(0, 3, 1, 2).copy()
    return torch.from_numpy(array).float() / 255
