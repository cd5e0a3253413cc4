"""Edits in a folder, one picture a record: made there by a pipeline, or taken from any other system.

edits = Edits("REPORT/edits", pipe, seed=0)
picture = edits(record)  # read if it is there, else made and kept
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

System = Callable[[Record], Image.Image | None]  # an edit of the record, or None where there is none
MADE_BY = "made-by.json"


def file_name(record_id: str) -> str:
    """A record's id as one file name without suffix: what no file system takes is written as in a URL (a/b: a%2Fb)."""
    return re.sub(r'[/\\:*?"<>|%\x00-\x1f]|^\.', lambda found: f"%{ord(found[0]):02X}", record_id)


class Edits:
    """``edits(record)``: the picture ``<folder>/<file_name(id)>`` with any suffix of ``OUTPUT_FORMATS``.

    Without a pipeline one that is missing is None. With one it is made, always from the noise of ``seed`` and with the
    objects found in the words, as `reasonbrain edit` does, and written whole or not at all.
    ``instruction``: said instead of the record's own, and no objects.
    Raises UserError for a folder that is not there, for pictures made by another model or with other settings, and,
    when called, for a picture that cannot be read."""

    def __init__(
        self, folder: Path, pipe: ReasonBrainPipeline | None = None, seed: int = 0, instruction: str | None = None
    ) -> None:
        self.folder, self.pipe, self.seed, self.instruction = folder, pipe, seed, instruction
        if pipe is None:
            if not folder.is_dir():
                raise UserError(f"edits '{folder}': there is no such folder")
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
                    f"edits '{folder}' were made with another {key}: {there.get(key)}, not {value}; name another folder"
                )

    def find(self, record_id: str) -> Path | None:
        """Where a record's edit is."""
        paths = (self.folder / f"{file_name(record_id)}{suffix}" for suffix in OUTPUT_FORMATS)
        return next((path for path in paths if path.is_file()), None)

    def __call__(self, record: Record) -> Image.Image | None:
        self.make([record])
        path = self.find(record.id)
        return load_image(path) if path else None

    def make(self, records: Sequence[Record]) -> None:
        """Makes those that are missing, in one batch; each starts from the same noise, as if it were alone."""
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
            save_image(image, self.folder / f"{file_name(record.id)}.png")


def fingerprint(pipe: ReasonBrainPipeline) -> str:
    """Of the configuration's slots and the first numbers of every tensor: training moves them, reading all would take
    minutes for 12 B parameters."""
    digest = hashlib.blake2b(repr(asdict(pipe.settings.model)).encode(), digest_size=16)
    for name, tensor in pipe.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().flatten()[:8].float().cpu().numpy().tobytes())
    return digest.hexdigest()
