"""Aspect-ratio buckets: the records of a step share one size, since they pass through the model together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from reasonbrain.data.record import Size


class Buckets:
    """Record numbers by the size of their pictures; ``sizes``: of each record."""

    def __init__(self, sizes: Sequence[Size]) -> None:
        self.bucket = np.unique(np.array(sizes), axis=0, return_inverse=True)[1].reshape(-1)
        self.members = [np.flatnonzero(self.bucket == b) for b in range(self.bucket.max() + 1)]

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """``count`` records of one bucket. A bucket comes up as often as it has records, so that all records are taken
        equally often.

        The bucket is drawn from a stream of its own: where there is but one, the records are those of
        ``rng.integers(0, records, count)``."""
        first = rng.spawn(1)[0].integers(len(self.bucket))
        members = self.members[self.bucket[first]]
        return members[rng.integers(0, len(members), count)].tolist()

    def instead(self, number: int) -> Iterator[int]:
        """The record, and all others in the order in which they take its place if it cannot be read: those of its
        bucket that follow and precede it, then bucket after bucket, so that the records of a step keep one size."""
        own = self.bucket[number]
        for members in self.members[own:] + self.members[:own]:
            here = int(np.searchsorted(members, number))
            yield from map(int, members[here:])
            yield from map(int, members[:here])
