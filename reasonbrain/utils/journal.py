"""Append-only JSONL files that survive a killed process: an incomplete last line is ignored.

with Journal(out / "results.jsonl") as journal:
    journal.add({"id": "a", "status": "ok"})    # on the disk when it returns
done = list(read(out / "results.jsonl"))
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from reasonbrain.errors import UserError
from reasonbrain.utils.locks import opened

JsonRow = dict[str, Any]


class Journal:
    """A file opened for appending; an incomplete last line is removed. Only one process at a time may append.

    Raises UserError if the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = open(path, "ab", buffering=0, opener=opened)
            self.file.truncate(path.read_bytes().rfind(b"\n") + 1)
        except OSError as e:
            raise self._refused(e) from None

    def add(self, row: JsonRow) -> None:
        """Appends a row and waits until it is on disk. If that fails, restores the file and raises UserError."""
        data, end = (json.dumps(row) + "\n").encode(), os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(data) != len(data):
                raise OSError(0, "the disk is full")
            os.fsync(self.file.fileno())
        except OSError as e:
            self.file.truncate(end)
            raise self._refused(e) from None

    def _refused(self, e: OSError) -> UserError:
        return UserError(f"'{self.path}' cannot be written: {e.strerror}; run the same command again to resume")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def read(path: Path) -> Iterator[JsonRow]:
    """Yields the rows of a journal in order; nothing if the file does not exist. Another process may append meanwhile.

    Raises UserError for a line that is not a JSON object, naming it."""
    if not path.exists():
        return
    if not path.is_file():  # opening a FIFO would wait for a writer, and a device may never end
        raise UserError(f"'{path}' is not a regular file")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # being written, or truncated
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f"'{path}' line {number} is not a JSON object; repair it or use another folder")
            yield row


def read_by_id(path: Path) -> dict[str, JsonRow]:
    """The rows of a journal by their ``id``; the last one of several with the same id. Raises UserError for a row
    without an id, naming its line."""
    rows = {}
    for number, row in enumerate(read(path), 1):
        if not isinstance(row.get("id"), str):
            raise UserError(f"'{path}' line {number} has no id; repair it or use another folder")
        rows[row["id"]] = row
    return rows
