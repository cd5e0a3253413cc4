"""A folder of edits, one picture per record: made by a pipeline, or by any other system.

edits = Edits("REPORT/edits", pipe, seed=0)
picture = edits(record)  # read from the folder, or made and saved there
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from reasonbrain.data.record import Record
from reasonbrain.editing.pipeline import ReasonBrainPipeline
from reasonbrain.errors import UserError
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.images import OUTPUT_FORMATS, load_image, save_image

System = Callable[[Record], Image.Image | None]  # the system's edit of a record; None where it is missing
MADE_BY = "made-by.json"


def file_stem(record_id: str) -> str:
    """A record's id as a file name without suffix. Characters that file systems do not allow are percent-encoded as in
    a URL: a/b becomes a%2Fb."""
    return re.sub(r'[/\\:*?"<>|%\x00-\x1f]|^\.', lambda found: f"%{ord(found[0]):02X}", record_id)


class Edits:
    """``edits(record)`` returns the picture ``<folder>/<file_stem(id)>`` with any suffix of ``OUTPUT_FORMATS``.

    Without a pipeline, a missing picture is None. With a pipeline it is made: from the noise of ``seed``, with the
    objects found in the instruction, as `reasonbrain edit` does. Files are written completely or not at all.
    ``instruction`` replaces the records' own; no objects are found in it.

    Raises UserError for a folder that does not exist, for pictures made by another model or with other settings, and,
    when called, for a picture that cannot be read."""

    def __init__(
        self, folder: Path, pipe: ReasonBrainPipeline | None = None, seed: int = 0, instruction: str | None = None
    ) -> None:
        self.folder, self.pipe, self.seed, self.instruction = folder, pipe, seed, instruction
        if pipe is None:
            if not folder.is_dir():
                raise UserError(f"edits '{folder}': the folder does not exist")
            return
        made_by = {"seed": seed, "edit": asdict(pipe.settings.edit), "weights": fingerprint(pipe)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MADE_BY).exists():
                with whole_file(folder / MADE_BY) as file:
                    json.dump(made_by, file, indent=1)
            there = json.loads((folder / MADE_BY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise UserError(f"edits '{folder}': {e}") from None
        for key, value in made_by.items():
            if there.get(key) != value:
                raise UserError(
                    f"edits '{folder}' were made with another {key}: {there.get(key)}, not {value}; use another folder"
                )

    def find(self, record_id: str) -> Path | None:
        """The path of a record's edit; None if it is missing."""
        paths = (self.folder / f"{file_stem(record_id)}{suffix}" for suffix in OUTPUT_FORMATS)
        return next((path for path in paths if path.is_file()), None)

    def __call__(self, record: Record) -> Image.Image | None:
        self.make([record])
        path = self.find(record.id)
        return load_image(path) if path else None

    def make(self, records: Sequence[Record]) -> None:
        """Makes the missing edits in one batch. Each starts from the same noise, as it would alone."""
        missing = [record for record in records if not self.find(record.id)]
        if self.pipe is None or not missing:
            return
        made = self.pipe(
            [record.source for record in missing],
            [self.instruction or record.instructions[0] for record in missing],
            objects=[[] for _ in missing] if self.instruction else None,
            generator=torch.Generator().manual_seed(self.seed),
        ).images
        for record, image in zip(missing, made, strict=True):
            save_image(image, self.folder / f"{file_stem(record.id)}.png")


def fingerprint(pipe: ReasonBrainPipeline) -> str:
    """A hash of the configuration's slots and of the first values of every tensor. Training changes these; hashing all
    12 B parameters would take minutes."""
    digest = hashlib.blake2b(repr(asdict(pipe.settings.model)).encode(), digest_size=16)
    for name, tensor in pipe.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().flatten()[:8].float().cpu().numpy().tobytes())
    return digest.hexdigest()
