"""A JSONL manifest in Reason50K's format, one record per line. Also reads metadata.jsonl of a Hub "imagefolder".

    {"id", "category", "src_image", "tgt_image", "instruction", "target_caption"?, "objects": [...], "mask"?}

Only the offsets of the lines are kept, 8 bytes each. A line is parsed when its record is read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from reasonbrain.data.reader import LARGEST, Reader
from reasonbrain.data.record import SCENARIOS, RawRecord
from reasonbrain.errors import UserError

CHUNK = 1 << 24


class Manifest(Reader):
    """A manifest with pictures beside it. Its picture paths are relative to it and may not lead outside its folder.

    ``path``: the manifest, or its folder. Raises UserError if there is none, or it holds no record."""

    suffixes = (".jsonl",)
    signs = ("manifest.jsonl", "metadata.jsonl", "train.jsonl")
    categories = SCENARIOS

    def __init__(self, path: str) -> None:
        file = Path(path)
        if file.is_dir():
            file = next((file / name for name in self.signs if (file / name).is_file()), file / self.signs[0])
        if not file.is_file():
            raise UserError(f"data.path: manifest '{file}' does not exist")
        super().__init__(file.parent, file)
        try:
            self.file = file.open("rb")
            self.starts = line_starts(self.file.fileno())
        except OSError as e:
            raise UserError(f"data.path: manifest '{file}' cannot be read: {e.strerror}") from None
        self.numbers = np.flatnonzero(np.diff(self.starts) > 2)  # the lines that are not empty
        if not len(self.numbers):
            raise UserError(f"data.path: manifest '{file}' holds no record")

    def __len__(self) -> int:
        return len(self.numbers)

    def raw(self, index: int) -> RawRecord:
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
    """The offset of each line of an open file, and at the end the file's length: [lines + 1] int64."""
    starts, offset = [np.zeros(1, np.int64)], 0
    while chunk := os.pread(file, CHUNK, offset):
        starts.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset + 1)
        offset += len(chunk)
    found = np.concatenate(starts)
    return found if found[-1] == offset else np.append(found, offset)
