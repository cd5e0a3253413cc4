"""The errors that the command line prints as one line, without a traceback."""


class UserError(Exception):
    """An error that the user can fix. The message is one line that names the setting, its value and the choices. Exit
    code 2."""


class RunError(Exception):
    """A run that ended early through no fault of its command. Running the same command again resumes it. Exit code 1."""
