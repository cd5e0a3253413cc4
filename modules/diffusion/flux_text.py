"""FLUX's own text path: the prompt's words stay, and the condition changes them by a residual.

    text = T5(prompt) + out(norm(block(in(T5(prompt)), [R-_V; R-_T])))        pooled = CLIP(prompt)

Both encoders are frozen. ``out`` is zero-initialised, so training starts from the editor as published, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from reasonbrain.errors import UserError
from reasonbrain.modules.common.layers import CrossBlock, zeroed
from reasonbrain.modules.common.published import load_published, load_tokenizer

ENCODERS = {"text_encoder": (CLIPTextModel, CLIPTextConfig), "text_encoder_2": (T5EncoderModel, T5Config)}
TOKENIZERS = ("tokenizer", "tokenizer_2")  # of CLIP and T5


class PromptEncoders(nn.Module):
    """CLIP and T5 of a FLUX repository, with their tokenizers.

    Args:
        known: configs of ``text_encoder`` and ``text_encoder_2``; those of loaded models are added
        pretrained: the repository, a hub id or a folder; None if ``known`` has both
        length: number of T5 tokens of a prompt, with padding
        dtype: precision of both models
    """

    def __init__(self, known: dict[str, Any], pretrained: str | None, length: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.length = length
        self.tokenizers: list[Any] = []
        for key, (kind, config) in ENCODERS.items():
            if key in known:
                model = kind(config.from_dict(known[key])).to(dtype)
            elif pretrained is None:
                raise UserError(f"model.diffusion: set 'pretrained' or 'architecture.{key}'")
            else:
                where: dict[str, Any] = {"subfolder": key, "local_files_only": is_offline_mode()}
                model = load_published(kind, pretrained, dtype=dtype, **where)
                known[key] = model.config.to_diff_dict()
                name = TOKENIZERS[len(self.tokenizers)]
                self.tokenizers.append(load_tokenizer(pretrained, name))
            self.add_module(key, model)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Encodes B prompts: ``text`` [B, length, joint_attention_dim] and ``pooled`` [B, pooled_projection_dim].

        A prompt is padded or truncated to a fixed length, and FLUX attends to the padding, too."""
        lengths = self.text_encoder.config.max_position_embeddings, self.length
        ids = [self._tokens(*both, prompts, device) for both in zip(self.tokenizers, lengths, strict=True)]
        with torch.autocast(device.type, enabled=False):  # in their own precision, as features are precomputed
            pooled = self.text_encoder(ids[0]).pooler_output
            return {"text": self.text_encoder_2(ids[1]).last_hidden_state, "pooled": pooled}

    def _tokens(self, tokenizer: Any, length: int, prompts: Sequence[str], device: torch.device) -> Tensor:
        special = (mark for mark in tokenizer.all_special_tokens if mark[0] == "<")
        marks = "|".join(map(re.escape, special))  # "</s>" is no word; T5 cannot read it as text
        plain = [re.sub(marks, "", prompt) for prompt in prompts]
        fixed = {"padding": "max_length", "truncation": True, "max_length": length}
        return tokenizer(plain, **fixed, return_tensors="pt").input_ids.to(device)

    def unread(self, text: str) -> str:
        """The end of a text that T5 does not read."""
        tokens = self.tokenizers[1](text, return_offsets_mapping=True)
        if len(tokens.input_ids) <= self.length:
            return ""
        return text[tokens.offset_mapping[self.length - 1][0] :]  # the last token read is the one that ends a text

    def save_tokenizers(self, folder: Path) -> None:
        for name, tokenizer in zip(TOKENIZERS, self.tokenizers, strict=True):
            tokenizer.save_pretrained(folder / name)

    def load_tokenizers(self, folder: Path) -> None:
        self.tokenizers = [load_tokenizer(folder / name) for name in TOKENIZERS]


class TextTerm(nn.Module):
    """What the condition adds to the text tokens: tokens [B, L, C], context [B, S, D] -> [B, L, C], zero at first."""

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens_in = nn.Linear(channels, width)
        self.block = CrossBlock(width, heads)
        self.norm = nn.LayerNorm(width)
        self.out = zeroed(nn.Linear(width, channels))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        return self.out(self.norm(self.block(self.tokens_in(tokens), context)))


class GrownLinear(nn.Linear):
    """``linear`` with ``extra`` more inputs, whose zero-initialised weights ``added`` are a parameter of their own:
    the sums over the published inputs stay the same to the last bit, and may stay frozen."""

    def __init__(self, linear: nn.Linear, extra: int) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features += extra
        self.added = nn.Parameter(linear.weight.new_zeros(linear.out_features, extra))

    def forward(self, x: Tensor) -> Tensor:
        known, new = x.split([self.weight.shape[1], self.added.shape[1]], dim=-1)
        return F.linear(known.contiguous(), self.weight, self.bias) + F.linear(new, self.added)
