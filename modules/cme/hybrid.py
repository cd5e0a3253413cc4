"""CME ``hybrid``: the Cross-Modal Enhancer of ReasonBrain (arXiv:2507.01908), a stack of five hybrid blocks.

The visual side of a block computes, with queries x and image features F = E_I(I):

    F1 = CrossAttn(x, V^)     F2 = CrossAttn(F, R_V)     V- = LN(F1 + F2 fused)     x = CrossAttn(V-, [F2, R_V])

The textual side does the same with E_T(H) and R_T. F1 and F2 differ in length, so F2 is fused into F1 by
cross-attention. The two sides then attend to each other (bidirectional interaction).
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from reasonbrain.interfaces import Condition, Cues, Features
from reasonbrain.modules.common.layers import CrossBlock
from reasonbrain.modules.common.precision import cast
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register


class Enhancer(nn.Module):
    """The visual or the textual side of a hybrid block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.guided, self.detailed, self.fused, self.read = (CrossBlock(width, heads) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, guidance: Tensor, features: Tensor, features_mask: Tensor, cues: Tensor, cues_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the enhanced queries [B, Q, D] and the refined features F2 [B, N, D], the next block's input.

        Args:
            x: queries [B, Q, D]
            guidance: V^ [B, G, D]
            features: encoder features [B, N, D]
            features_mask: [B, N], true for valid tokens
            cues: R_V or R_T [B, K, D]
            cues_mask: [B, K], true for valid cues
        """
        f1 = self.guided(x, guidance)
        f2 = self.detailed(features, cues, cues_mask)
        v = self.norm(self.fused(f1, f2, features_mask))
        context, mask = torch.cat([f2, cues], dim=1), torch.cat([features_mask, cues_mask], dim=1)
        return self.read(v, context, mask), f2


class HybridBlock(nn.Module):
    """A visual and a textual enhancer, followed by cross-attention in both directions."""

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
        """Returns the enhanced queries of both sides [B, Q, D], the refined features of both sides, and the attention
        of the visual queries on each patch [B, N].

        Args:
            xv: visual queries [B, Q, D]
            xt: textual queries [B, Q, D]
            patches: image features [B, N, D]
            patches_mask: [B, N], true for valid patches
            text: text features [B, L, D]
            text_mask: [B, L], true for valid tokens
            guidance: V^ [B, G, D]
            cues: R_V and R_T
        """
        xv, patches = self.visual(xv, guidance, patches, patches_mask, cues.visual, cues.visual_mask)
        xt, text = self.textual(xt, guidance, text, text_mask, cues.textual, cues.textual_mask)
        focus = self.visual.fused.weights(xv, patches)
        return self.to_visual(xv, xt), self.to_textual(xt, xv), patches, text, focus


@register("cme", "hybrid")
class HybridEnhancer(Plugin):
    """The Cross-Modal Enhancer: hybrid blocks whose visual and textual sides attend to each other.

    Args:
        blocks: number of hybrid blocks (paper: 5)
        queries: number of tokens in each of R-_V and R-_T
        heads: number of attention heads; must divide ``width``
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
        """Returns R-_V and R-_T, [B, queries, D] each, with the last block's attention map over the patches.

        ``guidance`` is V^ [B, Q, D]; Q is 0 without an MLLM.
        """
        batch = guidance.shape[0]
        patches, text, guidance = (cast(t, self.dtype) for t in (features.patches, features.text, guidance))
        cues = cues._replace(visual=cast(cues.visual, self.dtype), textual=cast(cues.textual, self.dtype))
        patches_mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        xv, xt = (q.expand(batch, -1, -1) for q in (self.visual_queries, self.textual_queries))
        text_mask, focus = features.text_mask, None
        for block in self.hybrid_blocks:
            xv, xt, patches, text, looked = block(xv, xt, patches, patches_mask, text, text_mask, guidance, cues)
            if patches.shape[1]:
                focus = (looked / looked.sum(-1, keepdim=True)).unflatten(1, features.grid)
        return Condition(self.visual_norm(xv), self.textual_norm(xt), features.pooled, focus)
