"""MLLM ``qwen3_vl``: Qwen3-VL (transformers' class) with LoRA on its language model.

Beside the image tokens, its first layers get features from inside the vision tower (DeepStack, arXiv:2406.04334).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from reasonbrain.modules.mllm.qwen2_5_vl import Qwen25VL
from reasonbrain.registry import register


@register("mllm", "qwen3_vl")
class Qwen3VL(Qwen25VL):
    """Qwen3-VL, frozen, with LoRA and [IMG] tokens."""

    model_class = Qwen3VLForConditionalGeneration
    config_class = Qwen3VLConfig

    def stand_in_processor(self, vision: Any) -> Any:
        """The image processor, for images of up to 16384 tokens."""
        processor: Qwen2VLImageProcessorPil = super().stand_in_processor(vision)
        processor.image_mean = processor.image_std = [0.5] * 3
        return processor

    def prepare_dry_run(self, size: int) -> None:
        super().prepare_dry_run(size)
        plain, more = self.image_features, len(self.model.model.visual.deepstack_visual_indexes)
        self.__dict__["image_features"] = lambda images: plain(images).repeat(1, 1, 1, 1 + more)

    def image_embeds(self, pixels: dict[str, Tensor]) -> Tensor:
        """[B, rows, columns, hidden * (1 + layers)]: the image tokens, then the features for the first layers."""
        visual, grid = self.model.model.visual, pixels["image_grid_thw"]
        seen = visual(pixels["pixel_values"].to(visual.dtype), grid_thw=grid)
        _, rows, columns = (grid[0] // visual.spatial_merge_size).tolist()  # images of one size share a grid
        return torch.cat([seen.pooler_output, *seen.deepstack_features], -1).view(len(grid), rows, columns, -1)

    def embed(self, ids: Tensor, is_image: Tensor, pictures: Tensor) -> Tensor:
        return super().embed(ids, is_image, pictures[..., : self.model.config.text_config.hidden_size])

    @contextmanager
    def inside(self, is_image: Tensor, pictures: Tensor) -> Iterator[None]:
        layers = pictures.flatten(0, 2).split(self.model.config.text_config.hidden_size, -1)[1:]

        mine = threading.get_ident()  # other threads may use the model at the same time

        def add(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            whole = kwargs["inputs_embeds"].shape[1] == is_image.shape[1]  # not one of the tokens that are generated
            if whole and threading.get_ident() == mine:
                kwargs |= {"visual_pos_masks": is_image, "deepstack_visual_embeds": list(layers)}
            return args, kwargs

        hook = self.model.model.language_model.register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
