"""Where a batch's replicas of the model run: in this process, in processes beside it, or in Ray's actors.

Each engine takes a job, its rows, how many workers there shall be (None: one a device) and about how many results are
to be made, and yields lines for results.jsonl. The caller alone writes that file.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import RunError, UserError
from .folder import Line
from .jobs import Job, Row
from .run import Editor


def _chunks(rows: Iterable[Row], job: Job, workers: int, left: int) -> Iterator[list[Row]]:
    """Enough rows at a time for batches of like rows, and few enough for every worker to get some."""
    from .edits import WINDOW

    rows = iter(rows)
    length = max(job.batch_size, min(WINDOW * job.batch_size, left // (4 * workers)))
    while chunk := list(islice(rows, length)):
        yield chunk


def processes(job: Job, rows: Iterable[Row], workers: int | None, left: int) -> Iterator[Line]:
    """Raises RunError when a process dies."""
    import torch

    if not left:
        return
    if workers is None:  # under torchrun there is one for each device already
        workers = max(1, torch.accelerator.device_count()) if "LOCAL_RANK" not in os.environ else 1
    if workers == 1:
        yield from Editor(job, int(os.environ.get("LOCAL_RANK", 0)))(rows)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers)
    chunks = _chunks(rows, job, workers, left)
    busy: dict[Connection, Any] = {}
    try:
        for index, chunk in enumerate(islice(chunks, workers)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, job, index, threads), daemon=True)
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


def _work(connection: Connection, job: Job, index: int, threads: int) -> None:
    """A worker: rows in; lines out, then None. It ends when its parent does."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    torch.set_num_threads(threads)
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


Engine = Callable[[Job, Iterable[Row], int | None, int], Iterator[Line]]
engines: dict[str, Engine] = {"processes": processes}
