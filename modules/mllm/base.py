"""The base of the MLLM plug-ins: prompt, cues as soft tokens, [IMG] tokens, LoRA, L_MLLM, and the reasoning sentence.

The prompt of a row, padded on the left:

    <user> <image tokens> <R_V and R_T, one soft token a cue> instruction <assistant> [IMG_1] ... [IMG_r]

The vocabulary grows by r tokens (paper: 32). Their embeddings are two parameters of the plug-in, for input and output,
instead of new rows of the model's tables. So no table is resized, only the new embeddings train, whether the tables are
tied or not, and ZeRO-3 partitions them like any other parameter. The [IMG] tokens are fixed, so that one forward pass
returns all their hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer

from reasonbrain.checkpoint import embedded
from reasonbrain.interfaces import Cues, Guidance, Inputs, no_tokens
from reasonbrain.modules.common.precision import PublishedBase, computes, hold_base, train_in_float32
from reasonbrain.utils.images import to_uint8

STEP = 8  # texts are padded to a multiple of this: with few different lengths, rows can share a batch


class MllmPlugin(PublishedBase):
    """Subclasses load ``self.model`` and define the prompt and the positions of their family.

    Args:
        pretrained: a published model of the family: a hub id or a folder
        architecture: its config; the model is built from it, without weights
        img_tokens: r, the number of [IMG] tokens (paper: 32); 0: no guidance, only the sentence
        lora_rank: rank of LoRA on the language model (paper: 8); 0: no LoRA
        lora_alpha: LoRA's scale is lora_alpha / lora_rank (paper: 16)
        precision: of the frozen model: ``float32``, ``bfloat16`` or ``nf4``
    """

    image_token: str
    prompt: tuple[str, str, str]  # before the image, between the cues and the instruction, after the instruction
    weight_sources = ("pretrained",)
    without_adapters = {"lora_rank": 0}

    def build(
        self, width: int, hidden: int, img_tokens: int, lora_rank: int, lora_alpha: int, targets: str, precision: str
    ) -> None:
        """Freezes the model, adds LoRA to its language model (none for rank 0) and creates the modules that train.
        Without [IMG] tokens none of these would get a gradient, so they are left out."""
        self.tokenizer: Any = None
        self.image_processor: Any = None
        hold_base(self.model, self.repeated(), precision, "mllm")
        self.freeze(self.model)
        if not img_tokens:
            return
        if lora_rank:
            lora = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, target_modules=targets)
            inject_adapter_in_model(lora, self.model)
        train_in_float32(self.model)
        self.cue_in = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden))
        self.img_in = nn.Parameter(torch.randn(img_tokens, hidden) * 0.02)
        self.img_out = nn.Parameter(torch.randn(img_tokens, hidden) * 0.02)
        self.guidance_out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))

    def repeated(self) -> list[nn.Module]:
        return list(self.model.model.language_model.layers)

    def load_assets(self, folder: Path | str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def gives_loss(self) -> bool:
        return self.config.img_tokens > 0

    def stand_in_assets(self) -> None:
        """The embedded default's tokenizer, and an image processor for pictures of the model's own size."""
        self.tokenizer = AutoTokenizer.from_pretrained(embedded() / "mllm")
        self.tokenizer.add_tokens([self.image_token], special_tokens=True)
        self.image_processor = self.stand_in_processor(self.model.config.vision_config)

    def stand_in_processor(self, vision: Any) -> Any:
        """The family's image processor with the settings of its published models; vision: the tower's configuration."""
        raise NotImplementedError

    def prepare_dry_run(self, size: int) -> None:
        """No sentence is generated: the instruction stands for it."""
        self.__dict__["reason"] = lambda inputs: inputs.instructions

    def tie_weights(self) -> None:
        self.model.tie_weights()

    def pixels(self, images: Tensor) -> dict[str, Tensor]:
        """The family's preprocessing of images [B, 3, H, W] in 0..1."""
        out = self.image_processor(images=list(to_uint8(images)), return_tensors="pt")
        return {k: v.to(self.device) for k, v in out.items()}

    def image_embeds(self, pixels: dict[str, Tensor]) -> Tensor:
        """The image tokens of preprocessed pictures: [B, rows, columns, hidden]."""
        raise NotImplementedError

    @torch.no_grad()
    @computes
    def image_features(self, images: Tensor) -> Tensor:
        """The image tokens that the language model reads, of images [B, 3, H, W] in 0..1:
        [B, rows, columns, hidden]."""
        return self.image_embeds(self.pixels(images))

    def image_settings(self) -> dict[str, Any]:
        return {"precision": self.config.precision, "processor": self.image_processor.to_dict()}

    def positions(self, ids: Tensor, mask: Tensor, rows: int, columns: int) -> Tensor:
        """Position ids of left-padded rows with a picture of ``rows`` x ``columns`` tokens each."""
        raise NotImplementedError

    def generate_inputs(self, is_image: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
        """Further arguments of the family's ``generate``, from which it computes the same position ids as
        ``positions``. is_image: [B, L], true at image tokens."""
        return {}

    def text_length(self, instruction: str) -> int:
        """The number of tokens of a row without its picture, padding included."""
        (row,), _ = self.tokenize([instruction], 0, 0)
        return len(row) + -len(row) % STEP

    def tokenize(self, texts: Sequence[str], picture: int, cues: int) -> tuple[list[list[int]], int]:
        """The prompts as rows of ids, each with ``picture`` image tokens and ``cues`` placeholders after these; and the
        id of image tokens."""
        before, between, after = (self.tokenizer(p, add_special_tokens=False).input_ids for p in self.prompt)
        image = self.tokenizer.convert_tokens_to_ids(self.image_token)
        rows = []
        for text in texts:
            # split: a special token in an instruction ("<|image_pad|>") is text
            words = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
            rows.append(before + [image] * picture + between + [self.tokenizer.pad_token_id] * cues + words + after)
        return rows, image

    def pad_left(self, rows: list[list[int]], beside: int) -> tuple[Tensor, Tensor]:
        """ids and mask [B, L]. beside: the number of tokens of a row that are not text."""
        length = max(map(len, rows))
        length += -(length - beside) % STEP
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(r)) + r for r in rows], device=self.device)
        mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows], device=self.device)
        return ids, mask

    def embed(self, ids: Tensor, is_image: Tensor, pictures: Tensor) -> Tensor:
        """Embeddings [B, L, hidden] of ids [B, L], those of image tokens taken from pictures
        [B, rows, columns, hidden]."""
        embeds = self.model.get_input_embeddings()(ids)
        return embeds.masked_scatter(is_image[..., None], pictures.to(embeds.dtype))

    @computes
    def forward(self, inputs: Inputs, cues: Cues) -> Guidance:
        """One pass: the hidden states of the [IMG] tokens, and L_MLLM, which covers only these (paper, eq. A1). Without
        [IMG] tokens there is no pass and the loss is 0."""
        r = self.config.img_tokens
        if not r:
            return Guidance(no_tokens(cues.visual), cues.visual.new_zeros(()))
        soft = torch.cat([cues.visual, cues.textual], dim=1)
        soft_mask = torch.cat([cues.visual_mask, cues.textual_mask], dim=1)
        pictures = self.known_features(inputs)
        size = pictures.shape[1:3]
        rows, image = self.tokenize(inputs.instructions, size.numel(), soft.shape[1])
        beside = size.numel() + soft.shape[1] + r
        ids, mask = self.pad_left([row + [self.tokenizer.pad_token_id] * r for row in rows], beside)
        is_image = ids == image
        embeds = self.embed(ids, is_image, pictures)

        # the cues follow the prompt's part after the picture: at a fixed distance from the last image token
        last = is_image.shape[1] - 1 - is_image.flip(1).long().argmax(1)
        between = len(self.tokenizer(self.prompt[1], add_special_tokens=False).input_ids)
        first_cue = last + 1 + between
        columns = first_cue[:, None] + torch.arange(soft.shape[1], device=ids.device)
        row = torch.arange(len(rows), device=ids.device)[:, None]
        embeds = embeds.index_put((row, columns), self.cue_in(soft).to(embeds.dtype))
        mask = mask.index_put((row, columns), soft_mask.to(mask.dtype))
        img = self.img_in.expand(embeds.shape[0], -1, -1).to(embeds.dtype)
        embeds = torch.cat([embeds[:, :-r], img], dim=1)

        positions = self.positions(ids, mask, *size)
        states = self.model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        hidden = self.guidance_out(states[:, -r:]).to(self.img_in.dtype)
        return Guidance(hidden, self.lm_loss(states[:, -r - 1 :]))

    def lm_loss(self, states: Tensor) -> Tensor:
        """-sum_i log p([IMG_i] | ... [IMG_{i-1}]) / r over the extended vocabulary. states: [B, r + 1, hidden], the
        first of the token before [IMG_1]."""
        before = states[:, :-1]
        head = self.model.get_output_embeddings()
        logits = torch.cat([head(before), F.linear(before, self.img_out)], dim=-1)
        labels = head.out_features + torch.arange(before.shape[1], device=states.device)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.repeat(before.shape[0]))

    def adapters(self, enabled: bool) -> None:
        """Switches LoRA on or off."""
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(enabled)

    @torch.no_grad()
    @computes
    def reason(self, inputs: Inputs, max_new_tokens: int = 96) -> list[str]:
        """The MLLM's answer to each row's instruction: one sentence that says what happens, or what else it was trained
        to say. Decoded greedily, without LoRA; adapters that were merged into the weights stay in.

        The pictures are read as ``known_features``: where the inputs bring these, the vision tower does not run."""
        pictures = self.known_features(inputs)
        size = pictures.shape[1:3]
        rows, image = self.tokenize(inputs.instructions, size.numel(), 0)
        ids, mask = self.pad_left(rows, size.numel())
        is_image = ids == image
        trainable = {n for n, p in self.model.named_parameters() if p.requires_grad}
        self.adapters(False)
        try:
            out = self.model.generate(
                input_ids=ids,
                inputs_embeds=self.embed(ids, is_image, pictures),  # used for the prompt instead of its ids
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                # under ZeRO-3 each process holds a part of the weights: all have to run until the last one ends
                synced_gpus=hasattr(next(self.model.parameters()), "ds_id"),
                **self.generate_inputs(is_image, *size),
            )
        finally:
            self.adapters(True)
            for name, p in self.model.named_parameters():  # peft freezes adapters that are switched off
                p.requires_grad_(name in trainable)
        texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [t.strip() for t in texts]
