"""MLLM ``llava``: LLaVA (transformers' own class) with LoRA on its language model."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from reasonbrain.registry import register

from .base import MllmPlugin


@register("mllm", "llava")
class Llava(MllmPlugin):
    """``img_tokens``: r, the number of [IMG] tokens."""

    image_token = "<image>"
    prompt = ("USER: ", "\n", " ASSISTANT:")

    @register_to_config
    def __init__(
        self,
        width: int,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        img_tokens: int = 32,
        lora_rank: int = 8,
        lora_alpha: int = 16,
    ) -> None:
        super().__init__()
        if architecture is None:
            self.model = LlavaForConditionalGeneration.from_pretrained(pretrained)
            self.register_to_config(architecture=self.model.config.to_diff_dict())
        else:
            self.model = LlavaForConditionalGeneration(LlavaConfig.from_dict(architecture))
        hidden = self.model.config.text_config.hidden_size
        targets = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
        self.build(width, hidden, img_tokens, lora_rank, lora_alpha, targets)
        if architecture is None and pretrained is not None:
            self.load_assets(pretrained)

    def image_lengths(self, pixels: dict[str, Tensor]) -> list[int]:
        vision = self.model.config.vision_config
        return [(vision.image_size // vision.patch_size) ** 2] * len(pixels["pixel_values"])

    def image_embeds(self, pixels: dict[str, Tensor]) -> Tensor:
        out = self.model.model.get_image_features(pixels["pixel_values"].to(self.dtype))
        return torch.cat(tuple(out.pooler_output))

    def positions(self, ids: Tensor, mask: Tensor, pixels: dict[str, Tensor]) -> Tensor:
        """Position ids [B, L] that count the tokens in use."""
        return (mask.cumsum(-1) - 1).clamp(min=0)
