"""FRCE region plug-in ``sam``: regions from Segment Anything (transformers' SamModel), prompted with a grid of points.

transformers' mask generation pipeline needs torchvision, so the masks are filtered here by SAM's own rules: predicted
IoU, stability score, and non-maximum suppression, applied to masks instead of boxes. The remaining masks are painted
into one label map, small masks over large ones.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, SamConfig, SamImageProcessorPil, SamModel

from reasonbrain.modules.common.published import load_published
from reasonbrain.modules.frce.regions import RegionEncoder, by_area
from reasonbrain.registry import register

PICTURES = 4  # at a time: in SAM ViT-H, the attention of one takes 1 GiB in float32 (16 heads, 4096 x 4096 tokens)


def select(logits: Tensor, scores: Tensor, iou: float, stability: float, overlap: float = 0.7) -> Tensor:
    """Filters SAM's masks; returns the indices of those kept, by descending score.

    Args:
        logits: mask logits [K, h, w]
        scores: predicted IoU of each mask [K]
        iou: lower bound of the predicted IoU
        stability: lower bound of the stability score, the IoU between the masks at logit thresholds +1 and -1
        overlap: a mask is dropped if its IoU with a better one exceeds this
    """
    low, high = ((logits > offset).sum((1, 2)) for offset in (-1.0, 1.0))
    good = (scores > iou) & (high > stability * low)
    order = torch.where(good, scores, -torch.inf).argsort(descending=True, stable=True)[: int(good.sum())]
    masks = (logits[order] > 0).flatten(1).float()
    shared = masks @ masks.T
    area = shared.diagonal()
    ious = (shared / (area[:, None] + area - shared).clamp(min=1)).cpu()
    kept: list[int] = []
    for i in range(len(order)):
        if not (ious[i, kept] > overlap).any():
            kept.append(i)
    return order[kept]


def paint(masks: np.ndarray) -> np.ndarray:
    """Masks [K, H, W] bool -> labels [H, W] int64, -1 outside all masks.

    Smaller masks are painted over larger ones. Labels are numbered by descending visible area.
    """
    labels = np.full(masks.shape[1:], -1, dtype=np.int64)
    for i in np.argsort(-masks.sum((1, 2)), kind="stable"):
        labels[masks[i]] = i
    shown = labels >= 0
    if shown.any():
        labels[shown] = by_area(labels[shown])
    return labels


@register("frce.region", "sam")
class SamRegions(RegionEncoder):
    """Object-level visual cues of regions from a frozen SAM. It is prompted with a grid of points and predicts three
    masks for each point.

    Args:
        pretrained: a SAM model: a hub id or a folder
        architecture: a SAM config; the model is built from it, without pretrained weights
        points_per_side: number of points along a side of the grid
        points_per_batch: number of points per forward pass, over all images of a batch
        iou_threshold: masks with a lower predicted IoU are dropped, as in SAM's automatic mask generator
        stability_threshold: masks with a lower stability score are dropped, as in SAM's automatic mask generator
    """

    weight_sources = ("pretrained",)
    preparing = ("sam",)

    @register_to_config
    def __init__(
        self,
        width: int,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        layers: int = 2,
        heads: int = 8,
        max_regions: int = 64,
        points_per_side: int = 16,
        points_per_batch: int = 64,
        iou_threshold: float = 0.88,
        stability_threshold: float = 0.95,
    ) -> None:
        super().__init__()
        self.processor: Any = None
        if architecture is None:
            source = self.needs_weights(pretrained)
            self.sam = load_published(SamModel, source)
            self.load_assets(source)
            self.register_to_config(architecture=self.sam.config.to_diff_dict())
        else:
            self.sam = SamModel(SamConfig.from_dict(architecture))
        self.build(width, layers, heads)
        self.freeze(self.sam)

    def save_assets(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)

    def load_assets(self, folder: Path | str) -> None:
        self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)

    def stand_in_assets(self) -> None:
        self.processor = SamImageProcessorPil()

    def tie_weights(self) -> None:
        self.sam.tie_weights()

    def pixels(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """SAM's input [B, 3, side, side] of images [B, 3, H, W] in 0..1, as its processor makes it, on their device:
        the longest side scaled, normalised, padded with zeros. Also returns the height and width without padding."""
        scale = self.processor.size["longest_edge"] / max(images.shape[-2:])
        height, width = (max(1, int(side * scale + 0.5)) for side in images.shape[-2:])
        scaled = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
        mean, std = (scaled.new_tensor(v).view(3, 1, 1) for v in (self.processor.image_mean, self.processor.image_std))
        pad = self.processor.pad_size
        return F.pad((scaled - mean) / std, (0, pad["width"] - width, 0, pad["height"] - height)), (height, width)

    @torch.no_grad()
    def segment(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in 0..1 -> labels [B, H, W] int64; 0 is the largest region, -1 is outside all masks."""
        found = [paint(masks) for part in images.split(PICTURES) for masks in self._masks(part)]
        return torch.from_numpy(np.stack(found)).to(images.device)

    def _masks(self, images: Tensor) -> list[np.ndarray]:
        """The masks [K, H, W] bool of each image."""
        pixels, (height, width) = self.pixels(images)
        embedding = self.sam.get_image_embeddings(pixels.to(self.sam.dtype))
        side = (torch.arange(self.config.points_per_side) + 0.5) / self.config.points_per_side
        grid = torch.stack(torch.meshgrid(side * width, side * height, indexing="xy"), dim=-1).view(1, -1, 1, 2)
        points_of_each = max(1, self.config.points_per_batch // len(images))
        found, scores = [], []
        for points in grid.to(embedding).split(points_of_each, dim=1):
            out = self.sam(image_embeddings=embedding, input_points=points.expand(len(images), -1, -1, -1))
            found.append(out.pred_masks.flatten(1, 2).float())
            scores.append(out.iou_scores.flatten(1).float())
        share = found[0].shape[-1] / self.processor.pad_size["width"]
        rows, columns = math.ceil(height * share), math.ceil(width * share)  # without SAM's padding
        sizes = [images.shape[-2:]], [(height, width)]
        masks = []
        for logits, quality in zip(torch.cat(found, dim=1), torch.cat(scores, dim=1), strict=True):
            inside = logits[:, :rows, :columns]
            kept = select(inside, quality, self.config.iou_threshold, self.config.stability_threshold)
            if len(kept):
                masks.append(self.processor.post_process_masks([logits[None, kept]], *sizes)[0][0].cpu().numpy())
            else:
                masks.append(np.zeros((0, *images.shape[-2:]), dtype=bool))
        return masks
