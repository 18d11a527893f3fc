"""How a run ends early: bad input, a signal, or all is prepared. Every part of d2v may raise these."""


class InputError(ValueError):
    """A file, row, key or option is wrong; the message is one line that names it and says what would be right.

    Recipes print the message without a traceback and exit with code 2 (see `d2v.cli.run`).
    """


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came and the run was saved; the message says how to go on. Recipes exit with code 130."""


class Prepared(Exception):
    """Everything that a training needs is there, as `--mode prepare` asked; the message says what. Exit code 0."""
