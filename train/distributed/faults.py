"""What ends a run half-way, in one line each: a lost process, memory or a disk that is full.

A process that was killed or halted cannot say so, and those that wait for it do not know which it was; with NCCL they
do not even wake up. So every process of a run says once a second, in the store where they met, that it lives.
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
GONE = 3  # beats that a lost process has missed, where an exchange with the others has already failed
SILENT = 25  # the same where nothing has: torchrun and deepspeed kill the others 30 seconds after a process has died
FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")


class Watch:
    """Watches the other processes of a run; ends this one where one of them is lost and this one waits for it."""

    def __init__(self, run: Path, device: torch.device) -> None:
        self.run, self.device = run, device
        self.loop: Loop | None = None
        self.missed = dict.fromkeys(sorted({*range(processes.world())} - {processes.rank()}), 0)
        self.judged, self.left = threading.Event(), threading.Event()
        # two, because the store answers no more when the process that holds it is halted
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._judge)]
        if not self.missed:
            return
        self.store = processes.store()
        self._beat(0)
        processes.wait()  # all have said something
        for thread in self.threads:
            thread.start()

    def leave(self) -> None:
        """Waits for the others and parts from them."""
        processes.wait()
        self.stop()
        processes.leave()  # nobody goes before all have stopped to watch: the store goes with the first process

    def stop(self) -> None:
        """Watches no more. Python aborts where it ends while a thread is in the store's C++."""
        self.judged.set()
        self.left.set()
        for thread in self.threads:
            if thread.is_alive():
                thread.join(GONE * BEAT)  # of a halted store there is no answer to wait for

    def explain(self, e: Exception) -> NoReturn:
        """Raises ``e`` as what it means: RunError for a lost process, UserError for memory or a disk that is full."""
        text = str(e)
        if isinstance(e, torch.OutOfMemoryError | MemoryError) or any(words in text for words in NO_MEMORY):
            raise UserError(
                f"{self._where()}: rank {processes.rank()} is out of memory; it held "
                f"{peak_memory(self.device):.2f} GiB at most. A smaller train.micro_batch, train.checkpointing or a "
                f"higher ZeRO stage takes less; `reasonbrain plan` tells how much"
            ) from None
        full = next((words for words in FULL if words in text), None)
        if full:
            raise UserError(
                f"{self._where()}: run '{self.run}' cannot be written: {full}. Make room; {self._rest()}"
            ) from None
        if not isinstance(e, dist.DistError) and "gloo" not in text:
            raise e
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the launcher sends while this finds out who it was
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
            else f"{self._where()}: an exchange between the processes failed: {text.splitlines()[0]}; {self._rest()}"
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
            except dist.DistError:  # the store is gone, and with it the process that held it
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
                    click.echo("error: " + self._line(lost), err=True)  # in one piece, among others' lines
                os._exit(1)  # the main thread may wait for the lost one for ever

    def _miss(self) -> None:
        """Beats are counted, not seconds: a run that was halted as a whole and goes on has lost nobody."""
        for other in self.missed:
            self.missed[other] += 1

    def _lost(self, beats: int) -> list[int]:
        """Those that have missed so many beats; of a silent store's others nothing is known."""
        lost = [other for other, missed in self.missed.items() if missed >= beats]
        return lost[:1] if lost == list(self.missed) else lost

    def _speaks(self, lost: list[int]) -> bool:
        return processes.rank() == min({*range(processes.world())} - {*lost})

    def _line(self, lost: list[int]) -> str:
        who = " and ".join(f"rank {other}" if other else "rank 0 or its launcher" for other in lost)
        return f"{self._where()}: {who} was lost (killed, halted, or ended by an error of its own); {self._rest()}"

    def _where(self) -> str:
        return f"step {self.loop.step}" if self.loop else "before the first step"

    def _rest(self) -> str:
        done = checkpoints.complete(self.run)
        if not done:
            return "there is no checkpoint yet: the same command starts again"
        return f"the last checkpoint, of step {checkpoints.step_of(done[-1])}, is complete: the same command goes on"


@contextmanager
def watched(run: Path, device: torch.device) -> Iterator[Watch]:
    """Around a run: turns what ends it half-way into RunError or UserError, and waits for the others at its end."""
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
