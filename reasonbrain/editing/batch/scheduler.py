"""Edits many rows in batches. ``pipe.batch(rows)`` yields the results as they finish.

for result in pipe.batch([{"id": "ice", "image": "ice.png", "instruction": "Leave it in the sun."}]):
    result.image.save(f"{result.row.id}.png")

A result does not depend on the other rows of its batch. Its noise depends only on its seed and variant. Every forward
pass has ``batch_size`` rows; a smaller batch is padded with copies of its last row. Rows share a batch only if their
tensors have equal shapes: pictures that are edited at one size, instructions padded to one length. The shapes of all
matrix products, and therefore their rounding, are then the same in every batch.

What is held at a time is bounded whatever the sizes of the pictures: the decoded pictures of a window by PIXELS, and
the tensors of one size that edits are computed at, since the batches of a size follow each other.
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
from reasonbrain.errors import RunError, reason
from reasonbrain.interfaces import Condition
from reasonbrain.utils.images import load_image, to_pil, upright_size

WINDOW = 16  # batches of rows that are sorted by size and length together, at most
PIXELS = 1 << 28  # of the pictures of a window, at most, unless one alone has more; 3 bytes each
KEPT = 4  # batches of edits or sources that wait, at most


@dataclass
class Result:
    """One variant of a row: ``image``, or the reason for its absence in ``error``. ``unread``: the end of the
    instruction that the text encoder did not read. ``seconds``: its share of the time that the model ran."""

    row: EditRow
    variant: int
    image: Image.Image | None = None
    objects: list[str] = field(default_factory=list)
    reasoning: str | None = None
    unread: str = ""
    seconds: float = 0.0
    error: str = ""

    @property
    def seed(self) -> int:
        return (self.row.seed + self.variant) % 2**32


@dataclass
class _Edit:
    """A result without its image yet, and what drawing needs."""

    result: Result
    picture: Image.Image
    sources: Sources
    condition: Condition


Parts = TypeVar("Parts", Condition, Sources)
Item = TypeVar("Item", EditRow, _Edit)
Size = tuple[int, int]  # height, width that an edit is computed at


def edit_rows(core: Core, edit: EditConfig, rows: Iterable[EditRow], batch_size: int) -> Iterator[Result]:
    """The results of rows, in no particular order. edit: the settings of rows that do not have their own. A row that
    cannot be edited, whatever is raised for it, gives an error for each of its variants.

    Raises RunError if the accelerator fails."""
    rows = iter(rows)
    with ThreadPoolExecutor(4) as pool:
        while taken := list(islice(rows, WINDOW * batch_size)):
            for window in _windows(list(zip(taken, pool.map(_size, taken), strict=True))):
                yield from _Window(core, edit, batch_size, pool).run(window)


def _windows(rows: list[tuple[EditRow, Size | None]]) -> Iterator[list[tuple[EditRow, Size | None]]]:
    """Splits rows with the (width, height) of their pictures where PIXELS are exceeded."""
    window: list[tuple[EditRow, Size | None]] = []
    pixels: dict[Any, int] = {}
    for row, size in rows:
        own = {_source(row): size[0] * size[1]} if size else {}
        if window and sum((pixels | own).values()) > PIXELS:
            yield window
            window, pixels = [], {}
        window.append((row, size))
        pixels |= own
    yield window


class _Window:
    """Sorts some rows into batches and runs these."""

    def __init__(self, core: Core, edit: EditConfig, batch_size: int, pool: ThreadPoolExecutor) -> None:
        self.core, self.edit, self.batch_size, self.pool = core, edit, batch_size, pool
        self.waiting: dict[tuple[Any, ...], list[_Edit]] = {}  # by what the edits of a denoising batch share
        self.loaded: dict[Any, Future[Image.Image]] = {}
        self.known: dict[Any, Sources] = {}  # of pictures that later rows use again
        self.uses: Counter[Any] = Counter()

    def run(self, rows: list[tuple[EditRow, Size | None]]) -> Iterator[Result]:
        """rows: with the (width, height) of their pictures; None where it is not known."""
        groups: dict[Size | None, dict[tuple[Any, ...], list[EditRow]]] = {}
        for row, picture_size in rows:
            try:
                kind = () if row.error else self._kind(row)
                size = self.core.size(*picture_size, self._settings(row)) if picture_size else None
            except Exception as e:
                row = replace(row, error=reason(e))
            if row.error:
                yield from _failed(row, row.error)
                continue
            self.uses[_source(row)] += 1
            groups.setdefault(size, {}).setdefault(kind, []).append(row)
        batches = deque(
            (size, group[i : i + self.batch_size])
            for size, kinds in groups.items()
            for group in kinds.values()
            for i in range(0, len(group), self.batch_size)
        )
        self._load(batches)
        while batches:
            size, batch = batches.popleft()
            pictures, sizes = {}, {}
            for row in batch:
                try:
                    picture = self.loaded[_source(row)].result()
                    sizes[row] = self.core.size(*picture.size, self._settings(row))
                    pictures[row] = picture
                except Exception as e:
                    yield from _failed(row, reason(e))
            self._load(batches)
            # rows whose file header was wrong or unreadable get their own batches
            astray = [row for row in pictures if sizes[row] != size]
            batches.extendleft((sizes[row], [row]) for row in astray)
            fits = [row for row in pictures if sizes[row] == size]
            for part, error in self._separately(fits, partial(self._condition, pictures)):
                for row in part if error else ():
                    yield from _failed(row, error)
            for row in batch:
                if row not in astray:
                    self._release(row)
            last = not batches or batches[0][0] != size
            if last:
                self.known.clear()
            crowded = sum(map(len, self.waiting.values())) > KEPT * self.batch_size
            yield from self._draw(1 if last or crowded else self.batch_size)

    def _kind(self, row: EditRow) -> tuple[Any, ...]:
        """What the rows of a batch share besides the size of their edits."""
        mllm = self.core.model.slot("mllm")
        return row.reasoning, 0 if mllm is None else mllm.text_length(row.instruction)

    def _separately(self, batch: list[Item], work: Callable[[list[Item]], None]) -> list[tuple[list[Item], str]]:
        """Does the work for a batch. If it raises anything, does it for each item alone, so that one cannot end the
        others. Returns the batch or its items with what was wrong with them, "" if nothing.

        Raises RunError if the accelerator fails: all that follows would fail as well."""
        if not batch:
            return []
        try:
            work(batch)
            return [(batch, "")]
        except torch.AcceleratorError as e:
            raise RunError(f"the accelerator failed: {reason(e)}; run the same command again to resume") from None
        except Exception as e:
            if len(batch) == 1:
                return [(batch, reason(e))]
        return [found for item in batch for found in self._separately([item], work)]

    def _load(self, batches: Iterable[tuple[Size | None, list[EditRow]]]) -> None:
        """Starts decoding the pictures of the next batch."""
        for _, batch in islice(batches, 1):
            for row in batch:
                if _source(row) not in self.loaded:
                    self.loaded[_source(row)] = self.pool.submit(load_image, row.image)

    def _release(self, row: EditRow) -> None:
        key = _source(row)
        self.uses[key] -= 1
        if not self.uses[key]:
            self.loaded.pop(key)
            self.known.pop(key, None)

    def _settings(self, row: EditRow) -> EditConfig:
        return replace(self.edit, steps=row.steps or self.edit.steps, size=row.size or self.edit.size)

    def _condition(self, pictures: dict[EditRow, Image.Image], rows: list[EditRow]) -> None:
        """Runs the conditioning path of a batch and adds its edits to ``waiting``."""
        start = time.perf_counter()
        while len(self.known) > KEPT * self.batch_size:  # the oldest; computed again if they are needed
            self.known.pop(next(iter(self.known)))
        new = {_source(row): pictures[row] for row in rows if _source(row) not in self.known}
        if new:
            sources = self.core.sources(self._filled(list(new.values())), self._settings(rows[0]))
            self.known |= {key: _one(sources, i) for i, key in enumerate(new)}
        whole = self._filled(rows)
        sources = _joined([self.known[_source(row)] for row in whole])
        texts = [row.instruction for row in whole]
        inputs, condition = self.core.condition(sources, texts, reasoning=rows[0].reasoning)
        condition = condition._replace(focus=None)
        said = inputs.sentences or [None] * len(whole)
        seconds = (time.perf_counter() - start) / sum(len(row.variants) for row in rows)
        edits = []
        for i, row in enumerate(rows):
            own = _one(condition, i)
            known = self.known[_source(row)]._replace(ready={})  # drawing does not need them
            unread = self.core.unread(row.instruction)
            for variant in row.variants:
                result = Result(row, variant, None, inputs.objects[i], said[i], unread, seconds)
                edits.append(_Edit(result, pictures[row], known, own))
        for edit in edits:
            key = (tuple(edit.sources.small.shape), self._settings(edit.result.row).steps)
            self.waiting.setdefault(key, []).append(edit)

    def _draw(self, least: int) -> Iterator[Result]:
        """Draws the waiting edits in batches as long as ``least`` or more of one kind are waiting."""
        for waiting in self.waiting.values():
            while len(waiting) >= least:
                batch = waiting[: self.batch_size]
                del waiting[: self.batch_size]
                for part, error in self._separately(batch, self._draw_batch):
                    for edit in part:
                        edit.result.error = edit.result.error or error
                        yield edit.result

    def _draw_batch(self, batch: list[_Edit]) -> None:
        """Sets the pictures of the edits' results."""
        start = time.perf_counter()
        whole = self._filled(batch)
        sources = _joined([edit.sources for edit in whole])
        noise = torch.cat([_noise(edit) for edit in whole]).to(sources.latents)
        condition = _joined([edit.condition for edit in whole])
        drawn = self.core.draw(sources, condition, noise, self._settings(batch[0].result.row))
        for i, edit in enumerate(batch):
            try:
                edit.result.image = to_pil(self.core.finish(edit.picture, drawn, i))[0]
            except ValueError as e:
                edit.result.error = str(e)
        seconds = (time.perf_counter() - start) / len(batch)
        for edit in batch:
            edit.result.seconds += seconds

    def _filled(self, batch: Sequence[Any]) -> list[Any]:
        """The batch with copies of its last element, ``batch_size`` long."""
        return [*batch, *[batch[-1]] * (self.batch_size - len(batch))]


def _failed(row: EditRow, error: str) -> Iterator[Result]:
    return (Result(row, variant, error=error) for variant in row.variants)


def _source(row: EditRow) -> Any:
    """A key of the row's picture."""
    return row.image if isinstance(row.image, Path) else id(row.image)


def _size(row: EditRow) -> Size | None:
    """(width, height) of a row's picture without decoding it; None if that is not known."""
    if row.error or isinstance(row.image, Path):
        return None if row.error else upright_size(row.image)  # type: ignore[arg-type]
    size = row.image.size if isinstance(row.image, Image.Image) else row.image.shape[1::-1]
    return size if len(size) == 2 and min(size) else None


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
