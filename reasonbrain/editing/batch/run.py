"""`reasonbrain batch`: computes the missing results of a job with an executor, and writes the gallery.

reasonbrain batch jobs.jsonl -o out
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from reasonbrain.editing.batch import results as folder
from reasonbrain.editing.batch.jobs import Job
from reasonbrain.editing.batch.rows import EditRow
from reasonbrain.errors import UserError
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.gallery import Card, in_threads, render, thumbnail
from reasonbrain.utils.images import load_image
from reasonbrain.utils.journal import Journal, JsonRow
from reasonbrain.utils.locks import opened, take
from reasonbrain.utils.text import printable

SHOWN = 10_000  # maximum number of results in the gallery


class Outcome(NamedTuple):
    """Numbers of results in the folder that failed, and of those whose instruction the text encoder truncated."""

    failed: int
    cut: int


def run(job: Job, workers: int | None, executor: str) -> Outcome:
    """Computes the missing results of a job. workers: number of replicas; None for one per device. executor: a key of
    ``executors.EXECUTORS``.

    Raises UserError if there are no rows, if they change meanwhile, or if the folder is in use by another command, has
    results of another job or cannot be written. Raises RunError if a worker dies or an accelerator fails."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and (workers is not None or executor != "processes"):
        raise UserError("--workers and --executor: torchrun has already started the workers; omit these options")
    total, rows = job.survey()
    from reasonbrain.editing.batch.executors import EXECUTORS  # takes seconds; errors in the job are reported first

    with ExitStack() as stack:
        try:
            job.output.mkdir(parents=True, exist_ok=True)
            folder.check_files(job.output)
            lock = stack.enter_context(open(job.output / "lock", "ab", opener=opened))
            folder.enter(lock, job, rows, world > 1)
            (job.output / "pictures").mkdir(exist_ok=True)
        except OSError as e:
            raise UserError(f"output '{job.output}' cannot be written: {e.strerror}") from None
        name = "results.jsonl" if world == 1 else f"results-{rank}.jsonl"
        journal = stack.enter_context(Journal(job.output / name))
        done = {(line["row"], line["variant"]) for line in folder.lines(job.output)}
        left = _left(job.rows(), done, rank, world)
        share = -(-(total - len(done)) // world)  # approximately
        with tqdm(total=share, desc="editing", unit="edit", disable=True if rank else None) as bar:
            for line in EXECUTORS[executor](job, left, workers, share):
                journal.add(line)
                bar.update()
        if take(lock):  # under torchrun only the last process to finish merges
            folder.merge(job.output)
            _gallery(job)
            if job.survey()[1] != rows:
                raise UserError(
                    f"jobs '{job.jobs}' changed while it was edited, so '{job.output}' may have results of both; "
                    f"edit it again into another folder with -o"
                )
        failed, cut = 0, 0
        for line in folder.lines(job.output):
            failed += line["status"] == "error"
            cut += bool(line.get("unread"))
        return Outcome(failed, cut)


def _left(rows: Iterable[EditRow], done: set[tuple[int, int]], rank: int, world: int) -> Iterator[EditRow]:
    for row in rows:
        variants = tuple(v for v in row.variants if (row.number, v) not in done)
        if variants and row.number % world == rank:
            yield replace(row, variants=variants)


def _gallery(job: Job) -> None:
    """Writes the gallery, errors first."""
    failed = sum(line["status"] == "error" for line in folder.lines(job.output))
    total = sum(1 for _ in folder.lines(job.output))
    ordered = (line for status in ("error", "ok") for line in folder.lines(job.output) if line["status"] == status)
    shown = min(total, SHOWN)
    title = f"{printable(job.jobs.name)}: {total} results, {failed} failed" + (
        f"; {shown} shown" if shown < total else ""
    )
    cards = in_threads(partial(_card, job.output), islice(ordered, SHOWN))
    with whole_file(job.output / "gallery.html") as page:
        page.writelines(render(title, tqdm(cards, total=shown, desc="gallery", unit="result", disable=None)))


def _card(output: Path, line: JsonRow) -> Card:
    pictures = []
    for name, path in (("source", line["image"]), ("result", line["file"] and output / line["file"])):
        try:
            if path:
                pictures.append((name, thumbnail(load_image(path))))
        except UserError:  # the result is that error, or the file was removed since
            pass
    status = "failed" if line["status"] == "error" else "made"
    words = [line["instruction"], *filter(None, [line["reasoning"]])]
    more = [f"variant {line['variant']}", f"seed {line['seed']}", f"{line['seconds']:.2g} s"]
    more += [f"not read by the text encoder: {line['unread']}"] if line.get("unread") else []
    more += [line["note"]] if line.get("note") else []
    more += [f"objects: {', '.join(line['objects'])}"] if line["objects"] else []
    return Card(line["id"], pictures, words, {"status": status}, more=more, wrong=line["error"] or "")
