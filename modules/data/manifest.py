"""A JSONL manifest in Reason50K's format, a record a line; a Hub "imagefolder" with metadata.jsonl reads the same way.

    {"id", "category", "src_image", "tgt_image", "instruction", "target_caption"?, "objects": [...], "mask"?}

Only the offsets of the lines are kept, 8 bytes each; a line is parsed when its record is taken.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from reasonbrain.data.reader import LARGEST, Reader, Row
from reasonbrain.errors import UserError

NAMES = ("manifest.jsonl", "metadata.jsonl", "train.jsonl")
CHUNK = 1 << 24


class Manifest(Reader):
    """``path``: the manifest, or its folder. Picture paths are relative to it and may not lead outside its folder.

    Raises UserError where there is none or it holds no record."""

    categories = ("physical", "temporal", "causal", "story")  # Reason50K's (arXiv:2507.01908), and ReasonMini's

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            path = next((path / name for name in NAMES if (path / name).is_file()), path / NAMES[0])
        if not path.is_file():
            raise UserError(f"data.path: manifest '{path}' does not exist")
        super().__init__(path.parent, path)
        try:
            self.file = path.open("rb")
            self.starts = line_starts(self.file.fileno())
        except OSError as e:
            raise UserError(f"data.path: manifest '{path}' cannot be read: {e.strerror}") from None
        self.numbers = np.flatnonzero(np.diff(self.starts) > 2)  # lines of a record: "\n" and "\r\n" are none
        if not len(self.numbers):
            raise UserError(f"data.path: manifest '{path}' holds no record")

    def __len__(self) -> int:
        return len(self.numbers)

    def row(self, index: int) -> Row:
        line = self.numbers[index]
        start, end = self.starts[line : line + 2].tolist()
        if end - start > LARGEST:
            raise self.wrong(f"line {line + 1}", f"not a record (a line of {end - start} bytes)")
        try:
            fields = json.loads(os.pread(self.file.fileno(), end - start, start))
        except (OSError, ValueError, RecursionError) as e:
            raise self.wrong(f"line {line + 1}", f"not a record ({e})") from None
        if not isinstance(fields, dict):
            raise self.wrong(f"line {line + 1}", f"not a record ({type(fields).__name__}, not an object)")
        return self.from_fields(fields, f"line {line + 1}")


def line_starts(file: int) -> np.ndarray:
    """Where each line of an open file starts, and, last, where the file ends: int64, lines + 1."""
    starts, offset = [np.zeros(1, np.int64)], 0
    while chunk := os.pread(file, CHUNK, offset):
        starts.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset + 1)
        offset += len(chunk)
    found = np.concatenate(starts)
    return found if found[-1] == offset else np.append(found, offset)
