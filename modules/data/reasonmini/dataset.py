"""ReasonMini as a training set: ``data.name=mini``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reasonbrain.config.schema import LARGEST_SEED
from reasonbrain.data.dataset import DataSet
from reasonbrain.data.record import Record, Size
from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini.world import SPLITS, kinds, make, vocabulary


class DrawnDataSet(DataSet):
    """A split that is generated on the fly, as square images.

    Args:
        count: number of records
        seed: seed of the records
    """

    def __init__(self, splits: Sequence[str], split: str, size: int, count: int, seed: int) -> None:
        if split not in splits:
            raise UserError(f"data.split: '{split}' is not one of {', '.join(splits)}")
        if count < 1:
            raise UserError(f"data.count: must be 1 or more, not {count}")
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"data.seed: must be from 0 to {LARGEST_SEED}, not {seed}")
        self.split, self.size, self.count, self.seed = split, size, count, seed

    @classmethod
    def validation(cls, **section: Any) -> dict[str, Any]:
        return section | {"split": "val"}

    def __len__(self) -> int:
        return self.count

    def shape(self, index: int) -> Size:
        return self.size, self.size


class ReasonMini(DrawnDataSet):
    """A split of ReasonMini, generated on the fly. A record has all phrasings of its kind.

    Args:
        turns: relative frequency of each kind; 1 for kinds that are not named
        split: ``train``, ``val``, ``test``, ``paraphrase`` or ``compositional``

    Raises:
        UserError: for an unknown kind or split, and for a number out of range
    """

    def __init__(
        self,
        size: int = 64,
        count: int = 20000,
        turns: dict[str, int] = {},  # noqa: B006  # it is only read
        seed: int = 0,
        split: str = "train",
    ) -> None:
        super().__init__(SPLITS, split, size, count, seed)
        names = [kind.name for _, kind in kinds()]
        for name, often in turns.items():
            if name not in names:
                raise UserError(f"data.turns: ReasonMini has no kind '{name}'; choose from {', '.join(names)}")
            if often < 0:
                raise UserError(f"data.turns.{name}: must be 0 or more, not {often}")
        if not any(turns.get(name, 1) for name in names):
            raise UserError("data.turns: at least one kind must be above 0")
        self.order = [name for name in names for _ in range(turns.get(name, 1))]  # the kinds of records 0, 1, ...

    def __getitem__(self, index: int) -> Record:
        s = make(self.split, index, self.seed, self.size, self.order[index % len(self.order)])
        texts = s.kind.paraphrases if self.split == "paraphrase" else s.kind.phrasings
        return Record(s.id, s.source, s.target, [t.format(**s.params) for t in texts], s.objects)

    def vocabulary(self) -> Sequence[str]:
        return vocabulary()
