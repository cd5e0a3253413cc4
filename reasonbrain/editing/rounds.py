"""Edit, look, edit again: several edits of a picture, which the MLLM reviews, and of which the best is kept.

In a round the source is edited ``edit.candidates`` times. The MLLM sees source and edit, scores how well the edit
follows the instruction and keeps the rest, and writes the sentence anew. The next round edits the source again, never
an edit, from the same noise (EditThinker, arXiv:2512.05965). Rounds end when the best edit is good, when its review
cannot be read, or when the sentence stays as it is.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from reasonbrain.config.schema import EditConfig
from reasonbrain.editing.core import BeforeStep, Core, OnStep, Sources
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition, Inputs
from reasonbrain.thinking import Review, review

GOOD = 8  # of 10, in both scores: no further round


@dataclass
class Round:
    """One edit. number, candidate: from 1. image: [1, 3, H, W] in 0..1 at the size of the picture. review: None if the
    MLLM gave no readable one. seconds: of drawing and reviewing."""

    number: int
    candidate: int
    sentence: str
    image: Tensor
    review: Review | None
    seconds: float

    @property
    def score(self) -> float:
        return self.review.score if self.review else -1.0

    def summary(self) -> dict[str, Any]:
        """All but the image, as JSON values."""
        scores = {"follows": self.review.follows, "keeps": self.review.keeps} if self.review else {}
        about = {"round": self.number, "candidate": self.candidate, "sentence": self.sentence}
        return about | scores | {"seconds": round(self.seconds, 4)}


def has_rounds(edit: EditConfig) -> bool:
    """Whether edits are reviewed."""
    return edit.rounds > 1 or edit.candidates > 1


def best(rounds: list[Round]) -> Round:
    """The round with the best review, the earlier one of equals."""
    return max(rounds, key=lambda found: found.score)


def sheet(source: Tensor, edited: Tensor) -> Tensor:
    """Two pictures [1, 3, h, w] on one grey square of the area of one, so that any MLLM can compare them."""
    h, w = source.shape[-2:]
    gap = source.new_full((1, 3, max(1, h // 32), w) if w >= h else (1, 3, h, max(1, w // 32)), 0.5)
    both = torch.cat([source, gap, edited.to(source)], -2 if w >= h else -1)
    side = max(1, round(math.sqrt(h * w)))
    scale = side / max(both.shape[-2:])
    height, width = (max(1, min(side, round(length * scale))) for length in both.shape[-2:])
    small = F.interpolate(both, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    return F.pad(small, (0, side - width, 0, side - height), value=0.5)


@torch.no_grad()
def edit_in_rounds(
    core: Core,
    picture: Image.Image,
    sources: Sources,
    inputs: Inputs,
    condition: Condition,
    generator: torch.Generator | None,
    edit: EditConfig,
    on_step: OnStep | None = None,
    before_step: BeforeStep | None = None,
) -> list[Round]:
    """All edits of one picture, in order. ``sources``, ``inputs`` and ``condition`` have one row. generator: of the
    noise of the candidates, the same in every round; None: the global one.

    Raises UserError like ``Core.draw``, and without an MLLM that is asked with ``model.thinking``."""
    model = core.model
    thinking, mllm = model.thinking, model.slot("mllm")
    if thinking is None or mllm is None or not model.reads_sentence:
        raise UserError(
            "edit.rounds and edit.candidates need an MLLM that reviews edits, model.thinking, and a diffusion model "
            "that reads its sentence"
        )
    start = generator.get_state() if generator else None
    sentence, found = condition.prompts[0], []
    for number in range(1, edit.rounds + 1):
        if start is not None:
            generator.set_state(start)  # type: ignore[union-attr]
        for candidate in range(1, edit.candidates + 1):
            began = time.perf_counter()
            latents = core.draw(sources, condition, core.noise(sources, generator), edit, on_step, before_step)
            drawn = core.decode(sources, latents, edit)
            shown = drawn.source + (drawn.edited - drawn.source) * drawn.mask
            compared = replace(inputs, images=sheet(drawn.source, shown), ready={})
            said = review(thinking, mllm, compared, sentence)
            image = core.finish(picture, drawn, 0).cpu()
            found.append(Round(number, candidate, sentence, image, said, time.perf_counter() - began))
        said = best(found[-edit.candidates :]).review
        if said is None or min(said.follows, said.keeps) >= GOOD or said.sentence == sentence:
            break
        if number < edit.rounds:
            sentence = said.sentence
            _, condition = core.condition(sources, inputs.instructions, inputs.objects, sentences=[sentence])
    return found
