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
from transformers import AutoImageProcessor, SamConfig, SamImageProcessorPil, SamModel

from reasonbrain.modules.common.published import load_published
from reasonbrain.modules.frce.regions import RegionEncoder, by_area
from reasonbrain.registry import register
from reasonbrain.utils.images import to_uint8


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
        points_per_batch: number of points per forward pass
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

    @torch.no_grad()
    def segment(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in 0..1 -> labels [B, H, W] int64; 0 is the largest region, -1 is outside all masks."""
        return torch.from_numpy(np.stack([paint(self._masks(p)) for p in to_uint8(images)])).to(images.device)

    def _masks(self, picture: np.ndarray) -> np.ndarray:
        """Segments an image [H, W, 3] uint8 into masks [K, H, W] bool."""
        inputs = self.processor(images=picture, input_data_format="channels_last", return_tensors="pt")
        sizes = inputs["original_sizes"].tolist(), inputs["reshaped_input_sizes"].tolist()
        embedding = self.sam.get_image_embeddings(inputs["pixel_values"].to(self.sam.device, self.sam.dtype))
        height, width = sizes[1][0]
        side = (torch.arange(self.config.points_per_side) + 0.5) / self.config.points_per_side
        grid = torch.stack(torch.meshgrid(side * width, side * height, indexing="xy"), dim=-1).view(1, -1, 1, 2)
        found, scores = [], []
        for points in grid.to(embedding).split(self.config.points_per_batch, dim=1):
            out = self.sam(image_embeddings=embedding, input_points=points)
            found.append(out.pred_masks.flatten(1, 2)[0].float())
            scores.append(out.iou_scores.flatten().float())
        logits = torch.cat(found)
        share = logits.shape[-1] / self.processor.pad_size["width"]
        inside = logits[:, : math.ceil(height * share), : math.ceil(width * share)]  # crop SAM's padding
        kept = select(inside, torch.cat(scores), self.config.iou_threshold, self.config.stability_threshold)
        if len(kept) == 0:
            return np.zeros((0, *picture.shape[:2]), dtype=bool)
        return self.processor.post_process_masks([logits[None, kept]], *sizes)[0][0].cpu().numpy()
