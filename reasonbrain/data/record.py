"""Records: a source picture with an instruction. Data sets, training and evaluation exchange them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.utils.text import is_text, printable

Size = tuple[int, int]  # width, height
Picture = Path | bytes  # a file inside the data folder, or an encoded picture

SCENARIOS = ("physical", "temporal", "causal", "story")
"""The four reasoning scenarios of Reason50K (arXiv:2507.01908), the categories of its records."""

LONGEST_ID = 1000  # characters


@dataclass
class Record:
    """One record with its pictures decoded. A field that a data set does not have is None or empty."""

    id: str
    source: Image.Image
    """RGB."""

    target: Image.Image | None
    """The ground-truth edit, RGB. None if the data set has none."""

    instructions: Sequence[str]
    """All wordings of the instruction. Training draws one of them at each use."""

    objects: list[str] | None = None
    """The key objects. None: they are found in the instruction."""

    category: str = ""

    mask: Image.Image | None = None
    """"L", white where the edit may change the picture."""

    captions: tuple[str, str] | None = None
    """Captions of the source and of the target."""

    notes: dict[str, str] = field(default_factory=dict)
    """Further fields for a benchmark's metrics and its judge, under the benchmark's own names."""

    sentence: str = ""
    """What the edit shows, as the MLLM should say it. Training uses it in place of what the MLLM would generate."""

    edits: bool = True
    """False: there is no edit to learn, as in visual question answering. Training takes L_MLLM of the record, but not
    L_DM, and needs no target."""


@dataclass
class RawRecord:
    """One record before its pictures are decoded. The fields are those of ``Record``.

    Raises UserError for an id of more than ``LONGEST_ID`` characters, and for text that is not valid Unicode or has a
    zero byte: no file could hold it."""

    id: str
    source: Picture
    target: Picture | None
    instructions: list[str]
    objects: list[str] | None = None
    category: str = ""
    mask: Picture | None = None
    captions: tuple[str, str] | None = None
    notes: dict[str, str] = field(default_factory=dict)
    sentence: str = ""
    edits: bool = True

    def __post_init__(self) -> None:
        if len(self.id) > LONGEST_ID:
            raise UserError(f"the id has {len(self.id)} characters, but may have {LONGEST_ID}")
        texts: dict[str, Iterable[str]] = {
            "id": [self.id],
            "instruction": self.instructions,
            "objects": self.objects or (),
        }
        texts |= {
            "sentence": [self.sentence],
            "category": [self.category],
            "captions": self.captions or (),
            "notes": self.notes.values(),
        }
        for name, values in texts.items():
            for text in values:
                if not is_text(text):
                    raise UserError(f"{name} '{printable(text, 80)}' is not valid Unicode text")


class Records(Protocol):
    """Numbered records, reached in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
