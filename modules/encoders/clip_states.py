"""Encoders ``clip_states``: the states of Stable Diffusion's text encoder as they are, without adapters."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Features, Inputs, no_mask, no_tokens
from reasonbrain.modules.common.published import architectures, load_published, load_tokenizer
from reasonbrain.modules.encoders.base import ClipText
from reasonbrain.registry import register


@register("encoders", "clip_states")
class ClipStates(ClipText):
    """The text encoder of Stable Diffusion 1.5, frozen: its 77 states are what the UNet attends to, so ``width`` is
    their width. It gives no patches.

    Args:
        pretrained: a repository of Stable Diffusion or InstructPix2Pix (text_encoder, tokenizer): a hub id or a folder
        architecture: the text encoder's config; it is built from it, without pretrained weights
        reads: the text that it encodes: the ``instruction``, or the ``sentence`` that the MLLM generates from it
    """

    weight_sources = ("pretrained",)
    published = ("clip",)

    @register_to_config
    def __init__(
        self,
        width: int,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        reads: str = "instruction",
    ) -> None:
        super().__init__()
        if architecture is None:
            source = self.needs_weights(pretrained)
            self.clip = load_published(CLIPTextModel, source, subfolder="text_encoder")
            self.tokenizer = load_tokenizer(source, CLIPTokenizer, subfolder="tokenizer")
            self.register_to_config(architecture=self.clip.config.to_diff_dict())
        else:
            self.clip = CLIPTextModel(CLIPTextConfig.from_dict(architecture))
        if width != self.clip.config.hidden_size:
            raise UserError(
                f"model.width: {width} is not {self.clip.config.hidden_size}, the width of the text encoder's states, "
                f"which model.encoders gives as they are"
            )
        self.freeze(self.clip)

    @classmethod
    def without_weights(cls, params: dict[str, Any]) -> dict[str, Any]:
        if not params.get("pretrained") or params.get("architecture"):
            return params
        return params | {"architecture": architectures(params["pretrained"])["text_encoder"]}

    @classmethod
    def is_whole(cls, params: dict[str, Any]) -> bool:
        return True

    @property
    def length(self) -> int:
        return self.clip.config.max_position_embeddings

    @torch.no_grad()
    def forward(self, inputs: Inputs) -> Features:
        """All states of each text, padding included, as Stable Diffusion reads them; and those of an empty text."""
        tokens = self.tokenize([*self.read_texts(inputs), ""], self.length)
        out = self.clip(tokens.input_ids.to(inputs.images.device))
        text, null = out.last_hidden_state[:-1], out.last_hidden_state[-1:]
        none, all_read = no_tokens(text), torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        return Features(
            patches=none,
            grid=(0, 0),
            text=text,
            text_mask=all_read,
            pooled=out.pooler_output[:-1],
            objects=none,
            objects_mask=no_mask(none),
            null=null.expand_as(text),
        )
