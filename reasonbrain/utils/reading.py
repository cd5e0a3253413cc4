"""Reading files from untrusted sources.

report = read_json(path, "--against 'old'")  # raises UserError, whatever is wrong with the file
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reasonbrain.errors import UserError

LARGEST = 1 << 30  # bytes of a JSON file


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. Raises UserError, with ``what`` as the start of the message, if the file is missing,
    not a regular file, larger than ``LARGEST`` bytes, or not JSON."""
    if not path.is_file():  # opening a FIFO would wait for a writer
        raise UserError(f"{what}: there is no file '{path}'")
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{what}: '{path}' has more than {LARGEST} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{what}: '{path}' cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{what}: '{path}' is not JSON: {e}") from None


def check_ours(folder: Path, names: Sequence[str], keys: Sequence[str]) -> None:
    """Checks that a command may write the files ``names`` to a folder: either none of them exists, or the first one is
    a JSON object with ``keys``, so that the command has written it. Otherwise raises UserError naming an existing
    file."""
    there = [name for name in names if os.path.lexists(folder / name)]
    if not there:
        return
    try:
        found = read_json(folder / names[0], "output") if names[0] in there else None
    except UserError:
        found = None
    if not isinstance(found, dict) or not {*keys} <= found.keys():
        raise UserError(f"output '{folder}' holds '{there[0]}', which this command did not write; use another folder")
