"""Writes files and folders completely or not at all, and never over files that this package did not write.

with whole_file(path) as file: ...      # a text file; replaces the old one when complete
with whole_folder(path) as new: ...     # a folder; replaces only a folder that whole_folder wrote
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from reasonbrain.errors import UserError
from reasonbrain.utils.locks import alone
from reasonbrain.utils.text import is_text, printable

WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
RUST = re.compile(rf"\(os error ({'|'.join(map(str, WRITING))})\)")  # how Rust ends the message of such an error
OURS = ".reasonbrain"  # in a folder that whole_folder wrote: the list of its files, a lock, and what is being written


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Opens a text file for writing, which replaces ``path`` when the block ends without an error. A device or a pipe,
    such as /dev/stdout, is written to and not replaced.

    Raises UserError if it cannot be written; the old file is then unchanged."""
    if path.exists() and not path.is_file():
        try:
            with path.open("w", encoding="utf-8") as file:
                yield file
        except OSError as e:
            raise UserError(f"output '{path}' cannot be written: {e.strerror or e}") from None
        return
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"output '{path}' cannot be written: {e.strerror or e}") from None
    finally:
        with suppress(OSError):  # it is not there, or on a disk that has become read-only
            temporary.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError where the block cannot write to ``path``: a full or a read-only disk, no permission."""
    try:
        yield
    except OSError as e:
        if e.errno not in WRITING:
            raise
        raise UserError(f"output '{path}' cannot be written: {e.strerror}") from None
    except Exception as e:  # libraries in Rust have no OSError: safetensors its own, tokenizers a bare Exception
        if not RUST.search(str(e)):
            raise
        raise UserError(f"output '{path}' cannot be written: {e}") from None


def check_not_input(output: Path, inputs: Iterable[str | Path]) -> None:
    """Raises UserError if ``output`` is one of the files ``inputs``, which writing it would replace; also under another
    name, as a symbolic or a hard link."""
    try:
        there = os.stat(output)
    except (OSError, ValueError):  # nothing that could be replaced
        return
    for path in inputs:
        with suppress(OSError, ValueError):
            if os.path.samestat(there, os.stat(path)):
                raise UserError(f"output '{output}' is an input of this command, '{path}'; name another file")


def inside(folder: str | Path, name: str, called: str = "its folder") -> Path:
    """The path of the file ``name``, relative to ``folder``, with symbolic links resolved.

    ``called``: what the error message calls the folder. Raises UserError if the path is outside the folder or not valid
    text."""
    root = _folder(os.path.abspath(folder))
    if is_text(name):
        path = os.path.join(root, name)
        real = os.path.join(_folder(os.path.dirname(path)), os.path.basename(path))
        if os.path.islink(real) or os.path.basename(path) in ("..", "."):
            real = os.path.realpath(real)
        if real.startswith(root.rstrip(os.sep) + os.sep):
            return Path(real)
    raise UserError(f"'{printable(name)}' leads outside {called}")


@lru_cache(maxsize=4096)
def _folder(path: str) -> str:
    return os.path.realpath(path)


def check_file(path: Path) -> None:
    """Checks, before a long computation, that ``whole_file`` can write to ``path``. Raises UserError if ``path`` is a
    folder, or if its folder is missing or cannot be written to."""
    if path.is_dir():
        raise UserError(f"output '{path}' is a folder; use a file in it")
    if path.exists() and not path.is_file():  # a device or a pipe
        return
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # the only reliable test, for root and on any file system
            pass
    except OSError as e:
        raise UserError(f"output '{path}' cannot be written: {e.strerror or e}") from None


def check_name(path: Path) -> None:
    """Raises UserError for a path that is not valid Unicode: safetensors, tokenizers and JSON cannot hold it."""
    if not is_text(str(path)):
        raise UserError(f"output '{printable(str(path))}' is not valid Unicode in this locale; name another folder")


def check_replaceable(path: Path) -> list[str]:
    """The files of the folder ``path``, relative to it, if ``whole_folder`` may replace them: all were written by it.
    An absent or an empty folder has none. Raises UserError naming the first file that is not ours, and like
    ``check_name``."""
    check_name(path)
    if not path.exists():
        if path.is_symlink():
            raise UserError(f"output '{path}' is a link to '{os.readlink(path)}', which does not exist")
        return []
    if not path.is_dir():
        raise UserError(f"output '{path}' is not a folder")
    try:
        ours = set(json.loads((path / OURS / "files.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        ours = set()
    present = []
    for folder, folders, files in os.walk(path):
        within = Path(folder).relative_to(path).parts
        if not within:
            folders[:] = [f for f in folders if f != OURS]
        links = [f for f in folders if (Path(folder) / f).is_symlink()]
        present += ["/".join((*within, name)) for name in files + links]
    foreign = sorted(set(present) - ours)
    if foreign:
        raise UserError(
            f"output '{path}' holds '{foreign[0]}', which this command did not write; name a new or an empty folder"
        )
    return present


@contextmanager
def whole_folder(path: Path, last: str) -> Iterator[Path]:
    """Yields a new folder to write to. When the block ends without an error, its files are moved to ``path``, the file
    ``last`` after all others: a folder without this file is incomplete.

    ``path`` may be missing, empty, the current folder, a link to a folder, or a folder that ``whole_folder`` wrote and
    to which nothing was added. A process that is killed while it writes leaves a folder that can be written again.
    Raises UserError for any other folder, while another process writes to it, and if it cannot be written."""
    check_replaceable(path)
    ours = path / OURS
    with alone(ours / "lock", busy=f"output '{path}': another process is writing to it"):
        old = check_replaceable(path)
        new = ours / "new"
        try:
            with writing(path):
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                yield new
                files = sorted(f.relative_to(new).as_posix() for f in new.rglob("*") if f.is_file())
                _list(sorted({*old, *files}), ours)
                for name in sorted(old, key=lambda n: n != last):
                    (path / name).unlink()
                for name in sorted(files, key=lambda n: n == last):
                    (path / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(new / name, path / name)
                _list(files, ours)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _list(files: list[str], ours: Path) -> None:
    with whole_file(ours / "files.json") as file:  # on a full disk the old list stays, and what it lists stays ours
        json.dump(files, file)
