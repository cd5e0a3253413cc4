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
import math
import os
import reprlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from reasonbrain.data.dataset import DataSet
from reasonbrain.data.record import Picture, RawRecord, Record, Size
from reasonbrain.errors import UserError
from reasonbrain.utils.files import check_not_input, inside
from reasonbrain.utils.images import load_alpha, load_image, upright_size
from reasonbrain.utils.text import printable

# names of a record's fields in generic manifests, Parquet files and shards
SOURCE = ("source", "src_image", "source_img", "source_image", "input_image", "original_image", "source_file_name")
TARGET = ("target", "tgt_image", "target_img", "target_image", "output_image", "edited_image", "target_file_name")
INSTRUCTION = ("instruction", "edit_prompt", "txt")
MASK = ("mask", "mask_image", "mask_img", "mask_file_name")
ID = ("id", "idx", "img_id", "index")
LARGEST = 1 << 28  # bytes of one record in a manifest or a shard


def white(picture: Picture) -> Image.Image:
    """Decodes a mask that is white where the edit may change the picture. Returns mode "L".

    Raises UserError for one that is neither black nor has a white pixel, such as a mask of the values 0 and 1, and for
    one that is transparent in places, which would count as white."""
    mask = load_image(picture).convert("L")
    if load_alpha(picture).getextrema()[0] < 255:  # type: ignore[operator]
        raise UserError("the mask is transparent in places; it must be black and white")
    brightest = mask.getextrema()[1]
    if 0 < brightest < 128:  # type: ignore[operator]  # one band, so a number
        raise UserError(f"the mask has no white pixel: its values are at most {brightest}, but white is 255")
    return mask


def transparent(picture: Picture) -> Image.Image:
    """Decodes a mask that is the source, transparent where the edit may change it. Returns mode "L", white there."""
    load_image(picture)  # raises UserError if it cannot be read
    return ImageOps.invert(load_alpha(picture))


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

    def __init__(self, root: Path, name: Path | str, files: Sequence[Path] = ()) -> None:
        """``root``: the folder that all pictures must be in. ``name``: the name of the data in error messages.
        ``files``: what the records are read from, without their pictures."""
        self.root, self.name, self.files = os.path.realpath(root), printable(str(name)), files

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
                raw.sentence,
                raw.edits,
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
        return UserError(printable(f"record '{printable(str(record), 80)}' of {self.name}: {what}"))

    def inputs(self) -> Iterator[Path]:
        """Every file that the data set is read from: ``files`` and the pictures of all records. A reader whose pictures
        are inside ``files`` overrides this, so that they are not read."""
        yield from self.files
        for index in range(len(self)):
            with suppress(UserError):
                raw = self.raw(index)
                yield from (part for part in (raw.source, raw.target, raw.mask) if isinstance(part, Path))

    def check_output(self, output: Path) -> None:
        """Raises UserError if writing ``output`` would replace a file of the data set. The records are only read where
        that is possible: the output exists inside the data folder, or has several names."""
        check_not_input(output, self.files)
        real = os.path.realpath(output)
        if os.path.isfile(real) and (real.startswith(self.root.rstrip(os.sep) + os.sep) or os.stat(real).st_nlink > 1):
            check_not_input(output, self.inputs())

    def check_ids(self, count: int | None = None) -> None:
        """Raises UserError if two of the first ``count`` records have the same id, naming both. Records that cannot be
        read are left out. For what is stored by id; training does not need it."""
        seen: dict[str, int] = {}
        for index in range(min(count or len(self), len(self))):
            try:
                name = self.raw(index).id
            except UserError:
                continue
            if seen.setdefault(name, index) != index:
                raise self.wrong(name, f"records {seen[name]} and {index} have this id; each needs its own")

    def inside(self, name: str, record: object) -> Path:
        """The path of the file ``name``, relative to the data folder. Raises UserError if it is outside the folder,
        symbolic links resolved."""
        try:
            return inside(self.root, name, "the data folder")
        except UserError as e:
            raise self.wrong(record, f"picture {e}") from None

    def picture(self, value: Any, record: object) -> Picture | None:
        """A field's value as a picture: bytes, a path, or the Hub's {"bytes", "path"}. None: it is empty.

        Raises UserError for anything else, and for a path that leads outside the folder."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if missing(value) or value == "":
            return None
        if isinstance(value, str):
            return self.inside(value, record)
        if isinstance(value, bytes):
            return value
        raise self.wrong(record, f"{type(value).__name__} is not a picture")

    def from_fields(self, row: Mapping[str, Any], record: object, notes: dict[str, str] | None = None) -> RawRecord:
        """The record whose fields are named as in ID, SOURCE, TARGET, INSTRUCTION and MASK. ``record``: its id if no
        field holds one. Raises UserError if it has no source or no instruction, or if its text is invalid."""
        record = self.as_text(first(row, ID), "id", record) or str(record)
        source = self.picture(first(row, SOURCE), record)
        if source is None:
            raise self.wrong(record, f"no source; its field is one of {', '.join(SOURCE)}")
        words = first(row, INSTRUCTION)
        if words is None:
            raise self.wrong(record, f"no instruction; its field is one of {', '.join(INSTRUCTION)}")
        if not isinstance(words, str):
            raise self.wrong(record, f"the instruction must be text, not {reprlib.repr(words)}")
        objects = None if missing(row.get("objects")) else row["objects"]
        if objects is not None and not (isinstance(objects, list) and all(isinstance(o, str) for o in objects)):
            raise self.wrong(record, f"objects must be a list of names, not {reprlib.repr(objects)}")
        target, mask = (self.picture(first(row, names), record) for names in (TARGET, MASK))
        named = ("category", "source_caption", "target_caption", "sentence")
        category, before, after, said = (self.as_text(row.get(name), name, record) for name in named)
        captions = (before, after) if before or after else None
        edits = True if missing(row.get("edits")) else row["edits"]
        if not isinstance(edits, bool):
            raise self.wrong(record, f"edits must be true or false, not {reprlib.repr(edits)}")
        try:
            return RawRecord(
                record, source, target, [words], objects, category, mask, captions, notes or {}, said, edits
            )
        except UserError as e:
            raise self.wrong(record, e) from None

    def as_text(self, value: Any, name: str, record: object) -> str:
        """The value of the field ``name`` as text, "" if it is missing. A table that holds whole numbers as 7.0 gives
        the same text as one that holds 7. Raises UserError for lists and objects."""
        if isinstance(value, bytes):
            value = value.decode(errors="surrogateescape")
        if isinstance(value, (list, Mapping)):
            raise self.wrong(record, f"{name} must be text or a number, not {reprlib.repr(value)}")
        if missing(value):
            return ""
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def missing(value: Any) -> bool:
    """Whether a table's cell is empty: None, or NaN, which tables write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these fields that has a value, one that is not "" if possible. None: none has."""
    there = [row[name] for name in names if not missing(row.get(name))]
    return next((value for value in there if value != ""), there[0] if there else None)


def files_of(path: str, pattern: str) -> list[Path]:
    """The files that ``path`` stands for, sorted: those below a folder, at any depth, that match ``pattern``; the file
    of this name; or those that match ``path`` itself, a pattern.

    Raises UserError if one of them is not a file, such as a pipe or a link to nothing."""
    files = sorted(file for file in matching(path, pattern) if not file.is_dir())
    for file in files:
        if not file.is_file():
            raise UserError(f"data.path: '{file}' is not a file" + " but a dangling link" * file.is_symlink())
    return files


def matching(path: str, pattern: str) -> Iterator[Path]:
    """What ``path`` stands for, as in ``files_of``, whatever it is."""
    if os.path.isdir(path):
        return Path(path).rglob(pattern)
    if os.path.lexists(path):  # [ ] in the name of a file is no pattern
        return iter([Path(path)])
    return map(Path, glob.glob(path, recursive=True))
