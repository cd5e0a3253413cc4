"""Encoders ``clip``: E_I gives patch features of several layers, E_T the text's and the objects' tokens.

CLIP itself stays frozen (SPEC: ViT-L/14); two linear adapters bring its features to the common width D.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from reasonbrain.checkpoint import embedded
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Features, Inputs
from reasonbrain.plugin import Plugin
from reasonbrain.registry import register

READS = ("instruction", "sentence")


@register("encoders", "clip")
class ClipEncoders(Plugin):
    """``layers``: hidden states of the vision tower that are joined on the channel axis (negative: from the end).
    ``object_tokens``: room for the objects' names, in tokens (K). ``reads``: what E_T is given as a row's text, the
    ``instruction`` or the ``sentence`` that the MLLM says about it (``ReasonBrain.encode``)."""

    weight_sources = ("pretrained",)
    preparing = ("clip.vision_model",)

    @register_to_config
    def __init__(
        self,
        width: int,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        layers: list[int] = [-2, -8, -14],  # noqa: B006 - diffusers' config wants the plain default
        object_tokens: int = 16,
        reads: str = "instruction",
    ) -> None:
        super().__init__()
        if reads not in READS:
            raise UserError(f"model.encoders.reads: '{reads}' is not one of {', '.join(READS)}")
        self.tokenizer: Any = None
        if architecture is None:
            source = self.needs_weights(pretrained)
            self.clip = CLIPModel.from_pretrained(source)
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            self.register_to_config(architecture=self.clip.config.to_diff_dict())
        else:
            self.clip = CLIPModel(CLIPConfig.from_dict(architecture))
        vision, text = self.clip.config.vision_config, self.clip.config.text_config
        self.image_adapter = nn.Linear(vision.hidden_size * len(layers), width)
        self.text_adapter = nn.Linear(text.hidden_size, width)
        self.grid = (vision.image_size // vision.patch_size,) * 2
        self.freeze(self.clip)

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def load_assets(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def stand_in_assets(self) -> None:
        self.load_assets(embedded() / "encoders")

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in 0..1 -> the chosen layers' patch tokens, joined: [B, N, layers x hidden]."""
        size = self.clip.config.vision_config.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        states = self.clip.vision_model((images - mean) / std, output_hidden_states=True).hidden_states
        return torch.cat([states[i][:, 1:] for i in self.config.layers], dim=-1)

    def image_settings(self) -> dict[str, Any]:
        return {"layers": self.config.layers}

    @torch.no_grad()
    def encode_text(self, texts: list[str], length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, length, hidden], mask [B, length], pooled [B, hidden]. Always ``length`` tokens: a row's
        features do not depend on its neighbours. An empty text has an all-false mask."""
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=length,
            split_special_tokens=True,  # "<|im_end|>" in an instruction is text and ends nothing
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        out = self.clip.text_model(ids, attention_mask=mask)
        filled = torch.tensor([bool(t.strip()) for t in texts], device=self.device)
        return out.last_hidden_state, mask.bool() & filled[:, None], out.pooler_output

    def forward(self, inputs: Inputs) -> Features:
        text, text_mask, pooled = self.encode_text(
            inputs.instructions, self.clip.config.text_config.max_position_embeddings
        )
        names = [", ".join(o) for o in inputs.objects]
        objects, objects_mask, _ = self.encode_text(names, self.config.object_tokens)
        return Features(
            patches=self.image_adapter(self.known_features(inputs)),
            grid=self.grid,
            text=self.text_adapter(text) * text_mask[..., None],
            text_mask=text_mask,
            pooled=pooled,
            objects=self.text_adapter(objects) * objects_mask[..., None],
            objects_mask=objects_mask,
        )
