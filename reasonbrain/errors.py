"""The errors that the command line turns into one line."""


class UserError(Exception):
    """The user's to mend: one line that names the thing, its value and the choices. Exit code 2."""


class RunError(Exception):
    """A run that ended although nothing is wrong with its command, which goes on with it. Exit code 1."""
