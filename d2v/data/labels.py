"""Labels: the classes or values of a data set's rows, as the model's numbers and back.

Shapes: B batch, C classes.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from d2v.config import Data, Job
from d2v.data.rows import Split
from d2v.errors import InputError
from d2v.pretrained import load_config

if TYPE_CHECKING:
    from datasets import Dataset

ProblemType = Literal["single_label", "multi_label", "regression"]
# As a model's config.json calls them; of older checkpoints the number of outputs says it.
MODEL_TYPES: dict[ProblemType, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclass
class LabelData(Data):
    """Data with labels.

    Attributes:
        label_column: column of the labels: class names or numbers, in multi_label lists of them, in regression values.
        problem_type: what is predicted of a row: single_label, one class; multi_label, any number of classes;
            regression, a value.
        match: how the labels of evaluation data are the model's classes: by name; by number; or by order, the first of
            the data's classes being the model's first.
        metrics: names of the metrics, the first of which chooses the best checkpoint; by default the usual ones.
    """

    label_column: str = "label"
    problem_type: ProblemType = "single_label"
    match: Literal["name", "number", "order"] = "name"
    metrics: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Labels:
    """What a model predicts of a row.

    Attributes:
        names: (C,) of the classes, in the order of the model's outputs; one in regression.
        problem_type: single_label, multi_label or regression.
        column: where the labels of the data are.
        data_names: what the data call the classes, where that differs.
    """

    names: list[str]
    problem_type: ProblemType
    column: str = "label"
    data_names: list[str] | None = None

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Class name to number."""
        return {name: i for i, name in enumerate(self.names)}

    @property
    def head(self) -> dict[str, Any]:
        """The fields of a model's configuration that give it a head for these labels."""
        classes = {"num_labels": 1} if self.problem_type == "regression" else {"id2label": dict(enumerate(self.names))}
        return classes | {"problem_type": MODEL_TYPES[self.problem_type]}

    def problem(self, label: Any) -> str | None:
        """Why a row's label cannot be used, or None."""
        if self.problem_type == "regression":
            number = isinstance(label, int | float) and math.isfinite(label)
            return None if number else f"{self.column} is {label!r}; should be a number"
        known = self.data_names or self.names
        return label_problem(label, self.numbers, self.column, known, multi_label=self.problem_type == "multi_label")

    def encode(self, labels: Sequence[Any]) -> Tensor:
        """The targets of a batch: (B,) class numbers, (B, C) zeros and ones, or (B,) values."""
        if self.problem_type == "regression":
            return torch.tensor(labels, dtype=torch.float32)
        if self.problem_type == "multi_label":
            return torch.tensor([[float(name in row) for name in self.names] for row in labels])
        return torch.tensor([self.numbers[name] for name in labels])

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C) of logits (B, C); in regression the values."""
        logits = logits.float()
        if self.problem_type == "regression":
            return logits
        return logits.sigmoid() if self.problem_type == "multi_label" else logits.softmax(-1)

    def decode(self, scores: Sequence[float], most: int | None = None) -> dict[str, Any]:
        """What a row's scores say: `label`, with multi_label all `labels` above a half, in regression the `value`.

        Args:
            scores: (C,) of `scores`.
            most: list the scores of so many classes, the likeliest first; by default of all, in order.
        """
        if self.problem_type == "regression":
            return {"value": scores[0]}
        order: Sequence[int] = range(len(scores))
        if most is not None:
            order = sorted(order, key=lambda i: -scores[i])[:most]
        listed = {self.names[i]: round(float(scores[i]), 6) for i in order}
        if self.problem_type == "multi_label":
            above = [name for name, score in zip(self.names, scores, strict=True) if score > 0.5]
            return {"labels": above, "scores": listed}
        return {"label": self.names[max(range(len(scores)), key=scores.__getitem__)], "scores": listed}


def read_labels(job: Job, splits: Mapping[str, Split]) -> tuple[Labels, dict[str, list[Any]]]:
    """What the model predicts, and the label of each row of each split: names of the model's classes, or values.

    In training the classes are those of train; else the checkpoint's, to which `data.match` maps the data's.

    Args:
        job: whose data have the options of `LabelData`.
        splits: from `d2v.data.load.load`.

    Raises:
        InputError: some labels are text and others numbers, or train has fewer than two classes.
    """
    data: LabelData = job.config.data
    column = data.label_column
    labels = Labels(["LABEL_0"], data.problem_type, column)
    if not job.training:
        labels = checkpoint_labels(job.config.model, column)
    if not job.labelled:
        return labels, {}
    if labels.problem_type == "regression":
        return labels, {name: split.column(column) for name, split in splits.items()}
    values = {name: read_names(split, column) for name, split in splits.items()}
    classes = classes_of(splits, values, column)
    if job.training:
        return Labels(check_classes(classes, column), data.problem_type, column), values
    known = match_classes(data.match, labels.names, classes)
    labels = replace(labels, data_names=list(known))
    return labels, {name: [renamed(label, known, labels.names) for label in split] for name, split in values.items()}


def checkpoint_labels(source: str, column: str) -> Labels:
    """What a checkpoint predicts."""
    config = load_config(source)
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    names = [names[i] for i in sorted(names, key=int)]
    kinds = {theirs: ours for ours, theirs in MODEL_TYPES.items()}
    kind = kinds.get(config.get("problem_type", ""), "regression" if len(names) == 1 else "single_label")
    return Labels(distinct(names), kind, column)


def classes_of(splits: Mapping[str, Split], values: Mapping[str, list[Any]], column: str) -> list[str]:
    """The classes of train, or of the first split: those that the column's type lists, else those that occur."""
    name = "train" if "train" in splits else next(iter(splits))
    listed = listed_names(splits[name].table, column)
    if listed is not None:
        return listed
    found = {label for label in every_label(values[name]) if isinstance(label, str)}
    return sorted(found, key=int if all(map(str.isdecimal, found)) else str)


def renamed(label: Any, known: Mapping[str, int], names: Sequence[str]) -> Any:
    """A label of the data as the name of the model's class that it is; others stay, to be named as a problem."""
    if isinstance(label, list):
        return [renamed(each, known, names) for each in label]
    return names[known[label]] if isinstance(label, str) and label in known else label


def every_label(values: Iterable[Any]) -> Iterator[Any]:
    """The labels of a column, whose rows have one or a list of them."""
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def listed_names(table: "Dataset", column: str) -> list[str] | None:
    """The names that a column's type lists, if it does; for a column of lists, those of the items."""
    feature = table.features[column]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else distinct(names)


def read_names(split: Split, column: str) -> list[Any]:
    """A column's labels as text; what is neither text nor a whole number stays, and a negative number is None.

    Raises:
        InputError: some labels are text, others numbers.
    """
    values, listed = split.column(column), listed_names(split.table, column)
    names = {}  # of each distinct label: there are few

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(label) for label in value]
        if isinstance(value, bool) or not isinstance(value, int | str):
            return value
        if value not in names:
            names[value] = name_of(value, listed)
        return names[value]

    named = [name(value) for value in values]
    if {int, str} <= {type(value) for value in names}:
        raise InputError(f"{split.name}: {column} has text and numbers; should be one of the two")
    return named


def name_of(value: int | str, listed: Sequence[str] | None) -> str | None:
    """The name of a label; None for the negative numbers of the hub's unlabelled tests."""
    if isinstance(value, str):
        return value
    if value < 0:
        return None
    return listed[value] if listed and value < len(listed) else str(value)


def label_problem(
    value: Any, known: Mapping[str, int], column: str, shown: Sequence[str] | None = None, *, multi_label: bool = False
) -> str | None:
    """Why a row's label cannot be used, or None.

    Args:
        value: the label, or with `multi_label` a list of labels.
        known: the model's classes.
        column: where the value is from.
        shown: what the message calls the classes, by default as the model does.
        multi_label: a row may have any number of labels.
    """
    if isinstance(value, list) != multi_label:
        return f"{column} is {value!r}; should be {'a list of labels' if multi_label else 'a single label'}"
    for label in value if multi_label else [value]:
        if label not in known:
            return f"{column} {label!r} is not one of the classes {', '.join(list(shown or known)[:20])}"
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
        classes: of the data, from `classes_of`.

    Raises:
        InputError: by order there have to be as many of both.
    """
    if match == "order" and len(classes) != len(names):
        raise InputError(f"data.match order: the data have {len(classes)} classes, the model has {len(names)}")
    labels = {"name": names, "number": map(str, range(len(names))), "order": classes}[match]
    return {label: i for i, label in enumerate(labels)}
