"""One optimizer step: its batches are fetched, passed through the model, and move the weights.

A batch is fetched before its forward pass, outside the contexts of that pass (autocast, the choice of an attention
kernel), so that what is computed for a record does not depend on them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from reasonbrain.train.distributed import processes

Batches = Callable[[int, int], Any]  # (step, part) -> the batch of a pass
Losses = Callable[[Any], dict[str, Tensor]]  # a batch -> named scalars; ``loss`` is minimised


@dataclass
class Step:
    """What an optimizer step gave. values: (name, number) of each of its passes and of the whole; fault: why it was
    skipped, or None."""

    values: list[tuple[str, float]] = field(default_factory=list)
    fault: str | None = None


def fastest_attention(device: str) -> AbstractContextManager[None]:
    """On a CPU, attention in plain matrix products: the backward of torch's fused kernel for CPUs takes a third of a
    step's time (docs/log.md). Elsewhere torch chooses."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()


def take_step(
    engine: Any,
    batches: Batches,
    losses: Losses,
    step: int,
    parts: int = 1,
    describe: Callable[[int, int], str] | None = None,
) -> Step:
    """Takes optimizer step ``step`` of a run, in ``parts`` passes whose gradients are accumulated.

    Torch's random state is set before each pass from (seed, step, part, rank). A step is skipped in all processes if
    the loss of a pass or the norm of the gradients is NaN or infinite in one of them; ``describe(step, part)`` then
    says what the pass held, for the message."""
    found, waited = Step(), 0.0
    for part in range(parts):
        seed = (engine.cfg.seed * 1_000_003 + step) * parts + part
        torch.manual_seed(seed + processes.rank() * 1_000_000_007)
        start = time.monotonic()
        batch = batches(step, part)
        waited += time.monotonic() - start
        with fastest_attention(engine.device.type):
            named = engine.forward(partial(losses, batch))
            finite = bool(torch.isfinite(named["loss"]))
            wrong = processes.anywhere([not finite], engine.device)[0]
            if not wrong:
                engine.backward(named["loss"], parts)
        if wrong:
            engine.discard()
            held = f" ({describe(step, part)})" if describe and not finite else ""
            value = named["loss"].item() if not finite else "finite, but not that of another process"
            found.fault = f"step {step}: the loss of process {processes.rank()} is {value}{held}"
            return found
        found.values += [(name, float(value.detach())) for name, value in named.items()]
    norms, rates = engine.step(step)
    norm = math.hypot(*norms.values())
    if not math.isfinite(norm):
        found.fault = f"step {step}: the gradients' norm is {norm}"
        return found
    found.values += [("seconds_waiting_for_data", waited), ("norm", norm), ("lr", max(rates.values()))]
    found.values += [(f"norm/{slot}", value) for slot, value in norms.items() if slot]
    found.values += [(f"lr/{slot}", rate) for slot, rate in rates.items() if slot]
    return found
