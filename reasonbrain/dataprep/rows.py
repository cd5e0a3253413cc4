"""Reads and checks the files of a build, which may be damaged or come from an untrusted source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reasonbrain.errors import UserError
from reasonbrain.utils.files import inside
from reasonbrain.utils.journal import JsonRow, read_by_id
from reasonbrain.utils.reading import read_json

ID = re.compile(r"\w[\w.-]*")  # a row's id is the name of a folder
TEXTS = ("image", "prompt", "category", "mask", "instruction", "finder", "source", "dropped")
ADDED = {  # stage -> the fields that a row which was not dropped has from then on
    "target": ("prompt",),
    "instruction": ("instruction", "category"),
    "objects": ("objects",),
    "sources": ("candidates",),
    "measured": (),
    "judged": ("source",),
}
VERDICTS = ("accept", "reject")


def read_rows(folder: Path, stage: str) -> dict[str, JsonRow]:
    """The rows that a stage has finished, by id. Raises UserError for a row that the stage cannot have written, and for
    one that names a picture outside the folder."""
    path = folder / f"{stage}.jsonl"
    names = list(ADDED)
    needs = [field for name in names[: names.index(stage) + 1] for field in ADDED[name]]
    rows = read_by_id(path)
    for name, row in rows.items():
        what = f"'{path}': row {name!r:.100}"
        dropped = [] if "dropped" in row else [field for field in needs if field not in row]
        wrong = dropped + [field for field in TEXTS if not isinstance(row.get(field, ""), str)]
        if not ID.fullmatch(name) or wrong:
            raise UserError(f"{what} is damaged ({wrong[0] if wrong else 'id'}); use a new folder")
        objects, candidates = row.get("objects", []), row.get("candidates", [])
        if not isinstance(objects, list) or not all(isinstance(o, str) for o in objects):
            raise UserError(f"{what} is damaged (objects); use a new folder")
        if not isinstance(candidates, list) or not all(map(_is_candidate, candidates)):
            raise UserError(f"{what} is damaged (candidates); use a new folder")
        for picture in [*(c["image"] for c in candidates), *([row["source"]] if "source" in row else [])]:
            inside(folder, picture, f"its folder in {what}")
    return rows


def _is_candidate(value: Any) -> bool:
    numbers = (value.get(name) for name in ("seed", "clip", "lpips", "score")) if isinstance(value, dict) else ()
    return (
        isinstance(value, dict)
        and isinstance(value.get("image"), str)
        and isinstance(value.get("dropped", ""), str)
        and all(number is None or type(number) in (int, float) for number in numbers)
    )


def check_seeds(folder: Path, seeds: Sequence[JsonRow]) -> None:
    """Raises UserError for a seed that has changed since the build in the folder began it: its results would be those
    of the old one."""
    begun = read_rows(folder, "target")
    for seed in seeds:
        then = begun.get(seed["id"], seed)
        for key in sorted({*seed, *then} - {"dropped"}):
            if seed.get(key) != then.get(key):
                said = f"seed '{seed['id']}' was begun with {key}={then.get(key)!r:.200}, not {seed.get(key)!r:.200}"
                raise UserError(f"output '{folder}': {said}; give it another id, or use a new folder")


def read_verdicts(folder: Path) -> dict[str, str]:
    """The verdicts of the review, by id. Raises UserError for an invalid line."""
    path = folder / "review.jsonl"
    verdicts = {name: row.get("verdict") for name, row in read_by_id(path).items()}
    for name, verdict in verdicts.items():
        if verdict not in VERDICTS:
            raise UserError(
                f"'{path}': row {name!r:.100}: verdict {verdict!r:.100} is not one of {', '.join(VERDICTS)}"
            )
    return verdicts  # type: ignore[return-value]


def check_settings(folder: Path, wanted: JsonRow, files: Sequence[str]) -> None:
    """Checks that a build with the settings ``wanted`` may write ``files`` to the folder: it has none of them, or was
    built with the same settings. Raises UserError otherwise."""
    path = folder / "settings.json"
    if not path.exists():
        if there := [name for name in files if (folder / name).exists()]:
            raise UserError(f"output '{folder}' holds '{there[0]}', which this command did not write; use a new folder")
        return
    there = read_json(path, "output")
    if not isinstance(there, dict) or there.keys() != wanted.keys():
        raise UserError(f"output '{folder}' holds 'settings.json', which this command did not write; use a new folder")
    for name, value in there.items():
        if wanted[name] != value:
            said = f"was built with {name}={value}, not {wanted[name]}"
            raise UserError(f"output '{folder}' {said}: use a new folder")
