"""The processes of a run: rank and world size, start and end, and collective operations."""

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

from reasonbrain.errors import RunError, UserError, first_line
from reasonbrain.utils.locks import opened, take

# timeout of collectives; long, since all wait while rank 0 exports the model (faults.py detects lost processes)
PATIENCE = timedelta(minutes=30)
log = logging.getLogger(__name__)


def rank() -> int:
    """The rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join() -> torch.device:
    """Initialises the process group, if there are several processes, and returns this process's device.

    Raises UserError for an invalid launch, RunError if the processes cannot connect.
    """
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
            raise RunError(f"launch: the processes cannot connect: {first_line(e)}") from None
    return device


def leave() -> None:
    """Waits for all processes and destroys the process group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def store() -> dist.Store:
    """Opens a new connection to the rendezvous store."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"reasonbrain/{attempt}", dist.TCPStore(address, port))


@contextmanager
def one_voice() -> Iterator[None]:
    """If all processes fail with the same UserError, only rank 0 raises it; the others exit with its code."""
    try:
        yield
    except UserError as e:
        if not _speaks(str(e)):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent by the launcher when rank 0 has exited
            time.sleep(2)  # otherwise the launcher could kill rank 0 before it prints the message
            raise SystemExit(2) from None
        raise


def _speaks(message: str) -> bool:
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    if world() == 1:
        return True
    try:
        shared, patience = store(), timedelta(seconds=5)  # the others fail at about the same time
        shared.set(f"mistake/{rank()}", message)
        shared.wait([f"mistake/{other}" for other in (range(1, world()) if rank() == 0 else [0])], patience)
        return rank() == 0 or shared.get("mistake/0").decode() != message
    except dist.DistError:
        return True


@contextmanager
def claimed(folder: Path, device: torch.device, busy: str) -> Iterator[None]:
    """Locks a folder that the processes of one command write. Raises UserError if another command has it, with ``busy``
    as the start of the message, or if the folder cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a", opener=opened)
    except OSError as e:
        raise UserError(f"output folder '{folder}' cannot be created: {e.strerror}") from None
    taken = False
    with file:
        try:
            taken = rank() == 0 and not take(file)
        except OSError as e:  # some cluster file systems have no locks
            log.warning(
                f"'{folder / 'lock'}' cannot be locked ({e.strerror}): make sure that no other command writes there"
            )
        if anywhere([taken], device)[0]:
            raise UserError(f"{busy} by another command; wait for it or choose another folder")
        yield


def wait() -> None:
    """A barrier over all processes."""
    if dist.is_initialized():
        dist.barrier()


def anywhere(flags: list[bool], device: torch.device) -> list[bool]:
    """For each flag, whether it is set in any process."""
    if world() == 1:
        return flags
    seen = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(seen, dist.ReduceOp.MAX)
    return [bool(x) for x in seen.tolist()]


def first(found: str | None) -> str | None:
    """What the first process has that has something; None if none has."""
    everyone: list[str | None] = [found] * world()
    if world() > 1:
        dist.all_gather_object(everyone, found)
    return next(filter(None, everyone), None)


def means(sums: dict[str, tuple[float, int]], device: torch.device) -> dict[str, float]:
    """The mean of each value over all processes, from its local (sum, count); values without counts are dropped."""
    total = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    if world() > 1:
        dist.all_reduce(total)
    return {name: value / count for name, (value, count) in zip(sums, total.tolist(), strict=True) if count}


def average_gradients(params: list[Tensor]) -> None:
    """Averages gradients over all processes in one all-reduce, in place.

    A parameter must have a gradient in all processes or in none.
    """
    if world() == 1:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for grad, averaged in zip(grads, (flat / world()).split([g.numel() for g in grads]), strict=True):
        grad.copy_(averaged.view_as(grad))
