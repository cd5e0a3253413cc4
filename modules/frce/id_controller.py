"""FRCE text branch ``id_controller``: textual cues R_T (paper, TRCB).

The object tokens attend to the visual cues and pass a feed-forward part, so that each named object carries what it
looks like through the edit.
"""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from reasonbrain.interfaces import Features
from reasonbrain.modules.common.layers import CrossBlock
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register


@register("frce.text", "id_controller")
class IdController(Plugin):
    """R_T: the object tokens after cross-attention on R_V.

    Args:
        layers: blocks of cross-attention and feed-forward
        heads: attention heads; they divide ``width``
    """

    @register_to_config
    def __init__(self, width: int, layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def repeated(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, features: Features, visual: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
        """objects [B, K, D], visual [B, M, D] -> R_T [B, K, D], mask [B, K]."""
        x, mask = features.objects, features.objects_mask
        for block in self.blocks:
            x = block(x, visual, visual_mask)
        return self.norm(x) * mask[..., None], mask
