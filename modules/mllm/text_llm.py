"""MLLM ``text_llm``: a language model with [IMG] tokens that does not see the image (LGIE, arXiv:2309.17102)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from reasonbrain.checkpoint import embedded
from reasonbrain.config.schema import ModelConfig
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Inputs
from reasonbrain.modules.common.precision import base_dtype
from reasonbrain.modules.common.published import load_published, load_tokenizer
from reasonbrain.modules.mllm.base import INSTRUCTION, MllmPlugin
from reasonbrain.registry import register


@register("mllm", "text_llm")
class TextLlm(MllmPlugin):
    """A causal language model, frozen, with LoRA and [IMG] tokens. It reads the words alone, so FRCE must be null."""

    preparing = ()
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
            self.model = load_published(AutoModelForCausalLM, source, dtype=base_dtype(precision, "mllm"))
            self.register_to_config(architecture=self.model.config.to_diff_dict())
        else:
            self.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture))
        self.build(width, self.model.config.hidden_size, r".*layers\.\d+\.(self_attn|mlp)\.\w+_proj")
        if architecture is None and pretrained is not None:
            self.load_assets(pretrained)

    @classmethod
    def check_config(cls, parameters: Mapping[str, Any], model: ModelConfig) -> None:
        super().check_config(parameters, model)
        if any(vars(model.frce).values()):
            raise UserError("model.frce: 'text_llm' of model.mllm does not see the image; set model.frce=null")

    @property
    def language_model(self) -> nn.Module:
        return self.model.model

    def load_assets(self, folder: Path | str) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.load_generation_config(Path(folder))

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.save_generation_config(folder)

    def stand_in_assets(self) -> None:
        self.tokenizer = load_tokenizer(embedded() / "mllm")

    def image_features(self, images: Tensor) -> None:  # type: ignore[override]
        """None: no features."""

    def known_features(self, inputs: Inputs) -> Tensor:
        """No image tokens: [B, 0, 0, hidden]."""
        return inputs.images.new_zeros(len(inputs.images), 0, 0, self.model.config.hidden_size)

    def tokenize(self, texts: Sequence[str], picture: int, cues: int) -> tuple[list[list[int]], int]:
        """``<s>USER: ... ASSISTANT:``, as one text; no id is that of image tokens."""
        before, after = self.opening(), self.prompt[2]
        return [self.tokenizer(f"{before}{self.ask(text)}{after}").input_ids for text in texts], -1

    def positions(self, ids: Tensor, mask: Tensor, rows: int, columns: int) -> Tensor:
        """Position ids [B, L], counted over unmasked tokens."""
        return (mask.cumsum(-1) - 1).clamp(min=0)
