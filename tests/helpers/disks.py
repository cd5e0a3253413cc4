"""Disks that are read-only or full. They are file systems in memory, since permissions do not stop root."""

import subprocess
from contextlib import contextmanager

import pytest

READ_ONLY = "ro"
FULL = "size=40k"  # after a few small files
NO_FILES = "size=1g,nr_inodes=3"  # of the root folder, an output folder and one more


@contextmanager
def disk(folder, options):
    """Mounts a new file system on ``folder`` for the block. Skips the test where mounting is not allowed: only a mount
    makes a disk that is read-only or full for root, too."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
