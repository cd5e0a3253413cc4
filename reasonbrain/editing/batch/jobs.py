"""The job of a batch, and readers that yield the rows of a file or folder one at a time.

for row in read(Path("jobs.jsonl")):
    print(row.id, row.error or row.instruction)
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from reasonbrain.editing.batch.rows import FIELDS, EditRow, parse_all
from reasonbrain.errors import UserError
from reasonbrain.utils.images import INPUT_FORMATS
from reasonbrain.utils.reading import parse_json, sketch

HEIF = (".heic", ".heif", ".hif")  # Pillow registers them only if pillow-heif is installed
NEEDED = ("id", "image", "instruction")  # required columns of a table
DELIMITERS = ",;\t"
OUTPUTS = ("gallery.html", "lock", "pictures", "results.jsonl", "run.json")  # what a batch writes into its folder


@dataclass(frozen=True)
class Job:
    """The arguments of a batch. A worker needs only these and its rows."""

    jobs: Path
    output: Path
    instruction: str | None
    checkpoint: str
    config: str | None
    overrides: tuple[str, ...]
    batch_size: int

    def rows(self) -> Iterator[EditRow]:
        return read(self.jobs, self.instruction)

    def survey(self) -> tuple[int, str]:
        """The number of results of all rows, and a hash of the rows.

        The hash does not depend on the format: the same table as CSV and as Parquet has the same hash. Files of a
        folder that are not pictures are ignored. A picture of a folder counts by its name and its ``sketch``, a picture
        that a file lists by its path. Raises UserError if there are no rows."""
        total, digest, root = 0, hashlib.blake2b(digest_size=16), _root(self.jobs)
        for row in self.rows():
            total += len(row.variants)
            seen = None
            with suppress(OSError):  # a picture that cannot be read is an error of its row
                seen = sketch(row.image) if self.jobs.is_dir() and row.image.is_file() else None  # type: ignore
            values = (row.id, os.path.relpath(row.image, root), seen, row.instruction, row.seed, row.steps, row.size)  # type: ignore[arg-type]
            digest.update(repr((*values, row.reasoning, row.n, row.error)).encode(errors="surrogatepass"))
        if not total:
            raise UserError(f"jobs '{self.jobs}' has no rows")
        return total, digest.hexdigest()

    def skipped(self) -> list[str]:
        """Names of the files and folders in a folder of pictures that are not edited, except the output of this
        batch."""
        if not self.jobs.is_dir():
            return []
        folder, output = self.jobs.resolve(), self.output.resolve()
        within = output.relative_to(folder).parts[:1] if output.is_relative_to(folder) else ("",)
        ours = {*within} if within else {*OUTPUTS}
        return sorted({p.name for p in self.jobs.iterdir()} - {*_pictures(self.jobs)} - ours)


def read(jobs: Path, instruction: str | None = None) -> Iterator[EditRow]:
    """The rows of a .jsonl, .csv or .parquet file, or of a folder: one row per picture, with ``instruction``.

    Paths of pictures are relative to the folder of the file. Raises UserError for a missing file, an unknown suffix, a
    table without the columns of ``NEEDED``, and a folder without an instruction or without pictures."""
    if jobs.is_dir():
        if not instruction:
            raise UserError(f"jobs '{jobs}' is a folder: give the instruction for its images with --instruction")
        names = _pictures(jobs)
        if not names:
            raise UserError(f"jobs '{jobs}' has no images")
        rows = ({"id": _as_text(name), "image": name, "instruction": instruction} for name in names)
        return parse_all(rows, _root(jobs))
    if instruction is not None:
        raise UserError(f"--instruction: jobs '{jobs}' is not a folder; its rows have their own instructions")
    reader = READERS.get(jobs.suffix.lower())
    if reader is None:
        raise UserError(f"jobs '{jobs}' must be a folder of images or end in one of {', '.join(READERS)}")
    try:
        if jobs.exists() and not jobs.is_file():  # opening a FIFO would wait for a writer
            raise UserError(f"jobs '{jobs}' is not a file")
        jobs.open("rb").close()
    except OSError as e:
        raise UserError(f"jobs '{jobs}' cannot be read: {e.strerror}") from None
    return parse_all(reader(jobs), _root(jobs))


def _root(jobs: Path) -> Path:
    return jobs.absolute() if jobs.is_dir() else jobs.parent.absolute()


def _pictures(folder: Path) -> list[str]:
    """Sorted names of the pictures in a folder, recognised by suffix; hidden files are skipped. Whether a file can be
    decoded turns out when its row is edited."""
    suffixes = {s for s, name in Image.registered_extensions().items() if name in INPUT_FORMATS} | {*HEIF}
    found = (p.name for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name[0] != "." and not p.is_dir())
    return sorted(found)


def _as_text(name: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 are written as escapes."""
    return name.encode(errors="backslashreplace").decode()


def _open(path: Path) -> TextIO:
    """Opens a text file in UTF-8, or in UTF-16 with a byte order mark. Invalid bytes become lone surrogates, so that
    only the row with them is an error."""
    with path.open("rb") as file:
        start = file.read(4)
    utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not utf16 and b"\0" in start:
        raise UserError(f"jobs '{path}' is not text in UTF-8, nor in UTF-16 with a byte order mark")
    encoding, errors = ("utf-16", "replace") if utf16 else ("utf-8-sig", "surrogateescape")
    return path.open(encoding=encoding, errors=errors, newline="")


def _json_lines(path: Path) -> Iterator[Any]:
    with _open(path) as file:
        for line in file:
            if line.strip():
                try:
                    yield parse_json(line)
                except (ValueError, RecursionError) as e:
                    yield ValueError(f"not JSON: {e}")


def _csv(path: Path) -> Iterator[Any]:
    """Rows of a table with a header, separated by commas, semicolons or tabs. Rows without any value are skipped."""
    with _open(path) as file:
        heading = next((line for line in file if line.strip()), "")
        delimiter = max(DELIMITERS, key=lambda d: len({*_names(heading.split(d))} & {*FIELDS}))
        lines = csv.reader(chain([heading], file), delimiter=delimiter, skipinitialspace=True, strict=True)
        try:
            names = _columns(path, next(lines, []))
        except csv.Error as e:  # a quotation mark that is not closed, a column's name of 100 KB
            raise UserError(f"jobs '{path}': its heading is not CSV: {e}") from None
        while True:
            try:
                cells = next(lines)
            except StopIteration:
                return
            except csv.Error as e:
                yield ValueError(f"not CSV: {e}")
                continue
            if len(cells) > len(names) and any(cells[len(names) :]):
                yield ValueError(f"{len(cells)} cells, but {len(names)} columns")
            elif any(cell.strip() for cell in cells):
                yield dict(zip(names, cells, strict=False))


def _parquet(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"jobs '{path}': Parquet needs the extra [data]: pip install 'reasonbrain[data]'") from None
    try:
        with ParquetFile(path) as file:
            names = _columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.rename_columns(names).to_pylist()
    except (ArrowException, OSError, UnicodeDecodeError) as e:
        raise UserError(f"jobs '{path}' is not a Parquet file, or damaged: {str(e).splitlines()[0]}") from None


READERS = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}


def _names(heading: list[str]) -> list[str]:
    return [name.strip().strip("\"'").lower() for name in heading]


def _columns(path: Path, heading: list[str]) -> list[str]:
    """The field names of a table's columns. Raises UserError if a column is missing or occurs twice."""
    names = _names(heading)
    if not any(names):
        raise UserError(f"jobs '{path}' has no rows")
    if missing := [name for name in NEEDED if name not in names]:
        raise UserError(f"jobs '{path}' has no column '{missing[0]}' in its heading, only {', '.join(names)[:200]!r}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"jobs '{path}' has the column '{twice[0]}' twice")
    return names
