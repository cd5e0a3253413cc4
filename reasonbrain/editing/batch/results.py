"""A batch's folder, which stays whole whatever stops the command.

    DIR/run.json          what the results are of: JOBS, configuration, model; another run of DIR has to be the same
    DIR/pictures          the results, each written whole or not at all
    DIR/results.jsonl     a line a result, added once its picture is there; under torchrun first one such file a process
    DIR/gallery.html      all of them to look at
    DIR/lock              held while a command works here

A row is known by its place in JOBS. One whose line is there is finished; a picture without a line is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from reasonbrain.editing.batch.rows import Job
from reasonbrain.errors import UserError
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.journal import JsonRow, read
from reasonbrain.utils.locks import take

Line = JsonRow


def enter(lock: BinaryIO, output: Path, shared: bool) -> None:
    """Keeps other commands out of the folder, but for processes of one torchrun; the first one in clears up."""
    if take(lock):
        for torn in (*output.glob(".*.tmp"), *output.glob("pictures/.*.tmp")):
            torn.unlink()
        if shared:
            take(lock, shared=True, wait=True)
        return
    for _ in range(30 if shared else 0):
        if take(lock, shared=True):
            return
        time.sleep(1)
    raise UserError(f"output '{output}' is being written by another command; wait for it or name another folder")


def compare(job: Job) -> None:
    """Raises UserError unless the folder was begun with the same job, or is new."""
    from reasonbrain.checkpoint import find_checkpoint
    from reasonbrain.config.loading import load_config

    folder = find_checkpoint(job.checkpoint)
    model = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:  # both ends of a large file: all of 60 GB would take minutes
            model.update(f"{path.relative_to(folder)} {path.stat().st_size}".encode() + file.read(2**16))
            file.seek(max(0, path.stat().st_size - 2**16))
            model.update(file.read())
    now = {
        "jobs": _digest(job.jobs),
        "instruction": job.instruction,
        "model": model.hexdigest(),
        "edit": asdict(load_config(str(folder / "config.yaml"), job.overrides).edit),
        "overrides": list(job.overrides),
        "batch_size": job.batch_size,
    }
    path = job.output / "run.json"
    if not path.exists():
        if (job.output / "results.jsonl").exists():
            raise UserError(f"output '{job.output}' holds results.jsonl, but no run.json; name another folder")
        with whole_file(path) as out:
            json.dump(now, out, indent=1)
        return
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"'{path}' is damaged; name another folder with -o") from None
    for key, value in now.items():
        if then.get(key) != value:
            what = f"jobs '{job.jobs}' has changed" if key == "jobs" else f"{key} was {then.get(key)}, not {value}"
            raise UserError(
                f"output '{job.output}' was begun with something else: {what}; go on with what it was, or name another "
                f"folder with -o"
            )


def _digest(jobs: Path) -> str:
    """Of a file's content; of a folder's names and sizes."""
    digest = hashlib.blake2b(digest_size=16)
    if jobs.is_dir():
        for path in sorted(jobs.iterdir()):
            digest.update(os.fsencode(path.name) + b"\0%d\0" % path.stat().st_size)
        return digest.hexdigest()
    with jobs.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def lines(output: Path) -> Iterator[Line]:
    """All results of a folder, each once. Raises UserError for a line that is none."""
    seen = set()
    for path in (output / "results.jsonl", *sorted(output.glob("results-*.jsonl"))):
        for number, line in enumerate(read(path), 1):
            try:
                key = line["row"], line["variant"]
            except KeyError:
                raise UserError(f"'{path}' line {number} is no result; mend it or name another folder") from None
            if key not in seen:
                seen.add(key)
                yield line


def merge(output: Path) -> None:
    """All results into results.jsonl."""
    parts = list(output.glob("results-*.jsonl"))
    if parts:
        with whole_file(output / "results.jsonl") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines(output))
        for part in parts:
            part.unlink()
