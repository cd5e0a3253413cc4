"""ReasonMini 2 as a data set to train on: ``data.name=mini2``."""

from __future__ import annotations

from collections.abc import Sequence

from reasonbrain.data.record import Record
from reasonbrain.modules.data.reasonmini.dataset import DrawnDataSet
from reasonbrain.modules.data.reasonmini2.world import SIZE, SPLITS, draw, make, vocabulary


class ReasonMini2(DrawnDataSet):
    """A split of ReasonMini 2, generated on the fly. A record has all the phrasings that fit it.

    Args:
        split: ``train``, ``val``, ``test``, ``paraphrase``, ``compositional``, ``picture``, ``conditional``, ``pair``
            or ``stranger``

    Raises:
        UserError: for an unknown split and for a number out of range
    """

    def __init__(self, size: int = SIZE, count: int = 20000, seed: int = 0, split: str = "train") -> None:
        super().__init__(SPLITS, split, size, count, seed)

    def __getitem__(self, index: int) -> Record:
        s = make(self.split, index, self.seed, self.size)
        return Record(s.id, s.source, s.target, s.instructions, s.objects)

    def instructions(self, index: int) -> Sequence[str]:
        return draw(self.split, index, self.seed)[3]

    def vocabulary(self) -> Sequence[str]:
        return vocabulary()
