"""Text files that are written completely or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from reasonbrain.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write to. It replaces ``path`` when the block ends without an error.

    Raises UserError if it cannot be written, and leaves the old file as it was."""
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"output '{path}' cannot be written: {e.strerror or e}") from None
    finally:
        temporary.unlink(missing_ok=True)
