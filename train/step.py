"""One optimizer step: fetch batches, forward and backward passes, update.

A batch is fetched outside the contexts of the forward pass (autocast, attention kernel selection), so that the features
computed for a record do not depend on them.
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
Losses = Callable[[Any], dict[str, Tensor]]  # batch -> named scalars; ``loss`` is minimised


@dataclass
class Step:
    """Result of an optimizer step.

    values: (name, value) pairs of every pass and of the whole step
    fault: why the step was skipped, or None
    """

    values: list[tuple[str, float]] = field(default_factory=list)
    fault: str | None = None


def fastest_attention(device: str) -> AbstractContextManager[None]:
    """Selects the math attention kernel on CPU, where the backward pass of torch's fused kernel is slow (a third of a
    step, docs/log.md). On other devices torch chooses."""
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()


def take_step(
    engine: Any,
    batches: Batches,
    losses: Losses,
    step: int,
    parts: int = 1,
    describe: Callable[[int, int], str] | None = None,
) -> Step:
    """Takes optimizer step ``step``, accumulating gradients over ``parts`` passes.

    Torch's random state is seeded before each pass from (seed, step, part, rank). If a loss or a gradient norm is NaN
    or infinite in any process, all processes skip the step.

    Args:
        engine: an Engine or a ZeroEngine
        batches: called with (step, part), returns the batch of a pass
        losses: called with a batch, returns named scalars, of which ``loss`` is minimised
        step: index of the step, from 0
        parts: number of passes
        describe: called with (step, part), returns the contents of a batch for the message of a skipped step
    """
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
            value = named["loss"].item() if not finite else "finite, but not in another process"
            found.fault = f"step {step}: the loss of process {processes.rank()} is {value}{held}"
            return found
        found.values += [(name, float(value.detach())) for name, value in named.items()]
    norms, rates = engine.step(step)
    norm = math.hypot(*norms.values())
    if not math.isfinite(norm):
        found.fault = f"step {step}: the gradient norm is {norm}"
        return found
    found.values += [("seconds_waiting_for_data", waited), ("norm", norm), ("lr", max(rates.values()))]
    found.values += [(f"norm/{slot}", value) for slot, value in norms.items() if slot]
    found.values += [(f"lr/{slot}", rate) for slot, rate in rates.items() if slot]
    return found
