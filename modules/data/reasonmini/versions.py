"""The two worlds of ReasonMini by version: 1 made the embedded default, 2 is that of its second edition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import Image

from reasonbrain.modules.data.reasonmini import world as first
from reasonbrain.modules.data.reasonmini2 import check
from reasonbrain.modules.data.reasonmini2 import world as second


class World(NamedTuple):
    """What the commands need of a world. The kinds are given by name, with the params of a record."""

    splits: tuple[str, ...]
    size: int  # pixels, unless another size is asked for
    make: Callable[..., Any]  # (split, index, seed, size) -> its Sample
    passes: Callable[[Image.Image, str, dict[str, Any]], bool]  # whether an edit shows the outcome
    category: Callable[[str], str]  # of a kind; KeyError for an unknown one
    vocabulary: Callable[[], Sequence[str]]  # the words of its training instructions


WORLDS = {
    1: World(
        splits=first.SPLITS,
        size=first.SIZE,
        make=first.make,
        passes=first.passes,
        category=lambda kind: first.find_kind(kind)[1].category,
        vocabulary=first.vocabulary,
    ),
    2: World(
        splits=second.SPLITS,
        size=second.SIZE,
        make=second.make,
        passes=check.passes,
        category=lambda kind: second.find_kind(kind).category,
        vocabulary=second.vocabulary,
    ),
}
