"""WebDataset tar shards: files of one record lie side by side and share their name up to the first dot.

    000017.source.png  000017.target.png  000017.json  [000017.mask.png  000017.txt]

What follows the dot names the field: as in a manifest, with the picture's format behind it; ``json`` holds the other
fields, ``txt`` the instruction. webdataset itself reads shards from front to back only (its indexed reader, wids, is no
longer part of it), and a training here takes records in any order. So the offsets of the records are found once with
tarfile, and a record is then one read. Nothing is unpacked.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from reasonbrain.data.reader import LARGEST, Reader, Row
from reasonbrain.errors import UserError


class Shards(Reader):
    """``paths``: the tar files, not compressed. Keeps 24 bytes a record.

    Raises UserError for a file that is no tar, is truncated, or where none holds a record."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths[0].parent, paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more")
        spans: list[np.ndarray] = []
        try:
            self.files = [path.open("rb") for path in paths]
            for number, path in enumerate(paths):
                spans.append(samples(path, number))
        except tarfile.TarError as e:
            raise UserError(f"shard '{path}' is no tar file, compressed or truncated: {e}") from None
        except OSError as e:
            raise UserError(f"shard '{e.filename or path}' cannot be read: {e.strerror or e}") from None
        self.spans = np.concatenate(spans)
        if not len(self.spans):
            raise UserError(f"{self.name}: the shards hold no record")

    def __len__(self) -> int:
        return len(self.spans)

    def row(self, index: int) -> Row:
        number, start, end = self.spans[index].tolist()
        if end - start > LARGEST:
            raise self.wrong(index, f"not a record ({end - start} bytes)")
        fields: dict[str, Any] = {}
        try:
            data = os.pread(self.files[number].fileno(), end - start, start)
            with tarfile.open(fileobj=BytesIO(data), mode="r:") as tar:
                for member in filter(tarfile.TarInfo.isreg, tar):
                    key, field = split(member.name)
                    content = tar.extractfile(member).read()  # type: ignore[union-attr]  # a regular file
                    if field == "json":
                        fields |= json.loads(content)
                    elif field == "txt":
                        fields["instruction"] = content.decode().strip()
                    else:
                        fields[field.partition(".")[0]] = content
        except (OSError, tarfile.TarError, ValueError, TypeError, RecursionError) as e:
            raise self.wrong(index, f"not a record ({e})") from None
        return self.from_fields(fields, key)


def split(name: str) -> tuple[str, str]:
    """Folder/key, and the field with its format: "a/17.source.png" -> ("a/17", "source.png")."""
    folder, slash, file = name.rpartition("/")
    key, _, field = file.partition(".")
    return folder + slash + key, field.lower()


def samples(path: Path, number: int) -> np.ndarray:
    """[records, 3] int64: ``number``, and where each record of the shard starts and ends."""
    found: list[list[int]] = []
    last = None
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if not member.isreg():
                continue
            end = member.offset_data + -(-member.size // 512) * 512
            key = split(member.name)[0]
            if key == last:
                found[-1][2] = end
            else:
                found.append([number, member.offset, end])
            last = key
    return np.array(found, np.int64).reshape(-1, 3)
