"""FRCE text branch ``id_controller``: the textual cues R_T (ReasonBrain's TRCB, arXiv:2507.01908).

The object tokens cross-attend to the visual cues and pass through a feed-forward layer. This ties each named object to
its appearance, so that its identity is kept through the edit.
"""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from reasonbrain.interfaces import Features
from reasonbrain.modules.common.layers import CrossBlock
from reasonbrain.modules.common.precision import cast
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register


@register("frce.text", "id_controller")
class IdController(Plugin):
    """Computes R_T from the object tokens by cross-attention to R_V.

    Args:
        layers: number of cross-attention blocks
        heads: number of attention heads; must divide ``width``
    """

    @register_to_config
    def __init__(self, width: int, layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def repeated(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, features: Features, visual: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
        """objects [B, K, D], visual cues [B, M, D] with mask [B, M] -> R_T [B, K, D], mask [B, K]."""
        x, visual, mask = cast(features.objects, self.dtype), cast(visual, self.dtype), features.objects_mask
        for block in self.blocks:
            x = block(x, visual, visual_mask)
        return self.norm(x) * mask[..., None], mask
