"""The English of Python's documentation: the standard library's docstrings, and the language reference of `help()`."""

import ast
import functools
import importlib
import inspect
import os
import pkgutil
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from d2v.errors import InputError

# Chapters of the Library Reference, some put together, and those of their modules that Python 3.10 and later have.
AREAS = {
    "data": "array bisect calendar collections copy datetime decimal enum fractions graphlib heapq math numbers pprint "
    "random statistics types weakref zoneinfo",
    "text": "codecs difflib gettext locale re string textwrap unicodedata",
    "files": "bz2 configparser csv filecmp fileinput fnmatch glob gzip io lzma netrc os pathlib pickle plistlib "
    "posixpath shelve shutil stat tarfile tempfile zipfile zlib",
    "concurrency": "asyncio concurrent contextvars multiprocessing queue sched subprocess threading",
    "network": "ftplib http imaplib ipaddress poplib selectors smtplib socket socketserver ssl urllib uuid webbrowser "
    "wsgiref xmlrpc",
    "markup": "base64 email html json mailbox mimetypes quopri xml",
    "development": "bdb cProfile doctest pdb profile pstats pydoc timeit trace tracemalloc unittest",
    "language": "abc ast atexit builtins code codeop contextlib dataclasses dis functools importlib inspect itertools "
    "logging operator pkgutil runpy symtable sys tokenize traceback typing warnings zipimport",
}
LEFT_OUT = re.compile(r"\.(__main__|windows_\w+|\w+_win32)$")  # modules that run when imported, or not everywhere
OTHERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}  # folders of no library
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FEWEST = 2000
"""Docstrings; fewer are found where they were stripped, by `python -OO` or from the installation."""


class Documented(NamedTuple):
    """A class or function of the standard library.

    Attributes:
        area: one of `AREAS`.
        name: such as `Path.exists`.
        parameters: each with its default as text, or None if it has none.
        text: the docstring.
    """

    area: str
    name: str
    parameters: dict[str, str | None]
    text: str


@functools.cache
def docstrings() -> list[Documented]:
    """Every docstring once, in an order that only the version of Python decides.

    Raises:
        InputError: this Python has none.
    """
    found: dict[str, Documented] = {}
    for area, packages in AREAS.items():
        for module in (module for package in packages.split() for module in modules(package)):
            for name, thing in members(module):
                text = getattr(thing, "__doc__", None)
                if isinstance(text, str) and (text := inspect.cleandoc(text).strip()):
                    found.setdefault(text, Documented(area, name, parameters(thing), text))
    if len(found) < FEWEST:
        raise InputError("the demo of text is made of Python's docstrings, which are missing here (python -OO?)")
    return list(found.values())


def modules(package: str) -> Iterator[ModuleType]:
    """A module and those inside it; none that this platform lacks."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(package)
    except ImportError:
        return
    yield module
    for inside in sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))):
        if not LEFT_OUT.search(name := f"{package}.{inside}"):
            yield from modules(name)


def members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The classes and functions that a module defines, and the methods of its classes, by name.

    Other packages add methods to classes of the standard library, such as `logging.Logger`: these are left out.
    """
    for name, thing in sorted(vars(module).items()):
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            yield name, thing
            for attribute, method in sorted(vars(thing).items()):
                if isinstance(method, staticmethod | classmethod):
                    method = method.__func__
                origin = getattr(method, "__module__", None) or module.__name__
                known = origin.partition(".")[0] in sys.stdlib_module_names
                if known and (inspect.isroutine(method) or isinstance(method, property)):
                    yield f"{name}.{attribute}", method
        elif inspect.isroutine(thing):
            yield name, thing


def parameters(thing: Any) -> dict[str, str | None]:
    """Parameters and those of their defaults that print the same everywhere; none if they are not known."""
    try:
        known = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return {}
    plain = (bool, int, float, str, type(None))
    return {each.name: repr(each.default) if type(each.default) in plain else None for each in known}


@functools.cache
def source_texts() -> list[str]:
    """Docstrings and blocks of comments of the standard library's own source files, tests left out, by file."""
    root, found = Path(sysconfig.get_path("stdlib")), []
    paths: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in OTHERS]  # installed packages are many more files
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    for path in sorted(paths, key=lambda path: path.relative_to(root).parts):
        source = path.read_text("utf-8", errors="replace")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):
            continue
        texts = [ast.get_docstring(each) for each in nodes if isinstance(each, DOCUMENTED)]
        found += [text for text in texts if text]
        blocks = re.findall(r"(?:^[ \t]*#.*\n)+", source, re.MULTILINE)
        found += [re.sub(r"^[ \t]*#+ ?", "", block, flags=re.MULTILINE) for block in blocks]
    return found


@functools.cache
def topics() -> list[str]:
    """The topics of the language reference, by name."""
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items())]


def paragraphs(text: str) -> list[str]:
    """The paragraphs and items of lists that are prose, each on one line; code, tables and headings are left out."""
    found = []
    for block in re.split(r"\n\s*\n", re.sub(r"^( *)[*-] ", r"\n\1  ", text, flags=re.MULTILINE)):
        lines = block.strip("\n").splitlines()
        if len({len(line) - len(line.lstrip()) for line in lines}) == 1:  # code is rarely that even
            line = " ".join(block.split())
            if re.match(r"[\"`*(]*[A-Z].*[a-z].*[.!?:)]$", line) and len(line.split()) >= 6:
                found.append(line)
    return found


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph."""
    return re.split(r"(?<=[.!?])\s+(?=[\"`*(]?[A-Z])", paragraph)
