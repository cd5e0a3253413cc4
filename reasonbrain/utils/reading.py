"""Files that others may have written: JSON that may be damaged, and names that may lead anywhere.

report = read_json(path, "--against 'old'")      # one line of error, whatever the file holds
picture = inside(folder, row["source"], "row 3")  # never a file outside the folder
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from reasonbrain.errors import UserError

LARGEST = 1 << 30  # bytes of a JSON file


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. Raises UserError, which starts with ``what``, if it is missing, not a file, larger
    than ``LARGEST`` or not JSON."""
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


def inside(folder: Path, name: str, what: str) -> Path:
    """The path of the file ``name``, relative to ``folder``, with links resolved. Raises UserError, which starts with
    ``what``, if it is outside the folder."""
    root = os.path.realpath(folder)
    try:
        path = os.path.realpath(os.path.join(root, name))
    except ValueError as e:  # a zero byte in the name
        raise UserError(f"{what}: {name!r}: {e}") from None
    if not path.startswith(root.rstrip(os.sep) + os.sep):
        raise UserError(f"{what}: {name!r} leads outside the folder '{folder}'")
    return Path(path)
