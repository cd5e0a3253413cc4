"""What `reasonbrain batch` does: all that is left of a job, by whichever engine, into its folder (folder.py).

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

from tqdm import tqdm

from reasonbrain.editing.batch import results as folder
from reasonbrain.editing.batch.results import Line
from reasonbrain.editing.batch.rows import EditRow, Job
from reasonbrain.errors import UserError
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.gallery import Card, in_threads, render, thumbnail
from reasonbrain.utils.images import load_image
from reasonbrain.utils.journal import Journal
from reasonbrain.utils.locks import take

SHOWN = 10_000  # results that the gallery holds at most


def run(job: Job, workers: int | None, executor: str) -> int:
    """Does what is left of a job, and returns how many results of the folder are errors.

    Raises UserError for a folder that another command works in, that was begun with another job or cannot be written;
    RunError when a worker dies."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and (workers is not None or executor != "processes"):
        raise UserError("--workers and --executor: torchrun has started the workers already; leave them out")
    total = sum(len(row.variants) for row in job.rows())
    from reasonbrain.editing.batch.executors import EXECUTORS  # takes seconds: a mistake in the job is said before

    with ExitStack() as stack:
        try:
            (job.output / "pictures").mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((job.output / "lock").open("ab"))
        except OSError as e:
            raise UserError(f"output '{job.output}' cannot be written: {e.strerror}") from None
        folder.enter(lock, job.output, world > 1)
        folder.compare(job)
        name = "results.jsonl" if world == 1 else f"results-{rank}.jsonl"
        journal = stack.enter_context(Journal(job.output / name))
        done = {(line["row"], line["variant"]) for line in folder.lines(job.output)}
        left = _left(job.rows(), done, rank, world)
        share = -(-(total - len(done)) // world)  # about that
        with tqdm(total=share, desc="editing", unit="edit", disable=True if rank else None) as bar:
            for line in EXECUTORS[executor](job, left, workers, share):
                journal.add(line)
                bar.update()
        if not take(lock):  # where other processes of torchrun still work; the last one does the rest
            return sum(line["status"] == "error" for line in folder.lines(job.output))
        folder.merge(job.output)
        return _gallery(job)


def _left(rows: Iterable[EditRow], done: set[tuple[int, int]], rank: int, world: int) -> Iterator[EditRow]:
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
    cards = in_threads(partial(_card, job.output), islice(ordered, SHOWN))
    with whole_file(job.output / "gallery.html") as page:
        page.writelines(render(title, tqdm(cards, total=shown, desc="gallery", unit="result", disable=None)))
    return failed


def _card(output: Path, line: Line) -> Card:
    """A result as the gallery shows it."""
    pictures = []
    for name, path in (("source", line["image"]), ("result", line["file"] and output / line["file"])):
        try:
            if path:
                pictures.append((name, thumbnail(load_image(path))))
        except UserError:  # the line says so, or somebody has taken it away
            pass
    more = [f"variant {line['variant']}", f"seed {line['seed']}", f"{line['seconds']:.2g} s"]
    return Card(
        line["id"],
        pictures,
        [line["instruction"], *filter(None, [line["reasoning"]])],
        {"status": "failed" if line["status"] == "error" else "made"},
        more=[*more, *([f"objects: {', '.join(line['objects'])}"] if line["objects"] else [])],
        wrong=line["error"] or "",
    )
