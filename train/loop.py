"""The training loop of all training stages: steps (step.py), logging, validation and checkpoints.

Batches and torch's random state depend on (seed, step) alone, so a resumed run is bit-identical to an uninterrupted one
without saving random state.
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
from reasonbrain.errors import UserError, first_line
from reasonbrain.train import checkpoints
from reasonbrain.train.distributed import processes
from reasonbrain.train.engine import Engine
from reasonbrain.train.optim import numel
from reasonbrain.train.step import Batches, Losses, Step, take_step
from reasonbrain.train.tracking import Tracker
from reasonbrain.train.validation import Validation
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.journal import read

LOG = "log.jsonl"

log = logging.getLogger(__name__)


class Preempted(Exception):
    """The run received SIGTERM, or SIGINT from Ctrl-C, saved a checkpoint and stopped."""

    def __init__(self, by: signal.Signals, step: int) -> None:
        super().__init__(f"stopped by {by.name}; saved at step {step}")
        self.by = by


def peak_memory(device: torch.device) -> float:
    """Peak memory of this process in GiB: accelerator memory, or host memory on CPU."""
    if device.type == "cpu":
        status = Path("/proc/self/status")
        if not status.exists():  # macOS
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
        # on Linux, ru_maxrss of a process includes the memory of the program that started it
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].removesuffix("kB")) / 2**20
    return torch.accelerator.max_memory_allocated(device) / 2**30


class Loop:
    """Runs the steps of a training run on an engine, with checkpoints and exact resume. stage: the name of the stage
    that the run is, for its log; "" for none."""

    def __init__(self, engine: Engine | nn.Module, cfg: TrainConfig, run: Path, stage: str = "") -> None:
        self.engine = Engine(engine, cfg) if isinstance(engine, nn.Module) else engine
        self.cfg, self.run, self.stage = cfg, run, stage
        self.step = 0
        self.skipped = 0
        self.asked_to_end = False
        self.asked_by = signal.SIGTERM
        self.tracker: Tracker | None = None

    def save(self) -> None:
        """Writes a checkpoint; each process writes a shard. Raises UserError if it cannot be written."""
        new = checkpoints.folder_of(self.run, self.step).with_suffix(".new")
        share, failure = {}, None
        kinds = {name: self.engine.kinds(name) for name in self.engine.trained}
        sizes = [numel(p) * len(kinds[name]) for name, p in self.engine.trained.items()]
        for name, owner in zip(kinds, checkpoints.owners(sizes, processes.world()), strict=True):
            for what in kinds[name]:
                tensor = self.engine.gather(what, name)
                if owner == processes.rank():
                    share[f"{what}/{name}"] = tensor.detach().cpu().contiguous()
        bad = next((n for n, t in share.items() if t.is_floating_point() and not t.isfinite().all()), None)
        if processes.anywhere([bad is not None], self.engine.device)[0]:
            what = f"'{bad}' is" if bad else "a tensor of another process is"
            raise FloatingPointError(f"step {self.step}: {what} NaN or infinite, so no checkpoint is saved")
        try:
            checkpoints.shard(share, new, processes.rank(), processes.world())
        except Exception as e:  # safetensors and the file system raise different types
            failure = first_line(e)
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
        """Restores the run's last checkpoint, if any; returns whether there was one.

        Raises UserError if the checkpoint's parameters differ from the trainable parameters.
        """
        if processes.rank() == 0:
            checkpoints.clean(self.run)
        processes.wait()
        folder = checkpoints.last(self.run, together=True)
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

    def shorten_log(self) -> None:
        """Removes the lines of steps after the checkpoint, which are taken again, from RUN/log.jsonl."""
        if (self.run / LOG).is_file():
            kept = [line for line in read(self.run / LOG) if line["step"] <= self.step]
            with whole_file(self.run / LOG) as file:
                file.writelines(json.dumps(line) + "\n" for line in kept)

    def fit(
        self,
        batches: Batches,
        losses: Losses,
        parts: int = 1,
        describe: Callable[[int, int], str] | None = None,
        validation: Validation | None = None,
    ) -> None:
        """Trains up to ``cfg.steps``.

        Every ``log_every`` steps, the mean of each value is written to ``RUN/log.jsonl`` and to the tracker. NaN values
        are left out of the mean.

        Args:
            batches, losses, parts, describe: as in ``take_step``
            validation: runs every ``validate_every`` steps

        Raises:
            FloatingPointError: after ``bad_steps`` skipped steps in a row, if the last step is skipped, and for weights
                that are NaN or infinite; these are not saved
            Preempted: after SIGTERM or SIGINT, once a checkpoint is saved
            KeyboardInterrupt: after a second SIGINT
        """
        self.run.mkdir(parents=True, exist_ok=True)
        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, self._end)}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
            before[signal.SIGINT] = signal.signal(signal.SIGINT, self._end)
        hidden = None if processes.rank() == 0 else True  # None: show the bar on a terminal only
        try:
            with tqdm(total=self.cfg.steps, initial=self.step, disable=hidden) as bar:
                with nullcontext() if bar.disable else logging_redirect_tqdm():
                    self._fit(
                        partial(take_step, self.engine, batches, losses, parts=parts, describe=describe),
                        validation,
                        bar,
                    )
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self.tracker:
                self.tracker.close()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_end, self.asked_by = True, signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if processes.rank() == 0:
                log.warning("interrupted: the run ends once this step is saved; Ctrl-C again ends it at once")

    def _fit(self, take: Callable[[int], Step], validation: Validation | None, bar: tqdm) -> None:
        cfg, engine = self.cfg, self.engine
        sums: dict[str, tuple[float, int]] = {}
        count, in_a_row, start = 0, 0, time.monotonic()
        due, saved = False, self.step
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
                    if processes.rank() == 0:
                        checkpoints.withdraw(self.run, self.step - in_a_row)
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
                self._log(means, ("loss", "lm", "dm", "align", "norm", "lr", "seconds_per_step"), f" left={left}")
                sums, count, start = {}, 0, time.monotonic()
            if validation and cfg.validate_every and self.step % cfg.validate_every == 0:
                before = time.monotonic()
                found = validation.losses()
                self._log(found, tuple(found), "")
                sheet = validation.edits(self.step)
                if self.tracker and sheet:
                    self.tracker.picture("edits", sheet, self.step)
                start += time.monotonic() - before
            due = due or self.step % cfg.save_every == 0 or self.step == cfg.steps or self.asked_to_end
            if due and not taken.fault:  # skipped steps make the weights suspect: they are saved after a good one
                self.save()
                saved, due = self.step, False
            if self.asked_to_end:
                raise Preempted(self.asked_by, saved)
        if in_a_row:
            raise FloatingPointError(
                f"{taken.fault}; the last step was skipped, so the run is saved at step {saved} only; "
                f"train at least one step more, or at a lower rate"
            )

    def _log(self, values: dict[str, float], shown: tuple[str, ...], more: str) -> None:
        """Prints the ``shown`` values, and writes all values to RUN/log.jsonl and the tracker."""
        if processes.rank() != 0:
            return
        line: dict[str, float] = {"step": self.step, **{k: float(f"{v:.7g}") for k, v in values.items()}}
        log.info(f"step={self.step} " + " ".join(f"{k}={line[k]:.5g}" for k in shown if k in line) + more)
        with (self.run / LOG).open("a") as f:
            f.write(json.dumps(({"stage": self.stage} if self.stage else {}) | line) + "\n")
        if self.tracker:
            self.tracker.log(values, self.step)
