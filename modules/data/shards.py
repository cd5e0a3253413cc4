"""WebDataset tar shards: the files of a record are adjacent and share their name up to the first dot.

    000017.source.png  000017.target.png  000017.json  [000017.mask.png  000017.txt]

The part after the dot is the name of the field, as in a manifest, and the format of the picture. ``json`` has the other
fields, ``txt`` the instruction; the files may be in any order. Pictures are files: a field of ``json`` with the name of
a picture is ignored. The webdataset package reads shards sequentially only (its indexed reader, wids, was removed), but
training reads records in any order. Therefore the offsets of the records are found once with tarfile, and a record is
then read in one piece. Nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from reasonbrain.data.reader import LARGEST, MASK, SOURCE, TARGET, Reader, files_of
from reasonbrain.data.record import RawRecord
from reasonbrain.errors import UserError
from reasonbrain.utils.reading import parse_json

CHUNK = 1 << 20


class Shards(Reader):
    """Uncompressed tar files. ``path``: a folder, a pattern, or one file. Keeps 32 bytes per record in memory.

    The id of a record is that of its ``json``, otherwise its key, prefixed with the shard's name if several shards use
    the key.

    Raises UserError if there are no files, if one is not a tar file, is truncated or goes on after its end, and
    if there is no record.
    """

    suffixes = (".tar",)
    signs = ("**/*.tar",)

    def __init__(self, path: str) -> None:
        paths = files_of(path, "*.tar")
        if not paths:
            raise UserError(f"data.path: '{path}' has no *.tar file")
        name = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        super().__init__(paths[0].parent, name, paths)
        spans: list[np.ndarray] = []
        try:
            for number, shard in enumerate(paths):
                spans.append(samples(shard, number))
        except tarfile.TarError as e:
            raise UserError(f"shard '{shard}' is not an uncompressed tar file, or damaged: {e}") from None
        except OSError as e:
            raise UserError(f"shard '{e.filename or shard}' cannot be read: {e.strerror or e}") from None
        self.spans = np.concatenate(spans)
        if not len(self.spans):
            raise UserError(f"{self.name}: the shards have no record")
        keys = self.spans[:, 3]
        _, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
        self.repeated = {*np.flatnonzero(counts[which] > 1).tolist()}  # records that share their key with another one

    def __len__(self) -> int:
        return len(self.spans)

    def inputs(self) -> Iterator[Path]:
        yield from self.files

    def raw(self, index: int) -> RawRecord:
        number, start, end, digest = self.spans[index].tolist()
        if end - start > LARGEST:
            raise self.wrong(index, f"not a record ({end - start} bytes)")
        members: dict[str, bytes] = {}
        try:
            with self.files[number].open("rb") as shard:  # not kept open: a data set may have more shards than allowed
                data = os.pread(shard.fileno(), end - start, start)
            with tarfile.open(fileobj=BytesIO(data), mode="r:") as tar:
                for member in filter(in_record, tar):
                    key, field = split(member.name)
                    field = field.partition(".")[0]
                    if not member.isreg():  # as tar packs the second name of a file that has several
                        raise ValueError(
                            f"'{member.name}' is a link; pack the file: tar --dereference --hard-dereference"
                        )
                    if field in members:
                        raise ValueError(f"two files '{field}'")
                    if member.issparse():  # reading it may give any number of bytes
                        raise ValueError(f"'{member.name}' is a sparse file")
                    members[field] = tar.extractfile(member).read()  # type: ignore[union-attr]  # a regular file
            fields = parse_json(members.pop("json", b"{}"))
            if not isinstance(fields, dict):
                raise ValueError(f"json is a {type(fields).__name__}, not an object")
            if "txt" in members:
                members["instruction"] = members.pop("txt").decode("utf-8-sig").strip()  # type: ignore[assignment]
        except (OSError, tarfile.TarError, ValueError, RecursionError) as e:
            raise self.wrong(index, f"not a record ({e})") from None
        if index in self.repeated:
            same = np.flatnonzero(self.spans[:, 3] == digest)
            if len({*self.spans[same, 0].tolist()}) < len(same):
                raise self.wrong(key, "its files are not adjacent in the shard, or another record has its name")
            key = f"{os.path.relpath(self.files[number], self.files[0].parent)}/{key}"
        pictures = (*SOURCE, *TARGET, *MASK)
        return self.from_fields({k: v for k, v in fields.items() if k not in pictures} | members, key)


def split(name: str) -> tuple[str, str]:
    """Splits a member's name into the record's key and the field: "a/17.source.png" -> ("a/17", "source.png")."""
    folder, slash, file = name.rpartition("/")
    key, _, field = file.partition(".")
    return folder + slash + key, field.lower()


def samples(path: Path, number: int) -> np.ndarray:
    """The records of a shard, [records, 4] int64: ``number``, the offsets at which the record starts and ends, and a
    hash of its key. Raises TarError for a file that is not a tar file, or has anything but zeros after its end."""
    found: list[list[int]] = []
    last = None
    with tarfile.open(path, "r:") as tar:
        for member in filter(in_record, tar):
            key = split(member.name)[0]
            if key == last:
                found[-1][2] = tar.offset  # where the next header starts
            else:
                digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
                found.append([number, member.offset, tar.offset, int.from_bytes(digest, "big", signed=True)])
            last = key
    with path.open("rb") as shard:  # tarfile takes a damaged header for the end, and ignores what follows the end
        shard.seek(tar.offset)
        while rest := shard.read(CHUNK):
            if rest.strip(b"\0"):
                raise tarfile.ReadError(
                    f"something other than the end is at byte {tar.offset}; several archives in one?"
                )
    return np.array(found, np.int64).reshape(-1, 4)


def in_record(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file of a record, or a link in place of one: not a folder or device, nor a hidden file, as
    macOS adds them."""
    kind = member.isreg() or member.islnk() or member.issym()
    return kind and not os.path.basename(member.name).startswith(".")
