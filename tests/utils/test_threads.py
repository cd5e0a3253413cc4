"""Threads: order, the first error, a deadline, and Ctrl-C."""

import signal
import subprocess
import sys
import time

import pytest

from reasonbrain.utils.threads import as_finished, within


def test_every_item_is_done_once():
    found = dict(as_finished(lambda n: n * n, list(range(100)), 8))
    assert found == {n: n * n for n in range(100)} and list(as_finished(abs, [], 8)) == []


def test_the_first_error_is_raised_after_items_in_progress():
    begun, ended = [], []

    def work(number):
        begun.append(number)
        if number == 1:
            raise KeyError("one")
        time.sleep(0.1)
        ended.append(number)

    with pytest.raises(KeyError, match="one"):
        list(as_finished(work, list(range(100)), 3))
    assert len(begun) < 10 and sorted(ended) == sorted({*begun} - {1})


def test_a_deadline():
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.1, lambda: time.sleep(60))
    assert time.monotonic() - start < 5


WAITS = """
import time
from reasonbrain.utils.threads import as_finished
print("waits", flush=True)
list(as_finished(lambda n: time.sleep(600), [1, 2, 3], 2))
"""


def test_ctrl_c_ends_the_wait():
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waits\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
