"""Which reader reads what: the one table of ``data.name``, and a guess for a path alone.

open_reader("magicbrush", "data/magicbrush/train-*.parquet")[0].instructions
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from reasonbrain.config.schema import DataConfig, PartConfig
from reasonbrain.errors import UserError

if TYPE_CHECKING:
    from reasonbrain.data.reader import Reader

# name -> module and class; several where a data set is published in several layouts: (what is there, the class)
READERS: dict[str, Sequence[tuple[str, str]]] = {
    "manifest": [("", "manifest.Manifest")],
    "folder": [("", "folders.Triples")],
    "parquet": [("*.parquet", "parquet.Parquet")],
    "webdataset": [("*.tar", "shards.Shards")],
    "magicbrush": [("edit_sessions.json", "folders.MagicBrushSessions"), ("*.parquet", "parquet.MagicBrush")],
    "emu_edit": [("*.parquet", "parquet.EmuEdit")],
    "editworld": [("", "folders.EditWorld")],
    "reasonedit": [("", "folders.ReasonEdit")],
    "instructpix2pix": [("seeds.json", "folders.Pix2PixFolder"), ("*.parquet", "parquet.InstructPix2Pix")],
    "risebench": [("", "folders.RiseBench")],
    "kris": [("", "folders.KrisBench")],
}

# what tells a folder's layout, in this order
SIGNS = {
    "manifest.jsonl": "manifest",
    "metadata.jsonl": "manifest",
    "train.jsonl": "manifest",
    "edit_sessions.json": "magicbrush",
    "seeds.json": "instructpix2pix",
    "**/img_txt.json": "editworld",
    "*/annotation.json": "kris",
    "*_reasoning_images": "risebench",
    "**/*.tar": "webdataset",
    "**/*.parquet": "parquet",
    "**/*_mask.jpg": "reasonedit",
    "**/*_source.*": "folder",
}


def check_data(cfg: DataConfig, validates: bool) -> None:
    """Raises UserError where ``data`` names no reader, or one without the path that it needs."""
    if cfg.name == "mixture" and not cfg.mixture:
        raise UserError("data.mixture: data.name=mixture needs a list of {name, path, weight}")
    mixed = cfg.name == "mixture"
    names = ("mini", *READERS) if mixed else ("mini", *READERS, "mixture")
    for part in cfg.mixture if mixed else [PartConfig(cfg.name, cfg.path)]:
        if part.name not in names:
            raise UserError(f"data.name: '{part.name}' is not one of {', '.join(names)}")
        if part.name != "mini" and not part.path:
            raise UserError(f"data.path: data.name={part.name} needs the path of a file or a folder")
    if validates and cfg.name != "mini" and not cfg.validation:
        raise UserError("data.validation: train.validate_every needs a manifest or a folder that is not trained on")


def open_reader(name: str, path: str) -> Reader:
    """The reader called ``name`` on a folder, a file, or a pattern of files such as "shards/*.tar".

    Raises UserError for an unknown name, and where the path is not what this reader reads."""
    if name not in READERS:
        raise UserError(f"data.name: '{name}' is not one of {', '.join(READERS)}")
    for sign, where in READERS[name]:
        module, _, cls = where.partition(".")
        files = _files(path, sign) if "*" in sign else []
        if files or not sign or (Path(path) / sign).exists():
            made = getattr(import_module(f"reasonbrain.modules.data.{module}"), cls)
            return made(files) if files else made(Path(path))
    raise UserError(f"data.path: '{path}' has none of {', '.join(sign for sign, _ in READERS[name])} for {name}")


def guess(path: str) -> str:
    """The reader for a path. Raises UserError where nothing tells."""
    for suffix, name in ((".jsonl", "manifest"), (".tar", "webdataset"), (".json", "risebench")):
        if path.endswith(suffix):
            return name
    sign = next((sign for sign in SIGNS if next(Path(path).glob(sign), None)), "")
    found = SIGNS.get(sign) or ("parquet" if path.endswith(".parquet") else None)
    if found is None:
        there = "has no layout known here" if glob.glob(path) else "does not exist"
        raise UserError(f"'{path}' {there}; name its reader, one of {', '.join(READERS)}")
    if found == "parquet":
        from reasonbrain.modules.data.parquet import by_columns

        return by_columns(_files(path, "*.parquet"))
    return found


def fingerprint(path: str) -> str:
    """Tells one data set from another: a file's bytes, or the names and sizes of the files of a folder or pattern.

    Raises UserError where there is none."""
    sum_ = hashlib.blake2b(digest_size=16)
    if Path(path).is_file():
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                sum_.update(chunk)
        return sum_.hexdigest()
    files = _files(path, "*")
    if not files:
        raise UserError(f"data.path: '{path}' does not exist or is empty")
    for file_ in files:
        sum_.update(f"{file_.name} {file_.stat().st_size}\n".encode())
    return sum_.hexdigest()


def _files(path: str, sign: str) -> list[Path]:
    """The files of a folder, at any depth, that ``sign`` describes; or those of a pattern, or the file itself."""
    found = Path(path).rglob(sign) if Path(path).is_dir() else map(Path, glob.glob(path, recursive=True))
    return sorted(file for file in found if file.is_file())
