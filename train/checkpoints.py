"""A run's checkpoints: one format for one process, many processes and every ZeRO stage.

    RUN/checkpoints/step-00000250/
        shard-0-of-2.safetensors    whole tensors, each in one shard: param/<name>, average/<name>, <state>/<name>
        done.json                   step, and every shard's size and checksum; written last

A folder gets its name only when it is complete, so a process killed while it writes leaves nothing that could be
taken for a checkpoint. Tensors are whole, not partitions: any number of processes reads what any other number wrote.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reasonbrain.errors import UserError

log = logging.getLogger(__name__)

DONE = "done.json"


def folder_of(run: Path, step: int) -> Path:
    """The folder of the run's checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def complete(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted(f for f in (run / "checkpoints").glob("step-????????") if (f / DONE).is_file())


def shard(tensors: dict[str, Tensor], folder: Path, index: int, count: int) -> None:
    """Writes one process's share of a checkpoint that is being made in ``folder``, with its checksum beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"shard-{index}-of-{count}.safetensors"
    save_file(tensors, path)
    with path.open("rb+") as f:
        os.fsync(f.fileno())
    note = {"size": path.stat().st_size, "blake2b": _checksum(path)}
    path.with_suffix(".json").write_text(json.dumps(note), encoding="utf-8")


def finish(run: Path, step: int, new: Path, keep: int) -> None:
    """Makes a checkpoint of the shards in ``new``, and removes all but the ``keep`` last ones."""
    notes = {f.with_suffix(".safetensors").name: json.loads(f.read_text(encoding="utf-8")) for f in new.glob("*.json")}
    for note in new.glob("*.json"):
        note.unlink()
    (new / DONE).write_text(json.dumps({"step": step, "shards": notes}, indent=1), encoding="utf-8")
    target = folder_of(run, step)
    shutil.rmtree(target, ignore_errors=True)  # one that is broken, or the run would not have come here again
    os.replace(new, target)
    for old in complete(run)[:-keep]:
        gone = old.with_suffix(".old")
        os.replace(old, gone)
        shutil.rmtree(gone)


def clean(run: Path) -> None:
    """Removes what a killed process left half written or half removed."""
    for pattern in ("step-*.new", "step-*.old"):
        for folder in (run / "checkpoints").glob(pattern):
            shutil.rmtree(folder)


def last(run: Path) -> Path | None:
    """The newest checkpoint that is what was written, or None. A broken one is reported and passed over.

    Raises UserError if there are some and all are broken."""
    found = complete(run)
    for folder in reversed(found):
        broken = _fault(folder)
        if not broken:
            return folder
        log.warning(f"checkpoint '{folder}' is broken ({broken}); taking the one before")
    if found:
        raise UserError(f"every checkpoint in '{run / 'checkpoints'}' is broken; the newest: {_fault(found[-1])}")
    return None


def read(folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    """(what, name, tensor) of everything in a checkpoint, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            for key in f.keys():  # noqa: SIM118 - safetensors' handle is no mapping
                what, name = key.split("/", 1)
                yield what, name, f.get_tensor(key)


def step_of(folder: Path) -> int:
    """The step at which a complete checkpoint was written."""
    return int(json.loads((folder / DONE).read_text(encoding="utf-8"))["step"])


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b()
    with path.open("rb") as f:
        while chunk := f.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint."""
    try:
        shards = json.loads((folder / DONE).read_text(encoding="utf-8"))["shards"]
    except (ValueError, KeyError):
        return f"{DONE} is cut short"
    for name, note in shards.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != note["size"] or _checksum(path) != note["blake2b"]:
            return f"{name} has changed since it was written"
    return None
