"""Aspect-ratio buckets: all records of a step have the same image size, so that they can be batched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from reasonbrain.data.record import Size


class Buckets:
    """Groups record indices by image size. ``sizes`` holds the size of each record."""

    def __init__(self, sizes: Sequence[Size]) -> None:
        self.bucket = np.unique(np.array(sizes), axis=0, return_inverse=True)[1].reshape(-1)
        self.members = [np.flatnonzero(self.bucket == b) for b in range(self.bucket.max() + 1)]

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Draws the indices of ``count`` records from one bucket, with replacement.

        A bucket is drawn with probability proportional to its size, so that all records are equally likely. The bucket
        is drawn from a spawned generator: with a single bucket, the result equals ``rng.integers(0, records, count)``.
        """
        first = rng.spawn(1)[0].integers(len(self.bucket))
        members = self.members[self.bucket[first]]
        return members[rng.integers(0, len(members), count)].tolist()

    def instead(self, number: int) -> Iterator[int]:
        """Yields ``number``, then its replacements in order of preference, for records that cannot be read.

        Records of the same bucket come first, so that the records of a step keep one size.
        """
        own = self.bucket[number]
        for members in self.members[own:] + self.members[:own]:
            here = int(np.searchsorted(members, number))
            yield from map(int, members[here:])
            yield from map(int, members[:here])
