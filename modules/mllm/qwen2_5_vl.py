"""MLLM ``qwen2_5_vl``: Qwen2.5-VL (transformers' class) with LoRA on its language model."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from reasonbrain.errors import UserError
from reasonbrain.modules.common.precision import base_dtype
from reasonbrain.modules.common.published import load_published
from reasonbrain.modules.mllm.base import INSTRUCTION, MllmPlugin
from reasonbrain.registry import register

MAX_RATIO = 200  # of the longer side to the shorter one, by Qwen's image processor


@register("mllm", "qwen2_5_vl")
class Qwen25VL(MllmPlugin):
    """Qwen2.5-VL, frozen, with LoRA and [IMG] tokens."""

    model_class: Any = Qwen2_5_VLForConditionalGeneration
    config_class: Any = Qwen2_5_VLConfig
    preparing = ("model.model.visual",)
    image_token = "<|image_pad|>"
    system_prompt = "<|im_start|>system\n{system}<|im_end|>\n"
    prompt = (
        "<|im_start|>user\n<|vision_start|>",
        "<|vision_end|>",
        "<|im_end|>\n<|im_start|>assistant\n",
    )

    @register_to_config
    def __init__(
        self,
        width: int,
        pretrained: str | None = None,
        architecture: dict[str, Any] | None = None,
        img_tokens: int = 32,
        lora_rank: int = 8,
        lora_alpha: int = 16,
        precision: str = "float32",
        system: str = "",
        question: str = INSTRUCTION,
    ) -> None:
        super().__init__()
        if architecture is None:
            source = self.needs_weights(pretrained)
            self.model = load_published(self.model_class, source, dtype=base_dtype(precision, "mllm"))
            self.register_to_config(architecture=self.model.config.to_diff_dict())
        else:
            self.model = self.model_class(self.config_class.from_dict(architecture))
        hidden = self.model.config.text_config.hidden_size
        targets = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
        self.build(width, hidden, targets)
        if architecture is None and pretrained is not None:
            self.load_assets(pretrained)

    def stand_in_processor(self, vision: Any) -> Any:
        """The image processor, for images of up to 16384 tokens."""
        token = (vision.patch_size * vision.spatial_merge_size) ** 2
        size = {"shortest_edge": 4 * token, "longest_edge": 16384 * token}
        return Qwen2VLImageProcessorPil(patch_size=vision.patch_size, merge_size=vision.spatial_merge_size, size=size)

    def prepare_dry_run(self, size: int) -> None:
        """Replaces the vision tower and the position ids, which depend on tensor values, by zeros."""
        super().prepare_dry_run(size)
        vision, hidden = self.model.config.vision_config, self.model.config.text_config.hidden_size
        rows = max(1, round(size / (vision.patch_size * vision.spatial_merge_size)))
        self.__dict__.update(
            image_features=lambda images: torch.zeros(len(images), rows, rows, hidden, dtype=self.dtype),
            positions=lambda ids, mask, rows, columns: torch.zeros(3, *ids.shape, dtype=torch.long),
        )

    def pixels(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        if max(height, width) > MAX_RATIO * min(height, width):
            raise UserError(
                f"a picture of {width}x{height} pixels is {max(height, width) / min(height, width):.0f}:1; the MLLM "
                f"takes up to {MAX_RATIO}:1, so crop it first"
            )
        return super().pixels(images)

    def image_embeds(self, pixels: dict[str, Tensor]) -> Tensor:
        visual, grid = self.model.model.visual, pixels["image_grid_thw"]
        tokens = visual(pixels["pixel_values"].to(visual.dtype), grid_thw=grid).pooler_output
        _, rows, columns = (grid[0] // visual.spatial_merge_size).tolist()  # images of one size share a grid
        return tokens.view(len(grid), rows, columns, -1)

    def positions(self, ids: Tensor, mask: Tensor, rows: int, columns: int) -> Tensor:
        """Qwen's 3-D position ids [3, B, L]: time, row and column of the image tokens."""
        is_image = ids == self.tokenizer.convert_tokens_to_ids(self.image_token)
        inputs = self.generate_inputs(is_image, rows, columns)
        return self.model.model.get_rope_index(ids, attention_mask=mask, **inputs)[0]

    def generate_inputs(self, is_image: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
        merged = self.model.config.vision_config.spatial_merge_size
        grid = torch.tensor([[1, rows * merged, columns * merged]] * len(is_image), device=is_image.device)
        return {"mm_token_type_ids": is_image.int(), "image_grid_thw": grid}
