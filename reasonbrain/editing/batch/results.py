"""The output folder of a batch. It is consistent at any time, so an interrupted batch can be resumed.

    DIR/run.json          what the results are made from: JOBS, configuration, model; must be the same on resume
    DIR/pictures          the edited pictures, written atomically
    DIR/results.jsonl     one line per result, appended after its picture is written; under torchrun each process first
                          writes its own file (results-RANK.jsonl)
    DIR/gallery.html      a page that shows them
    DIR/lock              locked while a command works on the folder

A row is identified by its number in JOBS. A variant with a line is finished; a picture without a line is made again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO

from reasonbrain.editing.batch.jobs import Job
from reasonbrain.errors import UserError
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.journal import JsonRow, read
from reasonbrain.utils.locks import take

FILES = ("run.json", "results.jsonl", "gallery.html", "lock")
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")  # files that ``whole_file`` and ``save_image`` rename when complete


def enter(lock: BinaryIO, job: Job, rows: str, shared: bool) -> None:
    """Locks the folder and checks that it is new or has results of this job (``compare``). The first process to enter
    then removes temporary files, and results whose picture is lost, which are made again. ``shared``: the
    processes of one torchrun share the lock.

    Raises UserError if another command uses the folder, or if it has results of another job."""
    if take(lock):
        compare(job, rows)
        for torn in (*job.output.glob(".*.tmp"), *job.output.glob("pictures/.*.tmp")):
            if TEMPORARY.fullmatch(torn.name):
                torn.unlink()
        _forget_lost(job.output)
        if shared:
            take(lock, shared=True, wait=True)
        return
    for _ in range(30 if shared else 0):
        if take(lock, shared=True):
            compare(job, rows)
            return
        time.sleep(1)
    raise UserError(f"output '{job.output}' is being written by another command; wait for it or use another folder")


def _forget_lost(output: Path) -> None:
    """Removes the lines of results whose picture was deleted, or is empty after a power failure."""

    def lost(line: JsonRow) -> bool:
        picture = output / line["file"] if _is_result(line) and line["file"] else None
        return picture is not None and not (picture.is_file() and picture.stat().st_size)

    for path in (output / "results.jsonl", *output.glob("results-*.jsonl")):
        if any(map(lost, read(path))):
            with whole_file(path) as file:
                file.writelines(json.dumps(line) + "\n" for line in read(path) if not lost(line))


def check_files(output: Path) -> None:
    """Raises UserError if an output of a batch exists as something other than a regular file, or exists in a folder
    without run.json, so that no batch has written it."""
    for path in (*(output / name for name in FILES), *output.glob("results-*.jsonl")):
        if (path.exists() or path.is_symlink()) and not path.is_file():  # opening a FIFO would wait
            raise UserError(f"output '{output}': '{path.name}' is not a file; use another folder")
        if path.exists() and path.name != "lock" and not (output / "run.json").exists():
            raise UserError(f"output '{output}' has a {path.name} but no run.json; use another folder")
    if not (output / "run.json").exists() and (output / "pictures").is_dir():
        if found := next((p.name for p in (output / "pictures").iterdir()), None):
            raise UserError(f"output '{output}' has pictures/{found} but no run.json; use another folder")


def compare(job: Job, rows: str) -> None:
    """Raises UserError unless the folder is new or has results of the same job. rows: the hash from ``Job.survey``.

    Compares what the results depend on: rows, instruction, tensors, batch size, and the settings of model and edit. How
    the rows, the checkpoint and the configuration are stored does not matter. Writes run.json into a new folder."""
    from reasonbrain.checkpoint import find_settings  # imports transformers, which the first checks do not need
    from reasonbrain.config.schema import result_settings
    from reasonbrain.editing.batch.identity import model_hash
    from reasonbrain.editing.placement import dtype_name

    check_files(job.output)
    folder, cfg = find_settings(job.checkpoint, job.overrides, job.config)
    now = {
        "jobs": rows,
        "instruction": job.instruction,
        "model": model_hash(folder, cfg.model),
        "edit": result_settings(cfg.edit) | {"dtype": dtype_name(cfg.edit)},
        "settings": json.loads(json.dumps(asdict(cfg.model), default=str)),
        "batch_size": job.batch_size,
    }
    path = job.output / "run.json"
    if not path.exists():
        with whole_file(path) as out:
            json.dump(now, out, indent=1)
        return
    try:
        then = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(then, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise UserError(f"'{path}' is damaged; use another folder with -o") from None
    for key, value in now.items():
        if then.get(key) != value:
            what = f"jobs '{job.jobs}' has changed" if key == "jobs" else _difference(key, then.get(key), value)
            raise UserError(
                f"output '{job.output}' has results of another job: {what}; repeat the earlier command to resume it, "
                f"or use another folder with -o"
            )


def _difference(key: str, then: Any, now: Any) -> str:
    """Describes the change of a setting, named by its innermost key."""
    while isinstance(then, dict) and isinstance(now, dict):
        inner = next(k for k in {**then, **now} if then.get(k) != now.get(k) or (k in then) != (k in now))
        key, then, now = f"{key}.{inner}", then.get(inner), now.get(inner)
    return f"{key} was {then}, not {now}"


def lines(output: Path) -> Iterator[JsonRow]:
    """All results of the folder, each once. Raises UserError for a line that is not a result."""
    seen = set()
    for path in (output / "results.jsonl", *sorted(output.glob("results-*.jsonl"))):
        for number, line in enumerate(read(path), 1):
            if not _is_result(line):
                raise UserError(f"'{path}' line {number} is not a result; repair it or use another folder")
            key = line["row"], line["variant"]
            if key not in seen:
                seen.add(key)
                yield line


def _is_result(line: JsonRow) -> bool:
    """Whether a line has the fields of a result, and its picture is in the folder ``pictures``."""
    kinds: dict[str, Any] = {"row": int, "id": str, "variant": int, "status": str, "seconds": (int, float), "seed": int}
    kinds |= {"instruction": str, "objects": list, "file": (str, NoneType), "image": (str, NoneType)}
    kinds |= {"reasoning": (str, NoneType), "error": (str, NoneType)}
    right = all(key in line and isinstance(line[key], kind) for key, kind in kinds.items())
    return right and (line["file"] is None or re.fullmatch(r"pictures/[^/]+", line["file"]) is not None)


def merge(output: Path) -> None:
    """Merges the results of all torchrun processes into results.jsonl."""
    parts = list(output.glob("results-*.jsonl"))
    if parts:
        with whole_file(output / "results.jsonl") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines(output))
        for part in parts:
            part.unlink()
