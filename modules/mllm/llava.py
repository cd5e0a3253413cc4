"""MLLM ``llava``: LLaVA (transformers' class) with LoRA on its language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration

from reasonbrain.modules.common.precision import base_dtype
from reasonbrain.modules.common.published import load_published
from reasonbrain.modules.mllm.base import INSTRUCTION, MllmPlugin
from reasonbrain.registry import register
from reasonbrain.utils.images import to_uint8


@register("mllm", "llava")
class Llava(MllmPlugin):
    """LLaVA, frozen, with LoRA and [IMG] tokens.

    With ``<image>`` in the question, the picture stands there and not before it. An ``architecture`` whose
    ``projector_hidden_act`` is ``linear`` projects the patches by one linear layer, as LLaVA v1 does."""

    preparing = ("model.model.vision_tower", "model.model.multi_modal_projector")
    image_token = "<image>"
    system_prompt = "{system} "
    prompt = ("USER: ", "", " ASSISTANT:")

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
        guidance: str = "projected",
        sentence: bool = False,
        tables: bool = False,
    ) -> None:
        super().__init__()
        if architecture is None:
            source = self.needs_weights(pretrained)
            self.model = load_published(LlavaForConditionalGeneration, source, dtype=base_dtype(precision, "mllm"))
            self.register_to_config(architecture=self.model.config.to_diff_dict())
        else:
            self.model = LlavaForConditionalGeneration(LlavaConfig.from_dict(architecture))
            if self.model.config.projector_hidden_act == "linear":
                self.model.model.multi_modal_projector.linear_2 = nn.Identity()
        hidden = self.model.config.text_config.hidden_size
        targets = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
        self.build(width, hidden, targets)
        if architecture is None and pretrained is not None:
            self.load_assets(pretrained)

    def stand_in_processor(self, vision: Any) -> Any:
        return CLIPImageProcessorPil(size={"shortest_edge": vision.image_size}, crop_size=vision.image_size)

    def prepare_dry_run(self, size: int) -> None:
        super().prepare_dry_run(size)
        side = self.model.config.vision_config.image_size
        self.__dict__["pixels"] = lambda images: {"pixel_values": images.new_zeros(len(images), 3, side, side)}

    def tokenize(self, texts: Sequence[str], picture: int, cues: int) -> tuple[list[list[int]], int]:
        """``<s>USER: <image>\\n... ASSISTANT:``, tokenized as one text as in LLaVA-1.5's training, since sentencepiece
        tokens depend on the preceding text. The cues follow the image."""
        image = self.tokenizer.convert_tokens_to_ids(self.image_token)
        before, after = self.opening(), self.prompt[2]
        rows = []
        for text in texts:
            words = self.ask(text.replace(self.image_token, ""))  # the prompt has one image
            asked = words if self.image_token in words else f"{self.image_token}\n{words}"
            ids = self.tokenizer(before + asked + after).input_ids
            at = ids.index(image)
            rows.append(ids[:at] + [image] * picture + [self.tokenizer.pad_token_id] * cues + ids[at + 1 :])
        return rows, image

    def pixels(self, images: Tensor) -> dict[str, Tensor]:
        """Preprocesses the whole images: each is scaled to fit into the vision tower's square, and the rest of it is
        filled with the processor's mean colour, as in LLaVA-1.5's training (``image_aspect_ratio: pad``). The published
        processor alone would crop them."""
        side, mean = self.image_processor.crop_size["height"], self.image_processor.image_mean
        squares = []
        for picture in map(Image.fromarray, to_uint8(images)):
            width, height = (max(1, round(s * side / max(picture.size))) for s in picture.size)
            square = Image.new("RGB", (side, side), tuple(round(255 * value) for value in mean))
            scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
            square.paste(scaled, ((side - width) // 2, (side - height) // 2))
            squares.append(square)
        values = self.image_processor(images=squares, return_tensors="pt")["pixel_values"]
        return {"pixel_values": values.to(images.device)}

    def image_settings(self) -> dict[str, Any]:
        return super().image_settings() | {"shape": "padded to a square"}

    def image_embeds(self, pixels: dict[str, Tensor]) -> Tensor:
        values = pixels["pixel_values"].to(self.model.model.vision_tower.dtype)
        return torch.stack(tuple(self.model.model.get_image_features(values).pooler_output))[:, None]

    def positions(self, ids: Tensor, mask: Tensor, rows: int, columns: int) -> Tensor:
        """Position ids [B, L], counted over unmasked tokens."""
        return (mask.cumsum(-1) - 1).clamp(min=0)
