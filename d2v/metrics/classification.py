"""Metrics of classification and regression, GLUE's among them, by scikit-learn and scipy, and the confusion matrix.

Shapes: N examples, C classes.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from d2v.data.labels import Labels
from d2v.errors import InputError


def accuracy_and_f1(references: Sequence[int | str], predictions: Sequence[int | str]) -> dict[str, float]:
    """`accuracy` and `macro_f1`, the plain mean over all classes that are referred to or predicted.

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

    A class without a positive example has no precision and is left out of the mean. (scikit-learn would count it 0, so
    that the mean would fall with the rare classes that a subset happens to lack.)

    Args:
        references: (N, C) of zeros and ones.
        scores: (N, C); within a class only their order counts.

    Raises:
        InputError: no class has a positive example.
    """
    from sklearn.metrics import average_precision_score

    references, scores = np.asarray(references), np.asarray(scores)
    present = references.any(axis=0)  # (C,)
    if not present.any():
        raise InputError("no example has a label; an average precision needs at least one")
    return {"map": float(average_precision_score(references[:, present], scores[:, present], average="macro"))}


def ranked_accuracy(references: Sequence[str], ranked: Sequence[Sequence[str]]) -> dict[str, float]:
    """`accuracy`, and `accuracy_top5` where five classes are ranked.

    Args:
        references: (N,) names.
        ranked: (N, up to 5) names, the most probable first.

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
    """Share of images whose predicted class is one of those that people gave them (Beyer et al., 2020, "ReaL").

    Args:
        labels: N lists of class numbers; images with an empty one do not count.
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
    """The plain mean of the classes' F1, over those that are referred to or predicted."""
    return accuracy_and_f1(references, predictions)["macro_f1"]


def f1(references: Sequence[str], predictions: Sequence[str], classes: Sequence[str]) -> float:
    """F1 of the second of two classes, such as "duplicate".

    Raises:
        InputError: there are more classes.
    """
    from sklearn.metrics import f1_score

    if len(classes) != 2:
        raise InputError(f"data.metrics: f1 is that of one of two classes, and there are {len(classes)}; use macro_f1")
    return f1_score(references, predictions, pos_label=classes[1], average="binary", zero_division=0)


def matthews_correlation(references: Sequence[str], predictions: Sequence[str], classes: Sequence[str]) -> float:
    """Matthews correlation of two or more classes; 0 where all predictions are the same."""
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(references, predictions)


def average_precision(references: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> float:
    """See `mean_average_precision`."""
    return mean_average_precision(references, scores)["map"]


def micro_f1(references: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> float:
    """F1 of all pairs of example and class together; what scores above a half is predicted."""
    from sklearn.metrics import f1_score

    return f1_score(references, np.asarray(scores) > 0.5, average="micro", zero_division=0)


def pearson(references: Sequence[float], predictions: Sequence[float], classes: Sequence[str] = ()) -> float:
    """Pearson correlation; 0, where scipy has NaN, if all predictions are the same."""
    from scipy.stats import pearsonr

    return correlation(pearsonr, references, predictions)


def spearmanr(references: Sequence[float], predictions: Sequence[float], classes: Sequence[str] = ()) -> float:
    """Spearman's rank correlation; 0, where scipy has NaN, if all predictions are the same."""
    from scipy.stats import spearmanr

    return correlation(spearmanr, references, predictions)


def correlation(method: Callable, references: Sequence[float], predictions: Sequence[float]) -> float:
    """What `method` of scipy calls the statistic; InputError where the references have none."""
    if len(references) < 2 or np.ptp(references) == 0:
        raise InputError("a correlation needs two or more examples, of different values")
    return 0.0 if np.ptp(predictions) == 0 else method(references, predictions).statistic


METRICS: dict[str, dict[str, Callable]] = {  # by problem type; the first two are the default
    "single_label": {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "f1": f1,
        "matthews_correlation": matthews_correlation,
    },
    "multi_label": {"map": average_precision, "micro_f1": micro_f1},
    "regression": {"pearson": pearson, "spearmanr": spearmanr},
}


def choose_metrics(names: Sequence[str], problem_type: str) -> list[str]:
    """The metrics to report.

    Args:
        names: of metrics, or none for the two that are the default.
        problem_type: a key of `METRICS`.

    Raises:
        InputError: there is no such metric of this type of problem.
    """
    known = list(METRICS[problem_type])
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"data.metrics: {unknown[0]} is no metric of {problem_type}; there are {', '.join(known)}")
    return list(names) or known[:2]


def classification_metrics(
    names: Sequence[str],
    problem_type: str,
    references: Sequence[Any] | np.ndarray,
    predictions: Sequence[Any],
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
        InputError: no examples, or a metric is not defined for them.
    """
    if not len(references):
        raise InputError("no example to score; a metric needs at least one")
    return {name: float(METRICS[problem_type][name](references, predictions, classes)) for name in names}


def label_metrics(
    names: Sequence[str], labels: Labels, references: Sequence[Any], predictions: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Metrics of what `Labels.decode` returned.

    Args:
        names: of `METRICS[labels.problem_type]`.
        labels: what the model predicts.
        references: (N,) names of classes, lists of them, or values.
        predictions: (N,) with a `label`, the `scores` of all classes, or a `value`.
    """
    kind = labels.problem_type
    if kind == "multi_label":
        scores = [list(row["scores"].values()) for row in predictions]
        return classification_metrics(names, kind, labels.encode(references).numpy(), scores, labels.names)
    key = "value" if kind == "regression" else "label"
    return classification_metrics(names, kind, references, [row[key] for row in predictions], labels.names)


def plot_confusion(
    references: Sequence[str], predictions: Sequence[str], names: Sequence[str], path: str | os.PathLike
) -> None:
    """Plot the confusion matrix: colours are shares of a row, numbers are examples; none of more than 200 classes.

    Args:
        references: (N,) names of classes, down the picture.
        predictions: (N,) names, across.
        names: all C classes, in order.
        path: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from sklearn.metrics import confusion_matrix

    if len(names) > 200:  # the picture would be too large to open
        return
    counts = confusion_matrix(references, predictions, labels=list(names))  # (C, C)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    few = len(names) <= 30  # above that the numbers would be too small to read
    side = 2.5 + len(names) * (0.4 if few else 0.16)  # inches
    figure, axis = pyplot.subplots(figsize=(side, side), layout="constrained")
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
    pyplot.close(figure)
