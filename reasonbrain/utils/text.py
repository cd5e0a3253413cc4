"""What counts as text, and text for messages.

is_text("caf\\u00e9")        # True
is_text("\\ud800")           # False: half of a surrogate pair, which no file can hold
printable("a\\nb")           # "a\\\\nb"
"""

from __future__ import annotations


def is_text(text: str) -> bool:
    """Whether every file can hold the text: it is valid Unicode, without lone surrogates, and has no zero byte."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def printable(text: str, longest: int | None = None) -> str:
    """The text in one line, with unprintable characters and lone surrogates escaped. ``longest``: characters after
    which it is cut."""
    if longest is not None and len(text) > longest:
        text = text[:longest] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
