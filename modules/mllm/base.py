"""The base of the MLLM plug-ins: prompt, cues as soft tokens, [IMG] tokens, LoRA, L_MLLM, and the reasoning sentence.

The prompt of a row, padded on the left:

    <system> <user> <image tokens> <R_V and R_T, one soft token per cue> question <assistant> [IMG_1] ... [IMG_r]

The vocabulary is extended by r tokens (ReasonBrain: 32, arXiv:2507.01908). Their input and output embeddings are
parameters of the plug-in instead of new rows of the model's embedding tables. So no table is resized, only the new
embeddings are trained, with tied or untied tables, and ZeRO-3 partitions them like any parameter. The [IMG] tokens are
part of the input, so one forward pass gives all their hidden states.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from reasonbrain.checkpoint import embedded
from reasonbrain.config.schema import ModelConfig
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Cues, Guidance, Inputs, no_tokens
from reasonbrain.modules.common.precision import cast, computes, hold_base, train_in_float32
from reasonbrain.modules.common.published import load_tokenizer
from reasonbrain.modules.mllm.prompt import INSTRUCTION, Prompted
from reasonbrain.modules.mllm.sentence import answer_loss, ending_at
from reasonbrain.utils.images import to_uint8

GUIDANCE = ("projected", "states", "predicting")

# Several threads may share a model: a call leaves adapters out, none switches them off. (A ContextVar would do as well,
# but breaks torch.compile's graphs.) transformers keeps what it knows of a generation on the model, such as Qwen's
# rope_deltas, so one runs at a time.
_generating = threading.Lock()


class _Thread(threading.local):
    leaves_out_adapters = False


_thread = _Thread()


def _leave_out(layer: BaseTunerLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward pre-hook of layers with LoRA."""
    return (args, kwargs | {"adapter_names": ["__base__"] * len(args[0])}) if _thread.leaves_out_adapters else None


class MllmPlugin(Prompted):
    """Base class of the MLLM plug-ins. Subclasses load ``self.model`` and define the prompt and position ids.

    Args:
        pretrained: a published model of the family: a hub id or a folder
        architecture: a model config; the model is built from it, without pretrained weights
        img_tokens: r, the number of [IMG] tokens (paper: 32); 0 gives no guidance, only the sentence
        lora_rank: rank of LoRA on the language model (paper: 8); 0 disables LoRA
        lora_alpha: LoRA's scale is lora_alpha / lora_rank (paper: 16)
        precision: precision of the frozen model: ``float32``, ``bfloat16`` or ``nf4``
        system: the system prompt; empty for none
        question: what the model is asked, with ``{instruction}`` in place of the instruction
        guidance: V: the states of the [IMG] tokens, ``projected`` to ``width``; or these ``states`` as they are
            (SmartEdit); or the states ``predicting`` them, with the input embeddings of the [IMG] tokens added, which
            alone stand for no instruction (MGIE)
        sentence: the sentence stands before the [IMG] tokens (MGIE): it is learned, and generated before an edit
        tables: train the tables of input and output embeddings, too (MGIE)
    """

    weight_sources = ("pretrained",)
    published = ("model",)
    without_adapters = {"lora_rank": 0}

    def build(self, width: int, hidden: int, targets: str) -> None:
        """Freezes the model, adds LoRA to its language model and creates the trainable modules.

        Without [IMG] tokens none of these would get a gradient, so they are not created.

        Args:
            width: D
            hidden: width of the language model
            targets: pattern of the paths of its layers that get LoRA
        """
        given = {"guidance": GUIDANCE[0], "tables": False} | self.config
        img_tokens = given["img_tokens"]
        self.tokenizer: Any = None
        self.image_processor: Any = None
        hold_base(self.model, self.repeated(), given["precision"], "mllm")
        self.freeze(self.model)
        if not img_tokens:
            return
        if given["lora_rank"]:
            lora = LoraConfig(r=given["lora_rank"], lora_alpha=given["lora_alpha"], target_modules=targets)
            inject_adapter_in_model(lora, self.model)
            for module in self.model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.register_forward_pre_hook(_leave_out, with_kwargs=True)  # type: ignore[attr-defined]
        for table in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            table.requires_grad_(given["tables"])
        train_in_float32(self.model)
        self.cue_in = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden))
        self.img_in = nn.Parameter(torch.randn(img_tokens, hidden) * 0.02)
        self.img_out = nn.Parameter(torch.randn(img_tokens, hidden) * 0.02)
        self.guidance_kind = given["guidance"]
        if self.guidance_kind == "projected":
            self.guidance_out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))

    @classmethod
    def check_config(cls, parameters: Mapping[str, Any], model: ModelConfig) -> None:
        question = parameters.get("question", INSTRUCTION)
        if INSTRUCTION not in question:
            raise UserError(f"model.mllm.question: '{question:.100}' lacks {INSTRUCTION}, which stands for the words")
        guidance = parameters.get("guidance", GUIDANCE[0])
        if guidance not in GUIDANCE:
            raise UserError(f"model.mllm.guidance: '{guidance}' is not one of {', '.join(GUIDANCE)}")

    @property
    def reads_sentence(self) -> bool:
        """Whether the sentence stands before the [IMG] tokens."""
        return self.config.get("sentence", False)

    @property
    def language_model(self) -> nn.Module:
        """The blocks, between the tables of embeddings."""
        return self.model.model.language_model

    @classmethod
    def prompt_settings(cls, params: dict[str, Any]) -> dict[str, Any]:
        return {key: params.get(key) for key in ("name", "pretrained", "precision", "system", "question")}

    def repeated(self) -> list[nn.Module]:
        return list(self.language_model.layers)  # type: ignore[arg-type]

    def load_assets(self, folder: Path | str) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        self.load_generation_config(Path(folder))

    def load_generation_config(self, folder: Path) -> None:
        if (folder / GENERATION_CONFIG_NAME).is_file():  # older checkpoints have none
            self.model.generation_config = GenerationConfig.from_pretrained(folder)

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        self.save_generation_config(folder)

    def save_generation_config(self, folder: Path) -> None:
        self.model.generation_config.to_json_file(folder / GENERATION_CONFIG_NAME)

    @classmethod
    def is_whole(cls, params: dict[str, Any]) -> bool:
        return params.get("img_tokens") == 0

    def gives_loss(self) -> bool:
        return self.config.img_tokens > 0

    def stand_in_assets(self) -> None:
        """The embedded default's tokenizer, and an image processor for the model's native image size."""
        self.tokenizer = load_tokenizer(embedded() / "mllm")
        self.tokenizer.add_tokens([self.image_token], special_tokens=True)
        self.image_processor = self.stand_in_processor(self.model.config.vision_config)

    def stand_in_processor(self, vision: Any) -> Any:
        """The family's image processor with the settings of its published models. vision: the vision tower's config."""
        raise NotImplementedError

    def prepare_dry_run(self, size: int) -> None:
        """Uses the instruction in place of a generated sentence."""
        self.__dict__["reason"] = lambda inputs, max_new_tokens=0: inputs.instructions

    def tie_weights(self) -> None:
        self.model.tie_weights()

    def pixels(self, images: Tensor) -> dict[str, Tensor]:
        """Preprocesses images [B, 3, H, W] in 0..1 with the family's image processor."""
        out = self.image_processor(
            images=list(to_uint8(images)), input_data_format="channels_last", return_tensors="pt"
        )
        return {k: v.to(images.device) for k, v in out.items()}

    def image_embeds(self, pixels: dict[str, Tensor]) -> Tensor:
        """Encodes preprocessed images into image tokens [B, rows, columns, hidden]."""
        raise NotImplementedError

    @torch.no_grad()
    @computes
    def image_features(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in 0..1 -> the language model's image tokens [B, rows, columns, hidden]."""
        return self.image_embeds(self.pixels(images))

    def image_settings(self) -> dict[str, Any]:
        return {"precision": self.config.precision, "processor": self.image_processor.to_dict()}

    def positions(self, ids: Tensor, mask: Tensor, rows: int, columns: int) -> Tensor:
        """Position ids of left-padded rows [B, L], each with an image of ``rows`` x ``columns`` tokens."""
        raise NotImplementedError

    def generate_inputs(self, is_image: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
        """Extra arguments of the family's ``generate`` that give the position ids of ``positions``.

        is_image: [B, L], true at image tokens
        """
        return {}

    def embed(self, ids: Tensor, is_image: Tensor, pictures: Tensor) -> Tensor:
        """Embeds ids [B, L] into [B, L, hidden]; image tokens take ``pictures`` [B, rows, columns, hidden]."""
        embeds = self.model.get_input_embeddings()(ids)
        return embeds.masked_scatter(is_image[..., None], pictures.to(embeds.dtype))

    def inside(self, is_image: Tensor, pictures: Tensor) -> AbstractContextManager[Any]:
        """A context in which the language model also sees the pictures inside its layers, where the family does that.

        is_image: [B, L], true at image tokens. pictures: as for ``embed``
        """
        return nullcontext()

    @computes
    def forward(self, inputs: Inputs, cues: Cues) -> Guidance:
        """Returns the hidden states of the [IMG] tokens and L_MLLM, the loss on these tokens (paper, eq. A1), and on
        those of ``inputs.sentences`` if the sentence stands before them.

        Without [IMG] tokens the guidance is empty and the loss is 0.
        """
        r = self.config.img_tokens
        if not r:
            return Guidance(no_tokens(cues.visual), cues.visual.new_zeros(()))
        soft = torch.cat([cues.visual, cues.textual], dim=1)
        soft_mask = torch.cat([cues.visual_mask, cues.textual_mask], dim=1)
        pictures = self.known_features(inputs)
        size = pictures.shape[1:3]
        rows, image = self.tokenize(inputs.instructions, size.numel(), soft.shape[1])
        beside = size.numel() + soft.shape[1] + r
        said = self.tokenize_sentences(inputs)
        img_places = [self.tokenizer.pad_token_id] * r
        answered = [row + words + img_places for row, words in zip(rows, said, strict=True)]
        ids, mask = self.pad_left(answered, beside, inputs.images.device)
        is_image = ids == image
        embeds = self.embed(ids, is_image, pictures)
        seen = self.inside(is_image, pictures)

        # the cues follow the prompt's part after the picture: at a fixed distance from the last image token
        last = is_image.shape[1] - 1 - is_image.flip(1).long().argmax(1)
        between = len(self.tokenizer(self.prompt[1], add_special_tokens=False).input_ids)
        first_cue = last + 1 + between
        columns = first_cue[:, None] + torch.arange(soft.shape[1], device=ids.device)
        row = torch.arange(len(rows), device=ids.device)[:, None]
        embeds = embeds.index_put((row, columns), self.cue_in(cast(soft, self.img_in.dtype)).to(embeds.dtype))
        mask = mask.index_put((row, columns), soft_mask.to(mask.dtype))
        img = self.img_in.expand(embeds.shape[0], -1, -1).to(embeds.dtype)
        embeds = torch.cat([embeds[:, :-r], img], dim=1)

        positions = self.positions(ids, mask, *size)
        with seen:
            states = self.language_model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state
        hidden, null = self.guide(states[:, -r - 1 :])
        if any(said):
            before = states[:, -r - 1 - max(map(len, said)) : -1]
            return Guidance(hidden.to(self.img_in.dtype), answer_loss(self.logits(before), said, r), null)
        return Guidance(hidden.to(self.img_in.dtype), self.lm_loss(states[:, -r - 1 :]), null)

    def logits(self, states: Tensor) -> Tensor:
        """The logits [B, L, vocabulary + r] of the extended vocabulary for states [B, L, hidden]."""
        return torch.cat([self.model.get_output_embeddings()(states), F.linear(states, self.img_out)], dim=-1)

    def guide(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """V [B, r, H] and V of no instruction [1, r, H], or None.

        states: hidden states [B, r + 1, hidden] of the token before [IMG_1] and of the [IMG] tokens
        """
        if self.guidance_kind == "predicting":
            return states[:, :-1] + self.img_in, self.img_in[None]
        return (self.guidance_out(states[:, 1:]) if self.guidance_kind == "projected" else states[:, 1:]), None

    def lm_loss(self, states: Tensor) -> Tensor:
        """-sum_i log p([IMG_i] | ... [IMG_{i-1}]) / r over the extended vocabulary, averaged over the batch.

        states: hidden states [B, r + 1, hidden] of the token before [IMG_1] and of the [IMG] tokens
        """
        before = states[:, :-1]
        head = self.model.get_output_embeddings()
        logits = self.logits(before)
        labels = head.out_features + torch.arange(before.shape[1], device=states.device)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.repeat(before.shape[0]))

    def end(self) -> int:
        """The token that ends an answer."""
        end = self.model.generation_config.eos_token_id
        return end[0] if isinstance(end, list) else end

    @torch.no_grad()
    @computes
    def reason(self, inputs: Inputs, max_new_tokens: int = 96) -> list[str]:
        """Generates the MLLM's answer to each instruction: one sentence that describes the outcome, or what the model
        was trained to answer.

        Decoding is greedy, without LoRA unless the sentence stands before the [IMG] tokens; merged adapters stay in
        effect. The vision tower does not run if the
        inputs hold its features.
        """
        pictures = self.known_features(inputs)
        size = pictures.shape[1:3]
        rows, image = self.tokenize(inputs.instructions, size.numel(), 0)
        ids, mask = self.pad_left(rows, size.numel(), inputs.images.device)
        is_image = ids == image
        learned, head = self.reads_sentence, self.model.get_output_embeddings()
        ending: AbstractContextManager[dict[str, Any]] = nullcontext({})
        if learned:
            ending = ending_at(head, self.img_out, self.end())
        with _generating, self.inside(is_image, pictures), ending as more:
            _thread.leaves_out_adapters = not learned
            try:
                out = self.model.generate(
                    input_ids=ids,
                    inputs_embeds=self.embed(ids, is_image, pictures),  # used for the prompt instead of its ids
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    # under ZeRO-3 the weights are sharded: all processes must run until the last one ends
                    synced_gpus=hasattr(next(self.model.parameters()), "ds_id"),
                    **more,
                    **self.generate_inputs(is_image, *size),
                )
            finally:
                _thread.leaves_out_adapters = False
        texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [t.strip() for t in texts]
