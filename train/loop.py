"""The one training loop: every stage of every run takes its steps here (step.py), logs, validates and saves them.

A batch is a function of (seed, step) and torch's random state is set from the same numbers before each pass, so a
resumed run needs no saved random state: it continues bit for bit where it was stopped.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from reasonbrain.config.schema import TrainConfig
from reasonbrain.errors import UserError
from reasonbrain.train import checkpoints
from reasonbrain.train.distributed import processes
from reasonbrain.train.engine import Engine
from reasonbrain.train.step import Batches, Losses, Step, take_step
from reasonbrain.train.tracking import Tracker
from reasonbrain.train.validation import Validation

log = logging.getLogger(__name__)


class Preempted(Exception):
    """The run was asked to end (SIGTERM), has saved a checkpoint and ended."""


def peak_memory(device: torch.device) -> float:
    """The most that this process has held so far, in GiB: of the accelerator's memory, on a CPU of the machine's."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.accelerator.max_memory_allocated(device) / 2**30


class Loop:
    """Steps, checkpoints and exact resume of a run over an engine."""

    def __init__(self, engine: Engine | nn.Module, cfg: TrainConfig, run: Path) -> None:
        self.engine = Engine(engine, cfg) if isinstance(engine, nn.Module) else engine
        self.cfg, self.run = cfg, run
        self.step = 0
        self.skipped = 0
        self.asked_to_end = False
        self.tracker: Tracker | None = None

    def save(self) -> None:
        """Writes a checkpoint; every process its share. Raises UserError if it cannot be written."""
        new = checkpoints.folder_of(self.run, self.step).with_suffix(".new")
        share, failure = {}, None
        for i, name in enumerate(self.engine.trained):
            for what in self.engine.kinds(name):
                tensor = self.engine.gather(what, name)
                if i % processes.world() == processes.rank():
                    share[f"{what}/{name}"] = tensor.detach().cpu().contiguous()
        try:
            checkpoints.shard(share, new, processes.rank(), processes.world())
        except Exception as e:  # safetensors and the file system raise different ones
            failure = str(e).strip().splitlines()[0]
        if processes.anywhere([failure is not None], self.engine.device)[0]:
            if processes.rank() == 0:
                shutil.rmtree(new, ignore_errors=True)
            raise UserError(
                f"checkpoint of step {self.step} cannot be written to '{self.run}': {failure or 'see above'}"
            )
        if processes.rank() == 0:
            checkpoints.finish(self.run, self.step, new, self.cfg.keep)
        processes.wait()

    def resume(self) -> bool:
        """Continues from the run's last checkpoint where there is one; says whether it did. Raises UserError if it
        holds other parameters than those that train."""
        if processes.rank() == 0:
            checkpoints.clean(self.run)
        processes.wait()
        folder = checkpoints.last(self.run)
        if folder is None:
            return False
        seen = set()
        for what, name, value in checkpoints.read(folder):
            if name not in self.engine.trained:
                raise UserError(f"checkpoint '{folder}' trained '{name}', which does not train now")
            seen.add(name)
            self.engine.restore(what, name, value)
        missing = next((n for n in self.engine.trained if n not in seen), None)
        if missing:
            raise UserError(f"checkpoint '{folder}' did not train '{missing}', which trains now")
        self.step = checkpoints.step_of(folder)
        return True

    def fit(
        self,
        batches: Batches,
        losses: Losses,
        parts: int = 1,
        describe: Callable[[int, int], str] | None = None,
        validation: Validation | None = None,
    ) -> None:
        """Trains up to ``cfg.steps``, each step in ``parts`` passes: ``batches(step, part)`` gives the batch of a pass,
        ``losses(batch)`` its named scalars, of which ``loss`` is minimised. Their means over the passes are logged; one
        that is NaN in some passes is averaged over the others. ``describe``: as in ``take_step``.

        A JSON line every ``log_every`` steps goes to ``RUN/log.jsonl`` and to the tracker. Raises FloatingPointError
        after ``bad_steps`` skipped steps in a row, Preempted after SIGTERM."""
        self.run.mkdir(parents=True, exist_ok=True)
        before = signal.signal(signal.SIGTERM, self._end)
        hidden = None if processes.rank() == 0 else True  # None: shown on a terminal only
        try:
            with tqdm(total=self.cfg.steps, initial=self.step, disable=hidden) as bar:
                with nullcontext() if bar.disable else logging_redirect_tqdm():
                    self._fit(
                        partial(take_step, self.engine, batches, losses, parts=parts, describe=describe),
                        validation,
                        bar,
                    )
        finally:
            signal.signal(signal.SIGTERM, before)
            if self.tracker:
                self.tracker.close()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_end = True

    def _fit(self, take: Callable[[int], Step], validation: Validation | None, bar: tqdm) -> None:
        cfg, engine = self.cfg, self.engine
        sums: dict[str, tuple[float, int]] = {}
        count, in_a_row, start = 0, 0, time.monotonic()
        while self.step < cfg.steps:
            taken = take(self.step)
            self.asked_to_end = processes.anywhere([self.asked_to_end], engine.device)[0]
            self.step += 1
            bar.update()
            if taken.fault:
                self.skipped += 1
                in_a_row += 1
                log.warning(f"{taken.fault}; step skipped ({self.skipped} so far)")
                if in_a_row >= cfg.bad_steps:
                    raise FloatingPointError(f"{taken.fault}; {in_a_row} steps in a row were skipped")
            else:
                in_a_row = 0
                for key, number in taken.values:
                    total, n = sums.get(key, (0.0, 0))
                    known = not math.isnan(number)
                    sums[key] = (total + number, n + 1) if known else (total, n)
                count += 1
            if count and (self.step % cfg.log_every == 0 or self.step == cfg.steps):
                means = processes.means(sums, engine.device)
                seconds = (time.monotonic() - start) / count
                means |= {"seconds_per_step": seconds, "gib": peak_memory(engine.device), "skipped": self.skipped}
                left = timedelta(seconds=round(seconds * (cfg.steps - self.step)))
                self._log(means, ("loss", "lm", "dm", "norm", "lr", "seconds_per_step"), f" left={left}")
                sums, count, start = {}, 0, time.monotonic()
            if validation and cfg.validate_every and self.step % cfg.validate_every == 0:
                before = time.monotonic()
                found = validation.losses()
                self._log(found, tuple(found), "")
                sheet = validation.edits(self.step)
                if self.tracker and sheet:
                    self.tracker.picture("edits", sheet, self.step)
                start += time.monotonic() - before
            if self.step % cfg.save_every == 0 or self.step == cfg.steps or self.asked_to_end:
                self.save()
            if self.asked_to_end:
                raise Preempted(f"asked to end; saved at step {self.step}")

    def _log(self, values: dict[str, float], shown: tuple[str, ...], more: str) -> None:
        """Says the ``shown`` values, and writes all of them to the log and the tracker."""
        if processes.rank() != 0:
            return
        line: dict[str, float] = {"step": self.step, **{k: float(f"{v:.7g}") for k, v in values.items()}}
        log.info(f"step={self.step} " + " ".join(f"{k}={line[k]:.5g}" for k in shown if k in line) + more)
        with (self.run / "log.jsonl").open("a") as f:
            f.write(json.dumps(line) + "\n")
        if self.tracker:
            self.tracker.log(values, self.step)
