"""Errors that are the user's to mend."""


class UserError(Exception):
    """Something the user gave cannot be used; the message says what, its value, and what to do.

    The command line prints it as one line and exits with code 2, without a traceback.
    """
