"""The errors that the command line turns into one line."""


class UserError(Exception):
    """An error that the user can fix. The message is one line that names the thing, its value and the choices. Exit
    code 2."""


class RunError(Exception):
    """A run that ended early although its command is right; the same command resumes it. Exit code 1."""
