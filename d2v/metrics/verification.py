"""Speaker verification: equal error rate, detection cost and the curve between the two errors.

A trial's label is 1 if both clips are of one speaker (a target) and 0 if not; a high score means one speaker.
"""

import os
from collections.abc import Sequence

import numpy as np

from d2v.decode.verification import Scores
from d2v.errors import InputError

Labels = Sequence[int | None] | np.ndarray


def verification_metrics(labels: Labels, scores: Scores) -> dict[str, float]:
    """`eer`, and the detection cost at both usual shares of targets: `min_dcf_001` (s3prl), `min_dcf_005` (VoxSRC).

    Args:
        labels: 1 or 0 for each trial.
        scores: in the same order.

    Raises:
        InputError: all trials have the same label, or a score is not finite.
    """
    return {
        "eer": equal_error_rate(labels, scores),
        "min_dcf_001": min_dcf(labels, scores, p_target=0.01),
        "min_dcf_005": min_dcf(labels, scores, p_target=0.05),
    }


def equal_error_rate(labels: Labels, scores: Scores) -> float:
    """The error rate at the threshold where the rates of missed targets and accepted non-targets are equal.

    Between two thresholds the curve is a straight line, as in VoxSRC's script and in s3prl.
    """
    from scipy.optimize import brentq

    misses, false_alarms = error_curve(labels, scores)
    return float(brentq(lambda rate: np.interp(rate, false_alarms, misses) - rate, 0.0, 1.0))


def min_dcf(labels: Labels, scores: Scores, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """The minimum detection cost over all thresholds, normalised (NIST SRE): constant decisions cost 1.

    Args:
        labels: 1 or 0 for each trial.
        scores: in the same order.
        p_target: prior probability of a target, which weights the errors; not the trials' share.
        c_miss: cost of a missed target.
        c_fa: cost of an accepted non-target.
    """
    misses, false_alarms = error_curve(labels, scores)
    costs = c_miss * p_target * misses + c_fa * (1 - p_target) * false_alarms
    return float(costs.min() / min(c_miss * p_target, c_fa * (1 - p_target)))


def error_curve(labels: Labels, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Share of missed targets and of accepted non-targets as the threshold falls, from (1, 0) to (0, 1)."""
    from sklearn.metrics import roc_curve

    kinds, values = set(np.asarray(labels).tolist()), np.asarray(scores, dtype=float)
    if kinds != {0, 1}:
        raise InputError(f"trials are labelled {sorted(kinds)}; there should be targets, 1, and others, 0")
    if not np.isfinite(values).all():
        trial = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"the score of trial {trial} is {values[trial]}; should be finite")
    false_alarms, hits, _ = roc_curve(labels, values, pos_label=1)
    return 1 - hits, false_alarms


def plot_det(labels: Labels, scores: Scores, path: str | os.PathLike) -> None:
    """Plot the detection error trade-off (Martin et al., 1997) and the equal error rate.

    The axes are normal deviates, so that Gaussian scores give a straight line.

    Args:
        labels: 1 or 0 for each trial.
        scores: in the same order.
        path: of the picture.
    """
    from matplotlib.figure import Figure
    from scipy.stats import norm

    misses, false_alarms = error_curve(labels, scores)
    eer = equal_error_rate(labels, scores)
    lowest, highest = 0.0005, 0.6 if eer < 0.5 else 0.99  # rates 0 and 1 lie at infinity
    ticks = [rate for rate in (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9) if rate <= highest]
    deviates = {"ticks": norm.ppf(ticks), "labels": [f"{100 * rate:g}" for rate in ticks]}
    limits = norm.ppf([lowest, highest])

    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot(norm.ppf(false_alarms.clip(1e-6, 1 - 1e-6)), norm.ppf(misses.clip(1e-6, 1 - 1e-6)))
    axis.plot(limits, limits, color="grey", linewidth=0.5)
    axis.plot(*[norm.ppf(np.clip(eer, lowest, highest))] * 2, "o", label=f"equal error rate {100 * eer:.2f} %")
    axis.set(xlim=limits, ylim=limits, xlabel="accepted non-targets, %", ylabel="missed targets, %")
    axis.set_xticks(**deviates)
    axis.set_yticks(**deviates)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=100)
