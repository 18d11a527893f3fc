"""Predictions in a competition's format: with the columns, rows and order of a sample submission."""

import csv
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from d2v.data.tables import read_sample
from d2v.errors import InputError

ANSWERS = ("label", "labels", "value", "filled", "text_lm", "choice", "text", "answer", "tags", "score")
"""Keys of recipes' predictions; a sample's only column besides the ids gets the prediction, whatever its name."""


def write_submission(sample: Path, records: Sequence[Mapping[str, Any]], path: Path) -> str:
    """Write predictions in place of a sample's; returns a text on the columns' content and the predictions left over.

    Args:
        sample: a CSV whose first column has the predictions' ids, perhaps without folders or endings.
        records: predictions with `id`, as in `predictions.jsonl`.
        path: to write to.

    Raises:
        InputError: an id has no prediction or several, or there are none for a column.
    """
    columns, rows, delimiter = read_sample(sample)
    found = find(sample, columns[0], [row[columns[0]] for row in rows], records)
    sources = {column: source_of(found[0], column, alone=len(columns) == 2, sample=sample) for column in columns[1:]}
    for row, record in zip(rows, found, strict=True):
        for column, source in sources.items():
            row[column] = answer(record, column, source, sample)
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, columns, delimiter=delimiter, lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)
    others = len(records) - len({id(record) for record in found})
    said = ", ".join(f"{column} is {source}" for column, source in sources.items() if column != source)
    return (
        said + ("; " if said and others else "") + (f"{others} predictions have no row in the sample" if others else "")
    )


def row_id(row: Mapping[str, Any]) -> str:
    """The name of a prediction's row; for a trial that of the pair of clips."""
    return str(row["id"]) if "id" in row else f"{row['enrol']} {row['test']}"


def find(
    sample: Path, column: str, wanted: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The prediction of each id: found by the id as it is, else as a file's name, else without its ending."""
    most: list[Mapping[str, Any]] = []
    missing: list[str] = list(wanted)
    for name_of in (str, lambda name: plain_path(name).name, lambda name: plain_path(name).stem):
        named: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            named.setdefault(name_of(row_id(record)), []).append(record)
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
    known = ", ".join(map(row_id, records[:3]))
    raise InputError(
        f"{sample}: {len(missing)} of {len(wanted)} ids have no prediction, the first is {missing[0]!r}; there are "
        f"{len(records)} predictions, of {known} ..."
    )


def plain_path(name: str) -> PurePath:
    """A file's path, whichever system wrote it."""
    return PurePath(name.replace("\\", "/"))


def source_of(record: Mapping[str, Any], column: str, *, alone: bool, sample: Path) -> str:
    """The part of a prediction for a column: the value of this name, a class's score, or the prediction itself."""
    scores = record.get("scores")
    if record.get(column) is not None and column != "scores":
        return column
    if isinstance(scores, Mapping) and column in scores:
        return "scores"
    if alone and (found := next((name for name in ANSWERS if record.get(name) is not None), None)):
        return found
    there = [name for name in record if name not in ("id", "scores")] + list(scores or ())
    raise InputError(f"{sample}: predictions have no {column!r}; there are {', '.join(there)}")


def answer(record: Mapping[str, Any], column: str, source: str, sample: Path) -> str:
    """A prediction as text, a list with spaces between its items.

    Raises:
        InputError: it is neither text, a number nor a list of these, or spaces would not tell the items apart.
    """
    value = record["scores"][column] if source == "scores" else record.get(source)
    items = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(item, str | Real | np.number) for item in items):
        raise InputError(f"{sample}: {source} of {row_id(record)} is {value!r:.60}; a column takes text or numbers")
    if value is not items:
        return str(value)
    if wide := [item for item in items if len(str(item).split()) != 1]:
        what = f"{wide[0]!r} of {source}, of {row_id(record)}"
        raise InputError(f"{sample}: {what}, cannot be told from others in a list that is separated by spaces")
    return " ".join(map(str, items))
