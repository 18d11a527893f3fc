"""How a run ends early: bad input, or a signal. Every part of d2v may raise these; nothing else is shared here."""


class InputError(ValueError):
    """A file, row, key or option is wrong; the message is one line that names it and says what would be right.

    Recipes print the message without a traceback and exit with code 2 (see `d2v.cli.run`).
    """


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came and the run was saved; the message says how to go on. Recipes exit with code 130."""
