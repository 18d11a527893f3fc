"""The command line that every recipe shares: a YAML file holds differences from the defaults, dotted flags override it.

jsonargparse reads both into dataclasses. An unknown key, a wrong type and an impossible value are errors of one line.
"""

import argparse
import difflib
import errno
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from d2v.errors import InputError, Interrupted
from d2v.training.signals import interrupt_at_signals, watch_launcher


def parse(config_class: type, args: list[str] | None = None, demo: Path | None = None) -> Any:
    """A recipe's configuration from the command line; InputError if it is not valid.

    What the command line says wins over a `--config` file, wherever that stands; of two files the later wins.

    Args:
        config_class: the recipe's `Config`.
        args: the command line, by default the process's.
        demo: YAML file of the embedded demo, the defaults where no `data.path` is given.
    """
    import jsonargparse

    args = sys.argv[1:] if args is None else args

    class Formatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
        """The recipe's description as it stands in its file, commands on lines of their own."""

    description = sys.modules[config_class.__module__].__doc__
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description=description, formatter_class=Formatter
    )
    parser.add_argument("--config", action="config", help="YAML file with differences from the defaults.")
    parser.add_class_arguments(config_class)

    def read(args: list[str], file: str = "") -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return parser.instantiate_classes(parser.parse_args(args))
        except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
            raise InputError(file + explain(str(error), parser)) from error

    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, options = finder.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    for file in found.config:
        read(["--config", file], file=f"{file}: ")  # on its own first, so that an error can name it
    args = [*(f"--config={file}" for file in found.config), *options]
    values = read(args)
    if demo is not None and values.data.path is None:
        values = read(["--config", str(demo), *args])
    return config_class(**{each.name: values[each.name] for each in fields(config_class)})


def explain(message: str, parser) -> str:
    """A parser's complaint on one line; an unknown key comes with the known ones, a likely one first."""
    known = [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]
    if match := re.search(
        r"(?:Group '([\w.]+)' does not accept option|[Kk]ey|Option) '([\w.]+)'(?: is not (?:expected|accepted))?",
        message,
    ):
        key = f"{match[1]}.{match[2]}" if match[1] else match[2]
    elif match := re.search(r"[Uu]nrecognized arguments: --([\w.]+)", message):
        key = match[1]
    else:
        return re.sub(r"\s+", " ", message)
    group = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == group] or known
    guess = [name for name in known if name.endswith("." + key)] or difflib.get_close_matches(key, known, n=1)
    return (
        f"unknown option {key!r}; "
        + (f"did you mean {guess[0]!r}? " if guess else "")
        + f"known: {', '.join(siblings)}"
    )


def run(main: Callable[[Any], Any], config_class: type) -> None:
    """Run a recipe from the command line; exit code 0, 2 for bad input, 130 for an interrupt that was saved.

    Args:
        main: the recipe's.
        config_class: the recipe's `Config`; `configs/<recipe>/demo.yaml` beside its file is the demo's configuration.
    """
    recipe = Path(sys.modules[config_class.__module__].__file__ or "")
    demo = recipe.parent / f"configs/{recipe.stem}/demo.yaml"
    interrupt_at_signals()
    watch_launcher()
    try:
        main(parse(config_class, demo=demo if demo.is_file() else None))
    except InputError as error:
        # One from a data worker comes with the worker's traceback before it.
        exit_with(2, f"error: {str(error).rpartition('d2v.errors.InputError: ')[2].strip()}")
    except Interrupted as error:
        exit_with(130, f"interrupted: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        exit_with(2, f"error: {error.filename or 'a file'}: {error.strerror}; what was saved before is untouched")


def exit_with(code: int, message: str) -> None:
    """Exit with one line on the terminal."""
    print(re.sub(r"\s*\n\s*", " ", message), file=sys.stderr)
    sys.exit(code)
