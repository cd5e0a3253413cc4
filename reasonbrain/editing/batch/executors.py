"""Where a batch's replicas of the model run: in this process, in processes beside it, or in Ray's actors.

Each engine takes a job, its rows, how many workers there shall be (None: one a device) and about how many results are
to be made, and yields lines for results.jsonl. The caller alone writes that file.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from reasonbrain.editing.batch.editor import Editor
from reasonbrain.editing.batch.results import Line
from reasonbrain.editing.batch.rows import EditRow, Job
from reasonbrain.editing.batch.scheduler import WINDOW
from reasonbrain.errors import RunError, UserError
from reasonbrain.utils.cluster import connect


def _chunks(rows: Iterable[EditRow], job: Job, workers: int, left: int) -> Iterator[list[EditRow]]:
    """Enough rows at a time for batches of like rows, and few enough for every worker to get some."""
    rows = iter(rows)
    length = max(job.batch_size, min(WINDOW * job.batch_size, left // (4 * workers)))
    while chunk := list(islice(rows, length)):
        yield chunk


def threads() -> int:
    """In which a replica computes on a CPU: OMP_NUM_THREADS, else one. It is no share of the cores: with another number
    of threads sums are rounded otherwise, and a picture would depend on the number of workers."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1


def processes(job: Job, rows: Iterable[EditRow], workers: int | None, left: int) -> Iterator[Line]:
    """Raises RunError when a process dies."""
    if not left:
        return
    if workers is None:  # under torchrun there is one for each device already
        workers = max(1, torch.accelerator.device_count()) if "LOCAL_RANK" not in os.environ else 1
    if workers == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads())
        try:
            yield from Editor(job, int(os.environ.get("LOCAL_RANK", 0)))(rows)
        finally:
            torch.set_num_threads(before)
        return
    context = multiprocessing.get_context("spawn")
    chunks = _chunks(rows, job, workers, left)
    busy: dict[Connection, Any] = {}
    try:
        for index, chunk in enumerate(islice(chunks, workers)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, job, index), daemon=True)
            process.start()
            theirs.close()
            busy[ours] = process
            ours.send(chunk)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    said = connection.recv()
                except (EOFError, ConnectionError):
                    busy[connection].join()
                    raise RunError(
                        f"a worker died (exit code {busy[connection].exitcode}); the same command goes on from there"
                    ) from None
                if isinstance(said, UserError):
                    raise said
                if said is not None:
                    yield said
                elif chunk := next(chunks, []):
                    connection.send(chunk)
                else:
                    connection.close()
                    busy.pop(connection).join()
    finally:
        for process in busy.values():
            process.terminate()


def _work(connection: Connection, job: Job, index: int) -> None:
    """A worker: rows in; lines out, then None. It ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    torch.set_num_threads(threads())
    try:
        editor = Editor(job, index)
        while True:
            for line in editor(connection.recv()):
                connection.send(line)
            connection.send(None)
    except UserError as e:
        connection.send(e)
    except (EOFError, ConnectionError):
        pass


class _Actor:
    """A replica for Ray Data: batches of one chunk of rows in, batches of lines out."""

    def __init__(self, job: Job, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        os.chdir(folder)  # where the command was called: its paths start there
        self.editor = Editor(job)  # Ray shows an actor its own accelerator alone

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for chunk in batch["chunk"]:
            for line in self.editor(pickle.loads(chunk)):
                yield {"line": [json.dumps(line)]}


def edit_on_ray(job: Job, rows: Iterable[EditRow], workers: int | None, left: int) -> Iterator[Line]:
    """On the Ray cluster that RAY_ADDRESS names, or one of this machine's own. All its machines share the folder that
    the command is called in, the pictures and DIR.

    Raises UserError where Ray is not installed, RunError when Ray gives up."""
    if not left:
        return
    ray = connect()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = workers or gpus or 1
    chunks = [{"chunk": pickle.dumps(chunk)} for chunk in _chunks(rows, job, workers, left)]
    # a block each from the start: to split them later would need a CPU beside the actors'
    made = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        _Actor,
        fn_constructor_args=(job, os.getcwd(), threads()),  # Ray would set OMP_NUM_THREADS itself
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
        batch_size=1,
    )
    try:
        for row in made.iter_rows():
            yield json.loads(row["line"])
    except ray.exceptions.RayError as e:
        raise RunError(f"Ray gave up: {str(e).strip().splitlines()[-1]}; the same command goes on from there") from None


Executor = Callable[[Job, Iterable[EditRow], int | None, int], Iterator[Line]]
EXECUTORS: dict[str, Executor] = {"processes": processes, "ray": edit_on_ray}
