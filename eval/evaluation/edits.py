"""A folder of edits, one picture per record: made by a pipeline, or by any other system.

edits = Edits("REPORT/edits", pipe, seed=0)
picture = edits(record)  # read from the folder, or made and saved there

A picture made by a pipeline has, in a PNG text chunk, a hash of everything it was made from: the source's pixels, the
instruction, the seed, the settings and the model. It is reused only for a record with the same hash. With
``edit.rounds`` the best picture after each round is in after-1, after-2, ...
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from reasonbrain.config.schema import result_settings
from reasonbrain.data.record import Record
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.editing.placement import dtype_name
from reasonbrain.editing.rounds import best
from reasonbrain.errors import Unavailable, UserError, reason
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.images import OUTPUT_FORMATS, load_image, save_image, to_pil
from reasonbrain.utils.reading import read_json

System = Callable[[Record], Image.Image | None]  # the system's edit of a record; None if it is missing
MADE_BY = "made-by.json"  # seed, settings and model of a folder of edits
MADE_FROM = "made-from"  # the text chunk with a picture's hash
SECONDS = "seconds"  # the text chunk of what an edit took, up to a round
LONGEST = 200  # maximum number of bytes of a file name without suffix
SAMPLED = 64  # values per tensor in a model's fingerprint


def file_stem(record_id: str) -> str:
    """A record's id as a file name without suffix. Characters that file systems do not allow are percent-encoded as in
    a URL: a/b becomes a%2Fb. The end of a very long id is replaced by a hash."""
    stem = re.sub(r'[/\\:*?"<>|%\x00-\x1f\ud800-\udfff]|^\.', lambda found: f"%{ord(found[0]):02X}", record_id)
    if len(stem.encode()) <= LONGEST:
        return stem
    return f"{stem.encode()[:150].decode(errors='ignore')}~{hashlib.blake2b(stem.encode(), digest_size=16).hexdigest()}"


def content(record: Record) -> str:
    """A hash of what an edit of the record is made from and compared with."""
    texts = [record.instructions, record.captions, record.notes]
    digest = hashlib.blake2b(json.dumps(texts, sort_keys=True).encode(), digest_size=16)
    for image in (record.source, record.target, record.mask):
        digest.update(f"{image.size} ".encode() + image.tobytes() if image else b"none ")
    return digest.hexdigest()


class Edits:
    """``edits(record)`` returns the picture ``<folder>/<file_stem(id)>`` with any suffix of ``OUTPUT_FORMATS``, in
    upper or lower case.

    Without a pipeline, a missing picture is None. With a pipeline it is made from the noise of ``seed``, with the
    objects found in the instruction, as by `reasonbrain edit`. Files are written atomically. ``instruction`` replaces
    the records' own; no objects are extracted from it.

    Raises UserError for a folder that does not exist, for pictures made by another model, with other settings or with
    another seed, and for files that this command did not write. When called, raises UserError for a picture that cannot
    be read or made."""

    def __init__(
        self, folder: Path, pipe: ReasonBrainPipeline | None = None, seed: int = 0, instruction: str | None = None
    ) -> None:
        self.folder, self.pipe, self.seed, self.instruction = folder, pipe, seed, instruction
        self.failed: dict[str, str] = {}  # why a record's edit could not be made, by id
        if pipe is None:
            if not folder.is_dir():
                raise UserError(f"edits '{folder}': the folder does not exist")
            self.there = _pictures(folder)
            return
        self.made_by = {
            "seed": seed,
            "edit": result_settings(pipe.settings.edit) | {"dtype": dtype_name(pipe.settings.edit)},
            "weights": fingerprint(pipe),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            first = min((p.name for p in folder.iterdir() if not p.name.endswith(".tmp")), default=None)
        except OSError as e:
            raise UserError(f"edits '{folder}': {e.strerror}") from None
        if first is None:
            with whole_file(folder / MADE_BY) as file:
                json.dump(self.made_by, file, indent=1)
        elif not (folder / MADE_BY).exists():
            raise self._foreign(first)
        there = read_json(folder / MADE_BY, "edits")
        for key, value in self.made_by.items():
            if not isinstance(there, dict) or key not in there:
                raise self._foreign(MADE_BY)
            if there[key] != value:
                raise UserError(
                    f"edits '{folder}' were made with another {key}: {there[key]}, not {value}; use another folder"
                )

    def find(self, record_id: str) -> Path | None:
        """The path of a record's edit; None if it is missing."""
        stem = file_stem(record_id)
        path = self.there.get(stem) if self.pipe is None else self.folder / f"{stem}.png"
        return path if path and path.is_file() else None

    def __call__(self, record: Record) -> Image.Image | None:
        self.make([record])
        if record.id in self.failed:
            raise UserError(self.failed[record.id])
        path = self.find(record.id)
        return load_image(path) if path else None

    def make(self, records: Sequence[Record]) -> None:
        """Makes the missing edits in one batch. Each starts from the same noise, as it would alone. An error fails only
        its own edit; ``failed`` has the reason. Raises Unavailable, which would fail every other edit, too."""
        if self.pipe is None:
            return
        missing = [record for record in records if record.id not in self.failed and not self._is_made(record)]
        if not missing:
            return
        try:
            made = self.pipe(
                [record.source for record in missing],
                [self._says(record) for record in missing],
                objects=[[] for _ in missing] if self.instruction else None,
                generator=torch.Generator().manual_seed(self.seed),
            )
        except Unavailable:
            raise
        except Exception as e:  # whatever a library raises for a record
            if len(missing) == 1:
                self.failed[missing[0].id] = reason(e)
            else:
                for record in missing:
                    self.make([record])
            return
        for record, image, tried in zip(missing, made.images, made.rounds, strict=True):
            file, key = f"{file_stem(record.id)}.png", {MADE_FROM: self._key(record)}
            for number in self._rounds:
                so_far = [one for one in tried if one.number <= number]
                (self.folder / f"after-{number}").mkdir(exist_ok=True)
                cost = {SECONDS: f"{sum(one.seconds for one in so_far):.4f}"}
                save_image(to_pil(best(so_far).image)[0], self.folder / f"after-{number}" / file, key | cost)
            save_image(image, self.folder / file, key)

    @property
    def _rounds(self) -> range:
        """The numbers of the rounds that are stored: none of edits that are made in one."""
        count = self.pipe.settings.edit.rounds if self.pipe else 1
        return range(1, count + 1) if count > 1 else range(0)

    def by_round(self) -> dict[str, System]:
        """The best edit after each round of ``edit.rounds`` but the last, as systems of a report. After the last round
        that a record needed it stays the same, and the best after all is the edit itself."""

        def after(number: int) -> System:
            return lambda record: load_image(self.folder / f"after-{number}" / f"{file_stem(record.id)}.png")

        return {f"{number} of {self._rounds[-1]} rounds": after(number) for number in self._rounds[:-1]}

    def seconds(self, ids: Sequence[str]) -> dict[str, float]:
        """The mean seconds of these records' edits up to each round; empty without rounds."""

        def of(number: int, record_id: str) -> float:
            path = self.folder / f"after-{number}" / f"{file_stem(record_id)}.png"
            with Image.open(path, formats=("PNG",)) as image:
                return float(image.info[SECONDS])

        return {
            f"{number} of {self._rounds[-1]} rounds": sum(of(number, one) for one in ids) / len(ids)
            for number in self._rounds
        }

    def _says(self, record: Record) -> str:
        return self.instruction or record.instructions[0]

    def _key(self, record: Record) -> str:
        """A hash of everything that the record's edit is made from."""
        parts = [self.made_by, self._says(record), record.source.mode, record.source.size]
        digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16)
        digest.update(record.source.tobytes())
        return digest.hexdigest()

    def _is_made(self, record: Record) -> bool:
        """Whether the record's edit exists and was made from the same source, instruction, seed, settings and model.
        Raises UserError for a file that this command did not write."""
        path = self.folder / f"{file_stem(record.id)}.png"
        if not all(os.path.lexists(f) for f in (path, *(self.folder / f"after-{n}" / path.name for n in self._rounds))):
            return False
        if not path.is_file():
            raise self._foreign(path.name)
        if not path.stat().st_size:  # lost in a power failure
            return False
        try:
            with Image.open(path, formats=("PNG",)) as image:
                key = image.info[MADE_FROM]
                with suppress(OSError, SyntaxError):  # cut off, in a power failure or a copy
                    image.load()
                    return key == self._key(record)
        except Exception:  # not a PNG, or without the text chunk
            raise self._foreign(path.name) from None
        return False

    def _foreign(self, name: str) -> UserError:
        return UserError(f"edits '{self.folder}' holds '{name}', which this command did not write; use another folder")


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures in a folder, by name without suffix. If several have the same name, the first in the order of
    ``OUTPUT_FORMATS``."""
    order = list(OUTPUT_FORMATS)
    found = [path for path in folder.iterdir() if path.suffix.lower() in order]
    found.sort(key=lambda path: (order.index(path.suffix.lower()), path.suffix != path.suffix.lower()), reverse=True)
    return {path.stem: path for path in found}


def fingerprint(pipe: ReasonBrainPipeline) -> str:
    """A hash of the configuration's slots and of about ``SAMPLED`` evenly spaced values of every tensor. Training
    changes these values; hashing all 12 B parameters would take minutes."""
    digest = hashlib.blake2b(repr(asdict(pipe.settings.model)).encode(), digest_size=16)
    for name, tensor in pipe.model.state_dict().items():
        values = tensor.detach().flatten()
        values = values[:: max(1, len(values) // SAMPLED)]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()
