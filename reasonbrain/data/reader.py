"""What all readers of files share: a row, which is a record whose pictures are not decoded yet, and how one becomes a
record.

A reader is a map-style data set: ``reader.row(n)`` names the words and pictures of record n, ``reader[n]`` decodes them
at their own size. Records are reached in any order, so a training that goes on where it stopped needs no state.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from reasonbrain.data.records import Record, Size
from reasonbrain.errors import UserError
from reasonbrain.utils.images import load_image, upright_size

Picture = Path | bytes  # a file inside the data folder, or an encoded picture that a shard holds

# what the fields of a record may be called in manifests, Parquet files and shards of no particular data set
SOURCE = ("source", "src_image", "source_img", "source_image", "input_image", "original_image", "source_file_name")
TARGET = ("target", "tgt_image", "target_img", "target_image", "output_image", "edited_image", "target_file_name")
INSTRUCTION = ("instruction", "edit_prompt", "txt")
MASK = ("mask", "mask_image")
LARGEST = 1 << 28  # bytes of one record in a manifest or a shard


@dataclass
class Row:
    """A record before its pictures are decoded; its fields are those of ``Record``."""

    id: str
    source: Picture
    target: Picture | None
    instructions: list[str]
    objects: list[str] | None = None
    category: str = ""
    mask: Picture | None = None
    captions: tuple[str, str] | None = None
    notes: dict[str, str] = field(default_factory=dict)


def white(picture: Picture) -> Image.Image:
    """A mask that is white where the edit may change the picture, as "L"."""
    return load_image(picture).convert("L")


def transparent(picture: Picture) -> Image.Image:
    """A mask that is the source made transparent where the edit may change it, as "L": white there."""
    load_image(picture)  # says what is wrong with it
    with Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        return ImageOps.invert(image.convert("RGBA").getchannel("A"))


class Reader(ABC):
    """A data set in files. ``root``: the folder that no picture may lie outside of. ``categories``: those there are in
    this data set (None: any). ``mask``: how its masks are read.

    ``reader[n]`` raises UserError, naming the record and the data, where a record or a picture cannot be read."""

    categories: Sequence[str] | None = None
    mask: Callable[[Picture], Image.Image] = staticmethod(white)

    def __init__(self, root: Path, name: Path | str) -> None:
        self.root, self.name = os.path.realpath(root), str(name)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> Row:
        """Record ``index`` without its pixels. Raises UserError for one that is malformed or leads outside."""

    def shape(self, index: int) -> Size | None:
        """The size of a record's source, from its header alone; None if that cannot be read."""
        try:
            return upright_size(self.row(index).source)
        except UserError:  # reader[index] says what is wrong
            return None

    def wrong(self, record: object, what: object) -> UserError:
        """One line that names the record and the data, whatever characters its names hold."""
        said = f"record '{record}' of {self.name}: {what}"
        return UserError("".join(c if c.isprintable() else ascii(c)[1:-1] for c in said))

    def __getitem__(self, index: int) -> Record:
        row = self.row(index)
        try:
            return Record(
                row.id,
                load_image(row.source),
                None if row.target is None else load_image(row.target),
                row.instructions,
                row.objects,
                row.category,
                None if row.mask is None else self.mask(row.mask),
                row.captions,
                row.notes,
            )
        except UserError as e:
            raise self.wrong(row.id, e) from None

    def inside(self, name: str, record: object) -> Path:
        """The file ``name``, relative to the data folder. Raises UserError where it leads outside, also by a link."""
        path = os.path.join(self.root, name)
        try:
            real = os.path.join(_folder(os.path.dirname(path)), os.path.basename(path))
            if os.path.islink(real) or os.path.basename(path) in ("..", "."):
                real = os.path.realpath(real)
            if real.startswith(self.root.rstrip(os.sep) + os.sep):
                return Path(real)
        except ValueError as e:  # a zero byte in the name
            raise self.wrong(record, f"picture {name!r}: {e}") from None
        raise self.wrong(record, f"picture '{name}' leads outside the data folder")

    def picture(self, value: Any, record: object) -> Picture | None:
        """A cell as a picture: bytes, a path, or the Hub's {"bytes", "path"}; None where it is empty.

        Raises UserError for anything else, and for a path that leads outside."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None or value == "":
            return None
        if isinstance(value, str):
            return self.inside(value, record)
        if isinstance(value, bytes):
            return value
        raise self.wrong(record, f"{type(value).__name__} is no picture")

    def from_fields(self, row: Mapping[str, Any], record: object) -> Row:
        """A row of fields named as in SOURCE, TARGET, ... Raises UserError where source or instruction is missing."""
        record = next((row[k] for k in ("id", "idx", "img_id", "index") if row.get(k) is not None), record)
        source = self.picture(first(row, SOURCE), record)
        if source is None:
            raise self.wrong(record, f"no source; it is called one of {', '.join(SOURCE)}")
        words = first(row, INSTRUCTION)
        if not isinstance(words, str):
            raise self.wrong(record, f"no instruction, called one of {', '.join(INSTRUCTION)}")
        objects = row.get("objects")
        if objects is not None and not (isinstance(objects, list) and all(isinstance(o, str) for o in objects)):
            raise self.wrong(record, f"objects must be a list of names, not {objects!r}")
        target, mask = (self.picture(first(row, names), record) for names in (TARGET, MASK))
        captions = (str(row.get("source_caption") or ""), str(row.get("target_caption") or ""))
        category = str(row.get("category") or "")
        return Row(str(record), source, target, [words], objects, category, mask, captions if any(captions) else None)


def first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these fields that there is."""
    return next((row[name] for name in names if row.get(name) is not None), None)


@lru_cache(maxsize=4096)
def _folder(path: str) -> str:
    return os.path.realpath(path)
