"""Accuracy, F1 and average precision, by scikit-learn, and a picture of what is taken for what.

Shapes: N examples, C classes.
"""

import os
from collections.abc import Sequence

import numpy as np

from d2v.errors import InputError


def accuracy_and_f1(references: Sequence[int | str], predictions: Sequence[int | str]) -> dict[str, float]:
    """`accuracy` and `macro_f1`, the plain mean over all classes that are referred to or predicted.

    Args:
        references: (N,) class numbers or names.
        predictions: (N,) the same.

    Raises:
        InputError: no examples, so that no rate is defined.
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
    that a figure would fall with the rare classes that a subset happens to lack.)

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
        ranked: (N, up to 5) names, the most likely first.

    Raises:
        InputError: no examples, so that no rate is defined.
    """
    if not len(references):
        raise InputError("no example to score; an accuracy needs at least one")
    found = {"accuracy": float(np.mean([name == row[0] for name, row in zip(references, ranked, strict=True)]))}
    if len(ranked[0]) >= 5:
        found["accuracy_top5"] = float(np.mean([name in row[:5] for name, row in zip(references, ranked, strict=True)]))
    return found


def real_accuracy(labels: Sequence[Sequence[int]], predictions: Sequence[int]) -> float:
    """Share of images whose predicted class is one of those that people saw in them (Beyer et al., 2020, "ReaL").

    Args:
        labels: N lists of class numbers; images with an empty one do not count.
        predictions: (N,) class numbers.

    Raises:
        InputError: no image has a label.
    """
    right = [number in seen for seen, number in zip(labels, predictions, strict=True) if seen]
    if not right:
        raise InputError("no image has a ReaL label; an accuracy needs at least one")
    return float(np.mean(right))


def plot_confusion(
    references: Sequence[str], predictions: Sequence[str], names: Sequence[str], path: str | os.PathLike
) -> None:
    """Draw how often each class is taken for each: colours are shares of a row, numbers are examples.

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
    font = {"fontsize": 9 if few else 7}
    axis.set_xticks(range(len(names)), labels, rotation=90, **font)
    axis.set_yticks(range(len(names)), labels, **font)
    axis.set(xlabel="predicted", ylabel="reference")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
