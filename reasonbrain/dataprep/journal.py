"""One append-only JSONL file a stage: what is in it was finished, whatever happened afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    """``rows``: the finished rows by id; of two with the same id the later one. A line that a kill cut short is removed
    when the file is opened."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab+")
        self.file.seek(0)
        whole = self.file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self.file.truncate(len(whole))
        self.rows: dict[str, Row] = {row["id"]: row for row in map(json.loads, whole.splitlines())}

    def add(self, row: Row) -> None:
        self.file.write(json.dumps(row).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.rows[row["id"]] = row
