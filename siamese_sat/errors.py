"""The one exception that a user is meant to see."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the file or setting and the remedy; the command-line doors print it
    and exit with a non-zero status, without a traceback.
    """
