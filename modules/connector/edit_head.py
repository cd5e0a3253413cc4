"""Connector ``edit_head``: MGIE's edit head T (arXiv:2309.17102), an encoder-decoder transformer.

MGIE uses the LLaVA-7B states of 8 [IMG] tokens, 4096 wide, and 77 queries; V^ is 768 wide.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from reasonbrain.modules.common.precision import cast
from reasonbrain.modules.connector.width import check_width
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register


@register("connector", "edit_head")
class EditHead(Plugin):
    """MGIE's edit head: the encoder reads V, the decoder's learned queries become V^.

    Args:
        inputs: width of V, if it is not ``width`` (LLaVA-7B: 4096)
        hidden: width of the transformer (paper: 512)
        layers: number of layers of its encoder, and of its decoder (paper: 4)
        heads: number of attention heads; must divide ``hidden`` (paper: 4)
        queries: number of learned queries, and so of V^ tokens (paper: 77)
    """

    @register_to_config
    def __init__(
        self,
        width: int,
        inputs: int | None = None,
        hidden: int = 512,
        layers: int = 4,
        heads: int = 4,
        queries: int = 77,
    ) -> None:
        super().__init__()
        self.llm2hid = nn.Linear(inputs or width, hidden)
        self.query = nn.Parameter(torch.randn(1, queries, hidden))
        sizes = {"d_model": hidden, "nhead": heads, "dim_feedforward": 4 * hidden, "dropout": 0.0}
        form = {"batch_first": True, "norm_first": True}
        # torch's own encoder would warn that pre-norm layers cannot use nested tensors
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**sizes, **form), layers, nn.LayerNorm(hidden), enable_nested_tensor=False
        )
        self.mapper = nn.Transformer(**sizes, **form, num_decoder_layers=layers, custom_encoder=encoder)
        self.hid2feat = nn.Linear(hidden, width)

    def repeated(self) -> list[nn.Module]:
        return [*self.mapper.encoder.layers, *self.mapper.decoder.layers]

    def forward(self, hidden: Tensor) -> Tensor:
        """V [B, r, inputs] -> V^ [B, Q, D]. Without [IMG] tokens (r = 0, a null MLLM) the result is empty: [B, 0, D].

        Raises UserError if V has another width."""
        if hidden.shape[1] == 0:
            return hidden.new_zeros(len(hidden), 0, self.hid2feat.out_features)
        check_width(hidden, self.llm2hid.in_features)
        queries = self.query.expand(len(hidden), -1, -1)
        return self.hid2feat(self.mapper(self.llm2hid(cast(hidden, self.dtype)), queries))
