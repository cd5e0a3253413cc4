"""The processes that share a run: who is who, and what they have to agree on."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from reasonbrain.errors import RunError, UserError
from reasonbrain.utils.locks import take

# how long a process waits for one that lives (faults.py tells): the first one writes the model while the others wait
PATIENCE = timedelta(minutes=30)
log = logging.getLogger(__name__)


def rank() -> int:
    """This process's number among those of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join() -> torch.device:
    """Joins the others that the launcher started, and returns this process's device. Raises UserError for a launch
    that is none, RunError where the others do not come."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device("cpu")
    if accelerator is not None:
        device = torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.accelerator.device_count():
            raise UserError(
                f"launch: LOCAL_RANK is {device.index}, but this machine has {torch.accelerator.device_count()} "
                f"devices; start one process for each"
            )
        torch.accelerator.set_device_index(device.index)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(
                f"launch: WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; "
                f"start several processes with torchrun or deepspeed"
            )
        try:
            dist.init_process_group(timeout=PATIENCE)
        except dist.DistError as e:
            raise RunError(f"launch: the processes do not find each other: {str(e).splitlines()[0]}") from None
    return device


def leave() -> None:
    """Waits for the others and parts from them."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def store() -> dist.Store:
    """A connection of its own to the store where the processes have met."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"reasonbrain/{attempt}", dist.TCPStore(address, port))


@contextmanager
def one_voice() -> Iterator[None]:
    """Of processes that end by the same UserError, the first one alone raises it; the others exit with its code."""
    try:
        yield
    except UserError as e:
        if not _speaks(str(e)):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the launcher sends when the one that speaks has ended
            time.sleep(2)  # or the launcher might end that one before its line is out
            raise SystemExit(2) from None
        raise


def _speaks(message: str) -> bool:
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    if world() == 1:
        return True
    try:
        shared, patience = store(), timedelta(seconds=5)  # the others come to the same mistake at about the same time
        shared.set(f"mistake/{rank()}", message)
        shared.wait([f"mistake/{other}" for other in (range(1, world()) if rank() == 0 else [0])], patience)
        return rank() == 0 or shared.get("mistake/0").decode() != message
    except dist.DistError:
        return True


@contextmanager
def claimed(run: Path, device: torch.device) -> Iterator[None]:
    """Keeps other runs out of RUN meanwhile. Raises UserError where there is another, or no folder can be made."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / "lock").open("a")
    except OSError as e:
        raise UserError(f"run folder '{run}' cannot be made: {e.strerror}") from None
    taken = False
    with file:
        try:
            taken = rank() == 0 and not take(file)
        except OSError as e:  # some clusters' file systems have no locks
            log.warning(f"'{run / 'lock'}' cannot be locked ({e.strerror}): see that no other command trains this run")
        if anywhere([taken], device)[0]:
            raise UserError(f"run '{run}' is being trained by another command; wait for it or name another folder")
        yield


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
