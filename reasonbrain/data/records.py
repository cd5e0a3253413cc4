"""Training records, from ReasonMini or from files in any layout that a reader knows (docs/data.md).

Pictures that are read are cut to the nearest of a few sizes, see ``bucket_sizes``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from reasonbrain.config.schema import DataConfig
from reasonbrain.data.opening import guess, open_reader
from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini.world import kinds, make

Size = tuple[int, int]  # width, height
BENT = 0.03  # how far, as a logarithm, the aspect ratios of source and target may differ


def bucket_sizes(size: int, multiple: int) -> list[Size]:
    """The sizes that pictures are cut to for a budget of ``size`` x ``size`` pixels: the square, then from 1:1 to 1:2
    and 2:1. None holds more pixels than the square.

    The short side falls in sixteenths of ``size``: at 1024 pixels SDXL's multiples of 64 (arXiv:2307.01952, section
    2.3). Finer steps would leave few records in a bucket. The long side is the largest multiple of ``multiple`` that
    the budget allows for, so that little is cut off the usual 2:3 and 9:16.
    At 1024 pixels and 16: 1024 x 1024, 960 x 1088, 896 x 1168, 832 x 1248 (2:3), 768 x 1360 (9:16), 704 x 1408 and
    the same lying down. Raises UserError if ``size`` is no multiple."""
    if size % multiple:
        raise UserError(f"data.size: {size} is no multiple of {multiple}, as model.diffusion needs it")
    step = math.ceil(size / 16 / multiple) * multiple
    sizes, short, long = [(size, size)], size, size
    while long < 2 * short and short > step:
        short -= step
        long = min(size * size // short // multiple * multiple, 2 * short)
        sizes += [(short, long), (long, short)]
    return sizes


@dataclass
class Record:
    """A source picture and what is asked of it; what only some data sets bring is empty in the others.

    ``instructions``: every way it is worded. ``objects``: the key objects (None: to be found in the words).
    ``target``: the true edit, of the source's size (None: a benchmark without one). ``mask``: "L", white where the
    edit may change the picture. ``captions``: of the source and of the target. ``notes``: what a benchmark's judge is
    told besides, by the benchmark's own field names."""

    id: str
    source: Image.Image
    target: Image.Image | None
    instructions: Sequence[str]
    objects: list[str] | None = None
    category: str = ""
    mask: Image.Image | None = None
    captions: tuple[str, str] | None = None
    notes: dict[str, str] = field(default_factory=dict)


class Records(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Source(Records, Protocol):
    """Pictures are as they came. ``shape``: the size of a record's source, found without decoding it; None if it
    cannot be read."""

    def shape(self, index: int) -> Size | None: ...


class Buckets(Records, Protocol):
    """``sizes``: that of each record's pictures."""

    @property
    def sizes(self) -> Sequence[Size]: ...


class MiniRecords:
    """A split of ReasonMini, drawn on the fly; a record brings all training phrasings of its kind.

    Raises UserError if ``data.turns`` names an unknown kind or a number below 0."""

    def __init__(self, cfg: DataConfig, split: str = "train") -> None:
        self.cfg, self.split = cfg, split
        names = [kind.name for _, kind in kinds()]
        for name, count in cfg.turns.items():
            if name not in names:
                raise UserError(f"data.turns: ReasonMini has no kind '{name}', but {', '.join(names)}")
            if count < 0:
                raise UserError(f"data.turns.{name} is {count}, but must be 0 or more")
        self.turns = [name for name in names for _ in range(cfg.turns.get(name, 1))]
        self.sizes = [(cfg.size, cfg.size)] * cfg.count

    def __len__(self) -> int:
        return self.cfg.count

    def shape(self, index: int) -> Size:
        return self.cfg.size, self.cfg.size

    def __getitem__(self, index: int) -> Record:
        s = make(self.split, index, self.cfg.seed, self.cfg.size, self.turns[index % len(self.turns)])
        return Record(s.id, s.source, s.target, [t.format(**s.params) for t in s.kind.phrasings], s.objects)


class CutRecords:
    """Records of a reader or of a mixture of them; a picture is scaled to cover the one of ``choices`` that is nearest
    in aspect ratio, and what stands out is cut off on both sides alike.

    Raises UserError for a bad record, and for a target of another shape than its source."""

    def __init__(self, source: Source, choices: Sequence[Size]) -> None:
        self.source, self.choices = source, choices

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def sizes(self) -> list[Size]:
        """From the sources' headers. A picture without one counts to the next record's bucket, as that record will
        take its place."""
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # load_image decides
            found = list(pool.map(self._size, range(len(self))))
        sizes, after = [], next(filter(None, found), self.choices[0])
        for size in reversed(found):
            after = size or after
            sizes.append(after)
        return sizes[::-1]

    def _size(self, index: int) -> Size | None:
        size = self.source.shape(index)
        return size and min(self.choices, key=lambda choice: _bent(size, choice))

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        size = self._size(index)  # as in ``sizes``, so that a batch has one
        assert size
        if record.target and _bent(record.source.size, record.target.size) > BENT:
            sides = [f"{i.width}x{i.height}" for i in (record.source, record.target)]
            raise UserError(
                f"record '{record.id}': its source is {sides[0]} and its target {sides[1]}; both need one aspect ratio"
            )
        source = ImageOps.fit(record.source, size, Image.Resampling.LANCZOS)
        target = record.target and ImageOps.fit(record.target, size, Image.Resampling.LANCZOS)
        mask = record.mask and ImageOps.fit(record.mask, size, Image.Resampling.NEAREST)
        return replace(record, source=source, target=target, mask=mask)


def open_source(cfg: DataConfig) -> Source:
    """What ``data`` names, each picture at its own size."""
    if cfg.name == "mini":
        return MiniRecords(cfg)
    if cfg.name != "mixture":
        return open_reader(cfg.name, str(cfg.path))
    from reasonbrain.data.mixture import Mixture

    parts = [open_source(replace(cfg, name=part.name, path=part.path)) for part in cfg.mixture]
    return Mixture(parts, [part.weight for part in cfg.mixture])


def _bent(one: Size, other: Size) -> float:
    """How far two aspect ratios differ: the logarithm of their quotient."""
    return abs(math.log(one[0] * other[1] / (one[1] * other[0])))


def open_records(cfg: DataConfig, multiple: int) -> Buckets:
    """What ``data`` names to train on. ``multiple``: what divides the sides of the diffusion model's pictures. Raises
    UserError if it does not divide ``data.size``."""
    choices = bucket_sizes(cfg.size, multiple)
    return MiniRecords(cfg) if cfg.name == "mini" else CutRecords(open_source(cfg), choices)


def open_validation(cfg: DataConfig) -> Records:
    """What ``data`` names to validate on; pictures that are read are cut to the square."""
    if cfg.name == "mini":
        return MiniRecords(cfg, "val")
    name = guess(str(cfg.validation)) if cfg.name == "mixture" else cfg.name
    return CutRecords(open_source(replace(cfg, name=name, path=cfg.validation)), [(cfg.size, cfg.size)])


def as_array(images: Sequence[Image.Image]) -> np.ndarray:
    """[B, 3, H, W] uint8."""
    return np.stack([np.asarray(i.convert("RGB")) for i in images]).transpose(0, 3, 1, 2).copy()
