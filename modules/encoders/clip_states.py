"""Encoders ``clip_states``: the states of Stable Diffusion's text encoder as they are, without adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from reasonbrain.errors import UserError
from reasonbrain.interfaces import Features, Inputs, no_mask, no_tokens
from reasonbrain.modules.common.published import architectures, load_published, load_tokenizer
from reasonbrain.modules.encoders.base import ClipText, clip_patches
from reasonbrain.plugin import architecture_of
from reasonbrain.registry import register


@register("encoders", "clip_states")
class ClipStates(ClipText):
    """The text encoder of Stable Diffusion 1.5, frozen: its 77 states are what the UNet attends to, so ``width`` is
    their width. With ``vision``, also the patches of a CLIP vision tower as they are, for a CME that reads these.

    Args:
        pretrained: a repository of Stable Diffusion or InstructPix2Pix (text_encoder, tokenizer): a hub id or a folder
        vision: a CLIP model whose vision tower gives the patches: a hub id or a folder; null: no patches
        architecture: configs of ``text_encoder`` and ``vision``; both are built from them, without pretrained weights
        layer: index of the vision tower's hidden states that are the patches; negative indices count from the end
        reads: the text that it encodes: the ``instruction``, or the ``sentence`` that the MLLM generates from it
    """

    weight_sources = ("pretrained", "vision")

    @register_to_config
    def __init__(
        self,
        width: int,
        pretrained: str | None = None,
        vision: str | None = None,
        architecture: dict[str, Any] | None = None,
        layer: int = -2,
        reads: str = "instruction",
    ) -> None:
        super().__init__()
        known = dict(architecture or {})
        self.tower: Any = None
        if architecture is None:
            source = self.needs_weights(pretrained)
            self.clip = load_published(CLIPTextModel, source, subfolder="text_encoder")
            self.tokenizer = load_tokenizer(source, "tokenizer")
            known["text_encoder"] = self.clip.config.to_diff_dict()
            if vision is not None:
                self.tower = load_published(CLIPModel, vision).vision_model
                known["vision"] = self.tower.config.to_diff_dict()
            self.register_to_config(architecture=known)
        else:
            self.clip = CLIPTextModel(CLIPTextConfig.from_dict(known["text_encoder"]))
            if "vision" in known:
                self.tower = CLIPVisionModel(CLIPVisionConfig.from_dict(known["vision"]))
        if width != self.clip.config.hidden_size:
            raise UserError(
                f"model.width: {width} is not {self.clip.config.hidden_size}, the width of the text encoder's states, "
                f"which model.encoders gives as they are"
            )
        self.published = ("clip",) if self.tower is None else ("clip", "tower")
        self.preparing = () if self.tower is None else ("tower",)
        self.freeze(*self.children())

    @classmethod
    def without_weights(cls, params: dict[str, Any]) -> dict[str, Any]:
        known = dict(params.get("architecture") or {})
        if params.get("pretrained"):
            known = {"text_encoder": architectures(params["pretrained"])["text_encoder"]} | known
        if params.get("vision"):
            known = {"vision": architecture_of(params["vision"])["vision_config"]} | known
        return params | {"architecture": known}

    @classmethod
    def is_whole(cls, params: dict[str, Any]) -> bool:
        return True

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor | None:
        """images [B, 3, H, W] in 0..1 -> patch tokens [B, N, hidden], or None without a vision tower."""
        return None if self.tower is None else clip_patches(self.tower, images, [self.config.layer])

    def image_settings(self) -> dict[str, Any]:
        return {"layer": self.config.layer}

    @torch.no_grad()
    def text_states(self, texts: Sequence[str], device: torch.device) -> Tensor:
        return self.clip(self.tokenize(list(texts), self.length).input_ids.to(device)).last_hidden_state

    @torch.no_grad()
    def forward(self, inputs: Inputs) -> Features:
        """All states of each text, padding included, as Stable Diffusion reads them; and those of an empty text."""
        tokens = self.tokenize([*self.read_texts(inputs), ""], self.length)
        out = self.clip(tokens.input_ids.to(inputs.images.device))
        text, null = out.last_hidden_state[:-1], out.last_hidden_state[-1:]
        none, all_read = no_tokens(text), torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        side = 0 if self.tower is None else self.tower.config.image_size // self.tower.config.patch_size
        return Features(
            patches=none if self.tower is None else self.known_features(inputs),
            grid=(side, side),
            text=text,
            text_mask=all_read,
            pooled=out.pooler_output[:-1],
            objects=none,
            objects_mask=no_mask(none),
            null=null.expand_as(text),
        )
