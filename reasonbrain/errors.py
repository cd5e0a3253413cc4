"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """One line that names the thing, its value and the choices. The command line prints it and exits with 2."""
