"""What `reasonbrain batch` does: all that is left of a job, by whichever engine, into its folder (folder.py).

reasonbrain batch jobs.jsonl -o out
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reasonbrain.data.show import thumbnail, write_page
from reasonbrain.editing.batch import results as folder
from reasonbrain.editing.batch.results import Line
from reasonbrain.editing.batch.rows import Job, Row
from reasonbrain.errors import UserError
from reasonbrain.utils.images import load_image, save_image

PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # what Windows keeps for itself
LONGEST = 80  # characters of an id in a file's name
BEHIND = 64  # pictures that may wait to be written
SHOWN = 10_000  # results that the gallery holds at most


def file_name(row: Row, variant: int) -> str:
    """A result's picture relative to DIR: safe on every file system, and no other row's."""
    stem = row.id
    if not PLAIN.fullmatch(stem) or RESERVED.match(stem) or len(stem) > LONGEST:
        digest = hashlib.blake2b(stem.encode(), digest_size=6).hexdigest()
        stem = re.sub(r"[^\w-]+", "_", stem)[: LONGEST // 2].strip("_") + "~" + digest  # no plain name has a "~"
    return f"pictures/{stem}{f'@{variant}' if row.n > 1 else ''}.png"


class Editor:
    """A replica of the model that turns rows into pictures on the disk and lines for results.jsonl."""

    def __init__(self, job: Job, index: int = 0) -> None:
        """``index``: which of this machine's accelerators it takes, if there are any."""
        import torch

        from reasonbrain.editing.pipeline import ReasonBrainPipeline

        self.job = job
        self.pipe = ReasonBrainPipeline.from_pretrained(job.checkpoint, job.overrides, job.config)
        self.pipe.set_progress_bar_config(disable=True)
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is not None:
            self.pipe.to(torch.device(accelerator.type, index % torch.accelerator.device_count()))

    def __call__(self, rows: Iterable[Row]) -> Iterator[Line]:
        """Raises UserError where the disk refuses a picture."""
        from reasonbrain.editing.batch.scheduler import edit_rows

        waiting: deque[Future[Line]] = deque()
        with ThreadPoolExecutor(4) as pool:
            for result in edit_rows(self.pipe, rows, self.job.batch_size):
                waiting.append(pool.submit(self._finish, result))
                while waiting and (waiting[0].done() or len(waiting) > BEHIND):
                    yield waiting.popleft().result()
            for line in waiting:
                yield line.result()

    def _finish(self, result: Any) -> Line:
        row, file = result.row, None
        if result.image is not None:
            file = file_name(row, result.variant)
            told = {"id": row.id, "variant": result.variant, "instruction": row.instruction, "seed": result.seed}
            told |= {"steps": row.steps or self.pipe.settings.edit.steps, "checkpoint": self.job.checkpoint}
            told |= {"reasoning": result.reasoning} if result.reasoning else {}
            save_image(result.image, self.job.output / file, {k: str(v) for k, v in told.items()})
        return {
            "row": row.number,
            "id": row.id,
            "variant": result.variant,
            "status": "error" if result.error else "ok",
            "file": file,
            "seconds": round(result.seconds, 4),
            "seed": result.seed,
            "image": None if row.error else str(row.image),
            "instruction": row.instruction,
            "reasoning": result.reasoning,
            "objects": result.objects,
            "error": result.error or None,
        }


def run(job: Job, workers: int | None, engine: str) -> int:
    """Does what is left of a job, and returns how many results of the folder are errors.

    Raises UserError for a folder that another command works in, that was begun with another job or cannot be written;
    RunError when a worker dies."""
    from reasonbrain.editing.batch.engines import engines

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and (workers is not None or engine != "processes"):
        raise UserError("--workers and --engine: torchrun has started the workers already; leave them out")
    total = sum(len(row.variants) for row in job.rows())
    with ExitStack() as stack:
        try:
            (job.output / "pictures").mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((job.output / "lock").open("ab"))
        except OSError as e:
            raise UserError(f"output '{job.output}' cannot be written: {e.strerror}") from None
        folder.enter(lock, job.output, world > 1)
        folder.compare(job)
        name = "results.jsonl" if world == 1 else f"results-{rank}.jsonl"
        write = stack.enter_context(folder.appending(job.output / name))
        done = {(line["row"], line["variant"]) for line in folder.lines(job.output)}
        left = _left(job.rows(), done, rank, world)
        share = -(-(total - len(done)) // world)  # about that
        with tqdm(total=share, desc="editing", unit="edit", disable=True if rank else None) as bar:
            for line in engines[engine](job, left, workers, share):
                write(line)
                bar.update()
        if not folder.alone(lock):  # other processes of torchrun go on; the last one does the rest
            return sum(line["status"] == "error" for line in folder.lines(job.output))
        folder.merge(job.output)
        return _gallery(job)


def _left(rows: Iterable[Row], done: set[tuple[int, int]], rank: int, world: int) -> Iterator[Row]:
    for row in rows:
        variants = tuple(v for v in row.variants if (row.number, v) not in done)
        if variants and row.number % world == rank:
            yield replace(row, variants=variants)


def _gallery(job: Job) -> int:
    """Writes the gallery, failures first, and returns how many there are."""
    failed = sum(line["status"] == "error" for line in folder.lines(job.output))
    total = sum(1 for _ in folder.lines(job.output))
    ordered = (line for status in ("error", "ok") for line in folder.lines(job.output) if line["status"] == status)
    shown = min(total, SHOWN)
    title = f"{job.jobs.name}: {total} results, {failed} failed" + (f"; {shown} shown" if shown < total else "")
    bar = tqdm(total=shown, desc="gallery", unit="result", disable=None)
    write_page(job.output / "gallery.html", title, partial(_card, job.output), islice(ordered, SHOWN), bar)
    return failed


def _card(output: Path, line: Line) -> dict[str, Any]:
    """A result as the gallery takes it."""
    pictures = []
    for name, path in (("source", line["image"]), ("result", line["file"] and output / line["file"])):
        try:
            if path:
                pictures.append((name, thumbnail(load_image(path))))
        except UserError:  # the line says so, or somebody has taken it away
            pass
    more = [f"variant {line['variant']}", f"seed {line['seed']}", f"{line['seconds']} s", *line["objects"]]
    return {
        "id": line["id"],
        "category": "failed" if line["status"] == "error" else "made",
        "words": [line["instruction"], *filter(None, [line["reasoning"]])],
        "pictures": pictures,
        "more": more,
        "wrong": line["error"] or "",
    }
