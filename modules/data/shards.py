"""WebDataset tar shards: the files of a record are neighbours and share their name up to the first dot.

    000017.source.png  000017.target.png  000017.json  [000017.mask.png  000017.txt]

The part after the dot names the field, as in a manifest, followed by the picture's format. ``json`` holds the other
fields, ``txt`` the instruction. The webdataset package reads shards sequentially only (its indexed reader, wids, was
removed), and training reads records in any order. Therefore the offsets of the records are found once with tarfile, and
a record is then read in one piece. Nothing is unpacked.
"""

from __future__ import annotations

import json
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from reasonbrain.data.reader import LARGEST, Reader, files_of
from reasonbrain.data.record import RawRecord
from reasonbrain.errors import UserError


class Shards(Reader):
    """Uncompressed tar files. ``path``: their folder, a pattern, or one file. Keeps 24 bytes per record in memory.

    Raises UserError if there are none, for a file that is not a tar file or is truncated, and if they hold no record.
    """

    suffixes = (".tar",)
    signs = ("**/*.tar",)

    def __init__(self, path: str) -> None:
        paths = files_of(path, "*.tar")
        if not paths:
            raise UserError(f"data.path: '{path}' has no *.tar file")
        super().__init__(paths[0].parent, paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more")
        spans: list[np.ndarray] = []
        try:
            self.files = [path.open("rb") for path in paths]
            for number, shard in enumerate(paths):
                spans.append(samples(shard, number))
        except tarfile.TarError as e:
            raise UserError(f"shard '{shard}' is not an uncompressed tar file, or truncated: {e}") from None
        except OSError as e:
            raise UserError(f"shard '{e.filename or shard}' cannot be read: {e.strerror or e}") from None
        self.spans = np.concatenate(spans)
        if not len(self.spans):
            raise UserError(f"{self.name}: the shards hold no record")

    def __len__(self) -> int:
        return len(self.spans)

    def raw(self, index: int) -> RawRecord:
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
    """A member's name as its record and its field with the format: "a/17.source.png" -> ("a/17", "source.png")."""
    folder, slash, file = name.rpartition("/")
    key, _, field = file.partition(".")
    return folder + slash + key, field.lower()


def samples(path: Path, number: int) -> np.ndarray:
    """The records of a shard: [records, 3] int64, ``number`` and the offsets at which the record starts and ends."""
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
