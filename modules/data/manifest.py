"""A JSONL manifest in Reason50K's format, one record per line. Also reads metadata.jsonl of a Hub "imagefolder".

    {"id", "category", "src_image", "tgt_image", "instruction", "target_caption"?, "sentence"?, "objects": [...],
     "mask"?}

Only the offsets of the lines are kept, 8 bytes each. A line is parsed when its record is read.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from reasonbrain.data.reader import LARGEST, Reader
from reasonbrain.data.record import SCENARIOS, RawRecord
from reasonbrain.errors import UserError
from reasonbrain.utils.reading import parse_json

CHUNK = 1 << 24
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks


class Manifest(Reader):
    """A manifest. Its picture paths are relative to its folder and must not lead outside it.

    ``path``: the manifest, or its folder. Raises UserError if it does not exist, cannot be read, or has no record."""

    suffixes = (".jsonl",)
    signs = ("manifest.jsonl", "metadata.jsonl", "train.jsonl")
    categories = SCENARIOS

    def __init__(self, path: str) -> None:
        file = Path(path)
        if file.is_dir():
            file = next((file / name for name in self.signs if (file / name).is_file()), file / self.signs[0])
        if not os.path.isfile(file):
            there = "is not a file" if os.path.lexists(file) else "does not exist"
            raise UserError(f"data.path: manifest '{file}' {there}")
        super().__init__(file.parent, file, [file])
        try:
            self.file = file.open("rb")
            if os.pread(self.file.fileno(), 2, 0) in UTF_16:
                raise UserError(f"data.path: manifest '{file}' is UTF-16; save it as UTF-8")
            self.starts, first = lines(self.file.fileno())
        except OSError as e:
            raise UserError(f"data.path: manifest '{file}' cannot be read: {e.strerror}") from None
        blank = [line for line in np.flatnonzero(first <= ord(" ")).tolist() if self._blank(line)]
        self.numbers = np.delete(np.arange(len(first)), blank)  # the lines with a record
        if not len(self.numbers):
            raise UserError(f"data.path: manifest '{file}' has no record")

    def __len__(self) -> int:
        return len(self.numbers)

    def _blank(self, line: int) -> bool:
        start, end = self.starts[line : line + 2].tolist()
        return end - start <= LARGEST and not os.pread(self.file.fileno(), end - start, start).strip()

    def raw(self, index: int) -> RawRecord:
        line = self.numbers[index]
        start, end = self.starts[line : line + 2].tolist()
        if end - start > LARGEST:
            raise self.wrong(f"line {line + 1}", f"not a record (a line of {end - start} bytes)")
        try:
            fields = parse_json(os.pread(self.file.fileno(), end - start, start))
        except (OSError, ValueError, RecursionError) as e:
            raise self.wrong(f"line {line + 1}", f"not a record ({e})") from None
        if not isinstance(fields, dict):
            raise self.wrong(f"line {line + 1}", f"not a record ({type(fields).__name__}, not an object)")
        return self.from_fields(fields, f"line {line + 1}")


def lines(file: int) -> tuple[np.ndarray, np.ndarray]:
    """The offset of each line of an open file, followed by the length of the file, [lines + 1] int64; and the first
    byte of each line, [lines] uint8."""
    starts, first, offset, last = [], [], 0, b"\n"
    while chunk := os.pread(file, CHUNK, offset):
        data = np.frombuffer(last + chunk, np.uint8)
        begins = np.flatnonzero(data[:-1] == ord("\n"))
        starts.append(begins + offset)
        first.append(data[begins + 1])
        offset, last = offset + len(chunk), chunk[-1:]
    end = np.array([offset], np.int64)
    return np.concatenate([*starts, end]), np.concatenate([*first, np.zeros(0, np.uint8)])
