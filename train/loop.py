"""The one training loop: every stage of every run takes its steps here.

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
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from reasonbrain.config.schema import TrainConfig
from reasonbrain.errors import UserError
from reasonbrain.train import checkpoints
from reasonbrain.train.distributed import processes
from reasonbrain.train.engine import Engine
from reasonbrain.train.tracking import Tracker
from reasonbrain.train.validation import Validation

log = logging.getLogger(__name__)

Losses = Callable[[int, int], dict[str, Tensor]]


class Preempted(Exception):
    """The run was asked to end (SIGTERM), has saved a checkpoint and ended."""


def fastest_attention(device: str) -> AbstractContextManager[None]:
    """On a CPU, attention in plain matrix products: the backward of torch's fused kernel for CPUs takes a third of a
    step's time (docs/log.md). Elsewhere torch chooses."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()


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
        losses: Losses,
        parts: int = 1,
        bad: Callable[[int, int], str] | None = None,
        validation: Validation | None = None,
    ) -> None:
        """Trains up to ``cfg.steps``. ``losses(step, part)`` returns the named scalars of one of the ``parts`` passes
        of a step; ``loss`` is minimised, and one that is no number in some passes is averaged over the others.
        ``bad(step, part)`` says what a pass held, for the message about a loss that is no number.

        A JSON line every ``log_every`` steps goes to ``RUN/log.jsonl`` and to the tracker. A step whose loss or
        gradient is no number is skipped. Raises FloatingPointError after ``bad_steps`` of them in a row, Preempted
        after SIGTERM."""
        self.run.mkdir(parents=True, exist_ok=True)
        before = signal.signal(signal.SIGTERM, self._end)
        hidden = None if processes.rank() == 0 else True  # None: shown on a terminal only
        try:
            with tqdm(total=self.cfg.steps, initial=self.step, disable=hidden) as bar:
                with nullcontext() if bar.disable else logging_redirect_tqdm():
                    self._fit(losses, parts, bad, validation, bar)
        finally:
            signal.signal(signal.SIGTERM, before)
            if self.tracker:
                self.tracker.close()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_end = True

    def _fit(
        self,
        losses: Losses,
        parts: int,
        bad: Callable[[int, int], str] | None,
        validation: Validation | None,
        bar: tqdm,
    ) -> None:
        cfg, engine = self.cfg, self.engine
        sums: dict[str, tuple[float, int]] = {}
        count, in_a_row, start = 0, 0, time.monotonic()
        while self.step < cfg.steps:
            out: list[tuple[str, float]] = []
            fault = None
            for part in range(parts):
                seed = (cfg.seed * 1_000_003 + self.step) * parts + part
                torch.manual_seed(seed + processes.rank() * 1_000_000_007)
                with fastest_attention(engine.device.type):
                    named = engine.forward(lambda part=part: losses(self.step, part))  # type: ignore[misc]
                    finite = bool(torch.isfinite(named["loss"]))
                    wrong, end = processes.anywhere([not finite, self.asked_to_end], engine.device)
                    self.asked_to_end = end
                    if wrong:
                        held = f" ({bad(self.step, part)})" if bad and not finite else ""
                        value = named["loss"].item() if not finite else "no number elsewhere"
                        fault = f"step {self.step}: the loss of process {processes.rank()} is {value}{held}"
                        break
                    engine.backward(named["loss"], parts)
                out += [(key, float(value.detach())) for key, value in named.items()]
            if fault:
                engine.discard()
            else:
                norms, rates = engine.step(self.step)
                norm = math.hypot(*norms.values())
                if not math.isfinite(norm):
                    fault = f"step {self.step}: the gradients' norm is {norm}"
            self.step += 1
            bar.update()
            if fault:
                self.skipped += 1
                in_a_row += 1
                log.warning(f"{fault}; step skipped ({self.skipped} so far)")
                if in_a_row >= cfg.bad_steps:
                    raise FloatingPointError(f"{fault}; {in_a_row} steps in a row were skipped")
            else:
                in_a_row = 0
                out += [("norm", norm), ("lr", max(rates.values()))]
                out += [(f"norm/{slot}", n) for slot, n in norms.items() if slot]
                out += [(f"lr/{slot}", rate) for slot, rate in rates.items() if slot]
                for key, number in out:
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
