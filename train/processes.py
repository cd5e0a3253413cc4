"""The processes that share a run: who is who, and what they have to agree on."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number among those of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join() -> torch.device:
    """Joins the others that the launcher started, and returns this process's device."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device("cpu")
    if accelerator is not None:
        device = torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))
        torch.accelerator.set_device_index(device.index)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group()
    return device


def leave() -> None:
    """Waits for the others and parts from them."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def wait() -> None:
    """Until all are here."""
    if dist.is_initialized():
        dist.barrier()


def anywhere(flags: list[bool], device: torch.device) -> list[bool]:
    """Which of the flags are set in any of the processes."""
    if world() == 1:
        return flags
    seen = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return [bool(x) for x in seen.tolist()]


def means(sums: dict[str, tuple[float, int]], device: torch.device) -> dict[str, float]:
    """The mean of each value over all processes, from its sum and count in this one; what nobody has is left out."""
    total = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    if world() > 1:
        dist.all_reduce(total)
    return {name: value / count for name, (value, count) in zip(sums, total.tolist(), strict=True) if count}


def average_gradients(params: list[Tensor]) -> None:
    """The mean over all processes, in one exchange; a parameter without a gradient has none anywhere."""
    if world() == 1:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for grad, averaged in zip(grads, (flat / world()).split([g.numel() for g in grads]), strict=True):
        grad.copy_(averaged.view_as(grad))
