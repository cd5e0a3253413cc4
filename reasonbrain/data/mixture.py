"""Several data sets in one, in given shares: data.name=mixture.

data.mixture=[{name: manifest, path: a.jsonl, weight: 3}, {name: magicbrush, path: "b/*.parquet", weight: 1}]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from reasonbrain.data.records import Record, Size, Source
from reasonbrain.errors import UserError


class Mixture:
    """Record numbers 0 .. len - 1, of which each part owns a share in proportion to its weight: numbers drawn evenly
    draw the parts by their weights. Which record a number is never changes, so there is no state to resume.

    There are just as many numbers as it takes to reach every record. A part that owns more numbers than it has records
    starts over: its records come up equally often, but for one time more or less.

    Raises UserError for a weight that is not above 0 and finite."""

    def __init__(self, parts: Sequence[Source], weights: Sequence[float]) -> None:
        for weight in weights:
            if not 0 < weight < math.inf:
                raise UserError(f"data.mixture: weight {weight} must be above 0")
        self.parts = parts
        share = np.array(weights) / sum(weights)
        total = max(len(part) / one for part, one in zip(parts, share, strict=True))
        self.ends = np.ceil(np.cumsum(share) * total - 1e-6).astype(np.int64)  # a sum of shares is 1 but for rounding

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, number: int) -> tuple[int, int]:
        """The part that owns a number, and the record in it."""
        part = int(np.searchsorted(self.ends, number, side="right"))
        start = int(self.ends[part - 1]) if part else 0
        return part, (number - start) % len(self.parts[part])

    def shape(self, number: int) -> Size | None:
        part, index = self.place(number)
        return self.parts[part].shape(index)

    def __getitem__(self, number: int) -> Record:
        part, index = self.place(number)
        return self.parts[part][index]
