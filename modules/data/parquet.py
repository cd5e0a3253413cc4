"""Parquet files in the Hub's layout: one column per field, pictures as {"bytes", "path"}.

They are read through ``datasets``, which converts them once to memory-mapped Arrow files in its cache folder
(HF_DATASETS_CACHE). A record is then read without decoding the hundreds of others in its row group.
Needs the extra [data].
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from reasonbrain.data.reader import SOURCE, Reader, files_of
from reasonbrain.data.record import RawRecord
from reasonbrain.errors import UserError
from reasonbrain.utils.reading import sketch

ROWS = 256  # granularity at which an error locates damage in a file


class Parquet(Reader):
    """Parquet files whose columns are named like the fields of a manifest. A subclass with other columns lists them in
    ``columns`` and overrides ``from_cells``.

    ``path``: a folder, a pattern, or one file. Raises UserError if there are no files, for a file that is not Parquet,
    for missing columns, and if ``datasets`` is not installed or cannot write its cache."""

    suffixes = (".parquet",)
    signs = ("**/*.parquet",)

    def __init__(self, path: str) -> None:
        paths = files_of(path, "*.parquet")
        if not paths:
            layouts: tuple[type[Reader], ...] = (*self.other_layouts, Parquet)
            signs = [sign for layout in layouts for sign in layout.signs]
            if not os.path.lexists(path):
                raise UserError(f"data.path: '{path}' does not exist")
            raise UserError(f"data.path: '{path}' has none of {', '.join(signs)}")
        name = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        super().__init__(paths[0].parent, name, paths)
        table = load(paths)
        missing = [name for name in self.columns if name not in table.column_names]
        if missing or not set(table.column_names) & {*SOURCE, *self.columns}:
            lacks = ", ".join(missing or SOURCE)
            raise UserError(f"{self.name} has no column {lacks}; its columns are {', '.join(table.column_names)}")
        self.table = table.with_format("arrow")  # pictures stay encoded

    @classmethod
    def fits(cls, path: str) -> bool:
        """Whether the first file has the columns. True without ``columns``: opening then reports what is wrong."""
        if not cls.columns:
            return True
        try:
            from pyarrow.lib import ArrowException
            from pyarrow.parquet import read_schema
        except ImportError:
            return False
        try:
            return set(cls.columns) <= {*read_schema(files_of(path, "*.parquet")[0]).names}
        except (IndexError, OSError, ArrowException):  # no file, or not Parquet
            return False

    def __len__(self) -> int:
        return len(self.table)

    def inputs(self) -> Iterator[Path]:
        inside = False
        with suppress(UserError):
            inside = isinstance(self.raw(0).source, bytes)  # a column holds bytes or paths
        yield from self.files if inside else super().inputs()

    def raw(self, index: int) -> RawRecord:
        try:
            cells = self.table[index].to_pylist()[0]
        except (
            ValueError,
            OverflowError,
            OSError,
        ) as e:  # Arrow's errors are ValueErrors; so are invalid dates
            raise self.wrong(index, f"not a record ({e})") from None
        return self.from_cells(cells, index)

    def from_cells(self, cells: dict[str, Any], index: int) -> RawRecord:
        """Record ``index`` from the values of its columns."""
        return self.from_fields(cells, index)


class EmuEdit(Parquet):
    """The Emu Edit test set (arXiv:2311.10089; facebook/emu_edit_test_set on the Hub). It has no ground-truth edits,
    but captions of the source and of the edit. The category of a record is its task."""

    columns = ("instruction", "image", "task", "split", "idx", "hash", "input_caption", "output_caption")

    def from_cells(self, cells: dict[str, Any], index: int) -> RawRecord:
        captions = {"source_caption": cells["input_caption"], "target_caption": cells["output_caption"]}
        row = {"source": cells["image"], "category": cells["task"], **captions}
        notes = {k: self.as_text(cells[k], k, index) for k in ("split", "hash")}
        return self.from_fields({k: cells[k] for k in ("idx", "instruction")} | row, index, notes)


def load(paths: Sequence[Path]) -> Any:
    """The files as one memory-mapped ``datasets.Dataset``. Raises UserError like ``Parquet``."""
    try:
        import datasets
    except ImportError:
        raise UserError("Parquet is read with datasets: pip install 'reasonbrain[data]'") from None
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # its errors are raised here
    datasets.disable_progress_bars()
    try:
        names = [glob.escape(os.path.abspath(p)) for p in paths]  # datasets takes patterns
        # datasets finds its cache by paths and dates; a file may be replaced by one of the same date (rsync, tar)
        content = hashlib.blake2b("".join(map(sketch, paths)).encode(), digest_size=16).hexdigest()
        return datasets.load_dataset("parquet", content, data_files=names, split="train")
    except Exception as e:  # the errors of pyarrow and datasets have no common base
        cause: BaseException = e
        while cause.__cause__:
            cause = cause.__cause__
        said = " ".join(str(cause).split()) or type(cause).__name__
        raise UserError(f"{locate_damage(paths)} cannot be read as Parquet: {said}") from None


def locate_damage(paths: Sequence[Path]) -> str:
    """Names the first file that cannot be read and the rows in which reading fails; all files if each can be read."""
    from pyarrow.parquet import ParquetFile

    for path in paths:
        row = None
        try:
            with ParquetFile(path) as file:
                row = 0
                for batch in file.iter_batches(batch_size=ROWS):
                    row += batch.num_rows
        except Exception:
            return f"'{path}'" if row is None else f"'{path}', rows {row} to {row + ROWS - 1},"
    return ", ".join(f"'{path}'" for path in paths[:9])
