"""The command line that every recipe shares: a YAML file holds differences from the defaults, dotted flags override it.

jsonargparse reads both into dataclasses. An unknown key, a wrong type and an impossible value are errors of one line.
"""

import argparse
import difflib
import errno
import json
import re
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from d2v.config import demo_file
from d2v.errors import InputError, Interrupted, Prepared
from d2v.training.signals import end_workers, interrupt_at_signals, watch_launcher


def parse(config_class: type, args: list[str] | None = None, demo: Path | None = None) -> Any:
    """A recipe's configuration from the command line; InputError if it is not valid.

    What the command line says wins over a `--config` file, wherever that stands; of two files the later wins.

    Args:
        config_class: the recipe's `Config`.
        args: the command line, by default the process's.
        demo: YAML file of the embedded demo, the defaults where no `data.path` is given.
    """
    import jsonargparse
    from yaml import YAMLError

    args = sys.argv[1:] if args is None else args

    class Formatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
        """The recipe's description as it stands in its file, commands on lines of their own."""

    description = sys.modules[config_class.__module__].__doc__
    texts = text_options(config_class)
    files, options = config_files(args)
    groups = groups_of(config_class)
    contents = {file: content_of(file) for file in (*files, *([] if demo is None else [str(demo)]))}
    files = [file for file in files if not says_nothing(contents[file], groups)]
    loader = partial(load_yaml, texts=texts, groups=groups, files=contents.values())
    jsonargparse.set_loader("as written", loader, (YAMLError,))
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        description=description,
        formatter_class=Formatter,
        parser_mode="as written",
    )
    parser.add_argument("--config", action="config", help="YAML file with differences from the defaults.")
    parser.add_class_arguments(config_class)

    def read(args: list[str], file: str = "") -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = parser.parse_args(args)
                if nothing := none_of(config_class, values):
                    raise ValueError(f"{nothing} is null; it needs a value, and has its default where it is not given")
                return parser.instantiate_classes(values)
        except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
            raise InputError(file + explain(str(error), parser)) from error

    wrong: list[InputError] = []
    for file in files:
        try:
            read(["--config", file], file=f"{file}: ")  # on its own first, so that an error can name it
        except InputError as error:
            wrong.append(error)  # unless what else is given puts it right
    args = [*(f"--config={file}" for file in files), *quoted(options, texts)]
    try:
        values = read(args)
    except InputError as error:
        raise wrong[0] if wrong else error  # noqa: B904 (the same fault)
    if demo is not None and values.data.path is None:
        if published := next((file for file in files if needs_data(file, contents[file], demo)), None):
            raise InputError(
                f"{published}: has no data.path, and is not the demo's; add --data.path (its first lines say of what)"
            )
        values = read(["--config", str(demo), *args])
    return config_class(**{each.name: values[each.name] for each in fields(config_class)})


def config_files(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that `--config` names on a command line, and what else is there."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, options = finder.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    return found.config, options


def needs_data(file: str, content: str | None, demo: Path) -> bool:
    """Whether a file is one of those beside the demo's that are for data which have to be given.

    One that is for the demo's data too says so, by a `data.path` that is null.
    """
    import yaml

    path, demo = Path(file).expanduser().resolve(), demo.resolve()
    if path.parent != demo.parent or path == demo or not path.is_file():
        return False
    data = yaml.safe_load(content or "").get("data")
    return (data or {}).get("path", "") is not None


def none_of(config: type, values: Any, before: str = "") -> str | None:
    """The first option that is null and may not be; jsonargparse lets null stand for any."""
    hints = get_type_hints(config)
    for each in fields(config):
        hint, name = hints[each.name], before + each.name
        value = values[each.name] if isinstance(values, Mapping) else getattr(values, each.name)
        if value is None:
            if hint is not Any and type(None) not in get_args(hint):
                return name
        elif is_dataclass(hint) and (found := none_of(hint, value, f"{name}.")):  # type: ignore[arg-type]
            return found
    return None


def text_options(config: type, before: str = "") -> set[str]:
    """The options that are text, lists of texts or texts by name, such as data.names."""
    found = set()
    for name, hint in get_type_hints(config).items():
        if name not in {each.name for each in fields(config)}:
            continue
        if is_dataclass(hint):
            found |= text_options(hint, f"{before}{name}.")  # type: ignore[arg-type]
        elif is_text(hint):
            found.add(before + name)
    return found


def groups_of(config: type) -> dict[str, bool]:
    """Of each of a configuration's own options whether others stand under it."""
    hints = get_type_hints(config)
    return {
        each.name: is_dataclass(hints[each.name]) or get_origin(hints[each.name]) is dict for each in fields(config)
    }


def is_text(hint: Any) -> bool:
    """Whether values of a type are text, or hold text alone."""
    if hint is str:
        return True
    kinds = [kind for kind in get_args(hint) if kind not in (type(None), ...)]
    return get_origin(hint) is not Literal and bool(kinds) and all(map(is_text, kinds))


def content_of(file: str) -> str | None:
    """The text of a file, or what is given in place of one; None if it cannot be read, which the parser will say."""
    try:
        return Path(file).expanduser().read_text("utf-8")
    except (OSError, ValueError):
        return file if ":" in file else None


def says_nothing(content: str | None, groups: Mapping[str, bool]) -> bool:
    """Whether a file of options has none: it is empty, or all of its lines, or all under a group, are comments."""
    import yaml

    if content is None:
        return False
    try:
        values = yaml.load(content, yaml.BaseLoader)
    except yaml.YAMLError:
        return False
    if isinstance(values, dict) and values:
        return all(groups.get(key) and value == "" for key, value in values.items())
    return values in (None, "", "null", {})


def load_yaml(content: str, texts: set[str], groups: Mapping[str, bool], files: Collection[str | None]) -> Any:
    """The content of YAML, in which keys and values of the options `texts` are text as written, such as 007 and no.

    Args:
        content: a file's, or a value's of the command line.
        texts: from `text_options`.
        groups: from `groups_of`; one with nothing under it, as where its lines are comments, changes nothing.
        files: the contents of all files; in a value, keys such as data are no options.
    """
    import yaml
    from jsonargparse import get_loader

    if twice := repeated(nodes := yaml.compose(content, yaml.SafeLoader)):
        raise yaml.YAMLError(f"{twice} stands there twice")
    if nodes is None and content.strip():  # to YAML #1 is a comment
        return content
    values = get_loader("yaml")(content)
    if not isinstance(values, dict):
        return values
    found = as_written(values, yaml.load(content, yaml.BaseLoader), texts if content in files else set())
    for key, value in list(found.items()) if content in files else ():
        if groups.get(key) and not isinstance(value, dict | str | None):
            raise ValueError(f"{key} is {value!r:.40}; should have options under it, one a line")
        if value is None and groups.get(key):  # which the parser refuses
            found[key] = {}
        elif value == {} and key not in groups:  # which it takes for a group that there is not
            found[key] = None
    return found


def repeated(node: Any, before: str = "", seen: set[str] | None = None) -> str | None:
    """The first key of YAML's nodes that is there twice, of which only the last would count; `a.b` is b within a."""
    pairs, seen = node.value if getattr(node, "id", "") == "mapping" else [], set() if seen is None else seen
    for key, value in pairs:
        name = f"{before}{key.value}"
        if name in seen:
            return f"{name}, in line {key.start_mark.line + 1},"
        seen.add(name)
        if found := repeated(value, f"{name}.", seen):
            return found
    return None


def as_written(values: dict[Any, Any], written: dict[str, Any], texts: set[str], before: str = "") -> dict[Any, Any]:
    """The values, with those of the options `texts` as they were written; null stays null."""
    if len(values) < len(written):
        raise ValueError(f"two of the keys {', '.join(written)} mean the same in YAML; quotes tell them apart")
    if "<<" in written:
        raise ValueError("keys cannot be merged with <<; every option has a line of its own")
    found = {}
    for value, (key, text) in zip(values.values(), written.items(), strict=True):
        name = f"{before}{key}"
        if isinstance(value, dict) and name not in texts:
            found[key] = as_written(value, text, texts, name + ".")
        else:
            found[key] = text if name in texts and value is not None else value
    return found


def quoted(args: Sequence[str], texts: set[str]) -> list[str]:
    """The command line, with what is in lists of the options `texts` in quotes, so that it stays text."""
    import yaml

    found, name = [], ""
    for arg in args:
        option, equals, value = arg.partition("=") if arg.startswith("--") else (name, "", arg)
        if option.removeprefix("--").rstrip("+") in texts and value.lstrip().startswith(("[", "{")):
            value = re.sub(r"(?<=[\[,])\s*\*\s*(?=[\],])", '"*"', value)  # elsewhere in YAML an alias begins so
            with suppress(yaml.YAMLError):  # which the parser will name
                value = json.dumps(yaml.load(value, yaml.BaseLoader))
            arg = option + equals + value if equals else value
        name = "" if equals else option
        found.append(arg)
    return found


def explain(message: str, parser) -> str:
    """A parser's complaint on one line; an unknown key comes with the known ones, a likely one first."""
    known = [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]
    if match := re.search(
        r"(?:Group '([\w.]+)' does not accept option|[Kk]ey|Option) '([\w.-]+)'(?: is not (?:expected|accepted))?",
        message,
    ):
        key = f"{match[1]}.{match[2]}" if match[1] else match[2]
    elif match := re.search(r"[Uu]nrecognized arguments: --?([\w.-]+)", message):
        key = match[1]
    elif match := re.match(r"Parser key \"([\w.]+)\":\s+Expected a <class 'list'>. Got value: ([^\n]{,40})", message):
        return f"{match[1]} is {match[2]!r}; should be a list in brackets, such as [{match[2]}]"
    elif match := re.match(r"Unexpected config: ([^\n]{,40})", message):
        return f"should have an option a line with its value, such as mode: train; not {match[1]!r}"
    else:
        return re.sub(r"\s+", " ", message)
    group = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == group] or known
    plain = {name: re.sub("[-_]", ".", name) for name in known}  # a dash, an underscore and a dot are easily confused
    guess = [name for name in known if f".{plain[name]}".endswith("." + re.sub("[-_]", ".", key)) and name != key]
    guess = guess or difflib.get_close_matches(key, known, n=1)
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
    interrupt_at_signals()
    watch_launcher()
    out = "a file"
    try:
        config = parse(config_class, demo=demo_file(config_class))
        out = config.run.out
        main(config)
    except Prepared as done:
        if str(done):  # on the process that speaks for all
            print(done)
    except InputError as error:
        # One from a data worker comes with the worker's traceback before it.
        exit_with(2, f"error: {str(error).rpartition('d2v.errors.InputError: ')[2].strip()}")
    except Interrupted as error:
        exit_with(130, f"interrupted: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise
        exit_with(2, f"error: {error.filename or out}: {error.strerror}; what was saved before is untouched")
    finally:
        end_workers()


def given_path(text: str) -> Path:
    """A path on a command's line; argparse's complaint if it is blank, which would be the folder that it runs in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty, such as a variable that is not set")
    return Path(text)


def exit_with(code: int, message: str) -> None:
    """Exit with one line on the terminal."""
    print(re.sub(r"\s*\n\s*", " ", message), file=sys.stderr)
    sys.exit(code)
