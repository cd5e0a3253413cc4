"""The MLLM's sentence in front of the [IMG] tokens (MGIE's expressive instruction, arXiv:2309.17102).

In training it is given, and L_MLLM is on its tokens and on the [IMG] tokens. For an edit it is generated first; it ends
where the model predicts [IMG_1].
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessor, LogitsProcessorList

LEFT_OUT = -100  # a label without a loss


def answer_loss(logits: Tensor, sentences: Sequence[list[int]], img_tokens: int) -> Tensor:
    """-log p of the tokens of an answer, a sentence and the [IMG] tokens: their mean in each row, averaged over the
    rows, so that it does not depend on how many rows a process has.

    Args:
        logits: [B, N + r, vocabulary + r] of the states before the N tokens of the longest sentence and before the
            [IMG] tokens, which end the vocabulary
        sentences: the token ids of each row's sentence, which ends before [IMG_1]
        img_tokens: r
    """
    count = logits.shape[1]
    images = list(range(logits.shape[2] - img_tokens, logits.shape[2]))
    rows = [[LEFT_OUT] * (count - img_tokens - len(ids)) + ids + images for ids in sentences]
    labels = torch.tensor(rows, device=logits.device)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=LEFT_OUT)
    counted = (labels != LEFT_OUT).sum(1)
    return (losses.unflatten(0, labels.shape).sum(1) / counted).mean()


@contextmanager
def ending_at(head: torch.nn.Module, img_out: Tensor, end: int) -> Iterator[dict[str, Any]]:
    """Arguments of ``generate`` with which a row ends, by the token ``end``, where the model predicts [IMG_1].

    head: the language model's head. img_out: output embeddings of the [IMG] tokens [r, hidden]"""
    seen: list[Tensor] = []
    thread = threading.get_ident()  # others may run the model's forward pass meanwhile

    def see(_: Any, args: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            seen[:] = [args[0][:, -1]]

    hook = head.register_forward_pre_hook(see)
    try:
        yield {"logits_processor": LogitsProcessorList([_Ending(seen, img_out[0], end)])}
    finally:
        hook.remove()


class _Ending(LogitsProcessor):
    def __init__(self, seen: list[Tensor], first: Tensor, end: int) -> None:
        self.seen, self.first, self.end = seen, first, end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [B, vocabulary] of the next token."""
        wanted = self.seen[0].float() @ self.first.float()
        only = torch.full_like(scores, float("-inf"))
        only[:, self.end] = 0
        return torch.where((wanted > scores.amax(1))[:, None], only, scores)
