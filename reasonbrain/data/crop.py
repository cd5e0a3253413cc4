"""Aspect-ratio buckets: the few sizes at which pictures are trained on and edited, and cropping the records of a data
set to them, so that records of one size share a batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

from PIL import Image, ImageOps

from reasonbrain.data.dataset import DataSet
from reasonbrain.data.record import Record, Size
from reasonbrain.errors import UserError

BENT = 0.03  # largest difference of the aspect ratios of a record's pictures, as a logarithm
CHUNK = 256  # records whose headers one task of a thread reads


def bucket_sizes(size: int, multiple: int) -> list[Size]:
    """The sizes to which pictures are cut for a budget of ``size`` x ``size`` pixels: the square first, then aspect
    ratios from 1:1 to 1:2 and 2:1. None has more pixels than the square.

    The short side falls in steps of a sixteenth of ``size``: at 1024 pixels SDXL's multiples of 64 (arXiv:2307.01952,
    section 2.3). Finer steps would leave few records in a bucket. The long side is the largest multiple of ``multiple``
    within the budget, so that little is cut off the common ratios 2:3 and 9:16.
    At 1024 pixels and multiple 16: 1024 x 1024, 960 x 1088, 896 x 1168, 832 x 1248 (2:3), 768 x 1360 (9:16),
    704 x 1408, and the same with width and height exchanged.

    Raises UserError if ``size`` is not a multiple of ``multiple``."""
    if size % multiple:
        raise UserError(f"data.size: {size} is not a multiple of {multiple}, which model.diffusion requires")
    step = math.ceil(size / 16 / multiple) * multiple
    sizes, short, long = [(size, size)], size, size
    while long < 2 * short and short > step:
        short -= step
        long = min(size * size // short // multiple * multiple, 2 * short)
        sizes += [(short, long), (long, short)]
    return sizes


def nearest(picture: Size, choices: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest to the picture's."""
    return min(choices, key=lambda choice: bent(picture, choice))


def edit_size(picture: Size, size: int | None, multiple: int) -> Size:
    """The (width, height) at which a picture is edited: of the sizes that a model is trained at, ``bucket_sizes``, the
    one with the nearest aspect ratio. A picture longer than 2:1 is edited in its own aspect ratio, with the same number
    of pixels.

    picture: (width, height). size: the budget, rounded down to a multiple of ``multiple``. None: the picture's own
    size, rounded up."""
    if size is None:
        return -(-picture[0] // multiple) * multiple, -(-picture[1] // multiple) * multiple
    size = max(1, size // multiple) * multiple
    ratio = max(picture) / min(picture)
    if ratio <= 2:
        return nearest(picture, bucket_sizes(size, multiple))
    short = max(1, round(size / math.sqrt(ratio) / multiple)) * multiple
    long = size * size // short // multiple * multiple
    return (long, short) if picture[0] > picture[1] else (short, long)


class CutRecords:
    """The records of a data set, each picture scaled and centre-cropped to the size in ``choices`` with the nearest
    aspect ratio.

    ``records[index]`` raises UserError for a record that cannot be read, and for a target whose aspect ratio differs
    from its source's."""

    def __init__(self, source: DataSet, choices: Sequence[Size]) -> None:
        self.source, self.choices = source, choices

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def sizes(self) -> list[Size]:
        """The size of each record's pictures after cropping, from the headers of the sources. A record whose header
        cannot be read is put into the bucket of the next record, which replaces it in training."""
        chunks = [range(start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK)]
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # load_image decides about such pictures
            found = [size for part in pool.map(lambda chunk: [*map(self._size, chunk)], chunks) for size in part]
        sizes, after = [], next(filter(None, found), self.choices[0])
        for size in reversed(found):
            after = size or after
            sizes.append(after)
        return sizes[::-1]

    def _size(self, index: int) -> Size | None:
        size = self.source.shape(index)
        return size and nearest(size, self.choices)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        size = self._size(index)  # the same as in ``sizes``, so that a batch has one size
        assert size
        if record.target and bent(record.source.size, record.target.size) > BENT:
            sides = [f"{i.width}x{i.height}" for i in (record.source, record.target)]
            raise UserError(
                f"record '{record.id}': the source is {sides[0]} and the target {sides[1]}; both need one aspect ratio"
            )
        source = ImageOps.fit(record.source, size, Image.Resampling.LANCZOS)
        target = record.target and ImageOps.fit(record.target, size, Image.Resampling.LANCZOS)
        mask = record.mask and ImageOps.fit(record.mask, size, Image.Resampling.NEAREST)
        return replace(record, source=source, target=target, mask=mask)


def bent(one: Size, other: Size) -> float:
    """How far two aspect ratios differ: the absolute logarithm of their quotient."""
    return abs(math.log(one[0] * other[1] / (one[1] * other[0])))
