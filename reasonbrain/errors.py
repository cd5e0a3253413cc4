"""The errors that the command line prints as one line, without a traceback."""


class UserError(Exception):
    """An error that the user can fix. The message is one line that names the setting, its value and the choices. Exit
    code 2."""


class RunError(Exception):
    """A run that ended early although its command was valid. The same command resumes it. Exit code 1."""


def reason(error: Exception) -> str:
    """What an error says about the row or the file that raised it, in one line. The class is named unless it is a
    UserError. For loops in which one item must not end the others."""
    said = " ".join(str(error).split())
    return said if isinstance(error, UserError) and said else f"{type(error).__name__}: {said}".rstrip(": ")


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on an accelerator or on the CPU, where torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
