"""Class names: labels of any type to text, and what the classes are."""

from typing import TYPE_CHECKING, Any

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
    """
    named = {
        role: split.remove_columns(column).add_column(column, names(split, column)) for role, split in splits.items()
    }
    first = splits.get("train") or next(iter(splits.values()))
    listed = listed_names(first, column)
    if listed is None:
        labels = named["train" if "train" in named else next(iter(named))][column]
        found = {label for value in labels for label in (value if isinstance(value, list) else [value])}
        found = [label for label in found if isinstance(label, str)]
        listed = sorted(found, key=int if all(map(str.isdecimal, found)) else str)
    return named, listed


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
        return None if value < 0 else listed[value] if listed else str(value)  # the hub's unlabelled tests have -1

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
