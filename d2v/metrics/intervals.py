"""Metrics' intervals, by the bootstrap over rows, speakers or documents, from each row's contribution to the metric.

Statistics are arrays by kind, so that a metric of any resampled set is computed from sums, without the predictions:

- `sums`: by metric (M, 2), numerator and denominator; `perplexity` is the exponential of its ratio.
- `classes`: `reference` and `prediction` (M,) class numbers.
- `overlaps`: `counts` (M, 3, C), pixels of each class rightly predicted, predicted and in the reference.
- `rankings`: `reference` (M, C) of zeros and ones, `scores` (M, C).
- `values`: `reference` and `prediction` (M,).
- `trials`: `label` (M,) 1 for a target and 0, `score` (M,), `first` and `second` (M,) numbers of speakers, `clusters`
  (K,) the speakers, which are resampled instead of rows.

Each kind may have `row` (M,), the number of the row that an item such as a word belongs to; by default items are rows.

Shapes: M items, N rows, K clusters, R replications, C classes.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from d2v.data.cores import granted_cores
from d2v.errors import InputError

Statistics = dict[str, dict[str, np.ndarray]]

FEWEST = 10
"""Minimum number of clusters for an interval: with fewer the bootstrap covers too rarely."""
CHUNK = 50_000_000
"""Bytes of weights that are held at once."""


def intervals(
    statistics: Statistics, clusters: Sequence[Any] | np.ndarray, *, replications: int = 1000, seed: int = 0
) -> dict[str, list[float] | None]:
    """The 95 % interval of every metric; None if there are too few clusters, or no replication differs.

    Clusters are resampled with replacement. The bounds are the expanded percentiles of Hesterberg, "What Teachers
    Should Know About the Bootstrap" (2015), which make up for the bootstrap's narrowness in small samples.

    Args:
        statistics: of a split's rows.
        clusters: (N,) the cluster of each row: its speaker, patient or document; None or "" for the row itself.
        replications: R; 0 gives no interval.
        seed: of the resampling.
    """
    count, (found,) = resample([statistics], clusters, replications, seed)
    return {name: bounds(values[1:], count) for name, values in found.items()}


def resample(
    sides: Sequence[Statistics], clusters: Sequence[Any] | np.ndarray, replications: int, seed: int
) -> tuple[int, list[dict[str, np.ndarray]]]:
    """Every metric (1 + R,) of each side, of all rows and of resampled sets, which are the same for all sides.

    Returns:
        The number of clusters, and the metrics; with fewer than `FEWEST` clusters only those of all rows.
    """
    sides = [dict(side) for side in sides]
    if "trials" in sides[0]:
        # The rows and their speakers are the same, though each side numbers the speakers differently.
        speakers = {name: sides[0]["trials"][name] for name in ("clusters", "first", "second")}
        sides = [side | {"trials": side["trials"] | speakers} for side in sides]
        clusters = speakers["clusters"]
    for side in (side for side in sides if "overlaps" in side):  # once, not for each part of the replications
        side["overlaps"] = {"counts": side["overlaps"]["counts"].astype(float)}
    if any(each is None or each == "" for each in clusters):
        clusters = [f"\0{i}" if each in (None, "") else str(each) for i, each in enumerate(clusters)]
    _, numbers = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(numbers.max(initial=-1)) + 1
    parts = [[metrics_of(side, np.ones((1, count)), numbers)] for side in sides]
    generator = np.random.default_rng(seed)
    items = max(len(next(iter(arrays.values()))) for arrays in sides[0].values())
    threads = min(4, granted_cores())
    step = max(1, CHUNK // max(items, count) // 8 // threads)

    def draw(start: int) -> np.ndarray:
        size = min(step, replications - start)
        chosen = (generator.integers(count, size=count, dtype=np.int32) for _ in range(size))  # faster than int64
        return np.stack([np.bincount(each, minlength=count) for each in chosen]).astype(float)

    def metrics(counts: np.ndarray) -> list[dict[str, np.ndarray]]:
        return [metrics_of(side, counts, numbers) for side in sides]

    starts = range(0, replications if count >= FEWEST else 0, step)
    with ThreadPoolExecutor(threads) as pool:  # numpy computes outside of Python's lock
        for i in range(0, len(starts), threads):
            for both in pool.map(metrics, map(draw, starts[i : i + threads])):
                for found, values in zip(parts, both, strict=True):
                    found.append(values)
    return count, [{name: np.concatenate([part[name] for part in found]) for name in found[0]} for found in parts]


def paired_differences(
    first: Statistics, second: Statistics, clusters: Sequence[Any], *, replications: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, list[float] | None, np.ndarray]]:
    """Metric -> both values, the 95 % interval of second - first, and the replications' differences (R,).

    Args:
        first, second: statistics of the same rows, in the same order.
        clusters: (N,) as for `intervals`.
        replications, seed: as for `intervals`.
    """
    count, (a, b) = resample([first, second], clusters, replications, seed)
    found = {}
    for name in a.keys() & b.keys():
        differences = b[name][1:] - a[name][1:]
        interval = [0.0, 0.0] if differences.size and not differences.any() else bounds(differences, count)
        found[name] = (float(a[name][0]), float(b[name][0]), interval, differences)
    return {name: found[name] for name in a if name in found}


def interval_of_mean(
    runs: Sequence[tuple[Statistics, Sequence[str], Sequence[str]]],
    metric: str,
    *,
    replications: int = 1000,
    seed: int = 0,
) -> list[float] | None:
    """The 95 % interval of a metric's mean over runs; None if a run has no interval.

    Runs over the same rows are resampled together; if each held out rows of its own, each is resampled by itself.

    Args:
        runs: statistics, ids and clusters of each, from `load_statistics`.
        metric: its name.
        replications, seed: as for `intervals`.
    """
    if all(run[1:] == runs[0][1:] for run in runs):
        count, found = resample([run[0] for run in runs], runs[0][2], replications, seed)
    else:
        each = [resample([run[0]], run[2], replications, seed + number) for number, run in enumerate(runs)]
        count, found = min(count for count, _ in each), [metrics for _, (metrics,) in each]
    replicated = [metrics[metric][1:] for metrics in found if metric in metrics]
    if len(replicated) < len(runs) or not all(len(values) for values in replicated):
        return None
    return bounds(np.mean(replicated, axis=0), count)


def select_rows(statistics: Statistics, rows: Sequence[int]) -> Statistics:
    """The statistics of only these rows, in this order."""
    selected: Statistics = {}
    for kind, arrays in statistics.items():
        if "row" in arrays:
            place: dict[int, list[int]] = {row: [] for row in rows}
            for item, row in enumerate(arrays["row"].tolist()):
                if row in place:
                    place[row].append(item)
            items = np.array([item for row in rows for item in place[row]], dtype=np.int64)
            lengths = [len(place[row]) for row in rows]
            selected[kind] = {name: array[items] for name, array in arrays.items() if name != "row"}
            selected[kind]["row"] = np.repeat(np.arange(len(rows)), lengths)
        else:
            selected[kind] = {n: array[np.asarray(rows)] for n, array in arrays.items() if n != "clusters"}
            if kind == "trials":  # trials are the rows; only their speakers stay
                pairs = np.stack([selected[kind][name] for name in ("first", "second")])
                kept, numbers = np.unique(pairs, return_inverse=True)
                first, second = numbers.reshape(pairs.shape)
                selected[kind] |= {"first": first, "second": second, "clusters": arrays["clusters"][kept]}
    return selected


def bounds(values: np.ndarray, count: int) -> list[float] | None:
    """The expanded percentiles of (R,) replications over `count` clusters; None if all are the same or undefined."""
    from scipy.stats import norm, t

    values = values[np.isfinite(values)]
    if not values.size or np.ptp(values) <= 1e-12 * abs(values[0]):
        return None
    tail = norm.cdf(math.sqrt(count / (count - 1)) * t.ppf(0.025, count - 1))
    return [float(each) for each in np.quantile(values, [tail, 1 - tail])]


def metrics_of(statistics: Statistics, counts: np.ndarray, clusters: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric (R,) of resampled sets.

    Args:
        statistics: of rows.
        counts: (R, K), how often each cluster occurs in each set.
        clusters: (N,) the cluster of each row; of `trials` speakers are clusters.
    """
    found: dict[str, np.ndarray] = {}
    for kind, arrays in statistics.items():
        if kind == "trials":
            order = np.argsort(-arrays["score"], kind="stable")
            arrays = {name: array[order] for name, array in arrays.items() if name != "clusters"}
            weights = pair_weights(counts, clusters[arrays["first"]], clusters[arrays["second"]])
        else:
            rows = clusters[arrays["row"]] if "row" in arrays else clusters
            alone = np.array_equal(rows, np.arange(counts.shape[1]))  # each row is a cluster of its own
            weights = counts if alone else counts[:, rows]  # (R, M)
        with np.errstate(invalid="ignore", divide="ignore"):
            found |= KINDS[kind]({name: array for name, array in arrays.items() if name != "row"}, weights)
    return found


def pair_weights(counts: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The number of times (R, M) that each pair of clusters (M,) occurs in sets with counts (R, K).

    Copies of a speaker are different draws, not one another's targets: a pair within one counts once per copy.
    """
    clusters = counts.shape[1]
    if clusters**2 > len(first):
        return counts[:, first] * np.where(first == second, 1.0, counts[:, second])
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs[:, np.arange(clusters), np.arange(clusters)] = counts
    return pairs.reshape(len(counts), -1).take(first * clusters + second, axis=1)


def of_sums(arrays: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Ratios of sums, by metric."""
    found = {}
    for name, array in arrays.items():
        above, below = (weights @ array).T
        found[name] = np.exp(above / below) if name == "perplexity" else above / below
    return found


def of_classes(arrays: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """`accuracy`, `macro_f1`, `matthews_correlation`, and with two classes `f1` of the second."""
    from scipy.sparse import csr_matrix

    reference, prediction = arrays["reference"], arrays["prediction"]
    items, classes = len(reference), int(max(reference.max(), prediction.max())) + 1
    columns = np.stack((reference, classes + prediction, 2 * classes + reference), axis=1)
    ones = np.stack((np.ones(items), np.ones(items), reference == prediction), axis=1)
    table = csr_matrix((ones.ravel(), columns.ravel(), np.arange(items + 1) * 3), shape=(items, 3 * classes))
    referred, predicted, right = np.split((table.T @ weights.T).T, 3, axis=1)  # (R, C) each
    total, hits = referred.sum(1), right.sum(1)
    f1 = 2 * right / (referred + predicted)
    spread = np.sqrt((total**2 - (predicted**2).sum(1)) * (total**2 - (referred**2).sum(1)))
    matthews = (hits * total - (predicted * referred).sum(1)) / spread
    found = {"accuracy": hits / total, "macro_f1": np.nanmean(f1, axis=1)}
    found["matthews_correlation"] = np.where(spread > 0, matthews, 0.0)
    if classes == 2:
        found["f1"] = f1[:, 1]
    return found


def of_overlaps(arrays: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """`mean_iou`, `mean_accuracy` and `overall_accuracy`, as `d2v.metrics.segmentation` defines them."""
    counts = np.asarray(arrays["counts"], float)
    right, predicted, referred = (
        (weights @ counts.reshape(len(counts), -1)).reshape(-1, *counts.shape[1:]).swapaxes(0, 1)
    )
    return {
        "mean_iou": np.nanmean(right / (predicted + referred - right), axis=1),
        "mean_accuracy": np.nanmean(right / referred, axis=1),
        "overall_accuracy": right.sum(1) / referred.sum(1),
    }


def of_rankings(arrays: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """`map` over the classes with a positive example, and `micro_f1` of scores above 0.5."""
    reference, scores = arrays["reference"].astype(float), arrays["scores"]
    precisions = np.full((len(weights), reference.shape[1]), np.nan)
    for i in range(reference.shape[1]):
        order = np.argsort(-scores[:, i], kind="stable")
        positive = np.flatnonzero(reference[order, i])
        if not positive.size:
            continue
        last = np.flatnonzero(np.append(np.diff(scores[order, i]) != 0, True))  # of equal scores
        group, after = np.unique(np.searchsorted(last, positive), return_inverse=True)
        ends = np.searchsorted(after, np.arange(len(group)), side="right") - 1  # the last positive of each group
        ordered = weights.take(order, axis=1)
        hits = np.cumsum(ordered[:, positive], axis=1)[:, ends]
        total = np.cumsum(ordered, axis=1)[:, last[group]]  # without a positive nothing is added
        gained = np.diff(hits, axis=1, prepend=0.0)
        precisions[:, i] = np.nansum(gained * hits / total, axis=1) / hits[:, -1]
    above = scores > 0.5
    right, wrong = weights @ (above * reference).sum(1), weights @ (above != reference).sum(1)
    return {"map": np.nanmean(precisions, axis=1), "micro_f1": 2 * right / (2 * right + wrong)}


def of_values(arrays: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """`pearson`, `spearmanr`, `rmse`, `mae` and `r2`."""
    reference, prediction = (arrays[name].astype(float) for name in ("reference", "prediction"))
    total, error = weights.sum(1), prediction - reference
    mean = weights @ reference / total
    spread = weights @ reference**2 / total - mean**2
    return {
        "pearson": correlation(weights, reference, prediction),
        "spearmanr": correlation(weights, ranks(reference, weights), ranks(prediction, weights)),
        "rmse": np.sqrt(weights @ error**2 / total),
        "mae": weights @ abs(error) / total,
        "r2": 1 - weights @ error**2 / total / spread,
    }


def correlation(weights: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation (R,) of (M,) or (R, M) values."""

    def mean(values):
        return (weights * values).sum(1, keepdims=True) / weights.sum(1, keepdims=True)

    first, second = first - mean(first), second - mean(second)
    return (mean(first * second) / np.sqrt(mean(first**2) * mean(second**2)))[:, 0]


def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks (R, M) of values (M,) that occur `weights` times; equal values share their mean rank."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, group]


def of_trials(arrays: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """`eer`, `min_dcf_001` and `min_dcf_005`, as `d2v.metrics.verification` defines them."""
    scores, targets = arrays["score"], arrays["label"].astype(bool)
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # of equal scores
    # Between two targets misses are constant and false alarms rise, so these thresholds are not needed.
    groups = np.searchsorted(last, np.flatnonzero(targets))
    kept = last[np.unique(np.concatenate((groups - (groups > 0), groups, [len(last) - 1])))]

    def share(accepted: np.ndarray) -> np.ndarray:
        accepted = np.concatenate((np.zeros((len(accepted), 1)), accepted), axis=1)
        return accepted / accepted[:, -1:]

    right = np.cumsum(weights[:, targets], axis=1)
    right = np.concatenate((np.zeros((len(right), 1)), right), axis=1)[:, np.cumsum(targets)[kept]]
    misses, false_alarms = 1 - share(right), share(np.cumsum(weights, axis=1)[:, kept] - right)
    apart = misses - false_alarms  # falls from 1 to -1
    behind = np.argmax(apart <= 0, axis=1)[:, None]
    at = {name: np.take_along_axis(array, behind + step, 1) for name, array, step in (
        ("before", apart, -1), ("after", apart, 0), ("low", false_alarms, -1), ("high", false_alarms, 0)
    )}  # fmt: skip
    part = at["before"] / (at["before"] - at["after"])
    found = {"eer": (at["low"] + part * (at["high"] - at["low"]))[:, 0]}
    for name, target in (("min_dcf_001", 0.01), ("min_dcf_005", 0.05)):
        costs = target * misses + (1 - target) * false_alarms
        found[name] = costs.min(1) / min(target, 1 - target)
    return {name: np.where(np.isfinite(misses[:, -1]), values, np.nan) for name, values in found.items()}


KINDS: dict[str, Callable[[Mapping[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]] = {
    "sums": of_sums,
    "classes": of_classes,
    "overlaps": of_overlaps,
    "rankings": of_rankings,
    "values": of_values,
    "trials": of_trials,
}


def save_statistics(path: Path, statistics: Statistics, ids: Sequence[str], clusters: Sequence[Any]) -> None:
    """Write `statistics.npz`: arrays as `<kind>/<name>`, the rows' `ids` and `clusters`; read without unpickling."""
    arrays = {f"{kind}/{name}": array for kind, part in statistics.items() for name, array in part.items()}
    names = {
        "ids": np.array(list(map(str, ids)), dtype=np.str_),
        "clusters": np.array(list(map(str, clusters)), np.str_),
    }
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays, **names)  # type: ignore[arg-type]


def load_statistics(path: Path) -> tuple[Statistics, list[str], list[str]]:
    """Statistics, ids and clusters of `statistics.npz`; InputError if the file is not one."""
    statistics: Statistics = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                kind, _, name = key.partition("/")
                if name:
                    statistics.setdefault(kind, {})[name] = arrays[key]
            return statistics, arrays["ids"].tolist(), arrays["clusters"].tolist()
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged, or not a run's statistics ({error})") from error
