"""Predictions as competitions take them: the columns, the rows and their order of a sample submission."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2v.errors import InputError

ANSWERS = ("label", "labels", "value", "text", "answer", "filled", "tags", "mask")
"""What recipes call a row's prediction; a sample's only column beside the ids means it, whatever its own name."""


def read_sample(path: Path) -> tuple[list[str], list[dict[str, str]], str]:
    """The columns, rows and delimiter of a sample submission, all values as text."""
    try:
        with path.expanduser().open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)
            file.seek(0)
            lines = csv.DictReader(file, delimiter=delimiter)
            columns, rows = list(lines.fieldnames or []), list(lines)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file that can be read ({error}); see data.submission") from error
    if len(columns) < 2 or not rows:
        raise InputError(f"{path}: should have a column of ids, one or more of predictions, and rows")
    return columns, rows, delimiter


def write_submission(sample: Path, records: Sequence[Mapping[str, Any]], path: Path) -> int:
    """Write the predictions in the place of a sample's; returns how many have no row there.

    Args:
        sample: a CSV whose first column has the ids. They are those of the predictions, or without folders or endings.
        records: predictions with `id`, as `predictions.jsonl` has them.
        path: to write to.

    Raises:
        InputError: an id has no prediction or several, or a column none.
    """
    columns, rows, delimiter = read_sample(sample)
    found = find(sample, columns[0], [row[columns[0]] for row in rows], records)
    for row, record in zip(rows, found, strict=True):
        for column in columns[1:]:
            row[column] = answer(record, column, alone=len(columns) == 2, sample=sample)
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, columns, delimiter=delimiter, lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)
    return len(records) - len({id(record) for record in found})


def find(
    sample: Path, column: str, wanted: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The prediction of each id: by the id as it is, else as a file's name, else without its ending."""
    most: list[Mapping[str, Any]] = []
    missing: list[str] = list(wanted)
    for name_of in (str, lambda name: Path(name).name, lambda name: Path(name).stem):
        named: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            named.setdefault(name_of(str(record["id"])), []).append(record)
        asked = [name_of(name) for name in wanted]
        if twice := [name for name in asked if len(named.get(name, ())) > 1]:
            if not [name for name in asked if name not in named]:
                raise InputError(f"{sample}: {column} {twice[0]} is the id of {len(named[twice[0]])} predictions")
            continue
        lacking = [name for name in asked if name not in named]
        if not lacking:
            return [named[name][0] for name in asked]
        if len(lacking) < len(missing) or not most:
            missing, most = lacking, list(records)
    known = ", ".join(str(record["id"]) for record in records[:3])
    raise InputError(
        f"{sample}: {len(missing)} of {len(wanted)} ids have no prediction, the first is {missing[0]!r}; there are "
        f"{len(records)} predictions, of {known} ..."
    )


def answer(record: Mapping[str, Any], column: str, *, alone: bool, sample: Path) -> str:
    """What a prediction says in a column: its value of this name, the score of a class, or the prediction itself."""
    scores = record.get("scores")
    value = record.get(column)
    if value is None and isinstance(scores, Mapping):
        value = scores.get(column)
    if value is None and alone:
        value = next((record[name] for name in ANSWERS if name in record), None)
    if value is None:
        there = [name for name in record if name not in ("id", "scores")] + list(scores or ())
        raise InputError(f"{sample}: predictions have no {column!r}; there are {', '.join(there)}")
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)
