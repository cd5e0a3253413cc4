"""Scores edits of ReasonMini by any system: by the outcome checks, and by the distance from the ground-truth targets.

score("mini-test", "edits")  # mini-test: written by store.write_split; edits: <id>.png for each record
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reasonbrain.errors import UserError
from reasonbrain.modules.data.reasonmini.store import MANIFEST, read_manifest
from reasonbrain.modules.data.reasonmini.versions import WORLDS, World
from reasonbrain.utils.files import inside
from reasonbrain.utils.images import load_image


def score(folder: str | Path, edits: str | Path) -> dict[str, Any]:
    """Scores the edits and, for reference, the unchanged sources and the ground-truth targets. Returns JSON values::

        {"count": 50, "missing": 0, "broken": 0,
         "edits": {"passed": 0.96, "by_category": {"physical": 1.0, ...}, "by_kind": {"candle_burns_down": 1.0, ...},
                   "error_inside": 0.0213, "error_outside": 0.0031},
         "sources": {...}, "targets": {...}}

    ``passed`` is the share (0..1) of outcome checks passed; an edit that is missing or cannot be read counts as failed.
    The errors are mean absolute differences from the target (0..1), inside and outside the change mask, averaged over
    the records whose edit could be read; null if there are none. A mask that covers the whole picture (night falls) has
    no outside and is left out of that mean. An edit of another size is resized to the size of its target.

    Raises UserError if ``edits`` has no edit of a record, or if ``folder`` was not written by ``write_split``.
    """
    folder, edits = Path(folder), Path(edits)
    records = list(read_manifest(folder))
    if not records:
        raise UserError(f"'{folder / MANIFEST}' has no record")
    if not any(_edit_path(edits, r).is_file() for r in records):
        raise UserError(f"no edit in '{edits}': expected images such as {_edit_path(edits, records[0]).name}")
    rows: dict[str, list[dict[str, Any]]] = {"edits": [], "sources": [], "targets": []}
    missing = broken = 0
    for record in records:
        world = _world(record)
        source, target, mask = (load_image(inside(folder, record[f])) for f in ("src_image", "tgt_image", "mask"))
        if not source.size == target.size == mask.size:
            raise UserError(f"record '{record['id']}' of '{folder}': source, target and mask differ in size")
        changed = np.asarray(mask.convert("L")) > 127
        edit = None
        if not _edit_path(edits, record).is_file():
            missing += 1
        else:
            try:
                edit = load_image(_edit_path(edits, record)).resize(target.size, Image.Resampling.LANCZOS)
            except UserError:
                broken += 1
        for system, picture in (("edits", edit), ("sources", source), ("targets", target)):
            rows[system].append(_judge(picture, target, changed, world, record))
    summaries = {system: _summary(judged) for system, judged in rows.items()}
    return {"count": len(records), "missing": missing, "broken": broken, **summaries}


def _edit_path(edits: Path, record: dict[str, Any]) -> Path:
    return inside(edits, f"{record['id']}.png")


def _world(record: dict[str, Any]) -> World:
    """The world of a record. Raises UserError if it has none, or no such kind."""
    version = record.get("version", 1)  # records of the first world have none
    if version not in WORLDS:
        raise UserError(f"record '{record['id']}': version {version!r} is not one of {', '.join(map(str, WORLDS))}")
    try:
        WORLDS[version].category(record["kind"])
    except KeyError:
        raise UserError(f"record '{record['id']}': ReasonMini has no kind '{record['kind']}'") from None
    return WORLDS[version]


def _judge(
    picture: Image.Image | None, target: Image.Image, changed: np.ndarray, world: World, record: dict[str, Any]
) -> dict[str, Any]:
    """The scores of one picture. A missing picture counts as failed and has no errors.

    ``changed``: [h, w] bool, the change mask."""
    kind, params = record["kind"], record["params"]
    row = {"category": world.category(kind), "kind": kind, "passed": False, "inside": None, "outside": None}
    if picture is None:
        return row
    error = np.abs(np.asarray(picture, dtype=np.float64) - np.asarray(target)).mean(-1) / 255
    for region, where in (("inside", changed), ("outside", ~changed)):
        row[region] = error[where].mean() if where.any() else None
    try:
        return {**row, "passed": world.passes(picture, kind, params)}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{params} are not the params of a record of kind '{kind}' ({error!r})") from None


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def passed_by(key: str) -> dict[str, float | None]:
        return {v: _mean(r["passed"] for r in rows if r[key] == v) for v in dict.fromkeys(r[key] for r in rows)}

    return {
        "passed": _mean(r["passed"] for r in rows),
        "by_category": passed_by("category"),
        "by_kind": passed_by("kind"),
        "error_inside": _mean(r["inside"] for r in rows),
        "error_outside": _mean(r["outside"] for r in rows),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None, to 4 decimals; None if there are none."""
    known = [v for v in values if v is not None]
    return round(float(np.mean(known)), 4) if known else None
