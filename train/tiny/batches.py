"""Batches of ReasonMini for the stages of the embedded default: a batch is a function of (seed, step)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reasonbrain.config.schema import AugmentConfig
from reasonbrain.modules.data.reasonmini.world import Sample, make, vocabulary
from reasonbrain.train import augment as augmentation

AUGMENT = AugmentConfig(share=0.5, drop=0.08, replace=0.04)  # as in configs/tiny.yaml


def augment(text: str, rng: np.random.Generator) -> str:
    """An instruction as ``data.augment`` of configs/tiny.yaml changes it."""
    return augmentation.augment(text, AUGMENT, np.array(vocabulary()), rng)


def samples(step: int, size: int, seed: int = 0, records: int = 1 << 20) -> tuple[list[Sample], np.random.Generator]:
    """``size`` training records of a step, and the generator for everything else that the step draws."""
    rng = np.random.default_rng([seed, step])
    return [make("train", int(rng.integers(0, records))) for _ in range(size)], rng


def pictures(images: list[Image.Image]) -> Tensor:
    """[B, 3, H, W] in 0..1."""
    array = np.stack([np.asarray(i) for i in images]).transpose(0, 3, 1, 2).copy()
    return torch.from_numpy(array).float() / 255
