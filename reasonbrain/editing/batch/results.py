"""The output folder of a batch. It is consistent at every time, so an interrupted batch can be resumed.

    DIR/run.json          what the results are made from: JOBS, configuration, model; a resumed batch must be the same
    DIR/pictures          the results, written atomically
    DIR/results.jsonl     one line per result, appended after its picture is written; under torchrun each process first
                          writes its own file (results-RANK.jsonl)
    DIR/gallery.html      a page that shows all of them
    DIR/lock              held while a command works on the folder

A row is identified by its number in JOBS. A variant with a line is finished; a picture without a line is made again.
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


def enter(lock: BinaryIO, output: Path, shared: bool) -> None:
    """Locks the folder; the first process to enter removes temporary files. ``shared``: with the other processes of
    this torchrun.

    Raises UserError if another command has the folder."""
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
    raise UserError(f"output '{output}' is being written by another command; wait for it or use another folder")


def compare(job: Job) -> None:
    """Raises UserError unless the folder is new or its results are those of the same job."""
    from reasonbrain.checkpoint import find_checkpoint  # imports transformers, which the first checks do without
    from reasonbrain.config.loading import load_config

    folder = find_checkpoint(job.checkpoint)
    model = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:  # only both ends of a large file: 60 GB would take minutes
            model.update(f"{path.relative_to(folder)} {path.stat().st_size}".encode() + file.read(2**16))
            file.seek(max(0, path.stat().st_size - 2**16))
            model.update(file.read())
    now = {
        "jobs": _digest(job.jobs),
        "instruction": job.instruction,
        "model": model.hexdigest(),
        "edit": asdict(load_config(str(folder / "config.yaml"), job.overrides, reads_data=False).edit),
        "overrides": list(job.overrides),
        "batch_size": job.batch_size,
    }
    path = job.output / "run.json"
    if not path.exists():
        if (job.output / "results.jsonl").exists():
            raise UserError(f"output '{job.output}' has a results.jsonl but no run.json; use another folder")
        with whole_file(path) as out:
            json.dump(now, out, indent=1)
        return
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"'{path}' is damaged; use another folder with -o") from None
    for key, value in now.items():
        if then.get(key) != value:
            what = f"jobs '{job.jobs}' has changed" if key == "jobs" else f"{key} was {then.get(key)}, not {value}"
            raise UserError(
                f"output '{job.output}' has results of another job: {what}; repeat the former command to resume it, "
                f"or use another folder with -o"
            )


def _digest(jobs: Path) -> str:
    """A hash of a file's content, or of the names and sizes of a folder's files."""
    digest = hashlib.blake2b(digest_size=16)
    if jobs.is_dir():
        for path in sorted(jobs.iterdir()):
            digest.update(os.fsencode(path.name) + b"\0%d\0" % path.stat().st_size)
        return digest.hexdigest()
    with jobs.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def lines(output: Path) -> Iterator[JsonRow]:
    """All results of the folder, each once. Raises UserError for a line that is not a result."""
    seen = set()
    for path in (output / "results.jsonl", *sorted(output.glob("results-*.jsonl"))):
        for number, line in enumerate(read(path), 1):
            try:
                key = line["row"], line["variant"]
            except KeyError:
                raise UserError(f"'{path}' line {number} is not a result; repair it or use another folder") from None
            if key not in seen:
                seen.add(key)
                yield line


def merge(output: Path) -> None:
    """Moves the results of all processes into results.jsonl."""
    parts = list(output.glob("results-*.jsonl"))
    if parts:
        with whole_file(output / "results.jsonl") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines(output))
        for part in parts:
            part.unlink()
