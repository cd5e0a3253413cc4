"""Batches of ReasonMini for the stages of the embedded default: a batch is a function of (seed, step)."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reasonbrain.modules.data.reasonmini.world import Sample, make


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the training phrasings, for ``augment``."""
    texts = [make("train", i).instruction for i in range(4000)]
    return tuple(sorted({w for t in texts for w in t.split()}))


def augment(text: str, rng: np.random.Generator, rate: float = 0.08) -> str:
    """The text with a few words left out, doubled with a neighbour or replaced at random, half of the time:
    what a phrasing means should not hang on a single word of it."""
    if rng.random() < 0.5:
        return text
    words = []
    for word in text.split():
        draw = rng.random()
        if draw < rate:
            continue
        words.append(str(rng.choice(vocabulary())) if draw < 1.5 * rate else word)
    return " ".join(words) or text


def samples(step: int, size: int, seed: int = 0, records: int = 1 << 20) -> tuple[list[Sample], np.random.Generator]:
    """``size`` training records of a step, and the generator for everything else that the step draws."""
    rng = np.random.default_rng([seed, step])
    return [make("train", int(rng.integers(0, records))) for _ in range(size)], rng


def pictures(images: list[Image.Image]) -> Tensor:
    """[B, 3, H, W] in 0..1."""
    array = np.stack([np.asarray(i) for i in images]).transpose(0, 3, 1, 2).copy()
    return torch.from_numpy(array).float() / 255
