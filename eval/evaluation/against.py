"""Reads the report that `reasonbrain eval --against` compares with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.edits import Edits


@dataclass(frozen=True)
class Other:
    """Another report: its system's name, its edits (None if they are gone), and their scores by record id."""

    system: str
    edits: Edits | None
    scores: dict[str, dict[str, float | None]]


def read_other(path: Path, found: dict[str, Any]) -> Other:
    """Reads a report folder. ``found``: the report that is being made. Raises UserError for a folder without a report,
    and for a report of another benchmark or by other networks."""
    try:
        other = json.loads((path / "report.json").read_text(encoding="utf-8"))
        scores = {row["id"]: row["scores"]["edits"] for row in other["records"]}
        for key, what in (("benchmark", "another benchmark"), ("networks", "other networks")):
            if other[key] != found[key]:
                raise UserError(f"--against '{path}' is of {what}: {other[key]}, not {found[key]}")
        folder = path / other["edits"]  # an absolute path stays as it is
        return Other(other["system"], Edits(folder) if folder.is_dir() else None, scores)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"--against '{path}' has no report.json of `reasonbrain eval` ({e!r})") from None
