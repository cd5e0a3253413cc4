"""Training checkpoints: one format for any number of processes and every ZeRO stage.

    RUN/checkpoints/step-00000250/
        shard-0-of-2.safetensors    full tensors, each in one shard: param/<name>, average/<name>, <state>/<name>
        done.json                   the step, and the size and checksum of each shard; written last

A folder is renamed to its final name once it is complete, so a process killed during a save leaves nothing that could
be mistaken for a checkpoint. Tensors are stored unsharded, so a run can resume with another number of processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from reasonbrain.errors import UserError
from reasonbrain.plugin_folder import save_tensors
from reasonbrain.train.distributed import processes

log = logging.getLogger(__name__)

DONE = "done.json"


def folder_of(run: Path, step: int) -> Path:
    """The folder of the run's checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def complete(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    return sorted(f for f in (run / "checkpoints").glob("step-????????") if (f / DONE).is_file())


def shard(tensors: dict[str, Tensor], folder: Path, index: int, count: int) -> None:
    """Writes shard ``index`` of ``count`` to the unfinished checkpoint ``folder``, with its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"shard-{index}-of-{count}.safetensors"
    save_tensors(tensors, path)
    with path.open("rb+") as f:
        os.fsync(f.fileno())
    note = {"size": path.stat().st_size, "blake2b": _checksum(path)}
    path.with_suffix(".json").write_text(json.dumps(note), encoding="utf-8")


def finish(run: Path, step: int, new: Path, keep: int) -> None:
    """Turns the shards in ``new`` into the checkpoint of ``step``; removes all but the last ``keep`` checkpoints up
    to it."""
    notes = {f.with_suffix(".safetensors").name: json.loads(f.read_text(encoding="utf-8")) for f in new.glob("*.json")}
    for note in new.glob("*.json"):
        note.unlink()
    with (new / DONE).open("w", encoding="utf-8") as file:
        json.dump({"step": step, "shards": notes}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())  # before older checkpoints are removed
    target = folder_of(run, step)
    shutil.rmtree(target, ignore_errors=True)  # only a corrupt checkpoint can be here already
    os.replace(new, target)
    for old in [f for f in complete(run) if f.name <= target.name][:-keep]:  # later ones are corrupt
        gone = old.with_suffix(".old")
        os.replace(old, gone)
        shutil.rmtree(gone)


def withdraw(run: Path, step: int) -> None:
    """Renames the checkpoint of ``step``, if there is one, so that a run is not resumed from it. For weights that gave
    no finite loss."""
    folder = folder_of(run, step)
    if folder.is_dir():
        os.replace(folder, folder.with_suffix(f".diverged-{secrets.token_hex(4)}"))


def clean(run: Path) -> None:
    """Removes partly written and partly deleted checkpoints of a killed process."""
    for pattern in ("step-????????.new", "step-????????.old"):
        for folder in (run / "checkpoints").glob(pattern):
            shutil.rmtree(folder)


def owners(sizes: Sequence[int], count: int) -> list[int]:
    """Which of ``count`` shards each item belongs to, so that all shards have about the same size: the largest item
    first, each to the smallest shard so far."""
    shards, found = [0] * count, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        found[i] = min(range(count), key=shards.__getitem__)
        shards[found[i]] += sizes[i]
    return found


def last(run: Path, together: bool = False) -> Path | None:
    """The newest intact checkpoint, or None if there are no checkpoints. Corrupt ones are logged and skipped.

    together: all processes call it, and each reads some of the shards.

    Raises UserError if all checkpoints are corrupt.
    """
    faults: list[str] = []
    part = slice(processes.rank(), None, processes.world()) if together else slice(None)
    for folder in reversed(complete(run)):
        broken = _fault(folder, part)
        if together:
            broken = processes.first(broken)
        if not broken:
            return folder
        if not (folder / DONE).exists():  # removed by the run, which goes on and has a newer one
            return last(run, together)
        faults.append(broken)
        if not together or processes.rank() == 0:
            log.warning(f"checkpoint '{folder}' is broken ({broken}); trying the previous one")
    if faults:
        raise UserError(f"every checkpoint in '{run / 'checkpoints'}' is broken; the newest: {faults[0]}")
    return None


def read(folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    """Yields (what, parameter name, tensor) for every tensor of a checkpoint. All shards are opened first, so that a
    run that goes on may remove it meanwhile. Raises FileNotFoundError if it is removed already."""
    names = sorted(json.loads((folder / DONE).read_text(encoding="utf-8"))["shards"])
    with ExitStack() as stack:
        for f in [stack.enter_context(safe_open(folder / name, "pt")) for name in names]:
            for key in f.keys():  # noqa: SIM118 - safetensors' handle is not a mapping
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


def _fault(folder: Path, part: slice) -> str | None:
    """Why a checkpoint is corrupt, or None. part: of its shards, those that are read."""
    try:
        shards = json.loads((folder / DONE).read_text(encoding="utf-8"))["shards"]
    except FileNotFoundError:
        return f"{DONE} is missing"
    except (ValueError, KeyError):
        return f"{DONE} is truncated"
    for name, note in sorted(shards.items())[part]:
        path = folder / name
        try:
            if path.stat().st_size != note["size"] or _checksum(path) != note["blake2b"]:
                return f"{name} has changed since it was written"
        except FileNotFoundError:
            return f"{name} is missing"
    return None
