"""The base class of data sets in files. A reader finds the records of its layout without decoding their pictures.

A reader for a layout of your own, registered in the entry-point group ``reasonbrain.data``::

    class Diary(Reader):  # a folder with diary.json, a list of {"before", "after", "edit"}
        signs = ("diary.json",)

        def __init__(self, path: str) -> None:
            super().__init__(Path(path), path)
            self.entries = json.loads((Path(path) / "diary.json").read_text())

        def __len__(self) -> int:
            return len(self.entries)

        def raw(self, index: int) -> RawRecord:
            entry = self.entries[index]
            fields = {"source": entry["before"], "target": entry["after"], "instruction": entry["edit"]}
            return self.from_fields(fields, index)
"""

from __future__ import annotations

import glob
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from reasonbrain.data.dataset import DataSet
from reasonbrain.data.record import Picture, RawRecord, Record, Size
from reasonbrain.errors import UserError
from reasonbrain.utils.images import load_image, upright_size

# names of a record's fields in generic manifests, Parquet files and shards
SOURCE = ("source", "src_image", "source_img", "source_image", "input_image", "original_image", "source_file_name")
TARGET = ("target", "tgt_image", "target_img", "target_image", "output_image", "edited_image", "target_file_name")
INSTRUCTION = ("instruction", "edit_prompt", "txt")
MASK = ("mask", "mask_image")
LARGEST = 1 << 28  # bytes of one record in a manifest or a shard


def white(picture: Picture) -> Image.Image:
    """Decodes a mask that is white where the edit may change the picture. Returns mode "L"."""
    return load_image(picture).convert("L")


def transparent(picture: Picture) -> Image.Image:
    """Decodes a mask that is the source, transparent where the edit may change it. Returns mode "L", white there."""
    load_image(picture)  # raises UserError if it cannot be read
    with Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        return ImageOps.invert(image.convert("RGBA").getchannel("A"))


class Reader(DataSet):
    """A data set in files.

    Attributes of the class say which layout it reads, so that ``opening.guess`` finds it; all may be empty.
    ``suffixes``: endings of a path, or of a pattern of files. ``signs``: what a folder holds, a name or a pattern such
    as "*/annotation.json" or, at any depth, "**/*.tar". ``columns``: columns of a table. ``other_layouts``: readers of
    further layouts in which the same data set is published.

    ``categories``: the categories of this data set (None: any). ``mask``: how its masks are decoded.

    ``reader[index]`` raises UserError, naming the record and the data, if a record or a picture cannot be read."""

    suffixes: Sequence[str] = ()
    signs: Sequence[str] = ()
    columns: Sequence[str] = ()
    other_layouts: Sequence[type[Reader]] = ()
    categories: Sequence[str] | None = None
    mask: Callable[[Picture], Image.Image] = staticmethod(white)

    def __init__(self, root: Path, name: Path | str) -> None:
        """``root``: the folder that all pictures must be in. ``name``: the name of the data in error messages."""
        self.root, self.name = os.path.realpath(root), str(name)

    @classmethod
    def open(cls, path: str, **section: Any) -> DataSet:  # type: ignore[override]
        """Opens ``path`` in the first of the other layouts that it has, otherwise in this one."""
        layouts = (layout for layout in cls.other_layouts if any(next(Path(path).glob(s), None) for s in layout.signs))
        found: Any = next(layouts, cls)  # a layout's own __init__ takes the path
        return found(path, **section)

    @classmethod
    def fits(cls, path: str) -> bool:
        """Whether a path with the suffix or a sign of this layout is in the layout; for layouts that share them."""
        return True

    @abstractmethod
    def raw(self, index: int) -> RawRecord:
        """Record ``index`` without its pixels. Raises UserError if it is malformed or leads outside the folder."""

    def __getitem__(self, index: int) -> Record:
        raw = self.raw(index)
        try:
            return Record(
                raw.id,
                load_image(raw.source),
                None if raw.target is None else load_image(raw.target),
                raw.instructions,
                raw.objects,
                raw.category,
                None if raw.mask is None else self.mask(raw.mask),
                raw.captions,
                raw.notes,
            )
        except UserError as e:
            raise self.wrong(raw.id, e) from None

    def shape(self, index: int) -> Size | None:
        """The size of a record's source, from its header alone. None: it cannot be read."""
        try:
            return upright_size(self.raw(index).source)
        except UserError:  # reader[index] raises it again
            return None

    def instructions(self, index: int) -> Sequence[str]:
        return self.raw(index).instructions

    def wrong(self, record: object, what: object) -> UserError:
        """An error of one line that names the record and the data; unprintable characters are escaped."""
        said = f"record '{record}' of {self.name}: {what}"
        return UserError("".join(c if c.isprintable() else ascii(c)[1:-1] for c in said))

    def inside(self, name: str, record: object) -> Path:
        """The path of the file ``name``, relative to the data folder. Raises UserError if it is outside the folder,
        symbolic links resolved."""
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
        """A field's value as a picture: bytes, a path, or the Hub's {"bytes", "path"}. None: it is empty.

        Raises UserError for anything else, and for a path that leads outside the folder."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None or value == "":
            return None
        if isinstance(value, str):
            return self.inside(value, record)
        if isinstance(value, bytes):
            return value
        raise self.wrong(record, f"{type(value).__name__} is not a picture")

    def from_fields(self, row: Mapping[str, Any], record: object) -> RawRecord:
        """The record whose fields are named as in SOURCE, TARGET, INSTRUCTION and MASK. ``record``: its id if no field
        holds one. Raises UserError if it has no source or no instruction."""
        record = next((row[k] for k in ("id", "idx", "img_id", "index") if row.get(k) is not None), record)
        source = self.picture(first(row, SOURCE), record)
        if source is None:
            raise self.wrong(record, f"no source; its field is one of {', '.join(SOURCE)}")
        words = first(row, INSTRUCTION)
        if not isinstance(words, str):
            raise self.wrong(record, f"no instruction; its field is one of {', '.join(INSTRUCTION)}")
        objects = row.get("objects")
        if objects is not None and not (isinstance(objects, list) and all(isinstance(o, str) for o in objects)):
            raise self.wrong(record, f"objects must be a list of names, not {objects!r}")
        target, mask = (self.picture(first(row, names), record) for names in (TARGET, MASK))
        captions = (str(row.get("source_caption") or ""), str(row.get("target_caption") or ""))
        category = str(row.get("category") or "")
        given = captions if any(captions) else None
        return RawRecord(str(record), source, target, [words], objects, category, mask, given)


def first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these fields that has a value. None: none has."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def files_of(path: str, pattern: str) -> list[Path]:
    """The files that ``path`` stands for, sorted: those below a folder, at any depth, that match ``pattern``; those
    that match ``path`` itself, a pattern; or the one file."""
    found = Path(path).rglob(pattern) if Path(path).is_dir() else map(Path, glob.glob(path, recursive=True))
    return sorted(file for file in found if file.is_file())


@lru_cache(maxsize=4096)
def _folder(path: str) -> str:
    return os.path.realpath(path)
