"""The rows of a batch: their fields and the checks of their values.

for row in parse_all([{"id": "ice", "image": "ice.png", "instruction": "Leave it in the sun."}]):
    print(row.id, row.error or row.instruction)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.instruction import check_instruction, check_text

MAX_VARIANTS = 1000
INTEGERS = {"seed": (0, 2**32 - 1), "steps": (1, 1000), "size": (8, 16384), "n": (1, MAX_VARIANTS)}  # field -> range
FIELDS = ("id", "image", "instruction", *INTEGERS, "reasoning")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, eq=False)
class EditRow:
    """An edit to make.

    number: index among the rows, from 0. image: a path, or a picture in memory. size: the edit is computed at about
    size x size pixels. steps, size: None for the configured ones. n: number of variants. variants: those of range(n)
    still to be made; variant v is drawn from seed + v. error: what is wrong with the row; the other fields are then
    meaningless."""

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
    """Checks the fields of a row. An invalid one gives a row with an ``error``. ids: digests of the ids of earlier
    rows; the row's own is added. root: the folder that relative paths start from."""
    name = f"row {number + 1}"
    if not isinstance(fields, Mapping):
        return EditRow(number, name, error=f"{name} is not a JSON object")
    given = {k: v for k, v in fields.items() if not _blank(v)}
    try:
        name = _id(given.get("id"))
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        if digest in ids:
            raise UserError(f"id '{name:.60}' is already used by an earlier row")
        ids.add(digest)
        if unknown := [k for k in given if k not in FIELDS]:
            raise UserError(f"unknown field {str(unknown[0])!r:.60}; choose from {', '.join(FIELDS)}")
        values: dict[str, Any] = {k: parse_int(k, given[k]) for k in INTEGERS if k in given}
        if "reasoning" in given:
            values["reasoning"] = BOOLEANS.get(str(given["reasoning"]).lower())
            if values["reasoning"] is None:
                raise UserError(f"reasoning {given['reasoning']!r:.60} is neither true nor false")
        instruction, image = given.get("instruction"), given.get("image")
        check_instruction(instruction)
        if isinstance(image, (str, Path)):
            image = root / image
        elif not isinstance(image, (Image.Image, np.ndarray)):
            raise UserError("no image" if image is None else f"image {image!r:.60} is not a path")
        variants = tuple(range(values.get("n", 1)))
        return EditRow(number, name, image, instruction, **values, variants=variants)  # type: ignore[arg-type]
    except UserError as e:
        return EditRow(number, name, error=str(e))


def _blank(value: Any) -> bool:
    """Whether a cell is empty. Tables hold NaN where a column of numbers has no value."""
    return value is None or (isinstance(value, str) and value == "") or (isinstance(value, float) and value != value)


def _id(value: Any) -> str:
    """An id as text. Numbers are converted as they are written in a table."""
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(ValueError):  # Python does not convert integers of thousands of digits
            return str(value)
    if value is None:
        raise UserError("no id")
    check_text("id", value)
    return value


def parse_int(field: str, value: Any, name: str | None = None) -> int:
    """The value of a field of ``INTEGERS``: an integer of any type, or a whole number as a float or text (7.0).

    name: what errors call it, if not by the field. Raises UserError for anything else, and for a number out of the
    field's range."""
    low, high = INTEGERS[field]
    name = name or field
    try:
        if isinstance(value, (bool, np.bool_)):
            raise ValueError
        number: Any = value if isinstance(value, Integral) else float(value)  # exact in the ranges of INTEGERS
        if number != int(number):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{name} {str(value)[:40]!r} is not a whole number") from None
    if not low <= number <= high:
        raise UserError(f"{name} {str(value)[:40]} is not from {low} to {high}")
    return int(number)


def parse_all(rows: Iterable[Any], root: Path = Path()) -> Iterator[EditRow]:
    """Parses rows one at a time. An exception in place of a row becomes the ``error`` of that row."""
    ids: set[bytes] = set()
    for number, fields in enumerate(rows):
        if isinstance(fields, Exception):
            yield EditRow(number, f"row {number + 1}", error=f"row {number + 1}: {fields}")
        else:
            yield parse(fields, number, ids, root)
