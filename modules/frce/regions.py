"""FRCE region branch: object-level visual cues (ReasonBrain's VRCB, arXiv:2507.01908).

The plug-ins differ in their segmentation: ``superpixel`` (scikit-image, no weights) and ``sam`` (sam.py).
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from skimage import segmentation
from torch import Tensor, nn
from torch.nn import functional as F

from reasonbrain.interfaces import Features, no_mask, no_tokens
from reasonbrain.modules.common.layers import SelfBlock
from reasonbrain.modules.common.precision import cast
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register
from reasonbrain.utils.images import to_uint8


class RegionEncoder(Plugin):
    """Pools the patch features of each region, adds an embedding of its position and size, and applies self-attention.

    Args:
        layers: number of self-attention blocks over the regions
        heads: number of attention heads; must divide ``width``
        max_regions: R, the number of cues; the smallest regions in excess of R share the last one
    """

    def build(self, width: int, layers: int, heads: int) -> None:
        self.place = nn.Linear(5, width)
        self.blocks = nn.ModuleList(SelfBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def repeated(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, features: Features, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cues [B, R, D] and their mask [B, R], with R = ``max_regions``.

        ``regions`` [B, H, W] holds region labels, -1 for pixels outside all regions.
        """
        x = cast(features.patches, self.dtype)
        if x.shape[1] == 0:
            return no_tokens(x), no_mask(x)
        labels = regions.clamp(max=self.config.max_regions - 1)[:, None]
        known = [self._measure(labels == label, features.grid) for label in range(self.config.max_regions)]
        area, share, geometry = (torch.cat(parts, dim=1) for parts in zip(*known, strict=True))
        mask = area > 0
        total = share.sum(-1, keepdim=True).clamp(min=1e-6)
        pooled = share.to(x.dtype) @ x / total.to(x.dtype)
        x = self.norm(pooled + self.place(geometry.to(x.dtype)))
        for block in self.blocks:
            x = block(x, mask)
        return x * mask[..., None], mask

    @staticmethod
    def _measure(inside: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Area [B, 1], shares of the patches [B, 1, N] and geometry [B, 1, 5] of one region, a mask [B, 1, H, W]. One
        at a time, because the masks of 64 regions at 1024 x 1024 pixels take 256 MiB for each image."""
        member = inside.float()  # in 16 bits positions would be too coarse
        area = member.mean((2, 3))
        return area, F.adaptive_avg_pool2d(member, grid).flatten(2), region_geometry(member, area)


def region_geometry(member: Tensor, area: Tensor) -> Tensor:
    """Position and size of each region, [B, R, 5] in 0..1: centre (x, y), standard deviation (x, y), root of the area.

    Args:
        member: region masks [B, R, H, W]
        area: share of the image that each region covers, [B, R]
    """
    h, w = member.shape[-2:]
    y = torch.linspace(0, 1, h, device=member.device, dtype=member.dtype).view(1, 1, h, 1)
    x = torch.linspace(0, 1, w, device=member.device, dtype=member.dtype).view(1, 1, 1, w)
    total = area.clamp(min=1e-6)
    moments = [(member * v).mean((2, 3)) / total for v in (x, y, x * x, y * y)]
    spread = [(moments[i + 2] - moments[i] ** 2).clamp(min=0).sqrt() for i in (0, 1)]
    return torch.stack([moments[0], moments[1], *spread, area.sqrt()], dim=-1)


@register("frce.region", "superpixel")
class SuperpixelRegions(RegionEncoder):
    """Object-level visual cues of regions from Felzenszwalb's graph-based segmentation. It has no weights, and is
    sufficient for objects of uniform colour.

    Args:
        scale: Felzenszwalb's scale; a larger value gives larger regions
        min_share: regions smaller than this fraction of the image are merged into a neighbour
    """

    @register_to_config
    def __init__(
        self,
        width: int,
        layers: int = 2,
        heads: int = 8,
        max_regions: int = 24,
        scale: float = 100.0,
        min_share: float = 0.004,
    ) -> None:
        super().__init__()
        self.build(width, layers, heads)

    def segment(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in 0..1 -> labels [B, H, W] int64; label 0 is the largest region."""
        return torch.from_numpy(np.stack([self._segment_one(p) for p in to_uint8(images)])).to(images.device)

    def _segment_one(self, picture: np.ndarray) -> np.ndarray:
        smallest = max(1, round(self.config.min_share * picture.shape[0] * picture.shape[1]))
        labels = segmentation.felzenszwalb(picture, self.config.scale, sigma=0.3, min_size=smallest)
        return by_area(labels)


def by_area(labels: np.ndarray) -> np.ndarray:
    """Renumbers a label map by descending area; int64."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return rank[inverse].reshape(labels.shape)
