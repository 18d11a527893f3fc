"""Words and labels in columns, one word per line and a blank line between sentences: CoNLL's files and CoNLL-U."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2v.data.files import split_name, usual, usual_file, wanted
from d2v.data.sources import Source, read
from d2v.data.splits_of_tables import asked_splits
from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = {".conll", ".conllu", ".conll03", ".bio", ".iob", ".iob2", ".train", ".testa", ".testb"}
"""Endings of such files; `eng.testa` is CoNLL 2003's validation."""
TAG = re.compile(r"O|[BIESLU]-\S+")


def read_words(data: Any) -> Mapping[str, "Dataset"]:
    """All splits of a source; also files of columns, with words in the first and labels in the last column.

    In CoNLL-U words are the second column and labels the fourth, `UPOS`. A `.txt` is such a file if all of its labels
    are chunk labels such as `B-ORG`, or `O`.

    Args:
        data: its `tokens_column` and `tags_column` name the columns.
    """
    path = Path(data.path or "")
    files = [path] if path.is_file() else sorted(path.iterdir()) if data.path and path.is_dir() else []
    files = [each for each in files if each.is_file() and wanted(each.name)]
    found = [each for each in files if has_columns(each)]
    if any(each.suffix.lower() == ".txt" for each in found):  # so are files with only O in their first lines
        found = [each for each in files if has_columns(each, one_label=True)]
    if not found:
        return read(data)
    splits: dict[str, list[Path]] = {}
    for file in found:
        splits.setdefault(split_of(file), []).append(file)
    if not any(map(usual, splits)) and splits.keys().isdisjoint(asked_splits(data)):
        splits = {"train": found}
    return Source({split: partial(sentences_of, data, each) for split, each in splits.items()}, [])


def split_of(file: Path) -> str:
    """The split of a file: its name if that is a usual one, else the split that a word of it means, else its name.

    Files with the same word, such as parts of large treebanks in Universal Dependencies, form one split.
    """
    words = re.split(r"[^a-z]+", file.name.lower())
    own = "validation" if "testa" in words else "test" if "testb" in words else usual_file(file.name)
    name = split_name(file)
    return name if usual(name) else own or name


def has_columns(file: Path, *, one_label: bool = False) -> bool:
    """Whether a file has words and labels in columns; a `.txt` needs two different labels, unless `one_label`."""
    if file.suffix.lower() in ENDINGS:
        return True
    if file.suffix.lower() != ".txt":
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        rows = [line.split() for _, line in zip(range(200), lines, strict=False)]
    rows = [row for row in rows if row]
    tags = [row[-1] for row in rows if len(row) > 1]
    return bool(tags) and len(tags) == len(rows) and all(map(TAG.fullmatch, tags)) and len(set(tags)) > 1 - one_label


def sentences_of(data: Any, files: list[Path]) -> "Dataset":
    """The sentences of a split's files, with labels unless there is only one column."""
    import datasets

    rows = [row for file in files for row in sentences(file)]
    columns: dict[str, list[Any]] = {data.tokens_column: [words for words, _ in rows]}
    if any(tags for _, tags in rows):
        columns[data.tags_column] = [tags for _, tags in rows]
    return datasets.Dataset.from_dict(columns)


def columns_of(line: str) -> list[str]:
    """The columns of a line, separated by spaces or tabs; a no-break space belongs to a word."""
    return re.findall(r"[^ \t\r]+", line)


UNIVERSAL = re.compile(r"\d+(?:[-.]\d+)?\t(?:[^\t]*\t){8}[^\t]*$")
"""A word of CoNLL-U or CoNLL-X, whose first of ten columns counts; such files have other endings too."""


def at_tabs(line: str) -> list[str]:
    """The columns of a line, separated by tabs."""
    return line.rstrip("\r").split("\t")


def sentences(file: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The words and the labels of each sentence.

    Comments, `-DOCSTART-`, and CoNLL-U's multiword and empty tokens (1-2, 1.1) are skipped. A comment begins with #
    and, except in CoNLL-U, does not have the columns of the file's words, since a word may be a #.

    Raises:
        InputError: it is not UTF-8, or a line has more or fewer columns than those before it.
    """
    words: list[str] = []
    tags: list[str] = []
    try:
        lines = file.read_text("utf-8-sig").split("\n")  # words may contain other line separators
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 ({error})") from error
    plain = [line for line in lines if line.strip() and not line.startswith(("#", "-DOCSTART-"))]
    universal = file.suffix.lower() == ".conllu" or (bool(plain) and all(map(UNIVERSAL.match, plain)))
    columns = columns_of
    tabs = {line.count("\t") for line in plain}
    if len({len(columns_of(line)) for line in plain}) > 1 and len(tabs) == 1 and tabs != {0}:
        columns = at_tabs  # words have blanks
    likely = columns(plain[0]) if plain else []  # the first that is a word for sure
    width = 0 if universal else len(likely)
    chunks = bool(likely and TAG.fullmatch(likely[-1]))
    for number, line in enumerate([*lines, ""], 1):
        fields = at_tabs(line) if universal else columns(line)
        if not line.strip() or fields[0] == "-DOCSTART-":
            if words:
                yield words, tags
            words, tags = [], []
            continue
        if universal and (line.startswith("#") or not fields[0].isdigit()):
            continue
        if line.startswith("# ") and (len(fields) != width or (chunks and not TAG.fullmatch(fields[-1]))):
            continue
        width = width or len(fields)
        if len(fields) != width or (universal and width < 4):
            expected = "ten" if universal else str(width)
            raise InputError(f"{file}, line {number}: has {len(fields)} columns, should have {expected}")
        words.append(fields[1] if universal else fields[0])
        if width > 1:
            tags.append(fields[3] if universal else fields[-1])
