"""What an instruction may be."""

from __future__ import annotations

from typing import Any

from reasonbrain.errors import UserError
from reasonbrain.utils.text import is_text

LONGEST = 10_000  # characters; time and memory of the MLLM grow with the length


def check_instruction(text: Any) -> None:
    """Raises UserError for an instruction that is no text, empty, no valid Unicode text, or longer than ``LONGEST``."""
    if text is not None and not isinstance(text, str):
        raise UserError(f"instruction {text!r:.60} is not text but a {type(text).__name__}")
    if text is None or not text.strip():
        raise UserError(f"instruction {text!r:.60} is empty; an example: 'What if the ice were left in the sun?'")
    if len(text) > LONGEST:
        raise UserError(f"instruction '{text[:20]}...' has {len(text)} characters; the most are {LONGEST}")
    check_text("instruction", text)


def check_text(what: str, text: Any) -> None:
    """Raises UserError, naming ``what``, unless the text is valid Unicode (no lone surrogates, no zero byte)."""
    if not isinstance(text, str) or not is_text(text):
        raise UserError(f"{what} {text!r:.60} is not valid Unicode text")
