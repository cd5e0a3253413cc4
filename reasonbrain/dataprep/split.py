"""Splits into train, val and test: manifests in Reason50K's format, stratified by category."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from reasonbrain.data.record import SCENARIOS
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.journal import JsonRow

SPLITS = ("train", "val", "test")


def write_splits(folder: Path, rows: Sequence[JsonRow], shares: Sequence[float]) -> dict[str, int]:
    """Writes ``folder``/train.jsonl, val.jsonl and test.jsonl, and returns the number of records in each. ``shares``:
    of train, val and test, relative to their sum.

    Each category is sorted by the hashes of its ids and divided by the shares, so the split of a record depends only on
    the ids in its category."""
    found: dict[str, list[JsonRow]] = {name: [] for name in SPLITS}
    for category in SCENARIOS:
        some = sorted(
            (row for row in rows if row["category"] == category),
            key=lambda row: hashlib.sha256(row["id"].encode()).digest(),
        )
        cuts = [round(len(some) * sum(shares[:n]) / sum(shares)) for n in range(len(SPLITS) + 1)]
        for name, start, end in zip(SPLITS, cuts, cuts[1:], strict=False):
            found[name] += some[start:end]
    for name, members in found.items():
        with whole_file(folder / f"{name}.jsonl") as file:
            file.writelines(json.dumps(record(row)) + "\n" for row in members)
    return {name: len(members) for name, members in found.items()}


def record(row: JsonRow) -> JsonRow:
    """A finished row as a line of the manifest."""
    pictures = f"pictures/{row['id']}"
    line = {"id": row["id"], "category": row["category"], "src_image": row["source"]}
    line |= {"tgt_image": f"{pictures}/target.png", "instruction": row["instruction"]}
    line |= {"target_caption": row["prompt"], "objects": row["objects"]}
    return line | ({"mask": f"{pictures}/mask.png"} if "mask" in row else {})
