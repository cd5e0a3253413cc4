"""Several data sets as one, in given shares: ``data.name=mixture``.

data.mixture=[{name: manifest, path: a.jsonl, weight: 3}, {name: magicbrush, path: "b/*.parquet", weight: 1}]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from reasonbrain.data.dataset import DataSet
from reasonbrain.data.record import Record, Size
from reasonbrain.errors import UserError

LONGEST = 100_000_000  # records; the size of each is kept


class Mixture(DataSet):
    """The records of all parts under one index. Each part owns a range of indices in proportion to its weight, so that
    uniform sampling draws from the parts by their weights. An index always refers to the same record, so there is no
    state to resume.

    The length is the smallest at which every record has an index. A part with more indices than records repeats its
    records in order; their numbers of repetitions differ by at most one.

    Raises UserError for a weight that is not positive and finite, and for one so small next to the others that the
    mixture would have more than ``LONGEST`` records."""

    def __init__(self, parts: Sequence[DataSet], weights: Sequence[float]) -> None:
        for weight in weights:
            if not 0 < weight < math.inf:
                raise UserError(f"data.mixture: weight {weight} must be above 0 and finite")
        self.parts = parts
        share = np.array(weights) / sum(weights)
        total = max(len(part) / one for part, one in zip(parts, share, strict=True))
        if total > LONGEST:
            small = min(weights)
            raise UserError(f"data.mixture: with weight {small} it has {total:.0f} records; {LONGEST} are the most")
        self.ends = np.ceil(np.cumsum(share) * total - 1e-6).astype(np.int64)  # the shares sum to 1 up to rounding

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, number: int) -> tuple[int, int]:
        """The part that owns a number, and the index of the record in it."""
        part = int(np.searchsorted(self.ends, number, side="right"))
        start = int(self.ends[part - 1]) if part else 0
        return part, (number - start) % len(self.parts[part])

    def __getitem__(self, number: int) -> Record:
        part, index = self.locate(number)
        return self.parts[part][index]

    def shape(self, number: int) -> Size | None:
        part, index = self.locate(number)
        return self.parts[part].shape(index)

    def vocabulary(self) -> Sequence[str]:
        return sorted({word for part in self.parts for word in part.vocabulary()})
