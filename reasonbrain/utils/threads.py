"""Threads for I/O-bound work. They are daemons and never keep the process alive, so Ctrl-C ends every wait.

for number, answer in as_finished(ask, questions, threads=8): ...
page = within(60, fetch)  # raises TimeoutError if it takes longer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_finished(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[tuple[int, Result]]:
    """Yields (index of the item, ``work(item)``) as they finish. After the first error no further item is started, and
    the error is raised once the items in progress have finished. If the caller is interrupted, they are abandoned."""
    numbers, taking, stop = iter(range(len(items))), Lock(), Event()
    finished: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        while not stop.is_set():
            with taking:
                number = next(numbers, None)
            if number is None:
                return
            result, error = _outcome(lambda number=number: work(items[number]))  # type: ignore[misc]
            if error:
                stop.set()
            finished.put((number, result, error))

    running = [Thread(target=run, daemon=True) for _ in range(min(threads, len(items)))]
    for thread in running:
        thread.start()
    try:
        for _ in items:
            number, result, error = finished.get()
            if error:
                for thread in running:
                    thread.join()
                raise error
            yield number, result
    finally:
        stop.set()


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Runs ``work()`` in a thread of its own and returns its result. Raises TimeoutError if it takes longer; the thread
    is then abandoned."""
    finished: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    Thread(target=lambda: finished.put(_outcome(work)), daemon=True).start()
    try:
        result, error = finished.get(timeout=max(0.0, seconds))
    except Empty:
        raise TimeoutError(f"no result within {seconds:g} s") from None
    if error:
        raise error
    return result


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except BaseException as e:
        return None, e
