"""The one exception for input that a user can mend. Every part of d2v may raise it; nothing else is shared here."""


class InputError(ValueError):
    """A file, row, key or option is wrong; the message is one line that names it and says what would be right.

    Recipes print the message without a traceback and exit with code 2 (see `d2v.config.run`).
    """
