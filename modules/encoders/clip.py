"""Encoders ``clip``: E_I gives multi-scale patch features, E_T gives tokens of the text and of the key objects.

CLIP is frozen (ReasonBrain: ViT-L/14). Two trained linear adapters project its features to the common width D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from reasonbrain.interfaces import Features, Inputs
from reasonbrain.modules.common.precision import cast
from reasonbrain.modules.common.published import load_published, load_tokenizer
from reasonbrain.modules.encoders.base import ClipText, clip_patches
from reasonbrain.registry import register


@register("encoders", "clip")
class ClipEncoders(ClipText):
    """CLIP's frozen vision and text towers, each with a linear adapter to ``width``.

    Args:
        pretrained: a CLIP model: a hub id or a folder
        architecture: a CLIP config; the model is built from it, without pretrained weights
        layers: indices of the vision tower's hidden states, which are concatenated on the channel axis; negative
            indices count from the end
        object_tokens: K, the number of tokens for the names of the key objects
        reads: the text that E_T encodes: the ``instruction``, or the ``sentence`` that the MLLM generates from it
    """

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
        if architecture is None:
            source = self.needs_weights(pretrained)
            self.clip = load_published(CLIPModel, source)
            self.tokenizer = load_tokenizer(source)
            self.register_to_config(architecture=self.clip.config.to_diff_dict())
        else:
            self.clip = CLIPModel(CLIPConfig.from_dict(architecture))
        vision, text = self.clip.config.vision_config, self.clip.config.text_config
        states = vision.num_hidden_layers + 1
        if not layers or not all(-states <= layer < states for layer in layers):
            raise ValueError(f"layers={list(layers)} must be numbers from {-states} to {states - 1}")
        self.image_adapter = nn.Linear(vision.hidden_size * len(layers), width)
        self.text_adapter = nn.Linear(text.hidden_size, width)
        self.grid = (vision.image_size // vision.patch_size,) * 2
        self.freeze(self.clip)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in 0..1 -> patch tokens of all ``layers``, concatenated: [B, N, len(layers) * hidden]."""
        return clip_patches(self.clip.vision_model, images, self.config.layers)

    def image_settings(self) -> dict[str, Any]:
        return {"layers": self.config.layers}

    @torch.no_grad()
    def encode_text(self, texts: list[str], length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Returns tokens [B, length, hidden], mask [B, length] and pooled embedding [B, hidden].

        The mask of an empty text is all false.
        """
        tokens = self.tokenize(texts, length)
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        out = self.clip.text_model(ids, attention_mask=mask)
        filled = torch.tensor([bool(t.strip()) for t in texts], device=device)
        return out.last_hidden_state, mask.bool() & filled[:, None], out.pooler_output

    def text_states(self, texts: Sequence[str], device: torch.device) -> Tensor:
        return self.encode_text(list(texts), self.length, device)[0]

    def forward(self, inputs: Inputs) -> Features:
        device = inputs.images.device  # that of offloaded weights differs
        text, text_mask, pooled = self.encode_text(self.read_texts(inputs), self.length, device)
        names = [", ".join(o) for o in inputs.objects]
        objects, objects_mask, _ = self.encode_text(names, self.config.object_tokens, device)
        return Features(
            patches=self.image_adapter(cast(self.known_features(inputs), self.dtype)),
            grid=self.grid,
            text=self.text_adapter(text) * text_mask[..., None],
            text_mask=text_mask,
            pooled=pooled,
            objects=self.text_adapter(objects) * objects_mask[..., None],
            objects_mask=objects_mask,
        )
