"""Reading files from untrusted sources.

report = read_json(path, "--against 'old'")  # raises UserError, whatever is wrong with the file
row = parse_json('{"id": 1, "id": 2}')       # raises ValueError: the key 'id' occurs twice
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reasonbrain.errors import UserError

LARGEST = 1 << 30  # bytes of a JSON file
ENDS = 1 << 12  # bytes of a file that ``sketch`` reads at the start and at the end


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


def sketch(path: Path) -> str:
    """A hash of a file's size and of its first and last ``ENDS`` bytes: an edited file nearly always has another one,
    whatever its date."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(ENDS)
        file.seek(max(0, size - ENDS))
        return hashlib.blake2b(f"{size} ".encode() + start + file.read(ENDS), digest_size=16).hexdigest()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that a person or another program wrote. Raises ValueError if it is not JSON, and for an
    object with a repeated key, of which json.loads would drop the first value."""
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key '{Counter(key for key, _ in pairs).most_common(1)[0][0]}' occurs twice")
    return found


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
