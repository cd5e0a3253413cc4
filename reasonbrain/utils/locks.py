"""File locks between processes (flock). A lock is released when its holder ends, however it ends.

with alone(run / "lock"):                                  # waits for the lock
    ...
with alone(out / "lock", busy=f"output '{out}' is in use"):  # raises UserError while another process holds it
    ...
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from reasonbrain.errors import UserError


def opened(path: str, flags: int) -> int:
    """An opener for ``open``, for files that a command appends to. Raises OSError for a link, which may lead to a file
    of something else, and for a pipe, instead of waiting for its reader."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def take(file: IO[Any], shared: bool = False, wait: bool = False) -> bool:
    """Locks an open file, or changes the lock that this process holds on it, and returns whether it did.

    ``shared``: several processes may hold the lock at once, but none that asks for it exclusively. ``wait``: blocks
    until the lock is free. Raises OSError on a file system without locks."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        return False


@contextmanager
def alone(path: Path, busy: str | None = None) -> Iterator[IO[str]]:
    """Holds an exclusive lock on the file ``path``, which is created where needed, and yields the open file. A child
    process that inherits the file's descriptor holds the lock as well.

    Waits while another process holds the lock; with ``busy``, raises UserError with that message instead. Raises
    UserError where the file cannot be created."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", opener=opened)
    except OSError as e:
        raise UserError(f"lock '{path}' cannot be created: {e.strerror}") from None
    with file:
        if not take(file, wait=busy is None):
            raise UserError(busy)
        yield file
