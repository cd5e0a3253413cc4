"""The rows of a batch: their fields, and readers that yield them one at a time.

for row in read(Path("jobs.jsonl")):
    print(row.id, row.error or row.instruction)
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reasonbrain.errors import UserError

MOST_VARIANTS = 1000
WHOLE = {"seed": (0, 2**32 - 1), "steps": (1, 1000), "size": (8, 16384), "n": (1, MOST_VARIANTS)}  # field -> from, to
FIELDS = ("id", "image", "instruction", *WHOLE, "reasoning")
SUFFIXES = (".jsonl", ".csv", ".parquet")
SWITCH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, eq=False)
class EditRow:
    """An edit to make.

    number: index among the rows, from 0. image: a path, or a picture in memory. steps, size: None for the configured
    ones. n: number of variants; variants: those of range(n) to make. Variant v is drawn from seed + v. error: what is
    wrong with the row; the other fields are then meaningless."""

    number: int
    id: str
    image: Path | Image.Image | np.ndarray = Path()
    instruction: str = ""
    seed: int = 0
    steps: int | None = None
    size: int | None = None
    reasoning: bool = False
    n: int = 1
    variants: tuple[int, ...] = (0,)
    error: str = ""


def parse(fields: Any, number: int, ids: set[bytes], root: Path = Path()) -> EditRow:
    """Checks the fields of a row; what is wrong with them is in ``error``. ids: digests of the ids of earlier rows; the
    row's own is added. root: the folder that relative paths start from."""
    name = f"row {number + 1}"
    if not isinstance(fields, Mapping):
        return EditRow(number, name, error=f"{name} is not a JSON object")
    given = {k: v for k, v in fields.items() if v is not None and not (isinstance(v, str) and v == "")}
    row_id = given.get("id")
    if isinstance(row_id, int) and not isinstance(row_id, bool):
        row_id = str(row_id)
    if isinstance(row_id, str) and _writable(row_id):
        name = row_id
    try:
        if name is not row_id:
            raise UserError("no id" if row_id is None else f"id {row_id!r} is not valid text")
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        if digest in ids:
            raise UserError(f"id '{name}' is already used by an earlier row")
        ids.add(digest)
        if unknown := [str(k) for k in given if k not in FIELDS]:
            raise UserError(f"unknown field '{unknown[0]}'; choose from {', '.join(FIELDS)}")
        values: dict[str, Any] = {k: _whole(k, given[k]) for k in WHOLE if k in given}
        if "reasoning" in given:
            values["reasoning"] = SWITCH.get(str(given["reasoning"]).lower())
            if values["reasoning"] is None:
                raise UserError(f"reasoning {given['reasoning']!r} is neither true nor false")
        instruction = given.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip() or not _writable(instruction):
            raise UserError(f"instruction {instruction!r} is empty or not text")
        image = given.get("image")
        if isinstance(image, (str, Path)):
            image = root / image
        elif not isinstance(image, (Image.Image, np.ndarray)):
            raise UserError("no image" if image is None else f"image {image!r} is not a path")
        variants = tuple(range(values.get("n", 1)))
        return EditRow(number, name, image, instruction, **values, variants=variants)
    except UserError as e:
        return EditRow(number, name, error=str(e))


def _writable(text: str) -> bool:
    """Whether every file can hold the text: it has no lone surrogates and no zero byte."""
    return "\0" not in text and text == text.encode(errors="ignore").decode()


def _whole(field: str, value: Any) -> int:
    low, high = WHOLE[field]
    try:
        number = int(value)
        if isinstance(value, bool) or number != (float(value) if not isinstance(value, int) else value):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{field} {str(value)[:40]!r} is not a whole number") from None
    if not low <= number <= high:
        raise UserError(f"{field} {str(value)[:40]} is not from {low} to {high}")
    return number


def parse_all(rows: Iterable[Any], root: Path = Path()) -> Iterator[EditRow]:
    """Parses rows one at a time. An exception in place of a row becomes its ``error``."""
    ids: set[bytes] = set()
    for number, fields in enumerate(rows):
        if isinstance(fields, Exception):
            yield EditRow(number, f"row {number + 1}", error=f"row {number + 1}: {fields}")
        else:
            yield parse(fields, number, ids, root)


def read(jobs: Path, instruction: str | None = None) -> Iterator[EditRow]:
    """The rows of a .jsonl, .csv or .parquet file, or of a folder: one row for each picture, with ``instruction``.

    Paths of pictures are relative to the folder of the file. Raises UserError for a missing file, another suffix, and a
    folder without an instruction or without pictures."""
    if jobs.is_dir():
        if not instruction:
            raise UserError(f"jobs '{jobs}' is a folder: give the instruction for its pictures with --instruction")
        return parse_all(_folder(jobs, instruction), jobs.absolute())
    if instruction is not None:
        raise UserError(f"--instruction: jobs '{jobs}' is not a folder, its rows have their own instructions")
    if jobs.suffix not in SUFFIXES:
        raise UserError(f"jobs '{jobs}' must be a folder of pictures or end in one of {', '.join(SUFFIXES)}")
    try:
        jobs.open("rb").close()
    except OSError as e:
        raise UserError(f"jobs '{jobs}' cannot be read: {e.strerror}") from None
    reader = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}[jobs.suffix]
    return parse_all(reader(jobs), jobs.parent.absolute())


def _folder(folder: Path, instruction: str) -> Iterator[dict[str, str]]:
    suffixes = Image.registered_extensions()
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name[0] != ".")
    if not names:
        raise UserError(f"jobs '{folder}' has no pictures")
    return ({"id": name, "image": name, "instruction": instruction} for name in names)


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as e:
                    yield ValueError(f"not JSON: {e}")


def _csv(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.DictReader(file, restkey="beyond the heading")
        while True:
            try:
                yield next(lines)
            except StopIteration:
                return
            except csv.Error as e:
                yield ValueError(f"not CSV: {e}")


def _parquet(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"jobs '{path}': Parquet needs the extra [data]: pip install 'reasonbrain[data]'") from None
    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as e:
        raise UserError(f"jobs '{path}' is not a Parquet file: {str(e).splitlines()[0]}") from None
    for batch in file.iter_batches(batch_size=1024):
        yield from batch.to_pylist()


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
