"""What intervals cost: seconds and memory of 1,000 replications for each kind of statistic.

    python -m benchmarks.intervals
    python -m benchmarks.intervals --rows 1000000 --kinds sums classes

100,000 rows, and 10,000 of rankings and values, whose metrics need an order. Each kind is a process of its own. Below
3 seconds on two cores, and 500 MB above what the statistics themselves take, are the bars.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable

import numpy as np

from d2v.metrics.intervals import Statistics, intervals

SECONDS, MEGABYTES = 3.0, 500.0
ORDERED = ("rankings", "values")
"""Kinds whose metrics need an order: a tenth of the rows."""


def sums(random: np.random.Generator, rows: int) -> Statistics:
    """Errors and words."""
    words = random.integers(1, 20, rows)
    return {"sums": {"wer": np.stack((random.binomial(words, 0.1), words), 1).astype(float)}}


def classes(random: np.random.Generator, rows: int) -> Statistics:
    """A thousand classes, of which four fifths are right."""
    reference = random.integers(0, 1000, rows)
    return {"classes": {"reference": reference, "prediction": np.where(random.random(rows) < 0.8, reference, 0)}}


def overlaps(random: np.random.Generator, rows: int) -> Statistics:
    """Pixels of nineteen classes."""
    return {"overlaps": {"counts": random.integers(0, 1000, (rows, 3, 19)).cumsum(1)[:, [0, 2, 1]]}}


def rankings(random: np.random.Generator, rows: int) -> Statistics:
    """Scores of twenty classes."""
    reference = random.random((rows, 20)) < 0.1
    return {"rankings": {"reference": reference.astype(float), "scores": 0.5 * reference + random.random((rows, 20))}}


def values(random: np.random.Generator, rows: int) -> Statistics:
    """Numbers with noise."""
    reference = random.normal(size=rows)
    return {"values": {"reference": reference, "prediction": reference + random.normal(size=rows)}}


def trials(random: np.random.Generator, rows: int) -> Statistics:
    """Trials of forty speakers."""
    first, second = random.integers(0, 40, (2, rows))
    label = (first == second).astype(int)
    arrays = {"label": label, "score": label + random.normal(size=rows), "first": first, "second": second}
    return {"trials": arrays | {"clusters": np.arange(40)}}


KINDS: dict[str, Callable[[np.random.Generator, int], Statistics]] = {
    each.__name__: each for each in (sums, classes, overlaps, rankings, values, trials)
}


def measure(kind: str, rows: int) -> tuple[float, float, float]:
    """Seconds, of the clock and of all threads, and megabytes above those of the statistics."""
    import resource

    statistics = KINDS[kind](np.random.default_rng(0), rows)
    small = {name: {key: array[:100] for key, array in arrays.items()} for name, arrays in statistics.items()}
    if kind != "trials":
        intervals(small, np.arange(100), replications=10)  # what is imported does not count
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, computed = time.perf_counter(), time.process_time()
    intervals(statistics, np.arange(rows))
    seconds, computed = time.perf_counter() - begun, time.process_time() - computed
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on Linux
    return seconds, computed, (peak - before) / 1024


def command_line() -> argparse.ArgumentParser:
    """Its parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of each kind (default 100,000)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="by default all")
    return parser


def main(args: list[str] | None = None) -> dict[str, tuple[float, float, float]]:
    """Measure, and print a table."""
    options = command_line().parse_args(args)
    found = {}
    print("| kind | rows | seconds | of all threads | MB |\n| --- | --- | --- | --- | --- |")
    for kind in options.kinds:
        rows = options.rows // (10 if kind in ORDERED else 1)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[kind] = pool.apply(measure, (kind, rows))
        seconds, computed, megabytes = found[kind]
        over = " (over the bar)" if seconds > SECONDS or megabytes > MEGABYTES else ""
        print(f"| {kind} | {rows} | {seconds:.2f} | {computed:.2f} | {megabytes:.0f} |{over}", flush=True)
    return found


if __name__ == "__main__":
    main()
