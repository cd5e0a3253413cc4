"""The prompt of an MLLM as token ids: system prompt, picture, cues, question and sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reasonbrain.interfaces import Inputs
from reasonbrain.modules.common.precision import PublishedBase

INSTRUCTION = "{instruction}"
STEP = 8  # texts are padded to a multiple of this, so that more rows have equal length and can be batched


class Prompted(PublishedBase):
    """The part of an MLLM plug-in that makes its prompts. It needs ``tokenizer``, and ``system`` and ``question`` among
    the parameters."""

    image_token: str
    system_prompt: str  # how the family writes a system prompt, with "{system}" in its place
    prompt: tuple[str, str, str]  # before the image, between the cues and the instruction, after the instruction
    tokenizer: Any

    def opening(self) -> str:
        """The prompt's part before the image."""
        system = self.config.system
        return (self.system_prompt.replace("{system}", system) if system else "") + self.prompt[0]

    def ask(self, instruction: str) -> str:
        """The question about an instruction."""
        return self.config.question.replace(INSTRUCTION, instruction)

    def text_length(self, instruction: str) -> int:
        """The number of text tokens in a row, including padding."""
        (row,), _ = self.tokenize([instruction], 0, 0)
        return len(row) + -len(row) % STEP

    def tokenize(self, texts: Sequence[str], picture: int, cues: int) -> tuple[list[list[int]], int]:
        """Returns the token ids of the prompts, and the id of image tokens.

        Each row has ``picture`` image tokens, followed by ``cues`` placeholder tokens.
        """
        parts = (self.opening(), *self.prompt[1:])
        before, between, after = (self.tokenizer(p, add_special_tokens=False).input_ids for p in parts)
        image = self.tokenizer.convert_tokens_to_ids(self.image_token)
        rows = []
        for text in texts:
            # special tokens in an instruction ("<|image_pad|>") are plain text
            words = self.tokenizer(self.ask(text), add_special_tokens=False, split_special_tokens=True).input_ids
            rows.append(before + [image] * picture + between + [self.tokenizer.pad_token_id] * cues + words + after)
        return rows, image

    def pad_left(self, rows: list[list[int]], beside: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Left-pads rows; returns ids and mask [B, L]. beside: the number of non-text tokens in a row."""
        length = max(map(len, rows))
        length += -(length - beside) % STEP
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(r)) + r for r in rows], device=device)
        mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows], device=device)
        return ids, mask

    def tokenize_sentences(self, inputs: Inputs) -> list[list[int]]:
        """The token ids of each row's sentence, if it stands before the [IMG] tokens."""
        if not self.reads_sentence:
            return [[]] * len(inputs.instructions)
        assert inputs.sentences is not None  # ReasonBrain.condition generates them
        return self.tokenizer(inputs.sentences, add_special_tokens=False, split_special_tokens=True).input_ids
