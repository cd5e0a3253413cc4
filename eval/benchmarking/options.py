"""What the ways to edit faster or in less memory give: seconds, size of the weights, and how far the edit is from the
one without them. Part of bench.py.

    reasonbrain bench options --checkpoint tiny edit.steps=40
"""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from reasonbrain import ReasonBrainPipeline
from reasonbrain.config.schema import CACHES
from reasonbrain.editing.placement import dtype_name, make_ready, weights_dtype
from reasonbrain.errors import UserError
from reasonbrain.eval.benchmarking.source import Found, Source, sample_records
from reasonbrain.eval.benchmarking.timing import Timing, seconds

EXACT = "as configured"
OPTIONS: dict[str, list[str]] = {
    **{dtype: [f"edit.dtype={dtype}"] for dtype in ("bfloat16", "fp8", "nf4")},
    **{f"{cache} cache": [f"edit.cache={cache}"] for cache in CACHES},
    "compiled": ["edit.compile=true"],
}


def options(source: Source, warmup: int, repeats: int, device: torch.device) -> Found:
    """Times edits of one picture of ``edit.size`` pixels (null: ``data.size``) as configured, and with each of OPTIONS
    in addition. ``options``: for each, ``gib_of_weights``, and of the difference to the edit as configured the ``mean``
    of the absolute values (0 to 1) and ``psnr`` in dB; or ``error``, why the model cannot be used so."""
    rows: list[Timing] = []
    found: dict[str, dict[str, Any]] = {}
    more: dict[str, Any] = {}
    exact, precision = np.zeros(0), torch.float32
    for name, overrides in [(EXACT, list[str]()), *OPTIONS.items()]:
        gc.collect()  # a model has reference cycles, so the previous one may still be in memory
        try:
            picture, timed, gib, own = _measure(
                replace(source, overrides=[*source.overrides, *overrides]), warmup, repeats, device
            )
        except UserError as e:
            if name == EXACT:
                raise
            found[name] = {"error": str(e)}
            continue
        if name == EXACT:
            exact, (precision, more) = picture, own
        square = float(np.square(picture - exact).mean())
        psnr = -10 * math.log10(square) if square else None
        found[name] = {"gib_of_weights": gib, "mean": float(np.abs(picture - exact).mean()), "psnr": psnr}
        rows.append(Timing(name, timed, 1))
    return rows, precision, more | {"options": found}


def _measure(
    source: Source, warmup: int, repeats: int, device: torch.device
) -> tuple[np.ndarray, list[float], float, tuple[torch.dtype, dict[str, Any]]]:
    """An edit [H, W, 3] in 0..1, its seconds, the GiB of the weights, and the precision and size of the edit."""
    model, cfg = source.open(torch.device("cpu"))
    pipe = ReasonBrainPipeline.from_model(model, cfg)
    pipe.set_progress_bar_config(disable=True)
    dtype = weights_dtype(cfg.edit)
    if dtype != torch.float32:
        pipe.to(dtype)
    cfg.edit.device, cfg.edit.dtype = str(device), dtype_name(cfg.edit)
    make_ready(pipe)
    size = cfg.edit.size or cfg.data.size
    sample = sample_records(size)[0]
    pictures: list[np.ndarray] = []

    def edit() -> None:
        noise = torch.Generator().manual_seed(0)
        pictures.append(pipe(sample.source, sample.instructions[0], generator=noise, output_type="np").images[0])

    timed = [seconds(edit, device) for _ in range(warmup + repeats)][warmup:]
    gib = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / 2**30
    return pictures[-1], timed, gib, (dtype, {"pixels": size, "denoising_steps": pipe.edit_settings.steps})


def deviations(found: dict[str, dict[str, Any]]) -> list[str]:
    """``options`` as a Markdown table."""
    lines = ["| | GiB of weights | mean difference | PSNR (dB) |", "|---|---|---|---|"]
    for name, of in found.items():
        if "error" in of:
            lines.append(f"| {name} | {of['error']} | | |")
        else:
            psnr = "" if of["psnr"] is None else f"{of['psnr']:.1f}"
            lines.append(f"| {name} | {of['gib_of_weights']:.4g} | {of['mean']:.2e} | {psnr} |")
    return lines
