"""Edits many rows in batches. ``pipe.batch(rows)`` yields the results as they finish.

for result in pipe.batch([{"id": "ice", "image": "ice.png", "instruction": "Leave it in the sun."}]):
    result.image.save(f"{result.row.id}.png")

A result does not depend on the other rows of its batch. Its noise depends only on its seed and variant. Every forward
pass has ``batch_size`` rows; a smaller batch is padded with copies of its last row. Rows share a batch only if their
tensors have equal shapes: pictures of one size, instructions padded to one length. The shapes of all matrix products,
and therefore their rounding, are then the same in every batch.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from reasonbrain.config.schema import EditConfig
from reasonbrain.editing.batch.rows import EditRow
from reasonbrain.editing.core import Core, Sources
from reasonbrain.errors import UserError
from reasonbrain.interfaces import Condition
from reasonbrain.utils.images import load_image, to_pil, upright_size

WINDOW = 16  # batches of rows that are sorted by size and length together
Parts = TypeVar("Parts", Condition, Sources)
Size = tuple[int, int]


@dataclass
class Result:
    """One variant of a row: ``image``, or the reason for its absence in ``error``. ``seconds``: its share of the time
    that the model ran."""

    row: EditRow
    variant: int
    image: Image.Image | None = None
    objects: list[str] = field(default_factory=list)
    reasoning: str | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def seed(self) -> int:
        return (self.row.seed + self.variant) % 2**32


@dataclass
class _Edit:
    """A result without its image yet, and what drawing needs."""

    result: Result
    sources: Sources
    condition: Condition


def edit_rows(core: Core, edit: EditConfig, rows: Iterable[EditRow], batch_size: int) -> Iterator[Result]:
    """The results of rows, in no particular order. edit: the settings of rows that do not have their own. A row that
    cannot be edited gives results with an error.

    Raises UserError if ``batch_size`` rows do not fit into the device's memory."""
    rows = iter(rows)
    with ThreadPoolExecutor(4) as pool:
        while window := list(islice(rows, WINDOW * batch_size)):
            yield from _Window(core, edit, batch_size, pool).run(window)


class _Window:
    """Sorts some rows into batches and runs these."""

    def __init__(self, core: Core, edit: EditConfig, batch_size: int, pool: ThreadPoolExecutor) -> None:
        self.core, self.edit, self.batch_size, self.pool = core, edit, batch_size, pool
        self.waiting: dict[tuple[Any, ...], list[_Edit]] = {}  # by what the edits of a denoising batch share
        self.loaded: dict[Any, Future[Image.Image]] = {}
        self.known: dict[Any, Sources] = {}  # of pictures that later rows use again
        self.uses: Counter[Any] = Counter()

    def run(self, rows: list[EditRow]) -> Iterator[Result]:
        for row in rows:
            if row.error:
                yield Result(row, 0, error=row.error)
        rows = [row for row in rows if not row.error]
        groups: dict[tuple[Any, ...], list[EditRow]] = {}
        for row, size in zip(rows, self.pool.map(_size, rows), strict=True):
            self.uses[self._picture(row)] += 1
            groups.setdefault((size, *self._kind(row)), []).append(row)
        batches: deque[tuple[Size | None, list[EditRow]]] = deque(
            (size, group[i : i + self.batch_size])
            for (size, *_), group in groups.items()
            for i in range(0, len(group), self.batch_size)
        )
        self._load(batches)
        while batches:
            size, batch = batches.popleft()
            pictures = {}
            for row in batch:
                try:
                    pictures[row.number] = self.loaded[self._picture(row)].result()
                except UserError as e:
                    yield from (Result(row, variant, error=str(e)) for variant in row.variants)
            self._load(batches)
            # rows whose file header was wrong or unreadable get their own batches
            astray = [row for row in batch if row.number in pictures and pictures[row.number].size != size]
            batches.extendleft((pictures[row.number].size, [row]) for row in astray)
            fits = [row for row in batch if row.number in pictures and row not in astray]
            if fits:
                self._condition(fits, [pictures[row.number] for row in fits])
            for row in batch:
                if row not in astray:
                    self._release(row)
            yield from self._draw(self.batch_size)
        yield from self._draw(1)

    def _kind(self, row: EditRow) -> tuple[int | None, bool, int]:
        """What the rows of a batch share besides the size of their pictures."""
        mllm = self.core.model.slot("mllm")
        return row.size, row.reasoning, 0 if mllm is None else mllm.text_length(row.instruction)

    def _picture(self, row: EditRow) -> Any:
        """A key of the picture and the size that it is edited at."""
        return row.image if isinstance(row.image, Path) else id(row.image), row.size

    def _load(self, batches: Iterable[tuple[Size | None, list[EditRow]]]) -> None:
        """Starts decoding the pictures of the next batch."""
        for _, batch in islice(batches, 1):
            for row in batch:
                if self._picture(row) not in self.loaded:
                    self.loaded[self._picture(row)] = self.pool.submit(load_image, row.image)

    def _release(self, row: EditRow) -> None:
        key = self._picture(row)
        self.uses[key] -= 1
        if not self.uses[key]:
            self.loaded.pop(key)
            self.known.pop(key, None)

    def _settings(self, row: EditRow) -> EditConfig:
        return replace(self.edit, steps=row.steps or self.edit.steps, size=row.size or self.edit.size)

    def _condition(self, rows: list[EditRow], pictures: list[Image.Image]) -> None:
        """Runs the conditioning path of a batch and adds its edits to ``waiting``."""
        start = time.perf_counter()
        new = {self._picture(r): p for r, p in zip(rows, pictures, strict=True) if self._picture(r) not in self.known}
        if new:
            sources = self._guarded(
                partial(self.core.sources, self._filled(list(new.values())), self._settings(rows[0]))
            )
            self.known |= {key: _one(sources, i) for i, key in enumerate(new)}
        whole = self._filled(rows)
        sources = _joined([self.known[self._picture(row)] for row in whole])
        texts = [row.instruction for row in whole]
        work = partial(self.core.condition, sources, texts, reasoning=rows[0].reasoning)
        inputs, condition = self._guarded(work)
        condition = condition._replace(focus=None)
        said = inputs.sentences or [None] * len(whole)
        seconds = (time.perf_counter() - start) / sum(len(row.variants) for row in rows)
        for i, row in enumerate(rows):
            settings = self._settings(row)
            key = (tuple(sources.original.shape), settings.size, settings.steps)
            for variant in row.variants:
                result = Result(row, variant, None, inputs.objects[i], said[i], seconds)
                known = self.known[self._picture(row)]._replace(ready={})  # drawing does not need them
                edit = _Edit(result, known, _one(condition, i))
                self.waiting.setdefault(key, []).append(edit)

    def _draw(self, least: int) -> Iterator[Result]:
        """Draws the waiting edits in batches as long as ``least`` or more of one kind are waiting."""
        for key in list(self.waiting):
            while len(self.waiting[key]) >= least:
                batch = self.waiting[key][: self.batch_size]
                del self.waiting[key][: self.batch_size]
                start = time.perf_counter()
                whole = self._filled(batch)
                sources = _joined([edit.sources for edit in whole])
                noise = torch.cat([_noise(edit) for edit in whole]).to(sources.latents)
                settings = self._settings(batch[0].result.row)
                condition = _joined([edit.condition for edit in whole])
                drawn = self._guarded(partial(self.core.draw, sources, condition, noise, settings)).cpu()
                seconds = (time.perf_counter() - start) / len(batch)
                for i, edit in enumerate(batch):
                    edit.result.seconds += seconds
                    try:
                        edit.result.image = to_pil(drawn[i : i + 1])[0]
                    except ValueError as e:
                        edit.result.error = str(e)
                    yield edit.result

    def _filled(self, batch: Sequence[Any]) -> list[Any]:
        """The batch with copies of its last element, ``batch_size`` long."""
        return [*batch, *[batch[-1]] * (self.batch_size - len(batch))]

    def _guarded(self, work: Any) -> Any:
        try:
            return work()
        except torch.OutOfMemoryError:
            raise UserError(f"batch size {self.batch_size} does not fit into memory; use a smaller one") from None


def _size(row: EditRow) -> Size | None:
    """(width, height) of a row's picture without decoding it; None if the header cannot be read."""
    if isinstance(row.image, Path):
        return upright_size(row.image)
    return row.image.size if isinstance(row.image, Image.Image) else row.image.shape[1::-1]


def _noise(edit: _Edit) -> Tensor:
    generator = torch.Generator().manual_seed(edit.result.seed)
    return torch.randn(edit.sources.latents.shape, generator=generator)


def _one(parts: Parts, i: int) -> Parts:
    """Row i of a named tuple of tensors as a batch of one. It is a copy: a view would keep all rows in memory."""
    return type(parts)(*(_each(lambda part: part[i : i + 1].clone(), part) for part in parts))


def _joined(rows: Sequence[Parts]) -> Parts:
    """Batches of one as one batch."""
    return type(rows[0])(*(_each(lambda *same: torch.cat(same), *parts) for parts in zip(*rows, strict=True)))


def _each(work: Callable[..., Tensor], *parts: Any) -> Any:
    """Applies ``work`` to tensors, or to the tensors of dicts by name; None stays None."""
    if isinstance(parts[0], dict):
        return {name: work(*(part[name] for part in parts)) for name in parts[0]}
    return None if parts[0] is None else work(*parts)
