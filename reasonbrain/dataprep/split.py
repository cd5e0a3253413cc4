"""Train, val and test: manifests as Reason50K's, in each of which a category has the share that it has in the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from reasonbrain.modules.data.manifest import Manifest
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.journal import JsonRow

SPLITS = ("train", "val", "test")


def write_splits(folder: Path, rows: Sequence[JsonRow], shares: Sequence[float]) -> dict[str, int]:
    """Writes ``folder``/train.jsonl, val.jsonl and test.jsonl; returns how many records each has. ``shares`` are of
    train, val and test; their sum is taken for the whole.

    Each category is put in the order of its ids' hashes and cut at its shares: which split a record is in depends on
    nothing but the ids of its category."""
    found: dict[str, list[JsonRow]] = {name: [] for name in SPLITS}
    for category in Manifest.categories:
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
    """A line of the manifest."""
    pictures = f"pictures/{row['id']}"
    line = {"id": row["id"], "category": row["category"], "src_image": row["source"]}
    line |= {"tgt_image": f"{pictures}/target.png", "instruction": row["instruction"]}
    line |= {"target_caption": row["prompt"], "objects": row["objects"]}
    return line | ({"mask": f"{pictures}/mask.png"} if "mask" in row else {})
