"""The errors that the command line prints as one line, without a traceback."""


class UserError(Exception):
    """An error that the user can fix. The message is one line that names the setting, its value and the choices. Exit
    code 2."""


class RunError(Exception):
    """A run that ended early although its command was valid. The same command resumes it. Exit code 1."""
