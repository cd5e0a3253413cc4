"""CME ``hybrid``: the Cross-Modal Enhancer (paper, section on CME): five hybrid blocks.

Visual side of a block, with x the queries and F = E_I(I):
    F1 = CrossAttn(x, V^)     F2 = CrossAttn(F, R_V)     V- = LN(F1 + F2 fused)     x = CrossAttn(V-, [F2, R_V])
The textual side is the same with E_T(H) and R_T. F1 and F2 differ in length, so F2 is fused by attention from F1.
Then the sides read each other, which is what makes the enhancement bidirectional: what the text says changes R-_V,
what the picture shows changes R-_T.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from reasonbrain.interfaces import Condition, Cues, Features
from reasonbrain.modules.common.layers import CrossBlock
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register


class Enhancer(nn.Module):
    """One side of one hybrid block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.guided, self.detailed, self.fused, self.read = (CrossBlock(width, heads) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, guidance: Tensor, features: Tensor, features_mask: Tensor, cues: Tensor, cues_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries [B, Q, D] -> enhanced [B, Q, D], and the refined features F2 [B, N, D] for the next block."""
        f1 = self.guided(x, guidance)
        f2 = self.detailed(features, cues, cues_mask)
        v = self.norm(self.fused(f1, f2, features_mask))
        context, mask = torch.cat([f2, cues], dim=1), torch.cat([features_mask, cues_mask], dim=1)
        return self.read(v, context, mask), f2


class HybridBlock(nn.Module):
    """Visual-oriented and textual-oriented enhancer, then an exchange in both directions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.visual, self.textual = Enhancer(width, heads), Enhancer(width, heads)
        self.to_visual, self.to_textual = CrossBlock(width, heads), CrossBlock(width, heads)

    def forward(
        self,
        xv: Tensor,
        xt: Tensor,
        patches: Tensor,
        patches_mask: Tensor,
        text: Tensor,
        text_mask: Tensor,
        guidance: Tensor,
        cues: Cues,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Both sides' queries [B, Q, D] and features -> the same, enhanced, and how much the visual queries look at
        each patch [B, N]."""
        xv, patches = self.visual(xv, guidance, patches, patches_mask, cues.visual, cues.visual_mask)
        xt, text = self.textual(xt, guidance, text, text_mask, cues.textual, cues.textual_mask)
        focus = self.visual.fused.weights(xv, patches)
        return self.to_visual(xv, xt), self.to_textual(xt, xv), patches, text, focus


@register("cme", "hybrid")
class HybridEnhancer(Plugin):
    """The Cross-Modal Enhancer: hybrid blocks whose visual and textual sides read each other.

    Args:
        blocks: number of hybrid blocks (paper: 5)
        queries: tokens of R-_V and of R-_T each
        heads: attention heads; they divide ``width``
    """

    @register_to_config
    def __init__(self, width: int, blocks: int = 5, queries: int = 77, heads: int = 8) -> None:
        super().__init__()
        self.visual_queries = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.textual_queries = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.hybrid_blocks = nn.ModuleList(HybridBlock(width, heads) for _ in range(blocks))
        self.visual_norm, self.textual_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def repeated(self) -> list[nn.Module]:
        return list(self.hybrid_blocks)

    def forward(self, features: Features, cues: Cues, guidance: Tensor) -> Condition:
        """V^ [B, Q, D] and the cues -> R-_V and R-_T, [B, queries, D] each."""
        batch = guidance.shape[0]
        patches, text = features.patches, features.text
        patches_mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        xv, xt = (q.expand(batch, -1, -1) for q in (self.visual_queries, self.textual_queries))
        text_mask, focus = features.text_mask, None
        for block in self.hybrid_blocks:
            xv, xt, patches, text, looked = block(xv, xt, patches, patches_mask, text, text_mask, guidance, cues)
            if patches.shape[1]:
                focus = (looked / looked.sum(-1, keepdim=True)).unflatten(1, features.grid)
        return Condition(self.visual_norm(xv), self.textual_norm(xt), features.pooled, focus)
