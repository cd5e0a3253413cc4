"""What a call of the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from reasonbrain.editing.rounds import Round
from reasonbrain.utils.images import to_pil

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class ReasonBrainOutput(BaseOutput):
    """Each list has one entry per edit."""

    # By output_type: a list of PIL, an array [N, H, W, 3] or a tensor [N, 3, H, W] in 0..1, or latents [N, C, h, w];
    # arrays and tensors of different sizes are a list
    images: Any
    objects: list[list[str]]  # names of the key objects
    reasoning: list[str] | None  # the MLLM's sentences, or the given ones; None unless asked for or read by the model
    notes: list[str]  # why the instruction took the place of the sentence; otherwise ""
    unfamiliar: list[bool]  # whether a picture is unlike those in training (``edit.familiar``)
    rounds: list[list[Round]]  # all edits of a picture, of which the best is its result; [] where there is only one
    regions: list[np.ndarray]  # label maps [h, w], -1: no region
    focus: list[np.ndarray | None]  # share of attention on each patch [rows, columns]; None without a CME


def as_type(images: list[Tensor], output_type: str) -> Any:
    """Pictures [3, H, W] in 0..1 or latents, as ``output_type``. Those of one size are stacked."""
    if output_type == "pil":
        return [to_pil(image[None])[0] for image in images]
    one_size = len({image.shape for image in images}) == 1
    if output_type == "np":
        arrays = [image.permute(1, 2, 0).numpy() for image in images]
        return np.stack(arrays) if one_size else arrays
    return torch.stack(images) if one_size else images
