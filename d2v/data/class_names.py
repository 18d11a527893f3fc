"""Columns of labels in any form (text, numbers, lists, zeros and ones) as class names."""

import ast
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from d2v.config import Data, Job, shares
from d2v.data.facts import note, shorten
from d2v.data.rows import Split
from d2v.errors import InputError
from d2v.processors.ctc import INVISIBLE

if TYPE_CHECKING:
    from datasets import Dataset

ITEM = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,'"\[\]]+""")
ARRAY = re.compile(rf"\[\s*(?:{ITEM.pattern})(?:\s+(?:{ITEM.pattern}))+\s*\]")
"""An array as NumPy prints it, and as pandas writes it to a CSV file: items separated by white space, ['a' 'b']."""


NUMBER = re.compile(r"[+-]?\d*\.?\d+")
UNSEEN = dict.fromkeys(map(ord, INVISIBLE))
Match = Literal["name", "number", "order"]


@dataclass
class ClassOptions(Data):
    """Data whose labels are classes.

    Attributes:
        class_weights: weight of the classes in the loss by name, or balanced, by which rare ones count as much as
            frequent ones; by default all have 1.
        label_smoothing: share of the probability that is spread over all classes in training.
        match: how the labels of the data are a given model's classes: by name; by number; or by order, the first of
            the data's classes being the model's first.
    """

    class_weights: Literal["equal", "balanced"] | dict[str, float] = "equal"
    label_smoothing: float = 0.0
    match: Match = "name"

    def __post_init__(self):
        super().__post_init__()
        shares("data", self, ("label_smoothing",))


@dataclass(frozen=True)
class Named:
    """The labels of a split by name.

    Attributes:
        labels: a name, or a list of names, for each row; values that cannot be named stay.
        classes: of the whole table, in order.
        numbered: whether classes are known only by number: rows have a 0 or 1 for each.
        tidied: texts that `name_of` changed, as written -> name.
    """

    labels: list[Any]
    classes: list[str]
    numbered: bool = False
    tidied: Mapping[str, str] = field(default_factory=dict)


def name_values(split: Split, column: str, values: Sequence[Any], ignored: Sequence[Any] = ()) -> Named:
    """Labels as text; the classes are those that the column's type lists, else those that occur.

    Args:
        split: the wanted rows.
        column: of the labels.
        values: of the whole table: labels or lists of them.
        ignored: labels that mean no label.

    Raises:
        InputError: some labels are text, others numbers.
    """
    listed = listed_names(split.table, column)
    names: dict[tuple[type, Any], Any] = {(type(value), value): None for value in ignored}  # there are few

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(label) for label in value]
        value = float(value) if isinstance(value, Decimal) else value  # databases' numbers
        if not isinstance(value, str | int | float):
            return value
        if (key := (type(value), value)) not in names:
            names[key] = name_of(value, listed)
        return names[key]

    whole = [name(value) for value in values]
    kinds = {kind for (kind, _), label in names.items() if isinstance(label, str)}
    if str in kinds and len(kinds) > 1:
        raise InputError(f"{split.name}: {column} has text and numbers; should be one of the two")
    found = {label for label in names.values() if isinstance(label, str)}
    there = next((value for value in values if value not in (None, "", [])), None)
    if not found and there is not None and all(value is not None for value in names.values()):
        advice = "(data.problem_type regression predicts values)" if isinstance(there, float | Decimal) else ""
        raise InputError(f"{split.name}: {column} is {there!r:.40}; should be text or whole numbers {advice}".strip())
    written = {value: label for (kind, value), label in names.items() if kind is str and label is not None}
    tidied = {value: label for value, label in written.items() if label != value.strip()}
    return Named([whole[i] for i in split.index], listed or in_order(found), tidied=tidied)


def check_kind(names: Sequence[str], column: str) -> None:
    """Raise InputError for classes that look like values or lists of labels, unless `data.problem_type` was given."""
    if names and all(map(NUMBER.fullmatch, names)) and (broken := [name for name in names if float(name) % 1]):
        raise InputError(
            f"train: {column} has numbers such as {broken[-1]}; --data.problem_type regression predicts values, "
            "single_label takes them for classes"
        )
    if names and all(isinstance(as_list(name, None), list) for name in names):
        kinds = "--data.problem_type multi_label takes their items, single_label each list, for a class"
        raise InputError(f"train: {column} has lists such as {names[-1]:.60}; {kinds}")


def read_indicators(split: Split, columns: Sequence[str]) -> Named:
    """The labels of rows with one column of 0 and 1 per class; text on what else there is for another row."""
    there = split.table.column_names
    if missing := [column for column in columns if column not in there]:
        raise InputError(f"{split.name}: no column {missing[0]!r} (data.label_columns); there are {', '.join(there)}")
    said = {"0": False, "1": True, "0.0": False, "1.0": True, "False": False, "True": True}
    rows = zip(*(split.column(column) for column in columns), strict=True)

    def labels_of(row: Sequence[Any]) -> Any:
        flags = [said.get(str(value).strip()) if isinstance(value, int | float | str) else None for value in row]
        if None in flags:
            value = row[flags.index(None)]
            return None if value is None else f"{value!r} in column {columns[flags.index(None)]}"
        return [name for name, flag in zip(columns, flags, strict=True) if flag]

    return Named([labels_of(row) for row in rows], list(columns))


def as_list(value: Any, separator: str | None) -> Any:
    """The labels of a row: the parts of a text with a separator, or the items of "['a', 'b']" or "['a' 'b']"."""
    if not isinstance(value, str):
        return value
    if separator is not None:
        return [part.strip() for part in value.split(separator) if part.strip()]
    if not value.strip():
        return []
    if value.strip().startswith("["):
        try:
            if ARRAY.fullmatch(value.strip()):
                items = [ast.literal_eval(item) for item in ITEM.findall(value.strip()[1:-1])]
                return value if ... in items else items  # long arrays are written abridged
            return list(ast.literal_eval(value.strip()))
        except (ValueError, SyntaxError):
            return value
    return value


def vector_width(rows: Sequence[Any]) -> int:
    """The length of rows that have a 0 or 1 for each class; 0 if they are lists of classes, which do not repeat.

    Rows that are no list or an empty one are ignored: they are no such vectors, whatever the others are.
    """
    vectors = [row for row in rows if isinstance(row, list) and row]
    lengths = {len(row) for row in vectors}
    if len(lengths) != 1 or (width := lengths.pop()) < 2:
        return 0
    return width if all(value in (0, 1, "0", "1") for row in vectors for value in row) else 0


def as_number(value: Any) -> Any:
    """The value written in a text, such as of a CSV file; other values stay."""
    if not isinstance(value, str):
        return str(value) if isinstance(value, bool) else float(value) if isinstance(value, Decimal) else value
    try:
        return float(value)
    except ValueError:
        return value


def in_order(names: Iterable[str]) -> list[str]:
    """Classes sorted, by number if all are numbers."""
    names = list(names)
    return sorted(sorted(names), key=int if all(re.fullmatch(r"-?\d+", name, re.ASCII) for name in names) else str)


def listed_names(table: "Dataset", column: str) -> list[str] | None:
    """The names that a column's type lists, if any; for a column of lists, those of the items."""
    feature = table.features[column]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else distinct(names)


def name_of(value: Any, listed: Sequence[str] | None) -> Any:
    """The name of a label: text, or a whole number; other values stay, None if there is no label.

    Text gets composed accents, and loses invisible characters: those without width, and white space around it.

    Args:
        value: the label.
        listed: the names of numbered classes; with these a negative number means no label, as in the hub's tests.
    """
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).translate(UNSEEN).strip() or None
    if isinstance(value, float) and value.is_integer():  # pandas makes floats of whole numbers if one is missing
        value = int(value)
    if isinstance(value, bool) or (isinstance(value, int) and listed is None):
        return str(value)
    if isinstance(value, int) and listed is not None:
        return None if value < 0 else listed[value] if value < len(listed) else str(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def distinct(names: Iterable[str]) -> list[str]:
    """The names, repeated ones followed by their number: ImageNet's 134 and 517 are both "crane" on the hub."""
    counts = Counter(names := list(names))
    return [name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def renamed(label: Any, names: Mapping[str, str]) -> Any:
    """A label of the data by the model's name; unknown labels stay, to be reported as a problem."""
    if isinstance(label, list):
        return [renamed(each, names) for each in label]
    return names.get(label, label) if isinstance(label, str) else label


def value_reader(column: str) -> Callable[[Split], list[Any]]:
    """A function that returns the values of rows."""
    return lambda split: list(map(as_number, split.column(column)))


def name_reader(read: Callable[[Split], Named], named: Named, classes: Sequence[Any]) -> Callable[[Split], list[Any]]:
    """A function that returns the labels of a stream's block by the names of the model's classes.

    Args:
        read: names the labels of a block.
        named: of the stream, from `with_stream`.
        classes: the model's names of the stream's classes.
    """
    names = dict(zip(named.classes, (each[0] if isinstance(each, list) else each for each in classes), strict=True))
    return lambda split: [renamed(label, names) for label in read(split).labels]


def with_stream(
    job: Job, splits: Mapping[str, Split], columns: Mapping[str, Named], column: str, *, several: bool
) -> dict[str, Named]:
    """The labels of each split; a stream gets one label of each of its classes, and these are noted.

    Args:
        job: from `d2v.training.job.start`.
        splits: train may be a stream.
        columns: the labels of each split, for a stream those of its beginning.
        column: of the labels.
        several: whether rows have lists of labels.
    """
    if not job.training or splits["train"].stream is None:
        return dict(columns)
    train, validation = columns["train"], columns["validation"]
    table = splits["train"].table
    if not (train.numbered or "," in column or listed_names(table, column)):
        listed = shorten(validation.classes, 20)
        line = f"train: the classes of {column} are taken to be those of validation: {listed}"
        note(job, "classes of a stream", line, classes=validation.classes)
        train = replace(train, classes=validation.classes)
    return dict(columns) | {"train": replace(train, labels=[[each] if several else each for each in train.classes])}


def note_absent(job: Job, train: Named, column: str) -> None:
    """Note the classes without a row in train: their rows are in another split, or the column only lists them."""
    found = (name for label in train.labels for name in (label if isinstance(label, list) else [label]))
    there = {name for name in found if isinstance(name, str)}
    if absent := [name for name in train.classes if name not in there]:
        line = f"train: {len(absent)} of {len(train.classes)} classes of {column} have no row: {shorten(absent)}"
        note(job, "classes absent", line, split="train", classes=absent)


def note_tidied(job: Job, columns: Mapping[str, Named], column: str) -> None:
    """Note for each split the texts that `name_of` changed, and classes that may be meant to be the same."""
    for split, named in columns.items():
        if named.tidied:
            shown = shorten((f"{written!a} is {name!r}" for written, name in named.tidied.items()), 4)
            line = (
                f"{split}: {len(named.tidied)} labels of {column}, accents composed and unseen signs dropped: {shown}"
            )
            note(job, "labels tidied", line, split=split, labels=len(named.tidied))
        alike: dict[str, list[str]] = {}
        for name in named.classes:
            alike.setdefault(plain_number(plain_text(name)), []).append(name)
        if several := [names for names in alike.values() if len(names) > 1]:
            shown = shorten((" and ".join(map(repr, names)) for names in several), 4)
            line = f"{split}: {column} has classes that differ in case, or in how a number is written, alone: {shown}"
            note(job, "labels alike", line, split=split, classes=several)


def check_classes(names: list[str], column: str) -> list[str]:
    """The classes; InputError unless there are two or more."""
    if len(names) < 2:
        there = f"{len(names)} classes{': ' if names else ''}{', '.join(names)}"
        raise InputError(f"train: {column} has {there}; should have two or more, as text or whole numbers")
    return names


def plain_text(name: str) -> str:
    """A name in lower case, with composed accents and without invisible characters."""
    return unicodedata.normalize("NFC", name).translate(UNSEEN).casefold()


def plain_number(name: str) -> str:
    """A number in one form, however it is written; 0 for LABEL_0; other names in lower case."""
    name = name.casefold()
    number = name.removeprefix("label_")
    if not re.fullmatch(r"[+-]?\d+(\.\d+)?", number, re.ASCII):
        return name
    return str(Decimal(number).normalize() + 0)
