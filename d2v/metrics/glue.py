"""The figures of text classification, GLUE's among them, by scikit-learn and scipy.

Shapes: N examples, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from d2v.errors import InputError
from d2v.metrics.classification import accuracy_and_f1, mean_average_precision


def accuracy(references: Sequence[str], predictions: Sequence[str], classes: Sequence[str]) -> float:
    """The share of examples that are right."""
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


FIGURES: dict[str, dict[str, Callable]] = {  # by what is learnt; the first two are what is reported by default
    "single_label_classification": {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "f1": f1,
        "matthews_correlation": matthews_correlation,
    },
    "multi_label_classification": {"map": average_precision, "micro_f1": micro_f1},
    "regression": {"pearson": pearson, "spearmanr": spearmanr},
}


def choose_figures(names: Sequence[str], kind: str) -> list[str]:
    """The figures to report.

    Args:
        names: those asked for, or none for the usual two.
        kind: of problem, as in `FIGURES`.

    Raises:
        InputError: there is no such figure of this kind of problem.
    """
    known = list(FIGURES[kind])
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"data.metrics: {unknown[0]} is no figure of {kind}; there are {', '.join(known)}")
    return list(names) or known[:2]


def rates(
    names: Sequence[str], kind: str, references: Sequence[Any], predictions: Sequence[Any], classes: Sequence[str] = ()
) -> dict[str, float]:
    """Figures by name.

    Args:
        names: of `FIGURES[kind]`.
        kind: of problem.
        references: (N,) names of classes or values; of several labels (N, C) zeros and ones.
        predictions: (N,) the same; of several labels (N, C) scores.
        classes: (C,) names, in order.

    Raises:
        InputError: no examples, or a figure is not defined for them.
    """
    if not len(references):
        raise InputError("no example to score; a figure needs at least one")
    return {name: float(FIGURES[kind][name](references, predictions, classes)) for name in names}
