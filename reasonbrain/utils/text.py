"""Checks of text, and text made printable for messages.

is_text("caf\\u00e9")        # True
is_text("\\ud800")           # False: a lone surrogate cannot be encoded as UTF-8
printable("a\\nb")           # "a\\\\nb"
"""

from __future__ import annotations


def is_text(text: str) -> bool:
    """Whether a text can be stored in any file: it is valid Unicode, without lone surrogates, and has no zero byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def printable(text: str, longest: int | None = None) -> str:
    """The text in one line, with unprintable characters and lone surrogates escaped. ``longest``: number of characters
    after which it is truncated; None: not at all."""
    if longest is not None and len(text) > longest:
        text = text[:longest] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
