"""The errors that the command line prints as one line, without a traceback."""

from reasonbrain.utils.text import printable


class UserError(Exception):
    """An error that the user can fix. The message is one line that names the setting, its value and the choices. Exit
    code 2."""


class Unavailable(UserError):
    """A service cannot be used that every further row needs. A loop over rows ends, so that rows are not recorded as
    failed that have nothing wrong with them; the same command resumes it."""


class RunError(Exception):
    """A run that ended early although its command was valid. The same command resumes it. Exit code 1."""


def reason(error: BaseException) -> str:
    """What an error says about the row or the file that raised it, as one line of printable text. An error of a library
    starts with its class. For loops in which one item must not end the others."""
    said = printable(" ".join(str(error).split()))
    known = isinstance(error, (UserError, RunError)) and said
    return said if known else f"{type(error).__name__}: {said}".removesuffix(": ")


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says; its class if it says nothing, as many timeouts and assertions."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on an accelerator or on the CPU, where torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
