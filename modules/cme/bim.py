"""CME ``bim``: SmartEdit's Bidirectional Interaction Module (arXiv:2312.06739).

V^ and the image patches attend to each other in SAM's two-way transformer. Both results leave through zero-initialised
layers: one is added to V^, the other is a spatial map for the diffusion model's first hidden map.

    points, grid = TwoWay(Linear(V^), patches)     visual = V^ + 1/2 Linear(points)     map = Conv(grid)
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition, Cues, Features, no_tokens
from reasonbrain.modules.common.layers import zeroed
from reasonbrain.modules.common.precision import cast
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register


class FourierGrid(nn.Module):
    """Random Fourier features of positions, as SAM's. The frequencies are a buffer, and so part of the weights."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features // 2))

    def forward(self, rows: int, columns: int) -> Tensor:
        """The features of the centres of a grid's cells, [features, rows, columns]."""
        matrix = self.positional_encoding_gaussian_matrix
        y, x = ((torch.arange(n, device=matrix.device) + 0.5) / n * 2 - 1 for n in (rows, columns))
        places = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1).to(matrix.dtype)
        angles = 2 * math.pi * places @ matrix
        return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)


@register("cme", "bim")
class BidirectionalInteraction(Plugin):
    """SmartEdit's Bidirectional Interaction Module. It reads V^ and the image patches, and no cues and no text.

    Args:
        patches: width of the image patches, and of the transformer (CLIP ViT-L/14: 1024)
        channels: number of channels of the diffusion model's first hidden map (Stable Diffusion: 320)
        layers: number of two-way blocks (paper: 2)
        heads: number of attention heads; must divide half of ``patches``
        hidden: width of the blocks' MLP
    """

    @register_to_config
    def __init__(
        self,
        width: int,
        patches: int = 1024,
        channels: int = 320,
        layers: int = 2,
        heads: int = 8,
        hidden: int = 2048,
    ) -> None:
        super().__init__()
        self.modulate_head = nn.Linear(width, patches)
        self.pe_layer = FourierGrid(patches)
        config = SamMaskDecoderConfig(
            hidden_size=patches,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            mlp_dim=hidden,
            hidden_act="relu",
            attention_downsample_rate=2,
            layer_norm_eps=1e-5,
            attn_implementation="sdpa",
        )
        self.modulate_transformer = SamTwoWayTransformer(config)
        self.dimension_reduction_head_qformer_out = zeroed(nn.Linear(patches, width))
        self.dimension_reduction_head_zeroconv = zeroed(nn.Conv2d(patches, channels, 1))

    def repeated(self) -> list[nn.Module]:
        return list(self.modulate_transformer.layers)

    def forward(self, features: Features, cues: Cues, guidance: Tensor) -> Condition:
        """V^ [B, Q, D] and patches [B, N, ``patches``] -> ``visual`` [B, Q, D] and ``map`` [B, ``channels``, rows,
        columns].

        Raises UserError if the patches have another width."""
        wanted = self.modulate_head.out_features
        if features.patches.shape[-1] != wanted or not features.patches.shape[1]:
            raise UserError(f"model.cme: 'bim' reads image patches of width {wanted}; model.encoders gives others")
        guidance = cast(guidance, self.dtype)
        grid = cast(features.patches, self.dtype).mT.unflatten(2, features.grid)
        points, seen = self.modulate_transformer(
            self.modulate_head(guidance)[:, None], grid, self.pe_layer(*features.grid).expand_as(grid), None
        )
        visual = guidance + 0.5 * self.dimension_reduction_head_qformer_out(points[:, 0])
        spatial = self.dimension_reduction_head_zeroconv(seen[:, 0].mT.unflatten(2, features.grid))
        return Condition(visual, no_tokens(visual), features.pooled, map=spatial)
