"""FRCE patch branch ``patch_encoder``: local visual cues of the patches (ReasonBrain's VRCB, arXiv:2507.01908)."""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from reasonbrain.interfaces import Features
from reasonbrain.modules.common.layers import SelfBlock
from reasonbrain.modules.common.precision import cast
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register


@register("frce.patch", "patch_encoder")
class PatchEncoder(Plugin):
    """A transformer over the image patches that gives local visual cues.

    Args:
        layers: number of self-attention blocks
        heads: number of attention heads; must divide ``width``
        pool: side of the square of patches that is averaged into one cue; 1 keeps one cue per patch
    """

    @register_to_config
    def __init__(self, width: int, layers: int = 4, heads: int = 8, pool: int = 1) -> None:
        super().__init__()
        if pool < 1:
            raise ValueError(f"pool={pool} must be 1 or more")
        self.blocks = nn.ModuleList(SelfBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def repeated(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, features: Features) -> Tensor:
        """patches [B, N, D] -> cues [B, N / pool^2, D]; rows and columns left over by ``pool`` are dropped."""
        x = cast(features.patches, self.dtype)
        if x.shape[1] == 0:
            return x
        for block in self.blocks:
            x = block(x)
        rows, columns = features.grid
        p = self.config.pool
        x = rearrange(
            x[:, : rows * columns].unflatten(1, features.grid)[:, : rows // p * p, : columns // p * p],
            "b (h p) (w q) d -> b (h w) (p q) d",
            p=p,
            q=p,
        )
        return self.norm(x.mean(2))
