"""Labels: the classes or values of a data set's rows, to the model's numbers and back.

Shapes: B batch, C classes.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from d2v.config import Job, at_least, shares
from d2v.data.class_names import (
    ClassOptions,
    Match,
    Named,
    as_list,
    check_classes,
    check_kind,
    distinct,
    listed_names,
    name_reader,
    name_values,
    note_absent,
    note_tidied,
    plain_number,
    plain_text,
    read_indicators,
    renamed,
    value_reader,
    vector_width,
    with_stream,
)
from d2v.data.facts import note, shorten
from d2v.data.rows import Split
from d2v.data.scores import Scores
from d2v.errors import InputError
from d2v.hub import fetch_file, load_config, read_json
from d2v.models.configuration import numbered_names

ProblemType = Literal["single_label", "multi_label", "regression"]
THRESHOLDS = "thresholds.json"
"""File beside a model with the scores above which classes are predicted."""
# Their names in a model's config.json; older checkpoints lack them, so the number of outputs decides.
MODEL_TYPES: dict[ProblemType, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclass
class LabelData(ClassOptions):
    """Data with labels.

    Attributes:
        label_column: column of the labels: class names or numbers, in multi_label lists of them or of a 0 or 1 for each
            class, in regression values.
        label_columns: in multi_label, columns of 0 and 1, one per class, instead of label_column.
        label_separator: text between the labels of a row, such as ";", if multi_label data have them in one text.
        problem_type: prediction for a row: single_label, one class; multi_label, any number of classes; regression, a
            value. By default the given model's, or single_label; training ignores the model's.
        positive_class: the class of two whose F1 is `f1`; by default the second.
        threshold: score above which multi_label predicts a class; best chooses one for each class by F1 on validation.
            By default those in the model's thresholds.json, or 0.5.
        metrics: names of the metrics, the first of which chooses the best checkpoint; by default the usual ones.
        listed_scores: number of likeliest classes whose scores predictions.jsonl lists; 0 lists all.
    """

    label_column: str = "label"
    label_columns: list[str] = field(default_factory=list)
    label_separator: str | None = None
    problem_type: ProblemType | None = None
    positive_class: str | None = None
    threshold: float | Literal["best"] | None = None
    metrics: list[str] = field(default_factory=list)
    listed_scores: int = 10

    def __post_init__(self):
        super().__post_init__()
        at_least(0, "data", self, ("listed_scores",))
        shares("data", self, ("threshold",))
        if self.problem_type == "regression" and (self.class_weights != "equal" or self.label_smoothing):
            raise InputError("data.class_weights and data.label_smoothing are for classes, not for regression")

    @property
    def targets(self) -> dict[str, str | None]:
        """The column of labels that `d2v.data.load.load` has to find; `label_columns` are checked later."""
        return {"label": None if self.label_columns else self.label_column}


@dataclass(frozen=True)
class Labels:
    """The classes or value that a model predicts.

    Attributes:
        names: (C,) of the classes, in the order of the model's outputs; one in regression.
        problem_type: single_label, multi_label or regression.
        column: of the labels in the data.
        data_names: the data's names of the classes, where they differ.
        positive: the class of two whose F1 is computed.
        thresholds: scores above which multi_label predicts a class, by name; by default 0.5.
        weights: (C,) of the classes in the loss; None if all have 1.
        smoothing: share of the probability that is spread over all classes.
    """

    names: list[str]
    problem_type: ProblemType
    column: str = "label"
    data_names: list[str] | None = None
    positive: str | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    weights: Sequence[float] | None = None
    smoothing: float = 0.0

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Class name to number."""
        return {name: i for i, name in enumerate(self.names)}

    @property
    def unnamed(self) -> bool:
        """Whether the names are only numbers, such as LABEL_0."""
        return self.names == [f"LABEL_{i}" for i in range(len(self.names))]

    @property
    def head(self) -> dict[str, Any]:
        """The fields of a model's configuration for a head with these labels."""
        classes = {"num_labels": 1} if self.problem_type == "regression" else {"id2label": dict(enumerate(self.names))}
        return classes | {"problem_type": MODEL_TYPES[self.problem_type]}

    @property
    def loss_options(self) -> dict[str, Any]:
        """The options of `d2v.losses.classification`."""
        weight = None if self.weights is None else torch.tensor(self.weights)
        return {"weight": weight, "label_smoothing": self.smoothing}

    @property
    def positive_last(self) -> list[str]:
        """The names, with the positive class last if one was named."""
        return sorted(self.names, key=lambda name: name == self.positive)

    def notes(self, metrics: Iterable[str]) -> dict[str, Any] | None:
        """Further entries of the results: with `f1` the positive class."""
        return {"positive_class": self.positive_last[-1]} if "f1" in metrics else None

    def limits(self) -> list[float]:
        """(C,) the scores above which a class is predicted, in multi_label."""
        return [self.thresholds.get(name, 0.5) for name in self.names]

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
            targets = np.zeros((len(labels), len(self.names)), np.float32)
            for i, row in enumerate(labels):
                targets[i, [self.numbers[name] for name in row if name in self.numbers]] = 1
            return torch.from_numpy(targets)
        return torch.tensor([self.numbers[name] for name in labels])

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (B, C) of logits (B, C); in regression the values."""
        logits = logits.float()
        if self.problem_type == "regression":
            return logits
        return logits.sigmoid() if self.problem_type == "multi_label" else logits.softmax(-1)

    def decode(self, scores: Sequence[float], most: int | None = None) -> dict[str, Any]:
        """The prediction of a row's scores: a `label`, with multi_label all `labels` above the threshold, or a `value`.

        Args:
            scores: (C,) of `scores`.
            most: number of likeliest classes whose scores are listed, in order; by default all, in the model's order.
        """
        if self.problem_type == "regression":
            return {"value": scores[0]}
        listed: Mapping[str, float] = Scores(self.numbers, scores)
        if most is not None:
            listed = dict(sorted(listed.items(), key=lambda pair: -pair[1])[:most])
        if self.problem_type == "multi_label":
            above = [name for name, *pair in zip(self.names, scores, self.limits(), strict=True) if pair[0] > pair[1]]
            return {"labels": above, "scores": listed}
        return {"label": self.names[max(range(len(scores)), key=scores.__getitem__)], "scores": listed}


def read_labels(job: Job, splits: Mapping[str, Split]) -> tuple[Labels, dict[str, Any]]:
    """The model's labels, and the label of each row of each split: names of the model's classes, or values.

    For a stream a function returns the labels of a block; its classes are those that the column's type lists, else
    those of validation. In training the classes are those of all rows of train's files, whatever was held out or
    sampled; in the checkpoint's order if it has the same ones. Else they are the checkpoint's, to which `data.match`
    maps the data's.

    Args:
        job: its data have the options of `LabelData`.
        splits: from `d2v.data.load.load`.

    Raises:
        InputError: some labels are text and others numbers, or train has fewer than two classes.
    """
    data: LabelData = job.config.data
    column = ", ".join(data.label_columns) or data.label_column
    labels = Labels(["LABEL_0"], data.problem_type or "single_label", column)
    if job.config.model:
        known = checkpoint_labels(job.config.model, column)
        labels = replace(known, problem_type=labels.problem_type if job.training else given_type(job, known))
    for option in ("label_columns", "label_separator"):
        if getattr(data, option) and labels.problem_type != "multi_label":
            raise InputError(f"data.{option} is for data.problem_type multi_label, not for {labels.problem_type}")
    if data.threshold is not None and labels.problem_type != "multi_label":
        raise InputError(f"data.threshold {data.threshold} is for multi_label; here is {labels.problem_type}")
    if not job.labelled:
        return replace(labels, thresholds=thresholds(job, labels)), {}
    if labels.problem_type == "regression":
        read_values = value_reader(column)
        values = {name: read_values(split) if split.stream is None else read_values for name, split in splits.items()}
        return (Labels(["LABEL_0"], "regression", column) if job.training else labels), values
    columns: dict[str, Named] = {}
    for name, split in splits.items():  # train comes first and decides whether rows are zeros and ones
        columns[name] = read_names(split, data, labels.problem_type, columns.get("train"))
    if job.training and data.problem_type is None:
        check_kind(columns["train"].classes, column)
    columns = with_stream(job, splits, columns, column, several=labels.problem_type == "multi_label")
    labels, named = settle_classes(job, labels, columns, data.match)
    if data.positive_class is not None and data.positive_class not in labels.names:
        raise InputError(f"data.positive_class {data.positive_class!r} is none of {', '.join(labels.names[:20])}")
    labels, references = weighted(labels, data, named.get("train")), dict[str, Any](named)
    if job.training and splits["train"].stream is not None:
        read = partial(read_names, data=data, problem_type=labels.problem_type, like=columns["train"])
        references |= {"train": name_reader(read, columns["train"], named["train"])}
    return replace(labels, positive=data.positive_class, thresholds=thresholds(job, labels)), references


def settle_classes(
    job: Job, labels: Labels, columns: Mapping[str, Named], match: Match
) -> tuple[Labels, dict[str, list[Any]]]:
    """The model's labels, and those of each split by the names of its classes; matches are noted.

    Args:
        job: in training the classes are those of train, else the checkpoint's.
        labels: of the checkpoint, without names if there is no checkpoint.
        columns: the labels of each split.
        match: see `LabelData`.
    """
    named = {name: each.labels for name, each in columns.items()}
    split = "train" if "train" in columns else next(iter(columns))
    first, column = columns[split], labels.column
    note_tidied(job, columns, column)
    if negative := [name for name in first.classes if re.fullmatch(r"-\d+", name)]:
        note(job, "negative labels", f"{split}: {column} {', '.join(negative)} is a class like the others")
    if job.training:
        note_absent(job, columns["train"], column)
        check_classes(first.classes, column)
        fewer = len(first.classes) != len(labels.names)
        if labels.unnamed or (fewer and (first.numbered or match == "order")):
            return replace(labels, names=first.classes), named
    if first.numbered and len(first.classes) != len(labels.names):
        there = f"{len(first.classes)} numbers in a row, the model has {len(labels.names)} classes"
        raise InputError(f"{column}: {there}; should be as many")
    known = match_classes("number" if first.numbered else match, labels.names, first.classes)
    return matched(job, labels, first.classes, known, named)


def weighted(labels: Labels, data: Any, train: Iterable[Any] | None) -> Labels:
    """The labels with the loss options `data.class_weights` and `data.label_smoothing`.

    Args:
        labels: single_label or multi_label.
        data: has these options.
        train: labels of train's rows, names or lists of them; None without training.
    """
    if train is None:
        return labels
    given, weights = data.class_weights, None
    if given == "balanced":
        rows = list(train)
        counts = Counter(name for row in rows for name in (row if isinstance(row, list) else [row]))
        known = [max(counts[name], 1) for name in labels.names]
        if labels.problem_type == "multi_label":  # as many zeros as ones
            weights = [max(len(rows) - count, 1) / count for count in known]
        else:
            weights = [sum(counts[name] for name in labels.names) / (len(known) * count) for count in known]
    elif given != "equal":
        if unknown := [name for name in given if name not in labels.names]:
            raise InputError(f"data.class_weights: {unknown[0]!r} is none of {', '.join(labels.names[:20])}")
        weights = [float(given.get(name, 1.0)) for name in labels.names]
        if not (min(weights) >= 0 and 0 < max(weights) < math.inf):
            raise InputError(f"data.class_weights {given}: weights should be 0 or more, and one above 0")
    return replace(labels, weights=weights, smoothing=data.label_smoothing)


def thresholds(job: Job, labels: Labels) -> dict[str, float]:
    """The scores above which multi_label predicts a class, by name; those beside the model are noted."""
    given = job.config.data.threshold
    if labels.problem_type != "multi_label" or (job.training and given == "best"):
        return {}
    stored = None if job.training or given not in (None, "best") else fetch_file(job.config.model, THRESHOLDS)
    if stored:
        found = read_json(stored)
        note(job, "thresholds", f"thresholds of classes: the model's, in {stored} (data.threshold)", classes=found)
        return found
    if given == "best":
        missing = f"{job.config.model} has no {THRESHOLDS}; training with this option chooses them"
        raise InputError(f"data.threshold best: {missing}")
    return dict.fromkeys(labels.names, 0.5 if given is None else given)


def matched(
    job: Job, labels: Labels, classes: Sequence[str], known: Mapping[str, int], named: Mapping[str, list[Any]]
) -> tuple[Labels, dict[str, list[Any]]]:
    """The model's labels, and the data's labels by the checkpoint's names; changes are noted.

    Args:
        job: in training classes that the checkpoint lacks are added, and classes that the data lack are dropped.
        labels: of the checkpoint.
        classes: of the data.
        known: the checkpoint's number of each class, from `match_classes`.
        named: the labels of each split.
    """
    changed = [(name, labels.names[known[name]]) for name in classes if name in known]
    if others := [f"{name} is {other}" for name, other in changed if name != other]:
        shown = shorten(others, 5)
        note(job, "labels matched", f"{labels.column}: of the model's classes, {shown}", classes=dict(changed))
    renamed_to = dict(changed)
    references = {name: [renamed(label, renamed_to) for label in split] for name, split in named.items()}
    if not job.training:
        return replace(labels, data_names=list(known)), references
    names = list(dict.fromkeys(renamed_to.get(name, name) for name in classes))
    same = set(names) == set(labels.names)
    return Labels(labels.names if same else names, labels.problem_type, labels.column), references


def checkpoint_labels(source: str, column: str = "label") -> Labels:
    """The labels of a checkpoint."""
    config = load_config(source)
    names = list(numbered_names(config, f"{source}: config.json").values())
    kinds = {theirs: ours for ours, theirs in MODEL_TYPES.items()}
    kind = kinds.get(config.get("problem_type") or "", "regression" if len(names) == 1 else "single_label")
    return Labels(distinct(names), kind, column)


def given_type(job: Job, known: Labels) -> ProblemType:
    """The problem type of a model that is not trained, from its config, else `data.problem_type`, else its outputs.

    Raises:
        InputError: they contradict one another.
    """
    given, said = job.config.data.problem_type, load_config(job.config.model).get("problem_type")
    if given is None or (said and given == known.problem_type):
        return known.problem_type
    if said or (given == "regression") != (len(known.names) == 1):
        there = f"a model of {len(known.names)} outputs" + (f" whose config says {said}" if said else "")
        raise InputError(f"data.problem_type {given}: {job.config.model} is {there}")
    return given


def read_names(split: Split, data: LabelData, problem_type: ProblemType, like: Named | None = None) -> Named:
    """The labels of a split as text, and the classes; a stream's block is read in the same form as the others.

    Raises:
        InputError: some labels are text, others numbers, or a column is missing.
    """
    several, column = problem_type == "multi_label", data.label_column
    if several and data.label_columns:
        return read_indicators(split, data.label_columns)
    values = split.table[column][:]
    if several:
        values = [as_list(value, data.label_separator) for value in values]
        width = vector_width(values) if listed_names(split.table, column) is None else 0
        if like is not None:
            width = len(like.classes) if like.numbered else 0
        if width:
            rows = [values[i] if vector_width([values[i]]) == width else None for i in split.index]
            labels = [row and [str(i) for i, value in enumerate(row) if value in (1, "1")] for row in rows]
            return Named(labels, list(map(str, range(width))), numbered=True)
    return name_values(split, column, values)


def label_problem(
    value: Any, known: Mapping[str, int], column: str, shown: Sequence[str] | None = None, *, multi_label: bool = False
) -> str | None:
    """Why a row's label cannot be used, or None.

    Args:
        value: the label, or with `multi_label` a list of labels.
        known: the model's classes.
        column: of the value.
        shown: names of the classes in the message, by default the model's.
        multi_label: whether a row may have any number of labels.
    """
    if isinstance(value, list) != multi_label:
        wanted = "a list of labels (data.label_separator splits a text)" if multi_label else "a single label"
        return f"{column} is {value!r}; should be {wanted}"
    for label in value if multi_label else [value]:
        if label is None:
            return f"{column} is empty or says that there is no label"
        if isinstance(label, float):
            return f"{column} is {label}; should be text or a whole number (data.problem_type regression takes others)"
        if isinstance(label, list | dict):
            return f"{column} has {label!r:.40} among the labels; should be text or a whole number"
        if label not in known:
            listed = ", ".join(list(shown or known)[:20])
            return f"{column} {label!r} is not one of the classes {listed} (see data.match)"
    return None


def match_classes(match: Match, names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The number of each of the data's labels among a model's classes; labels without a class are left out.

    By name, case is ignored, numbers are compared by value, and LABEL_0 equals 0; but only if all classes stay
    distinct.

    Args:
        match: whether labels are the names of the model's classes, their numbers, or classes in the same order.
        names: of the model's classes.
        classes: of the data.

    Raises:
        InputError: match is order, and the numbers of classes differ.
    """
    if match == "order" and len(classes) != len(names):
        raise InputError(f"data.match order: the data have {len(classes)} classes, the model has {len(names)}")
    if match != "name":
        return {label: i for i, label in enumerate(classes if match == "order" else map(str, range(len(names))))}
    exact = {name: i for i, name in enumerate(names)}
    if set(classes) <= set(names):
        return exact
    for alike in (plain_text, plain_number):
        theirs, ours = list(map(alike, names)), list(map(alike, classes))
        if len(set(theirs)) == len(names) and len(set(ours)) == len(classes) and set(theirs) & set(ours):
            return {label: theirs.index(key) for label, key in zip(classes, ours, strict=True) if key in theirs}
    return exact
