"""Training records, from ReasonMini or from a JSONL manifest in Reason50K's format.

    {"id", "category", "src_image", "tgt_image", "instruction", "target_caption"?, "objects": [...]}

Image paths are relative to the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from reasonbrain.config import DataConfig
from reasonbrain.errors import UserError
from reasonbrain.images import load_image

from .mini.world import kinds, make


@dataclass
class Record:
    """A source picture and what is asked of it; what only some data sets bring is empty in the others.

    ``instructions``: every way it is worded. ``objects``: the key objects (None: to be found in the words).
    ``target``: the true edit, of the source's size (None: a benchmark without one). ``mask``: "L", white where the
    edit may change the picture. ``captions``: of the source and of the target. ``notes``: what a benchmark's judge is
    told besides, by the benchmark's own field names."""

    id: str
    source: Image.Image
    target: Image.Image | None
    instructions: Sequence[str]
    objects: list[str] | None = None
    category: str = ""
    mask: Image.Image | None = None
    captions: tuple[str, str] | None = None
    notes: dict[str, str] = field(default_factory=dict)


class Records(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class MiniRecords:
    """A split of ReasonMini, drawn on the fly; a record brings all training phrasings of its kind.

    Raises UserError if ``data.turns`` names an unknown kind or a number below 0."""

    def __init__(self, cfg: DataConfig, split: str = "train") -> None:
        self.cfg, self.split = cfg, split
        names = [kind.name for _, kind in kinds()]
        for name, count in cfg.turns.items():
            if name not in names:
                raise UserError(f"data.turns: ReasonMini has no kind '{name}', but {', '.join(names)}")
            if count < 0:
                raise UserError(f"data.turns.{name} is {count}, but must be 0 or more")
        self.turns = [name for name in names for _ in range(cfg.turns.get(name, 1))]

    def __len__(self) -> int:
        return self.cfg.count

    def __getitem__(self, index: int) -> Record:
        s = make(self.split, index, self.cfg.seed, self.cfg.size, self.turns[index % len(self.turns)])
        return Record(s.id, s.source, s.target, [t.format(**s.params) for t in s.kind.phrasings], s.objects)


class ManifestRecords:
    """The records of a manifest, scaled to size x size. Raises UserError on a malformed line or picture."""

    def __init__(self, cfg: DataConfig) -> None:
        self.path, self.size = Path(str(cfg.path)), cfg.size
        if not self.path.is_file():
            raise UserError(f"data.path: manifest '{self.path}' does not exist")
        self.rows = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                self.rows.append({k: row[k] for k in ("id", "src_image", "tgt_image", "instruction")} | row)
            except (ValueError, KeyError, TypeError) as e:
                raise UserError(f"{self.path}, line {number}: not a record ({e})") from None
        if not self.rows:
            raise UserError(f"data.path: manifest '{self.path}' holds no record")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row = self.rows[index]
        try:
            source, target = (
                load_image(self.path.parent / row[k]).resize((self.size, self.size), Image.Resampling.LANCZOS)
                for k in ("src_image", "tgt_image")
            )
        except UserError as e:
            raise UserError(f"record '{row['id']}' of {self.path}: {e}") from None
        return Record(str(row["id"]), source, target, [row["instruction"]], row.get("objects"))


def open_records(cfg: DataConfig) -> Records:
    """What ``data`` names to train on."""
    return MiniRecords(cfg) if cfg.name == "mini" else ManifestRecords(cfg)


def open_validation(cfg: DataConfig) -> Records:
    """What ``data`` names to validate on."""
    return MiniRecords(cfg, "val") if cfg.name == "mini" else ManifestRecords(replace(cfg, path=cfg.validation))


def as_array(images: Sequence[Image.Image]) -> np.ndarray:
    """[B, 3, H, W] uint8."""
    return np.stack([np.asarray(i.convert("RGB")) for i in images]).transpose(0, 3, 1, 2).copy()
