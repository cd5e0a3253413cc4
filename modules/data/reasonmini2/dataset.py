"""ReasonMini 2 as a data set to train on: ``data.name=mini2``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reasonbrain.config.schema import LARGEST_SEED
from reasonbrain.data.dataset import DataSet
from reasonbrain.data.record import Record, Size
from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini2.world import SIZE, SPLITS, draw, make, vocabulary


class ReasonMini2(DataSet):
    """A split of ReasonMini 2, drawn on the fly. A record has all the phrasings that fit it.

    Args:
        count: number of records
        seed: seed of the records
        split: ``train``, ``val``, ``test``, ``paraphrase``, ``compositional``, ``picture``, ``conditional``, ``pair``
            or ``stranger``

    Raises:
        UserError: for an unknown split and for a number out of range
    """

    def __init__(self, size: int = SIZE, count: int = 20000, seed: int = 0, split: str = "train") -> None:
        if split not in SPLITS:
            raise UserError(f"data.split: '{split}' is not one of {', '.join(SPLITS)}")
        if count < 1:
            raise UserError(f"data.count: must be 1 or more, not {count}")
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"data.seed: must be from 0 to {LARGEST_SEED}, not {seed}")
        self.size, self.count, self.seed, self.split = size, count, seed, split

    @classmethod
    def validation(cls, **section: Any) -> dict[str, Any]:
        return section | {"split": "val"}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        s = make(self.split, index, self.seed, self.size)
        return Record(s.id, s.source, s.target, s.instructions, s.objects)

    def shape(self, index: int) -> Size:
        return self.size, self.size

    def instructions(self, index: int) -> Sequence[str]:
        return draw(self.split, index, self.seed)[3]

    def vocabulary(self) -> Sequence[str]:
        return vocabulary()
