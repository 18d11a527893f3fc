"""Metrics of classification and regression, GLUE's among them, by scikit-learn and scipy, and the confusion matrix.

Shapes: N examples, C classes.
"""

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from d2v.config import Job
from d2v.data.labels import THRESHOLDS, Labels
from d2v.data.rows import Rows
from d2v.data.scores import Scores
from d2v.errors import InputError
from d2v.hub import write_json


def accuracy_and_f1(references: Sequence[int | str], predictions: Sequence[int | str]) -> dict[str, float]:
    """`accuracy` and `macro_f1`, the plain mean over all classes in references or predictions.

    Args:
        references: (N,) class numbers or names.
        predictions: (N,) the same.

    Raises:
        InputError: no examples, so that no metric is defined.
    """
    from sklearn.metrics import accuracy_score, f1_score

    if not len(references):
        raise InputError("no example to score; an accuracy needs at least one")
    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
    }


def mean_average_precision(references: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """`map`: the mean over classes of the area under precision over recall, as for AudioSet (Gemmeke et al., 2017).

    A class without a positive example has no precision and is left out of the mean. (scikit-learn would count it as 0,
    so the mean would depend on the rare classes that a subset happens to lack.)

    Args:
        references: (N, C) of zeros and ones.
        scores: (N, C); within a class only their order matters.

    Returns:
        `map`, NaN if no class has a positive example.
    """
    from sklearn.metrics import average_precision_score

    references, scores = np.asarray(references), np.asarray(scores)
    present = references.any(axis=0)  # (C,)
    if not present.any():
        return {"map": math.nan}
    return {"map": float(average_precision_score(references[:, present], scores[:, present], average="macro"))}


def ranked_accuracy(references: Sequence[str], ranked: Sequence[Sequence[str]]) -> dict[str, float]:
    """`accuracy`, and `accuracy_top5` if five classes are ranked.

    Args:
        references: (N,) names.
        ranked: (N, up to 5) names, most probable first.

    Raises:
        InputError: no examples, so that no metric is defined.
    """
    if not len(references):
        raise InputError("no example to score; an accuracy needs at least one")
    pairs = list(zip(references, ranked, strict=True))
    metrics = {"accuracy": float(np.mean([name == row[0] for name, row in pairs]))}
    if len(ranked[0]) >= 5:
        metrics["accuracy_top5"] = float(np.mean([name in row[:5] for name, row in pairs]))
    return metrics


def real_accuracy(labels: Sequence[Sequence[int]], predictions: Sequence[int]) -> float:
    """Share of images whose predicted class is among the classes that people gave them (Beyer et al., 2020, "ReaL").

    Args:
        labels: N lists of class numbers; images with an empty list are ignored.
        predictions: (N,) class numbers.

    Raises:
        InputError: no image has a label.
    """
    right = [number in image for image, number in zip(labels, predictions, strict=True) if image]
    if not right:
        raise InputError("no image has a ReaL label; an accuracy needs at least one")
    return float(np.mean(right))


def accuracy(references: Sequence[str], predictions: Sequence[str], classes: Sequence[str]) -> float:
    """The share of examples whose class is right."""
    return accuracy_and_f1(references, predictions)["accuracy"]


def macro_f1(references: Sequence[str], predictions: Sequence[str], classes: Sequence[str]) -> float:
    """The plain mean of the classes' F1, over all classes in references or predictions."""
    return accuracy_and_f1(references, predictions)["macro_f1"]


NOT_TWO = "data.metrics: f1 is that of one of two classes, and there are {}; use macro_f1"


def f1(references: Sequence[str], predictions: Sequence[str], classes: Sequence[str]) -> float:
    """F1 of the second of two classes, such as "duplicate"; `label_metrics` puts `data.positive_class` there.

    Raises:
        InputError: there are more than two classes.
    """
    from sklearn.metrics import f1_score

    if len(classes) != 2:
        raise InputError(NOT_TWO.format(len(classes)))
    return f1_score(references, predictions, pos_label=classes[1], average="binary", zero_division=0)


def matthews_correlation(references: Sequence[str], predictions: Sequence[str], classes: Sequence[str]) -> float:
    """Matthews correlation of two or more classes; 0 if all predictions are the same."""
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(references, predictions)


def average_precision(references: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> float:
    """See `mean_average_precision`."""
    return mean_average_precision(references, scores)["map"]


def micro_f1(references: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> float:
    """F1 over all pairs of example and class; classes that score above 0.5 are predicted."""
    from sklearn.metrics import f1_score

    return f1_score(np.ravel(references), np.ravel(np.asarray(scores) > 0.5), zero_division=0)


def pearson(references: Sequence[float], predictions: Sequence[float], classes: Sequence[str] = ()) -> float:
    """Pearson correlation; 0, where scipy has NaN, if all predictions are the same."""
    from scipy.stats import pearsonr

    return correlation(pearsonr, references, predictions)


def spearmanr(references: Sequence[float], predictions: Sequence[float], classes: Sequence[str] = ()) -> float:
    """Spearman's rank correlation; 0, where scipy has NaN, if all predictions are the same."""
    from scipy.stats import spearmanr

    return correlation(spearmanr, references, predictions)


def rmse(references: Sequence[float], predictions: Sequence[float], classes: Sequence[str] = ()) -> float:
    """The root of the mean squared error, in the unit of the values."""
    return float(np.sqrt(np.mean((np.asarray(predictions, float) - references) ** 2)))


def mae(references: Sequence[float], predictions: Sequence[float], classes: Sequence[str] = ()) -> float:
    """The mean absolute error, in the unit of the values."""
    return float(np.mean(np.abs(np.asarray(predictions, float) - references)))


def r2(references: Sequence[float], predictions: Sequence[float], classes: Sequence[str] = ()) -> float:
    """The coefficient of determination: the share of the variance that is explained; 0 for the mean as prediction.

    NaN where the references have no variance.
    """
    from sklearn.metrics import r2_score

    if len(references) < 2 or np.ptp(references) == 0:
        return math.nan
    return float(r2_score(references, predictions))


def correlation(method: Callable, references: Sequence[float], predictions: Sequence[float]) -> float:
    """The statistic that scipy's `method` returns; NaN if the references are all the same."""
    if len(references) < 2 or np.ptp(references) == 0:
        return math.nan
    return 0.0 if np.ptp(predictions) == 0 else method(references, predictions).statistic


TOP5 = "accuracy_top5"
"""A metric of single labels that needs the scores of at least five classes."""
METRICS: dict[str, dict[str, Callable]] = {  # by problem type; the first two are the default
    "single_label": {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "f1": f1,
        "matthews_correlation": matthews_correlation,
    },
    "multi_label": {"map": average_precision, "micro_f1": micro_f1},
    "regression": {"pearson": pearson, "spearmanr": spearmanr, "rmse": rmse, "mae": mae, "r2": r2},
}


def choose_metrics(
    names: Sequence[str], labels: Labels, references: Mapping[str, Any] | None = None, *, top5: bool = False
) -> list[str]:
    """The metrics to report, checked before anything is trained.

    Args:
        names: of metrics, or none for the two default ones.
        labels: the model's.
        references: of each split, as far as there are any. In training the first metric has to be defined for those of
            validation.
        top5: whether the default for single labels is `accuracy` and `accuracy_top5`.

    Raises:
        InputError: there is no such metric for this problem type, this number of classes, or these references.
    """
    classes, chosen = len(labels.names), known_metrics(names, labels.problem_type, top5=top5)
    if TOP5 in names and classes < 5:
        raise InputError(f"data.metrics: {TOP5} is of five classes or more; there are {classes}")
    if "f1" in names and classes != 2:
        raise InputError(NOT_TWO.format(classes))
    validation = references.get("validation") if references and "train" in references else None
    if validation is None:
        return chosen
    usable = all(isinstance(value, float) and math.isfinite(value) for value in validation)  # else a row is reported
    if chosen[0] in ("pearson", "spearmanr", "r2") and usable and len(set(validation)) < 2:
        raise InputError(
            f"data.metrics: {chosen[0]} needs two or more examples of different values in validation, to choose the "
            "best model; --data.metrics '[rmse]' needs none"
        )
    if chosen[0] == "map" and not any(validation):
        raise InputError("data.metrics: map needs a label in validation, to choose the best model")
    return chosen


def known_metrics(names: Sequence[str], problem_type: str, *, top5: bool = False) -> list[str]:
    """These metrics, or the two default ones; InputError if one does not exist for this problem type."""
    known = [*METRICS[problem_type], *([TOP5] if problem_type == "single_label" else [])]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"data.metrics: {unknown[0]} is no metric of {problem_type}; there are {', '.join(known)}")
    return list(names) or (["accuracy", TOP5] if top5 and problem_type == "single_label" else known[:2])


def classification_metrics(
    names: Sequence[str],
    problem_type: str,
    references: Sequence[Any] | np.ndarray,
    predictions: Sequence[Any] | np.ndarray,
    classes: Sequence[int | str] = (),
) -> dict[str, float]:
    """Metrics by name.

    Args:
        names: of `METRICS[problem_type]`.
        problem_type: a key of `METRICS`.
        references: (N,) names of classes, or values; if multi-label (N, C) zeros and ones.
        predictions: (N,) the same; if multi-label (N, C) scores.
        classes: (C,) names or numbers, in order.

    Raises:
        InputError: no examples, or `f1` for other than two classes.
    """
    if not len(references):
        raise InputError("no example to score; a metric needs at least one")
    return {name: float(METRICS[problem_type][name](references, predictions, classes)) for name in names}


def label_metrics(
    names: Sequence[str], labels: Labels, references: Sequence[Any], predictions: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Metrics of predictions from `Labels.decode`.

    Args:
        names: of `METRICS[labels.problem_type]`.
        labels: the model's.
        references: (N,) names of classes, lists of them, or values.
        predictions: (N,) with a `label`, the `scores` of all classes, or a `value`.
    """
    kind = labels.problem_type
    if kind == "multi_label":
        scores = above_half(labels, predictions)
        return classification_metrics(names, kind, labels.encode(references).numpy(), scores, labels.names)
    key = "value" if kind == "regression" else "label"
    others, values = [name for name in names if name != TOP5], [row[key] for row in predictions]
    metrics = classification_metrics(others, kind, references, values, labels.positive_last)
    if TOP5 in names and len(labels.names) >= 5:
        metrics[TOP5] = ranked_accuracy(references, list(map(likeliest, predictions)))[TOP5]
    return metrics


def likeliest(prediction: dict[str, Any], most: int = 5) -> list[str]:
    """The names of the classes with the highest `scores`, highest first."""
    scores = prediction["scores"]
    return sorted(scores, key=lambda name: -scores[name])[:most]


def above_half(labels: Labels, predictions: Sequence[dict[str, Any]]) -> np.ndarray:
    """The scores (N, C) of multi-label predictions, shifted so that predicted classes are above 0.5."""
    scores = score_table(predictions)
    return scores - labels.limits() + 0.5 if scores.size else scores


def score_table(predictions: Sequence[dict[str, Any]]) -> np.ndarray:
    """The `scores` of all classes, (N, C)."""
    every = (row["scores"] for row in predictions)
    return np.array([each.array if isinstance(each, Scores) else list(each.values()) for each in every], float)


def choose_thresholds(job: Job, labels: Labels, rows: Rows, predict: Callable[[], Sequence[tuple[int, Any]]]) -> Labels:
    """With `data.threshold` best, the labels with each class's threshold of best F1, kept beside the best model.

    A threshold lies midway between two scores; a class without an example keeps 0.5.

    Args:
        job: after training.
        labels: the model's.
        rows: those of validation.
        predict: returns their predictions, with the `scores` of all classes.
    """
    if job.config.data.threshold != "best":
        return labels
    references, predictions = rows.compare(predict())
    truth, chosen = labels.encode(references).numpy(), {}
    scores = score_table(predictions)
    for i, name in enumerate(labels.names):
        order = np.argsort(-scores[:, i], kind="stable")
        ranked, right = scores[order, i], truth[order, i].cumsum()
        best = 2 * right / (np.arange(1, len(order) + 1) + truth[:, i].sum())
        ends = np.append(ranked[:-1] > ranked[1:], True)  # equal scores are predicted together
        last = int(np.where(ends, best, -1.0).argmax())
        below = ranked[last + 1] if last + 1 < len(ranked) else 0.0
        chosen[name] = float((ranked[last] + below) / 2) if truth[:, i].any() else 0.5
    if job.is_main:
        write_json(job.out / "best" / THRESHOLDS, chosen)
    return replace(labels, thresholds=chosen)


def report_classes(
    folder: Path, labels: Labels, references: Sequence[Any], predictions: Sequence[dict[str, Any]]
) -> None:
    """Write `classes.csv`, precision, recall and F1 of each class, and with a single label `confusion.png`.

    Args:
        folder: to write into.
        labels: the model's; nothing is written for regression.
        references, predictions: as in `label_metrics`.
    """
    if labels.problem_type == "regression":
        return
    if labels.problem_type == "multi_label":
        truth, found = labels.encode(references).numpy(), labels.encode([row["labels"] for row in predictions]).numpy()
        write_classes(folder / "classes.csv", truth, found, labels.names)
        return
    predicted = [row["label"] for row in predictions]
    write_classes(folder / "classes.csv", references, predicted, labels.names)
    plot_confusion(references, predicted, labels.names, folder / "confusion.png")


def write_classes(path: Path, references: Any, predictions: Any, names: Sequence[str]) -> None:
    """Write one line per class: name, precision, recall, F1, and its numbers of references and predictions.

    Args:
        path: of the CSV file.
        references, predictions: (N,) names of classes, or (N, C) zeros and ones.
        names: (C,) of the classes.
    """
    from sklearn.metrics import precision_recall_fscore_support

    names = list(names)
    if isinstance(references, np.ndarray):
        # For a single class scikit-learn takes zeros and ones for two classes.
        options: dict[str, Any] = {"labels": range(len(names)) if len(names) > 1 else [1]}
        counts = predictions.sum(0).astype(int).tolist()
    else:
        options, known = {"labels": names}, Counter(predictions)
        counts = [known[name] for name in names]
    columns = precision_recall_fscore_support(references, predictions, zero_division=0, **options)
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["class", "precision", "recall", "f1", "references", "predictions"])
        for name, *rates, support, count in zip(names, *(column.tolist() for column in columns), counts, strict=True):
            lines.writerow([name, *(round(rate, 6) for rate in rates), int(support), count])


def plot_confusion(
    references: Sequence[str], predictions: Sequence[str], names: Sequence[str], path: str | os.PathLike
) -> None:
    """Plot the confusion matrix of up to 200 classes: colours are shares of a row, numbers are examples.

    Args:
        references: (N,) names of classes, in rows.
        predictions: (N,) names, in columns.
        names: all C classes, in order.
        path: of the picture.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import confusion_matrix

    if len(names) > 200:  # the picture would be too large to open
        return
    counts = confusion_matrix(references, predictions, labels=list(names))  # (C, C)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    few = len(names) <= 30  # above that the numbers would be too small to read
    side = 2.5 + len(names) * (0.4 if few else 0.16)  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts) if few else ():
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=8)
    labels = [name if len(name) <= 24 else name[:23] + "…" for name in names]
    size = 9 if few else 7
    axis.set_xticks(range(len(names)), labels, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), labels, fontsize=size)
    axis.set(xlabel="predicted", ylabel="reference")
    figure.savefig(path, dpi=100)
