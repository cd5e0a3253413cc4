"""Measures speed and memory of training steps, edits, batches and loading. Results are in docs/performance.md.

    reasonbrain bench train --config tiny -o train.json [key=value ...]
    reasonbrain bench edit --config tiny
    reasonbrain bench batch --checkpoint tiny
    reasonbrain bench load --checkpoint tiny
    reasonbrain bench options --checkpoint tiny edit.steps=40
    reasonbrain bench train --config reasonbrain_flux_qwen --random data.size=512 data.count=1 train.batch_size=1

For steps and edits, one run is counted (timing.py), then come warm-up runs, then timed ones. Tokens are those that pass
through the diffusion transformer: image and text tokens, at every noise level.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import psutil
import torch
from torch import Tensor

from reasonbrain import ReasonBrainPipeline
from reasonbrain.attention import set_attention
from reasonbrain.config.schema import loss_weights
from reasonbrain.errors import UserError
from reasonbrain.eval.benchmarking.batches import batch
from reasonbrain.eval.benchmarking.options import deviations, options
from reasonbrain.eval.benchmarking.source import Found, Source, sample_records
from reasonbrain.eval.benchmarking.timing import (
    Flops,
    Timing,
    device_name,
    peak_flops,
    seconds,
    synchronise,
    tokens_through,
)
from reasonbrain.model import ReasonBrain
from reasonbrain.train.batches import Batch, Batches
from reasonbrain.train.distributed import processes
from reasonbrain.train.engine import Engine
from reasonbrain.train.loop import peak_memory
from reasonbrain.train.optim import check_trains
from reasonbrain.train.step import take_step
from reasonbrain.utils.images import to_tensor


class _CountedEngine(Engine):
    """Counts the FLOPs of passes in ``count`` if it is set."""

    count: Flops | None = None

    def forward(self, losses: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        with self.count or nullcontext():
            return super().forward(losses)

    def backward(self, loss: Tensor, parts: int) -> None:
        with self.count or nullcontext(), self.count.backward() if self.count else nullcontext():
            super().backward(loss, parts)


def train(source: Source, warmup: int, repeats: int, device: torch.device) -> Found:
    """Times training steps like those of train/train.py, in one process without DeepSpeed. With random weights, the
    records are ReasonMini's.

    The records of a step are prepared when they are first used, unless ``data.features`` has them. Reading them is part
    of the time of a step. Reading and the optimizer are not part of its FLOPs. ``prepared``: number of records that the
    timed steps prepared. Raises UserError like ``check_trains``, and FloatingPointError for a NaN or infinite loss or
    gradient."""
    model, cfg = source.open(device)
    check_trains(model, cfg.train)
    model.train()
    for name in cfg.train.checkpointing:
        model.parts[name].enable_gradient_checkpointing()
    engine, batches = _CountedEngine(model, cfg.train), Batches(cfg, model)
    autocast = torch.bfloat16 if cfg.train.bf16 else None
    reading: list[float] = []

    def losses(batch: Batch) -> dict[str, Tensor]:
        return model(*batch, cfg.train.draws, **loss_weights(cfg.train))

    def step(number: int) -> None:
        taken = take_step(engine, batches, losses, number, batches.parts)
        if taken.fault:
            raise FloatingPointError(taken.fault)
        reading.append(dict(taken.values)["seconds_waiting_for_data"])

    count = engine.count = Flops()
    set_attention(model, "sdpa", training=True, autocast=autocast)  # there are no formulas for the flash packages
    with tokens_through(model.slot("diffusion")) as tokens:
        step(0)
    engine.count = None
    for name in cfg.train.compile:  # after counting: operations of compiled blocks cannot be counted
        model.parts[name].compile_blocks()
    set_attention(model, cfg.model.attention, training=True, autocast=autocast)
    numbers = iter(range(1, 1 + warmup + repeats))
    for _ in range(warmup):
        step(next(numbers))
    known = len(batches.features.kept)
    timed = [seconds(lambda: step(next(numbers)), device) for _ in range(repeats)]
    rows = [
        Timing("training step", timed, cfg.train.batch_size, sum(tokens), count.flops, count.again),
        Timing("reading its records", reading[-repeats:], cfg.train.batch_size),
    ]
    more = {"pixels": cfg.data.size, "prepared": len(batches.features.kept) - known, "gib": peak_memory(device)}
    return rows, autocast or torch.float32, more


def edit(source: Source, warmup: int, repeats: int, device: torch.device) -> Found:
    """Times calls of the pipeline for one picture of ``edit.size`` pixels (null: ``data.size``); their denoising steps,
    from the second on; and the conditioning path by itself."""
    model, cfg = source.open(device)
    pipe = ReasonBrainPipeline.from_model(model, cfg)
    pipe.set_progress_bar_config(disable=True)
    size = cfg.edit.size or cfg.data.size
    sample = sample_records(size)[0]
    instruction = sample.instructions[0]
    images = to_tensor([sample.source]).to(device)
    count = Flops()
    marks: list[tuple[float, int]] = []  # after each denoising step: the time, and the FLOPs so far

    def on_step(pipe: Any, index: int, timestep: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        synchronise(device)
        marks.append((time.perf_counter(), count.flops))
        return given

    def run_edit() -> None:
        generator = torch.Generator().manual_seed(0)
        pipe(sample.source, instruction, generator=generator, callback_on_step_end=on_step)

    @torch.no_grad()
    def conditioning() -> None:
        model.condition(model.make_inputs(images, [instruction]))

    kernel, cfg.model.attention = cfg.model.attention, "sdpa"  # there are no formulas for the flash packages
    with tokens_through(model.slot("diffusion")) as tokens, count:
        run_edit()
        flops = count.flops
        conditioning()
    cfg.model.attention = kernel
    rows = [
        Timing("edit", [], 1, sum(tokens), flops),
        Timing("conditioning", [], 1, 0, count.flops - flops),
        *(Timing("denoising step", [], 1, tokens[-1], b - a) for (_, a), (_, b) in list(pairwise(marks))[-1:]),
    ]
    for number in range(warmup + repeats):
        marks.clear()
        times = (
            [seconds(run_edit, device)],
            [seconds(conditioning, device)],
            [b - a for (a, _), (b, _) in pairwise(marks)],
        )
        if number >= warmup:
            for row, found in zip(rows, times, strict=False):  # with a single step there is no row of denoising steps
                row.seconds += found
    half = any(p.dtype == torch.bfloat16 for p in model.parameters())
    more = {"pixels": size, "denoising_steps": pipe.edit_settings.steps, "gib": peak_memory(device)}
    return rows, torch.bfloat16 if half else torch.float32, more


def load(source: Source, warmup: int, repeats: int, device: torch.device) -> Found:
    """Times loading a checkpoint or building a configuration, until the model is on the device. ``gib``: peak host
    memory in addition to what the process used before. ``gib_of_weights``: size of the parameters and buffers."""
    before = psutil.Process().memory_info().rss / 2**30
    timed: list[float] = []
    models: list[ReasonBrain] = []
    for _ in range(warmup + repeats):
        models.clear()
        gc.collect()  # a model has reference cycles, so the previous one may still be in memory
        timed.append(seconds(lambda: models.append(source.open(device)[0]), device))
    more = {"gib": peak_memory(torch.device("cpu")) - before}
    more["gib_of_weights"] = sum(t.nbytes for t in (*models[0].parameters(), *models[0].buffers())) / 2**30
    return [Timing("load", timed[warmup:])], torch.float32, more


NOTES = ("pixels", "denoising_steps", "prepared", "gib", "gib_of_weights")  # printed below the table
BENCHES: dict[str, Callable[[Source, int, int, torch.device], Found]] = {
    "train": train,
    "edit": edit,
    "batch": batch,
    "load": load,
    "options": options,
}


def bench(what: str, source: Source, warmup: int, repeats: int) -> dict[str, Any]:
    """Runs one of BENCHES on this machine's accelerator, or on the CPU. Returns numbers in seconds, GiB and FLOP.

    Raises UserError like ``Source.open``, and for a checkpoint together with ``random``."""
    if source.checkpoint and source.random:
        raise UserError(f"--random: checkpoint '{source.checkpoint}' has weights; give --config instead")
    device = processes.join()
    rows, dtype, more = BENCHES[what](source, warmup, repeats, device)
    peak, origin = peak_flops(device, dtype)
    return {
        "bench": what,
        **vars(source),
        "warmup": warmup,
        "repeats": repeats,
        "device": device_name(device),
        "torch": torch.__version__,
        "peak_flops_per_second": peak,
        "peak_is": origin,
        **more,
        "rows": [row.numbers(peak) for row in rows],
    }


def table(found: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| | seconds: median (min to max) | images/s | tokens/s | TFLOP | TFLOP/s | of peak (MFU) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [row["what"], f"{row['median']:.4g} ({row['min']:.4g} to {row['max']:.4g})"]
        cells.append(f"{row['images_per_second']:.3g}" if row["images"] else "")
        cells.append(f"{row['tokens_per_second']:.4g}" if row["tokens"] else "")
        flops = row["flops"] / 1e12, row["flops_per_second"] / 1e12
        cells += [*(f"{x:.3g}" for x in flops), f"{row['mfu']:.1%}"] if row["flops"] else [""] * 3
        lines.append(f"| {' | '.join(cells)} |")
    said = [f"{key}: {found[key]:.4g}" for key in NOTES if key in found]
    said += [f"gib after {count} rows: {gib:.4g}" for count, gib in found.get("gib_after", {}).items()]
    name = found["checkpoint"] or found["config"] or "tiny"
    if any(row["flops"] for row in found["rows"]):
        said.append(f"peak: {found['peak_flops_per_second'] / 1e12:.3g} TFLOP/s ({found['peak_is']})")
    more = ["", *deviations(found["options"])] if "options" in found else []
    return "\n".join([f"{found['bench']} of {name} on {found['device']}", "", *lines, *more, "", "; ".join(said)])
