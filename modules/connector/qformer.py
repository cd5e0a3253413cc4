"""Connector ``qformer``: maps the hidden states V of the [IMG] tokens to the visual guidance V^ with learned queries.

ReasonBrain uses 6 layers and 77 queries (arXiv:2507.01908); so does SmartEdit, whose queries read V in every second
layer (arXiv:2312.06739). The module is transformers' Blip2QFormerModel.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from reasonbrain.modules.common.precision import cast
from reasonbrain.modules.connector.width import check_width
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register


@register("connector", "qformer")
class QFormer(Plugin):
    """A QFormer: learned queries that attend to V.

    Args:
        layers: number of layers (paper: 6)
        queries: number of learned queries, and so of V^ tokens (paper: 77)
        heads: number of attention heads; must divide ``width``
        inputs: width of V, if it is not ``width`` (SmartEdit with LLaVA-7B: 4096)
        cross_attention_frequency: the queries attend to V in every so many layers, from the first on (SmartEdit: 2)
        dropout: dropout in training (SmartEdit: 0.1)
    """

    @register_to_config
    def __init__(
        self,
        width: int,
        layers: int = 6,
        queries: int = 77,
        heads: int = 12,
        inputs: int | None = None,
        cross_attention_frequency: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if queries < 1:
            raise ValueError(f"queries={queries} must be 1 or more")
        self.query_tokens = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                encoder_hidden_size=inputs or width,
                cross_attention_frequency=cross_attention_frequency,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                use_qformer_text_input=False,
            )
        )

    def repeated(self) -> list[nn.Module]:
        return list(self.qformer.encoder.layer)

    def forward(self, hidden: Tensor) -> Tensor:
        """V [B, r, inputs] -> V^ [B, Q, D]. Without [IMG] tokens (r = 0, a null MLLM) the result is empty: [B, 0, D].

        Raises UserError if V has another width."""
        if hidden.shape[1] == 0:
            return hidden.new_zeros(len(hidden), 0, self.query_tokens.shape[-1])
        check_width(hidden, self.qformer.config.encoder_hidden_size)
        queries = self.query_tokens.expand(hidden.shape[0], -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=cast(hidden, self.dtype)).last_hidden_state
