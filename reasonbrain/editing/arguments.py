"""The arguments of a call of the pipeline, in the forms that users of diffusers give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reasonbrain.errors import UserError
from reasonbrain.instruction import check_instruction, check_text
from reasonbrain.model import ReasonBrain
from reasonbrain.utils.images import load_image

Picture: TypeAlias = str | Path | bytes | Image.Image | np.ndarray | Tensor
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]


def read_pictures(given: Picture | Sequence[Picture]) -> list[Image.Image]:
    """One picture or many: anything that ``load_image`` takes, a tensor [3, H, W], a batch [B, H, W, 3] or
    [B, 3, H, W], or a list of these. Raises UserError like ``load_image``."""
    if isinstance(given, Tensor):
        values = given.detach().cpu()
        given = (values.float() if values.is_floating_point() else values).movedim(-3, -1).numpy()
    if isinstance(given, (str, Path, bytes, Image.Image)) or (isinstance(given, np.ndarray) and given.ndim < 4):
        return [load_image(given)]
    return [picture for one in given for picture in read_pictures(one)]


def read_instructions(instruction: str | Sequence[str] | None, prompt: Any, count: int) -> list[str]:
    """One per picture. Raises UserError unless exactly one of ``instruction`` and ``prompt`` is given, for another
    number of them, and like ``check_instruction``."""
    if (instruction is None) == (prompt is None):
        raise UserError(f"give an instruction, or a prompt, not {'neither' if prompt is None else 'both'}")
    given = prompt if instruction is None else instruction
    texts = [given] * count if isinstance(given, str) else list(given)
    check_count("instructions", texts, count, "images")
    for text in texts:
        check_instruction(text)
    return texts


def read_objects(given: str | Sequence[Any] | None, count: int) -> list[list[str] | None]:
    """Names of objects, one list per picture. A string counts as one object. Raises UserError for another number of
    lists, and like ``check_text``."""
    given = [given] * count if given is None or isinstance(given, str) else given
    found = [None if names is None else [names] if isinstance(names, str) else list(names) for names in given]
    check_count("objects", found, count, "images")
    for name in (name for names in found for name in names or ()):
        check_text("object", name)
    return found


def read_sentences(given: str | Sequence[str], count: int, model: ReasonBrain) -> list[str]:
    """Sentences in place of the MLLM's, one per picture. Raises UserError for a model that reads none, another number
    of them, an empty one, and like ``check_text``."""
    if not model.reads_sentence:
        raise UserError("reasoning: this model reads no sentence, so yours would change nothing; leave it out")
    sentences = [given] * count if isinstance(given, str) else list(given)
    check_count("sentences", sentences, count, "images")
    for text in sentences:
        check_text("reasoning", text)
        if not text.strip():
            raise UserError("reasoning is empty; leave it out, and the MLLM writes it")
    return sentences


def check_count(what: str, given: Any, count: int, of: str) -> None:
    """Raises UserError unless a list or tensor has ``count`` entries. Anything else passes."""
    if isinstance(given, (list, tuple, Tensor)) and len(given) != count:
        raise UserError(f"{count} {of}, but {len(given)} {what}; give one each")


def check_generators(given: Any, count: int) -> None:
    """Raises UserError unless ``given`` is None, a torch.Generator, or ``count`` of them."""
    for one in given if isinstance(given, (list, tuple)) else [given]:
        if not isinstance(one, (torch.Generator, NoneType)):
            raise UserError(f"generator {one!r:.60} is not a torch.Generator, such as torch.Generator().manual_seed(0)")
    check_count("generators", given, count, "images")


def check_choices(what: str, given: Sequence[str], choices: Sequence[str]) -> None:
    """Raises UserError if an entry is not one of the choices."""
    if unknown := next((name for name in given if name not in choices), None):
        raise UserError(f"{what} '{unknown}' is not one of {', '.join(choices)}")


def finite(name: str, value: Any) -> float:
    """The number. Raises UserError if it is none, NaN or infinite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name} {value!r:.60} is not a finite number")
    return number
