"""Class names: labels of any type to text, and what the classes are."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


def name_classes(splits: dict[str, "Dataset"], column: str) -> tuple[dict[str, "Dataset"], list[str]]:
    """Splits whose labels are class names, and the classes of train in order.

    Args:
        splits: from `d2v.data.load.load`; without train the classes are those of the first split.
        column: class names, whole numbers, or lists of them.

    Returns:
        The splits, and the classes: those that the column's type lists, else those that occur, in order.

    Raises:
        InputError: some labels are text, others numbers.
    """
    named = {}
    for role, split in splits.items():
        if {int, str} <= {type(label) for label in every_label(split[column][:])}:
            raise InputError(f"{role}: {column} has text and numbers; should be one of the two")
        named[role] = split.remove_columns(column).add_column(column, names(split, column))
    first = "train" if "train" in splits else next(iter(splits))
    listed = listed_names(splits[first], column)
    if listed is None:
        found = {label for label in every_label(named[first][column]) if isinstance(label, str)}
        listed = sorted(found, key=int if all(map(str.isdecimal, found)) else str)
    return named, listed


def every_label(values: Iterable[Any]) -> Iterator[Any]:
    """The labels of a column, whose rows have one or a list of them."""
    for value in values:
        yield from value if isinstance(value, list) else [value]


def listed_names(split: "Dataset", column: str) -> list[str] | None:
    """The names that a column's type lists, if it does; for a column of lists, those of the items."""
    feature = split.features[column]
    return getattr(getattr(feature, "feature", feature), "names", None)


def names(split: "Dataset", column: str) -> list[Any]:
    """A column's labels as text; what is neither text nor a whole number stays, and a negative number is None."""
    listed = listed_names(split, column)

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(label) for label in value]
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        if value < 0:  # the hub's unlabelled tests have -1
            return None
        return listed[value] if listed and value < len(listed) else str(value)

    return [name(value) for value in split[column]]


def label_problem(value: Any, known: dict[str, int], column: str, *, several: bool = False) -> str | None:
    """Why a row's label cannot be used, or None.

    Args:
        value: the label, or with `several` a list of labels.
        known: the model's classes.
        column: where the value is from.
        several: a row may have any number of labels.
    """
    if isinstance(value, list) != several:
        return f"{column} is {value!r}; should be {'a list of labels' if several else 'a single label'}"
    for label in value if several else [value]:
        if label not in known:
            return f"{column} {label!r} is not one of the classes {', '.join(list(known)[:20])}"
    return None


def check_classes(names: list[str], column: str) -> list[str]:
    """The classes; InputError unless there are two or more."""
    if len(names) < 2:
        there = f"{len(names)} classes{': ' if names else ''}{', '.join(names)}"
        raise InputError(f"train: {column} has {there}; should have two or more, as text or whole numbers")
    return names


def distinct(names: Iterable[str]) -> list[str]:
    """The names, with their number after those that come twice: ImageNet's 134 and 517 are both "crane" on the hub."""
    counts = Counter(names := list(names))
    return [name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def match_classes(match: Literal["name", "number", "order"], names: list[str], classes: list[str]) -> dict[str, int]:
    """What each label of the data is among a model's classes.

    Args:
        match: labels are the names of the model's classes, their numbers, or classes in the same order.
        names: of the model's classes.
        classes: of the data, from `name_classes`.

    Raises:
        InputError: by order there have to be as many of both.
    """
    if match == "order" and len(classes) != len(names):
        raise InputError(f"data.match order: the data have {len(classes)} classes, the model has {len(names)}")
    labels = {"name": names, "number": map(str, range(len(names))), "order": classes}[match]
    return {label: i for i, label in enumerate(labels)}
