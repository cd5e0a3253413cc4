"""Edits many rows in batches. ``pipe.batch(rows)`` yields the results as they finish.

for result in pipe.batch([{"id": "ice", "image": "ice.png", "instruction": "Leave it in the sun."}]):
    result.image.save(f"{result.row.id}.png")

A result does not depend on the other rows of its batch. Its noise depends only on its seed and variant. Every forward
pass has ``batch_size`` rows; a smaller batch is padded with copies of its last row. Rows share a batch only if their
tensors have equal shapes: pictures edited at the same size, instructions padded to the same length. The shapes of all
matrix products, and therefore their rounding, are then the same in every batch.

Memory is bounded for pictures of any size. The decoded pictures of a window have at most PIXELS pixels. Batches of one
size run one after the other, so tensors are kept for one size at a time.
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

from reasonbrain.config.schema import EditConfig
from reasonbrain.editing.batch.rows import EditRow
from reasonbrain.editing.core import Core, Sources, join_rows, take_rows
from reasonbrain.editing.rounds import Round, best, edit_in_rounds, has_rounds
from reasonbrain.errors import RunError, Unavailable, reason
from reasonbrain.interfaces import Condition, Inputs
from reasonbrain.thinking import one_row
from reasonbrain.utils.images import load_image, to_pil, upright_size

WINDOW = 16  # maximum number of batches whose rows are sorted by size and length together
PIXELS = 1 << 28  # maximum number of pixels in a window, at 3 bytes each; a larger picture is a window of its own
KEPT = 4  # maximum number of batches of edits, or of sources, that are kept waiting


@dataclass
class Result:
    """One variant of a row: ``image``, or ``error``, the reason why there is none. ``unread``: what the text
    encoder truncated. ``note``: why ``reasoning`` is the instruction itself, or "".
    ``rounds``: all edits that were reviewed, of which ``image`` is the best.
    ``seconds``: its share of the model's run time."""

    row: EditRow
    variant: int
    image: Image.Image | None = None
    objects: list[str] = field(default_factory=list)
    reasoning: str | None = None
    note: str = ""
    unread: str = ""
    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    @property
    def seed(self) -> int:
        return (self.row.seed + self.variant) % 2**32


@dataclass
class _Edit:
    """A result whose image is not drawn yet, and what drawing it needs."""

    result: Result
    picture: Image.Image
    sources: Sources
    inputs: Inputs
    condition: Condition


Item = TypeVar("Item", EditRow, _Edit)
Size = tuple[int, int]  # height, width that an edit is computed at


def edit_rows(core: Core, edit: EditConfig, rows: Iterable[EditRow], batch_size: int) -> Iterator[Result]:
    """Yields the results of rows, in no particular order. edit: the settings of rows that do not have their own.
    Whatever is raised for a row becomes the ``error`` of each of its variants.

    Raises RunError if the accelerator fails, and Unavailable if a service does that the model asks."""
    rows = iter(rows)
    with ThreadPoolExecutor(4) as pool:
        while taken := list(islice(rows, WINDOW * batch_size)):
            for window in _windows(list(zip(taken, pool.map(_size, taken), strict=True))):
                yield from _Window(core, edit, batch_size, pool).run(window)


def _windows(rows: list[tuple[EditRow, Size | None]]) -> Iterator[list[tuple[EditRow, Size | None]]]:
    """Splits rows, given with the (width, height) of their pictures, into windows of at most PIXELS pixels."""
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
    """Sorts the rows of a window into batches and runs them."""

    def __init__(self, core: Core, edit: EditConfig, batch_size: int, pool: ThreadPoolExecutor) -> None:
        self.core, self.edit, self.batch_size, self.pool = core, edit, batch_size, pool
        self.waiting: dict[tuple[Any, ...], list[_Edit]] = {}  # by what the edits of a denoising batch must share
        self.loaded: dict[Any, Future[Image.Image]] = {}  # by picture, as the next two
        self.known: dict[Any, Sources] = {}  # kept for later rows with the same picture
        self.uses: Counter[Any] = Counter()  # rows still to come

    def run(self, rows: list[tuple[EditRow, Size | None]]) -> Iterator[Result]:
        """rows: with the (width, height) of their pictures, or None if unknown."""
        groups: dict[Size | None, dict[tuple[Any, ...], list[EditRow]]] = {}
        for row, picture_size in rows:
            try:
                kind = () if row.error else self._kind(row)
                size = self.core.size(*picture_size, self._settings(row)) if picture_size else None
            except Exception as e:
                row = replace(row, error=reason(e))
            if row.error:
                yield from _errors(row, row.error)
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
                    yield from _errors(row, reason(e))
            self._load(batches)
            # rows whose size was not known from the file header, or differs from it, get batches of their own
            misplaced = [row for row in pictures if sizes[row] != size]
            batches.extendleft((sizes[row], [row]) for row in misplaced)
            fits = [row for row in pictures if sizes[row] == size]
            for part, error in self._separately(fits, partial(self._condition, pictures)):
                for row in part if error else ():
                    yield from _errors(row, error)
            for row in batch:
                if row not in misplaced:
                    self._release(row)
            last = not batches or batches[0][0] != size
            if last:
                self.known.clear()
            crowded = sum(map(len, self.waiting.values())) > KEPT * self.batch_size
            yield from self._draw(1 if last or crowded else self.batch_size)

    def _kind(self, row: EditRow) -> tuple[Any, ...]:
        """What the rows of a batch must share besides the size of their edits."""
        return row.reasoning, *self.core.model.text_lengths(row.instruction)

    def _separately(self, batch: list[Item], work: Callable[[list[Item]], None]) -> list[tuple[list[Item], str]]:
        """Does the work for a batch. If that raises anything, does it for each item alone, so that one item cannot
        fail the others. Returns the batch, or its items, each with its error ("" if there is none).

        Raises RunError if the accelerator fails, and Unavailable, because everything after that would fail as well."""
        if not batch:
            return []
        try:
            work(batch)
            return [(batch, "")]
        except torch.AcceleratorError as e:
            raise RunError(f"the accelerator failed: {reason(e)}; run the same command again to resume") from None
        except Unavailable:
            raise
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
        while len(self.known) > KEPT * self.batch_size:  # drops the oldest, which are computed again if needed
            self.known.pop(next(iter(self.known)))
        new = {_source(row): pictures[row] for row in rows if _source(row) not in self.known}
        if new:
            sources = self.core.sources(self._pad(list(new.values())), self._settings(rows[0]))
            self.known |= {key: take_rows(sources, [i]) for i, key in enumerate(new)}
        padded = self._pad(rows)
        sources = join_rows([self.known[_source(row)] for row in padded])
        texts = [row.instruction for row in padded]
        inputs, condition = self.core.condition(sources, texts, reasoning=rows[0].reasoning)
        condition = condition._replace(focus=None)
        sentences, notes = inputs.sentences or [None] * len(padded), inputs.notes or [""] * len(padded)
        seconds = (time.perf_counter() - start) / sum(len(row.variants) for row in rows)
        edits = []
        for i, row in enumerate(rows):
            own = take_rows(condition, [i])
            known = self.known[_source(row)]._replace(ready={})  # drawing does not need the image features
            asked = replace(one_row(inputs, i), images=known.small, regions=known.regions, ready={})
            unread = self.core.unread(row.instruction, sentences[i])
            for variant in row.variants:
                result = Result(row, variant, None, inputs.objects[i], sentences[i], notes[i], unread, seconds=seconds)
                edits.append(_Edit(result, pictures[row], known, asked, own))
        for edit in edits:
            key = (tuple(edit.sources.small.shape), self._settings(edit.result.row).steps)
            self.waiting.setdefault(key, []).append(edit)

    def _draw(self, least: int) -> Iterator[Result]:
        """Draws the waiting edits in batches, as long as at least ``least`` of one kind are waiting."""
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
        if has_rounds(self.edit):
            for edit in batch:
                self._draw_in_rounds(edit)
            return
        start = time.perf_counter()
        diffusion = self.core.model.slot("diffusion")
        padded = batch if diffusion is not None and diffusion.draws_rows_alone else self._pad(batch)
        sources = join_rows([edit.sources for edit in padded])
        generators = [torch.Generator().manual_seed(edit.result.seed) for edit in padded]
        noise = self.core.noise(sources, generators)
        condition = join_rows([edit.condition for edit in padded])
        settings = self._settings(batch[0].result.row)
        drawn = self.core.decode(sources, self.core.draw(sources, condition, noise, settings), settings)
        for i, edit in enumerate(batch):
            try:
                edit.result.image = to_pil(self.core.finish(edit.picture, drawn, i))[0]
            except ValueError as e:
                edit.result.error = str(e)
        seconds = (time.perf_counter() - start) / len(batch)
        for edit in batch:
            edit.result.seconds += seconds

    def _draw_in_rounds(self, edit: _Edit) -> None:
        result, settings = edit.result, self._settings(edit.result.row)
        generator = torch.Generator().manual_seed(result.seed)
        one = edit.sources, edit.inputs, edit.condition
        result.rounds = edit_in_rounds(self.core, edit.picture, *one, generator, settings)
        kept = best(result.rounds)
        result.image, result.reasoning = to_pil(kept.image)[0], kept.sentence
        result.seconds += sum(made.seconds for made in result.rounds)

    def _pad(self, batch: Sequence[Any]) -> list[Any]:
        """The batch, padded to ``batch_size`` with copies of its last element."""
        return [*batch, *[batch[-1]] * (self.batch_size - len(batch))]


def _errors(row: EditRow, error: str) -> Iterator[Result]:
    return (Result(row, variant, error=error) for variant in row.variants)


def _source(row: EditRow) -> Any:
    """A key for the row's picture."""
    return row.image if isinstance(row.image, Path) else id(row.image)


def _size(row: EditRow) -> Size | None:
    """(width, height) of a row's picture, without decoding it; None if unknown."""
    if row.error or isinstance(row.image, Path):
        return None if row.error else upright_size(row.image)  # type: ignore[arg-type]
    size = row.image.size if isinstance(row.image, Image.Image) else row.image.shape[1::-1]
    return size if len(size) == 2 and min(size) else None
