"""File locks between processes."""

import os
import subprocess
import sys

import pytest

from reasonbrain.errors import UserError
from reasonbrain.utils.locks import alone, take

HOLDER = """
import sys
from pathlib import Path
from reasonbrain.utils.locks import alone

with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock ``tmp_path``/lock until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_lock_excludes_others_until_its_holder_is_killed(holder, tmp_path):
    with pytest.raises(UserError, match="in use"), alone(tmp_path / "lock", busy="in use"):
        pass
    with (tmp_path / "lock").open("a") as file:
        assert not take(file) and not take(file, shared=True)
    holder.kill()
    with alone(tmp_path / "lock"):  # waits for it
        pass
    with alone(tmp_path / "lock", busy="in use"):
        pass


def test_a_child_that_inherits_the_file_holds_the_lock(tmp_path):
    with alone(tmp_path / "lock") as file:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
    with pytest.raises(UserError, match="in use"), alone(tmp_path / "lock", busy="in use"):
        pass
    child.communicate(b"\n")
    with alone(tmp_path / "lock", busy="in use"):
        pass


def test_shared_locks(tmp_path):
    with (tmp_path / "lock").open("a") as one, (tmp_path / "lock").open("a") as two:
        assert take(one) and not take(two, shared=True)
        assert take(one, shared=True) and take(two, shared=True)  # the exclusive lock became a shared one
        assert not take(one)
    with (tmp_path / "lock").open("a") as three:
        assert take(three)


def test_a_lock_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="lock '.*' cannot be created"), alone(tmp_path / "file" / "lock"):
        pass


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_is_never_a_link_or_a_pipe(tmp_path, kind):
    """A folder from somebody else may hold one: the file that it leads to is not created, and nothing waits for it."""
    path = tmp_path / "lock"
    path.symlink_to("elsewhere") if kind == "link" else os.mkfifo(path)
    with pytest.raises(UserError, match="lock' cannot be created"), alone(path):
        pass
    assert not (tmp_path / "elsewhere").exists()
