"""Reads the report that `reasonbrain eval --against` compares with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.edits import Edits
from reasonbrain.utils.files import inside
from reasonbrain.utils.reading import read_json
from reasonbrain.utils.text import printable


@dataclass(frozen=True)
class Other:
    """Another report: its system's name, its edits (None if they no longer exist), and by record id their scores and
    the hash of the record's ``content``."""

    system: str
    edits: Edits | None
    scores: dict[str, dict[str, float | None]]
    contents: dict[str, str]


def read_other(path: Path, found: dict[str, Any]) -> Other:
    """Reads a report folder. ``found``: the report in progress. Raises UserError for a folder without a report, for a
    report of another benchmark or with other networks, and for a damaged one. Edits outside the folder are not read: an
    untrusted report must not show other files of this machine."""
    what = f"--against '{path}'"
    try:
        other = read_json(path / "report.json", what)
    except UserError as e:
        raise UserError(f"{what} has no report.json of `reasonbrain eval` ({e})") from None
    try:
        scores = {_text(row["id"]): _scores(row["scores"]["edits"]) for row in other["records"]}
        contents = {row["id"]: _text(row["content"]) for row in other["records"]}
        for key, kind in (("benchmark", "another benchmark"), ("networks", "other networks")):
            if other[key] != found[key]:
                raise UserError(f"{what} is of {kind}: {other[key]}, not {found[key]}")
        system, edits = _text(other["system"]), _text(other["edits"])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as e:
        raise UserError(f"{what} has no report.json of `reasonbrain eval` ({e!r})") from None
    try:
        folder = inside(path, edits)
    except UserError:
        return Other(system, None, scores, contents)
    return Other(system, Edits(folder) if folder.is_dir() else None, scores, contents)


def check_same_records(rows: list[dict[str, Any]], other: Other, path: Path) -> None:
    """Raises UserError if the other report has none of the records of ``rows``, or one of the same id but with another
    source, target, mask or wording: their scores cannot be compared."""
    both = [row for row in rows if row["id"] in other.contents]
    if not both:
        raise UserError(f"--against '{path}' has none of these {len(rows)} records")
    for row in both:
        if row["content"] != other.contents[row["id"]]:
            raise UserError(f"--against '{path}' is of other data: its record '{row['id']:.60}' has other content")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return printable(value)


def _scores(row: Any) -> dict[str, float | None]:
    wrong = [v for v in row.values() if v is not None and not (type(v) in (int, float) and math.isfinite(v))]
    if wrong:
        raise ValueError(f"{wrong[0]!r:.40} is not a score")
    return row
