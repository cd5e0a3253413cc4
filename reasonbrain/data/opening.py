"""Opens data sets by name, guesses the name from a path, and computes fingerprints of data sets.

open_reader("magicbrush", "data/magicbrush/train-*.parquet")[0].instructions
"""

from __future__ import annotations

import glob
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from reasonbrain.config.schema import DataConfig
from reasonbrain.data.crop import CutRecords, bucket_sizes
from reasonbrain.data.dataset import DataSet
from reasonbrain.data.mixture import Mixture
from reasonbrain.data.reader import Reader, matching
from reasonbrain.errors import UserError
from reasonbrain.registry import plugin, plugin_parameters, plugins
from reasonbrain.utils.reading import sketch

TEXTS = (".json", ".jsonl", ".txt")  # files of words: correcting one may change neither its size nor its ends


def open_data(cfg: DataConfig) -> DataSet:
    """The data set that the ``data`` section names, each picture at its own size.

    Raises UserError for an unknown name, and like ``DataSet.open``."""
    if cfg.name is None:
        raise UserError(
            f"data.name: names no data set; choose from {', '.join(i.name for i in plugins('data'))}, mixture"
        )
    if cfg.name == "mixture":
        return Mixture([open_data(part) for part in _parts(cfg)], [part.weight for part in cfg.mixture])
    cls = plugin("data", cfg.name)
    return cls.open(**_arguments(cls, cfg))


def open_records(cfg: DataConfig, multiple: int) -> CutRecords:
    """The training records, cropped to the sizes of ``bucket_sizes``. ``multiple``: the diffusion model requires sides
    that are multiples of this, in pixels. Raises UserError like ``open_data`` and ``bucket_sizes``."""
    choices = bucket_sizes(cfg.size, multiple)
    return CutRecords(open_data(cfg), choices)


def open_validation(cfg: DataConfig) -> CutRecords:
    """The validation records, cropped to squares: ``data.validation``, or else the data set's own validation split.

    ``data.validation`` is read by ``data.name`` if that takes a path, otherwise by the reader that ``guess`` finds."""
    square = [(cfg.size, cfg.size)]
    cls = plugin("data", str(cfg.name)) if cfg.name != "mixture" else None
    if cfg.validation is None:
        assert cls  # config.loading has checked it: a mixture has no split of its own
        return CutRecords(cls.open(**cls.validation(**_arguments(cls, cfg))), square)
    if cls and "path" in plugin_parameters(cls):
        return CutRecords(open_data(replace(cfg, path=cfg.validation)), square)
    guessed = replace(cfg, name=guess(cfg.validation), path=cfg.validation, options={})
    return CutRecords(open_data(guessed), square)


def open_reader(name: str, path: str) -> Reader:
    """The reader ``name`` on a folder, a file, or a pattern of files such as "shards/*.tar".

    Raises UserError for an unknown name, for a data set that is not in files, and where the path is not in a layout
    that the reader knows."""
    if not issubclass(plugin("data", name), Reader):
        raise UserError(f"data.name: '{name}' does not read files; choose from {', '.join(_readers())}")
    return open_data(DataConfig(name=name, path=path))  # type: ignore[return-value]


def guess(path: str) -> str:
    """The name of the reader whose layout ``path`` has.

    First the readers whose suffix the path has are asked, then those whose sign is found in the folder: names of files
    before patterns, patterns at a fixed depth before those at any depth. Where several have the same sign, those with
    more ``columns`` are asked first, then by name. Raises UserError if none recognises the path."""
    choices = f"name its reader, one of {', '.join(_readers())}"
    if not os.path.lexists(path) and not glob.glob(path):
        raise UserError(f"'{path}' does not exist; {choices}")
    layouts = [(name, layout) for name, cls in _readers().items() for layout in (*cls.other_layouts, cls)]
    layouts.sort(key=lambda found: (-len(found[1].columns), found[0]))
    for name, layout in layouts:
        if path.endswith(tuple(layout.suffixes)) and layout.fits(path):
            return name
    signs = [(sign, name, layout) for name, layout in layouts for sign in layout.signs]
    for sign, name, layout in sorted(signs, key=lambda found: ("**" in found[0], "*" in found[0])):
        if next(Path(path).glob(sign), None) and layout.fits(path):
            return name
    raise UserError(f"'{path}' has no layout known here; {choices}")


def identity(cfg: DataConfig) -> dict[str, Any]:
    """The settings that the cropped records of a ``data`` section depend on, as JSON values. Paths are replaced by
    their ``fingerprint``; ``pictures`` is one of the images that a file names, None if none of them is there."""
    if cfg.name == "mixture":
        parts = [identity(part) | {"weight": own.weight} for part, own in zip(_parts(cfg), cfg.mixture, strict=True)]
        return {"name": cfg.name, "mixture": parts}
    cls = plugin("data", str(cfg.name))
    defaults = {name: parameter.default for name, parameter in plugin_parameters(cls).items()}
    found = {"name": cfg.name, "size": cfg.size} | defaults | _arguments(cls, cfg)
    if not found.get("path"):
        return found
    found |= {"path": fingerprint(found["path"])}
    if Path(str(cfg.path)).is_file() and issubclass(cls, Reader):
        found["pictures"] = hash_beside(open_data(cfg))
    return found


def hash_beside(data: DataSet) -> str | None:
    """A hash of what the records are read from besides ``data.files``, such as their pictures, by the ``sketch`` of
    each file. Hidden files are left out. None: there is nothing, or the files are gone."""
    files = {*data.files}
    inputs = data.inputs() if isinstance(data, Reader) else ()
    beside = [file for file in inputs if file not in files and file.name[0] != "."]
    found = [sketch(file) if file.is_file() else "" for file in beside]
    return hashlib.blake2b("\n".join(found).encode(), digest_size=16).hexdigest() if any(found) else None


def fingerprint(path: str) -> str:
    """Identifies a data set by a hash: of a file's bytes; or of the names and contents of the files in a folder or
    matching a pattern, without hidden ones, which file managers and downloads leave behind. Of files other than those
    of ``TEXTS`` the ``sketch`` counts.

    Raises UserError if there are no files."""
    if Path(path).is_file():
        return _whole(Path(path))
    under = Path(path) if Path(path).is_dir() else None
    names = ((file, file.relative_to(under).parts if under else (file.name,)) for file in matching(path, "*"))
    files = sorted(f for f, parts in names if f.is_file() and not any(part.startswith(".") for part in parts))
    if not files:
        raise UserError(f"data.path: '{path}' does not exist or is empty")
    contents = (f"{f.name} {_whole(f) if f.suffix.lower() in TEXTS else sketch(f)}\n" for f in files)
    return hashlib.blake2b("".join(contents).encode(), digest_size=16).hexdigest()


def _whole(path: Path) -> str:
    """A hash of a file's bytes."""
    sum_ = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sum_.update(chunk)
    return sum_.hexdigest()


def _readers() -> dict[str, type[Reader]]:
    found = {info.name: plugin("data", info.name) for info in plugins("data")}
    return {name: cls for name, cls in found.items() if issubclass(cls, Reader)}


def _parts(cfg: DataConfig) -> list[DataConfig]:
    """The sections of a mixture's parts."""
    return [replace(cfg, name=part.name, path=part.path, options=part.options) for part in cfg.mixture]


def _arguments(cls: type[DataSet], cfg: DataConfig) -> dict[str, Any]:
    """The keys of the section that are parameters of the class."""
    section = vars(cfg) | cfg.options
    return {name: section[name] for name in plugin_parameters(cls) if name in section}
