"""Where the replicas of a batch run: in this process, in child processes, or in Ray actors.

An executor takes a job, the rows to edit, the number of workers (None: one per device) and the approximate number of
results. It yields lines of results.jsonl; the caller writes that file.
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
from reasonbrain.editing.batch.jobs import Job
from reasonbrain.editing.batch.rows import EditRow
from reasonbrain.editing.batch.scheduler import WINDOW
from reasonbrain.errors import RunError, UserError
from reasonbrain.utils.cluster import connect
from reasonbrain.utils.journal import JsonRow


def _chunks(rows: Iterable[EditRow], job: Job, workers: int, left: int) -> Iterator[list[EditRow]]:
    """Splits the rows into chunks: large enough to fill batches of similar rows, small enough that every worker gets
    several."""
    rows = iter(rows)
    length = max(job.batch_size, min(WINDOW * job.batch_size, left // (4 * workers)))
    while chunk := list(islice(rows, length)):
        yield chunk


def threads() -> int:
    """Number of CPU threads per replica: OMP_NUM_THREADS if set, otherwise one.

    Sums are rounded differently with another number of threads. So that pictures do not depend on the number of
    workers, the number of threads must not either."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1


def processes(job: Job, rows: Iterable[EditRow], workers: int | None, left: int) -> Iterator[JsonRow]:
    """One worker runs in this process; several run in child processes, each with its own accelerator.

    Raises RunError when a child process dies."""
    if not left:
        return
    if workers is None:  # under torchrun, the launcher has already started one process per device
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
                    message = connection.recv()
                except (EOFError, ConnectionError):
                    busy[connection].join()
                    raise RunError(
                        f"a worker died (exit code {busy[connection].exitcode}); run the same command again to resume"
                    ) from None
                if isinstance(message, UserError):
                    raise message
                if message is not None:
                    yield message
                elif chunk := next(chunks, []):
                    connection.send(chunk)
                else:
                    connection.close()
                    busy.pop(connection).join()
    finally:
        for process in busy.values():
            process.terminate()


def _work(connection: Connection, job: Job, index: int) -> None:
    """The main function of a child process: receives chunks of rows; sends the lines of each, then None. It ends when
    its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
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
    """A replica for Ray Data. Takes batches of one chunk of rows and yields batches of one line."""

    def __init__(self, job: Job, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        os.chdir(folder)  # paths are relative to the working directory of the command
        self.editor = Editor(job)  # an actor sees only its own accelerator

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for chunk in batch["chunk"]:
            for line in self.editor(pickle.loads(chunk)):
                yield {"line": [json.dumps(line)]}


def edit_on_ray(job: Job, rows: Iterable[EditRow], workers: int | None, left: int) -> Iterator[JsonRow]:
    """Runs replicas on the Ray cluster at RAY_ADDRESS, or on one started on this machine. All machines must share the
    working directory of the command, the pictures and DIR.

    Raises UserError if Ray is not installed, RunError if Ray fails."""
    if not left:
        return
    ray = connect()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = workers or gpus or 1
    chunks = [{"chunk": pickle.dumps(chunk)} for chunk in _chunks(rows, job, workers, left)]
    # one block per chunk from the start: splitting blocks later needs a CPU in addition to those of the actors
    made = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        _Actor,
        fn_constructor_args=(job, os.getcwd(), threads()),  # Ray sets OMP_NUM_THREADS itself
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
        batch_size=1,
    )
    try:
        for row in made.iter_rows():
            yield json.loads(row["line"])
    except ray.exceptions.RayError as e:
        reason = str(e).strip().splitlines()[-1]
        raise RunError(f"Ray failed: {reason}; run the same command again to resume") from None


Executor = Callable[[Job, Iterable[EditRow], int | None, int], Iterator[JsonRow]]
EXECUTORS: dict[str, Executor] = {"processes": processes, "ray": edit_on_ray}
