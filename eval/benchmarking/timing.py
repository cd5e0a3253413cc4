"""Measurements for bench.py: seconds, FLOPs, tokens, and the peak FLOP/s of the device.

FLOPs are counted from the executed operations with the formulas of torch.utils.flop_counter: matrix products,
convolutions and attention, two FLOPs per multiply-add.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reasonbrain.plugin import Plugin
from reasonbrain.train.planning.dry import Counter

PEAKS = {  # dense bfloat16 TFLOP/s from NVIDIA's data sheets; the first name contained in the device's name applies
    "GB200": 2500,
    "B200": 2250,
    "H200 NVL": 835,
    "H200": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
}


class Flops(TorchDispatchMode):
    """Counts ``flops``, and separately the FLOPs that activation checkpointing recomputes (``again``). They are told
    apart in a backward pass because recomputed operations run with gradients enabled, autograd's own without."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.again = 0
        self.in_backward = False

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Marks a backward pass."""
        self.in_backward = True
        yield
        self.in_backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := Counter.FORMULAS.get(func._overloadpacket):
            done = formula(*args, **(kwargs or {}), out_val=out)
            if self.in_backward and torch.is_grad_enabled():
                self.again += done
            else:
                self.flops += done
        return out


@contextmanager
def tokens_through(diffusion: Plugin | None) -> Iterator[list[int]]:
    """Yields a list to which every pass through the diffusion transformer appends the number of tokens that enter its
    first block."""
    seen: list[int] = []

    def count(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sequences = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim == 3]
        seen.append(sum(t.shape[0] * t.shape[1] for t in sequences))

    blocks = diffusion.repeated()[:1] if diffusion is not None else []
    hooks = [block.register_forward_pre_hook(count, with_kwargs=True) for block in blocks]
    yield seen
    for hook in hooks:
        hook.remove()


@dataclass
class Timing:
    """Seconds of each run of ``what``, and the images, tokens and FLOPs of one run. ``again``: FLOPs recomputed by
    activation checkpointing, not included in ``flops``."""

    what: str
    seconds: list[float]
    images: int = 0
    tokens: int = 0
    flops: int = 0
    again: int = 0

    def numbers(self, peak: float) -> dict[str, Any]:
        """The fields, with ``median``, ``min``, ``max``, the rates per second of the median run, and ``mfu``. ``peak``:
        the device's peak in FLOP/s."""
        median = statistics.median(self.seconds)
        rates = {f"{name}_per_second": getattr(self, name) / median for name in ("images", "tokens", "flops")}
        spread = {"median": median, "min": min(self.seconds), "max": max(self.seconds)}
        return vars(self) | spread | rates | {"mfu": self.flops / median / peak}


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """The time of a run in seconds, including the work queued on the device."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The peak FLOP/s of the device, and the origin of the number: a data sheet, or the fastest of thirty products of
    two square matrices."""
    for known, teras in PEAKS.items():
        if known in device_name(device):
            return teras * 1e12, f"data sheet of {known}, dense bfloat16"
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device).to(dtype)
    best = min(seconds(lambda: a @ a, device) for _ in range(30))
    return 2 * side**3 / best, f"measured, a product of {side} x {side} matrices in {str(dtype).removeprefix('torch.')}"


def device_name(device: torch.device) -> str:
    """The name of the GPU, or for other devices their type and the number of torch's CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, torch with {torch.get_num_threads()} threads"
