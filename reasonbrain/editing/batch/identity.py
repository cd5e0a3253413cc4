"""A hash that identifies a model by what it is loaded from, independent of how its checkpoint was written.

The same model has the same hash after another export, although the order of safetensors' metadata is random and files
are sharded differently. Training settings are not part of it, because they do not change an edit.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reasonbrain.checkpoint import slot_folder
from reasonbrain.config.schema import ModelConfig, slot_config
from reasonbrain.errors import UserError
from reasonbrain.plugin_folder import TRAINED
from reasonbrain.registry import SLOTS, plugin

END = 1 << 16  # bytes read at the beginning and at the end of a tensor; reading all of 60 GB would take minutes


def model_hash(folder: Path | None, model: ModelConfig) -> str | None:
    """A hash of the tensors and the other files of a checkpoint's slots, and of folders with published weights that
    are read besides: for a slot of which it holds trained tensors alone, or without a checkpoint. None: nothing is
    read from folders. The configuration is not part of it. Of a tensor, name, type, shape and the first and last
    ``END`` bytes count.

    Raises UserError for a file that cannot be read."""
    parts: dict[str, str] = {}
    for slot in SLOTS:
        target = slot_folder(folder, slot) if folder else None
        if target and folder:
            parts |= _files(target, folder)
        params = slot_config(model, slot)
        if params and (target is None or any(target.glob(f"{TRAINED}.safetensors*"))):
            for key in plugin(slot, params["name"]).weight_sources:
                if params.get(key) and (source := Path(params[key])).is_dir():
                    parts |= {f"{slot}.{key}/{name}": value for name, value in _files(source, source).items()}
    return _hash(json.dumps(parts, sort_keys=True).encode()) if folder or parts else None


def _files(folder: Path, root: Path) -> dict[str, str]:
    """A description of each tensor and each other file below ``folder``; hidden ones are left out."""
    parts: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name[0] != "."):
        name = path.relative_to(root).as_posix()
        try:
            if path.suffix == ".safetensors":
                parts |= {f"{path.parent.name}/{key}": value for key, value in _tensors(path)}
            elif not name.endswith(".safetensors.index.json"):
                parts[name] = _hash(_content(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as e:
            raise UserError(f"checkpoint file '{path}' cannot be read: {type(e).__name__}") from None
    return parts


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _content(path: Path) -> bytes:
    """The bytes of a file. JSON is normalised: no formatting, and at the top level no library versions and no keys
    with a leading underscore."""
    data = path.read_bytes()
    if path.suffix != ".json":
        return data
    value: Any = json.loads(data)
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if k[:1] != "_" and not k.endswith("_version")}
    return json.dumps(value, sort_keys=True).encode()


def _tensors(path: Path) -> Iterator[tuple[str, str]]:
    """The tensors of a safetensors file: name, and a description of its content. For a name that shares the tensor of
    another, the description is that other name."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, path.stat().st_size)))
        for alias, first in json.loads(header.pop("__metadata__", {}).get("shared", "{}")).items():
            yield alias, f"is {first}"
        for name, tensor in header.items():
            start, end = (8 + length + offset for offset in tensor["data_offsets"])
            file.seek(start)
            data = file.read(min(END, end - start))
            file.seek(max(start, end - END))
            data += file.read(min(END, end - start))
            yield name, f"{tensor['dtype']} {tensor['shape']} {_hash(data)}"
