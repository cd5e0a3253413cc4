"""One-line errors for runs that fail midway: a lost process, out of memory, or a full disk.

A killed or stopped process cannot report itself, and the processes waiting for it cannot tell which one is lost; with
NCCL they may hang. So every process writes a heartbeat to the rendezvous store once a second.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click
import torch
import torch.distributed as dist

from reasonbrain.errors import RunError, UserError
from reasonbrain.train import checkpoints
from reasonbrain.train.distributed import processes
from reasonbrain.train.loop import Loop, Preempted, peak_memory

BEAT = 1.0  # seconds
GONE = 3  # missed beats of a lost process after a collective has failed
SILENT = 25  # the same without a failure: launchers kill the others 30 seconds after a process dies
FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")


class Watch:
    """Monitors the heartbeats of the other processes, and ends this process if one of them is lost."""

    def __init__(self, run: Path, device: torch.device) -> None:
        self.run, self.device = run, device
        self.loop: Loop | None = None
        self.missed = dict.fromkeys(sorted({*range(processes.world())} - {processes.rank()}), 0)
        self.judged, self.left = threading.Event(), threading.Event()
        # two threads, since the store hangs if the process that hosts it is stopped
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._judge)]
        if not self.missed:
            return
        self.store = processes.store()
        self._beat(0)
        processes.wait()  # every process has sent its first beat
        for thread in self.threads:
            thread.start()

    def leave(self) -> None:
        """Waits for all processes, stops monitoring and leaves the process group."""
        processes.wait()
        self.stop()
        processes.leave()  # rank 0 hosts the store, so it must outlive the others' monitoring

    def stop(self) -> None:
        """Stops the threads. Python aborts if it exits while a thread is inside the store's C++ code."""
        self.judged.set()
        self.left.set()
        for thread in self.threads:
            if thread.is_alive():
                thread.join(GONE * BEAT)  # a stopped store never answers

    def explain(self, e: Exception) -> NoReturn:
        """Re-raises ``e`` as its cause: RunError for a lost process, UserError for out of memory or a full disk."""
        text = str(e)
        if isinstance(e, torch.OutOfMemoryError | MemoryError) or any(words in text for words in NO_MEMORY):
            raise UserError(
                f"{self._where()}: rank {processes.rank()} is out of memory; its peak was "
                f"{peak_memory(self.device):.2f} GiB. A smaller train.micro_batch, train.checkpointing or a "
                f"higher ZeRO stage needs less; `reasonbrain plan` estimates how much"
            ) from None
        full = next((words for words in FULL if words in text), None)
        if full:
            raise UserError(
                f"{self._where()}: run '{self.run}' cannot be written: {full}. Make room; {self._rest()}"
            ) from None
        if not isinstance(e, dist.DistError) and "gloo" not in text:
            raise e
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent by the launcher while this looks for the lost process
        self.judged.set()
        for _ in range(2 * GONE):
            if self._lost(GONE):
                break
            time.sleep(BEAT)
            self._miss()
        lost = self._lost(GONE)
        if not self._speaks(lost):
            raise SystemExit(1)
        raise RunError(
            self._line(lost)
            if lost
            else f"{self._where()}: a collective operation failed: {text.splitlines()[0]}; {self._rest()}"
        ) from None

    def _beat(self, count: int) -> None:
        self.store.set(f"beat/{processes.rank()}", str(count))

    def _listen(self) -> None:
        count, before = 0, [b""] * len(self.missed)
        while not self.left.wait(BEAT):
            count += 1
            try:
                self._beat(count)
                beats = self.store.multi_get([f"beat/{other}" for other in self.missed])
            except dist.DistError:  # the store is gone, so the process that hosts it is lost
                self.missed[0] = SILENT
                return
            for other, now, then in zip(self.missed, beats, before, strict=True):
                if now != then:
                    self.missed[other] = 0
            before = beats

    def _judge(self) -> None:
        while not self.judged.wait(BEAT):
            self._miss()
            lost = self._lost(SILENT)
            if lost:
                if self._speaks(lost):
                    click.echo("error: " + self._line(lost), err=True)  # one write, so that lines do not interleave
                os._exit(1)  # the main thread may hang in a collective

    def _miss(self) -> None:
        """Counts beats instead of seconds, so that a run that was suspended as a whole can continue."""
        for other in self.missed:
            self.missed[other] += 1

    def _lost(self, beats: int) -> list[int]:
        """The ranks that have missed ``beats`` beats; only the first if all have, since then the store is gone."""
        lost = [other for other, missed in self.missed.items() if missed >= beats]
        return lost[:1] if lost == list(self.missed) else lost

    def _speaks(self, lost: list[int]) -> bool:
        return processes.rank() == min({*range(processes.world())} - {*lost})

    def _line(self, lost: list[int]) -> str:
        who = " and ".join(f"rank {other}" if other else "rank 0 or its launcher" for other in lost)
        return f"{self._where()}: {who} was lost (killed, stopped, or failed); {self._rest()}"

    def _where(self) -> str:
        return f"step {self.loop.step}" if self.loop else "before the first step"

    def _rest(self) -> str:
        done = checkpoints.complete(self.run)
        if not done:
            return "there is no checkpoint yet: the same command starts over"
        return f"the last checkpoint, of step {checkpoints.step_of(done[-1])}, is complete: the same command resumes"


@contextmanager
def watched(run: Path, device: torch.device) -> Iterator[Watch]:
    """Context of a run: turns failures into RunError or UserError, and waits for all processes at the end."""
    watch, preempted = Watch(run, device), None
    try:
        try:
            yield watch
        except Preempted as e:
            preempted = e
        watch.leave()
    except (UserError, FloatingPointError):
        raise
    except Exception as e:
        watch.explain(e)
    finally:
        watch.stop()
    if preempted:
        raise preempted
