"""What differs between runs over the same rows: each metric with a paired interval, options, machines, rows, curves.

    python -m d2v.compare runs/a runs/b
    python -m d2v.compare runs/a runs/b runs/c --json

The first run is compared with each other one. Rows are matched by id, and a resampled set has the same rows of both, so
that the interval is that of the difference. The curves are drawn to `compare.png`, or where `--picture` says.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2v.cli import exit_with, given_path
from d2v.errors import InputError
from d2v.hub import read_json
from d2v.leaderboards import read_predictions
from d2v.metrics import higher_is_better
from d2v.metrics.intervals import Statistics, load_statistics, paired_differences, select_rows
from d2v.training.identity import flat
from d2v.training.log import read_log
from d2v.training.submission import row_id

SHOWN = 10
"""Rows that are shown: those on which two runs differ most."""


def compare(first: Path, second: Path, *, replications: int = 1000, seed: int = 0) -> dict[str, Any]:
    """What differs between two runs.

    Args:
        first, second: folders of runs that were scored.
        replications: resampled sets.
        seed: of the resampling.

    Returns:
        `metrics`: of each metric both values, their `difference`, its 95 % `interval` and `second_is_better`, the share
        of replications; `rows`: how many match, and those on which the runs differ most; `options`, `environment` and
        `facts`, what differs of them.

    Raises:
        InputError: a folder has no results that can be read, or the runs no rows in common that are scored alike.
    """
    runs = [read_run(first), read_run(second)]
    (a, ids, clusters), (b, others, _) = (run["statistics"] for run in runs)
    common = set(ids) & set(others)
    if not common:
        raise InputError(
            f"{first} and {second}: no row has the same id; the first ids are {ids[0]!r} and {others[0]!r}"
        )
    check_alike({str(first): a, str(second): b})
    order = [i for i, name in enumerate(ids) if name in common]
    place = {name: i for i, name in enumerate(others)}
    names = [ids[i] for i in order]
    other = other_references(runs, names)
    if 2 * len(other) > len(names):
        raise InputError(
            f"{first} and {second}: {len(other)} of {len(names)} rows of one id have other references, the first is "
            f"{other[0]!r}; should be of the same data (rows without ids are called by their numbers)"
        )
    a, b = select_rows(a, order), select_rows(b, [place[name] for name in names])
    pairs = paired_differences(a, b, [clusters[i] for i in order], replications=replications, seed=seed)
    metrics = {}
    for name, (left, right, interval, differences) in pairs.items():
        if name not in runs[0]["results"]:
            continue
        better = differences > 0 if higher_is_better(name) else differences < 0
        metrics[name] = {
            "first": left,
            "second": right,
            "difference": right - left,
            "interval": interval,
            "second_is_better": float(np.mean(better)) if better.size else None,
        }
    apart = row_differences(a, b, len(names))
    most = np.argsort(-abs(apart), kind="stable")[:SHOWN]
    predictions = [run["predictions"] for run in runs]
    return {
        "first": str(first),
        "second": str(second),
        "replications": replications,
        "metrics": metrics,
        "rows": {
            "matched": len(names),
            "only_first": len(ids) - len(names),
            "only_second": len(others) - len(names),
            "other_references": len(other),
            "most": [
                {"id": names[i], "first": predictions[0].get(names[i]), "second": predictions[1].get(names[i])}
                for i in most
                if apart[i] != 0
            ],
        },
        "options": differing(runs[0]["options"], runs[1]["options"], leave={"run.out", "run.resume"}),
        "environment": differing(runs[0]["environment"], runs[1]["environment"], leave={"command", "run"}),
        "facts": differing(runs[0]["facts"], runs[1]["facts"]),
    }


def read_run(folder: Path) -> dict[str, Any]:
    """What a run left: results, statistics, predictions by id, options as dotted names, environment, facts."""
    import yaml

    for name in ("results.json", "statistics.npz"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; a run that was scored has one (recipes write it at their end)")
    predictions = read_predictions(str(folder))
    try:
        names = numbered(list(map(row_id, predictions)))
        shown = [{key: row[key] for key in row if key != "scores"} for row in predictions]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'predictions.jsonl'}: a row has no id, nor enrol and test") from error
    path = folder / "config.yaml"
    try:
        options = (yaml.safe_load(path.read_text("utf-8")) if path.exists() else None) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable YAML ({error})") from error
    if not isinstance(options, dict):
        raise InputError(f"{path}: should have options by name, not {options!r:.40}")
    facts = read_json(folder / "data.json").get("facts", []) if (folder / "data.json").exists() else []
    environment = read_json(folder / "environment.json") if (folder / "environment.json").exists() else {}
    statistics, ids, clusters = load_statistics(folder / "statistics.npz")
    return {
        "results": read_json(folder / "results.json"),
        "statistics": (statistics, numbered(ids), clusters),
        "predictions": dict(zip(names, shown, strict=True)),
        "options": dict(flat(options)),
        "environment": dict(flat(environment)),
        "facts": {each["line"]: True for each in facts},
    }


def other_references(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """The rows whose predictions say that they were scored against something else; upper case does not count."""

    def reference(row: Mapping[str, Any]) -> str:
        return json.dumps(next((row[key] for key in ("reference", "references", "transcript") if key in row), None))

    first, second = (run["predictions"] for run in runs)
    both = [name for name in names if name in first and name in second]
    return [name for name in both if reference(first[name]).casefold() != reference(second[name]).casefold()]


def numbered(names: Sequence[str]) -> list[str]:
    """Names of rows, of which those that stand there again have the number of the time, so that none is lost."""
    times = Counter[str]()
    found = []
    for name in names:
        times[name] += 1
        found.append(name if times[name] == 1 else f"{name} ({times[name]})")
    return found


def differing(first: Mapping[str, Any], second: Mapping[str, Any], leave: Iterable[str] = ()) -> dict[str, list]:
    """Name -> both values, of what differs; None where a side has none."""
    names = [name for name in {**first, **second} if name not in leave]
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def check_alike(sides: Mapping[str, Statistics]) -> None:
    """Raise InputError where two runs, by folder, have no metric in common, or other classes."""
    shapes = [
        {(kind, name): array.shape[1:] for kind, part in each.items() for name, array in part.items() if name != "row"}
        for each in sides.values()
    ]
    runs = " and ".join(sides)
    if not (both := [name for name in shapes[0] if name in shapes[1]]):
        kinds = [", ".join(dict.fromkeys(name if kind == "sums" else kind for kind, name in each)) for each in shapes]
        raise InputError(f"{runs}: runs of different kinds; one is scored by {kinds[0]}, the other by {kinds[1]}")
    for name in both:
        if shapes[0][name] != shapes[1][name]:
            counts = " and ".join(str(each[name][-1]) for each in shapes)
            raise InputError(f"{runs}: are scored on other classes, {counts} of them")


def row_differences(first: Statistics, second: Statistics, rows: int) -> np.ndarray:
    """(N,) by how much rows were scored differently: the first metric's errors, classes, pixels, values or scores."""
    kind = next(kind for kind in first if kind in second)
    a, b = first[kind], second[kind]
    if kind == "rankings":
        return abs(b["scores"] - a["scores"]).sum(1)
    name = next(name for name in a if name in b and name != "row")

    def scores(side: Mapping[str, np.ndarray]) -> np.ndarray:
        if kind == "sums":
            found = side[name][:, 0]
        elif kind == "classes":
            found = side["prediction"] == side["reference"]
        elif kind == "overlaps":
            found = side["counts"][:, 0].sum(1)
        elif kind == "values":
            found = abs(side["prediction"] - side["reference"])
        else:
            found = side["score"]
        return np.bincount(side.get("row", np.arange(rows)), weights=found, minlength=rows)

    return scores(b) - scores(a)


def plot_curves(runs: Sequence[Path], path: Path) -> None:
    """Draw the training loss and every evaluation's first metric of all runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    logs = {run: read_log(run / "log.jsonl") for run in runs}
    first = next((key for log in logs.values() for entry in log for key in entry if key.startswith("eval_")), None)
    for axis, key in zip(axes, ("loss", first), strict=True):
        for run, log in logs.items():
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            if points:
                axis.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=str(run))
        axis.set(
            xlabel="updates", title="training loss" if key == "loss" else f"{key}".replace("eval_", "") + ", validation"
        )
        axis.grid(alpha=0.3)
    if axes[0].lines:
        axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def report(found: Mapping[str, Any]) -> str:
    """The comparison of two runs, for people."""
    rows = found["rows"]
    lines = [f"first: {found['first']}", f"second: {found['second']}"]
    line = f"{rows['matched']} rows in both"
    for side in ("first", "second"):
        if rows[f"only_{side}"]:
            line += f"; {rows[f'only_{side}']} only in the {side}, left out"
    if rows["other_references"]:
        line += f"; {rows['other_references']} of them have another reference in the second"
    lines += [line, "", f"{'metric':<24}{'first':>9}{'second':>9}{'difference':>12}  95 % interval       second better"]
    for name, each in found["metrics"].items():
        ends = each["interval"]
        none = "none: too few rows" if found["replications"] else "none: --replications 0"
        within = f"{ends[0]:+.4f} to {ends[1]:+.4f}" if ends else none
        share = "" if each["second_is_better"] is None else f"{100 * each['second_is_better']:.0f} %"
        values = f"{each['first']:>9.4f}{each['second']:>9.4f}{each['difference']:>+12.4f}"
        lines.append(f"{name:<24}{values}  {within:<20}{share:>6}")
    for title in ("options", "environment", "facts"):
        if found[title]:
            lines += ["", f"{title} that differ:"]
            lines += [f"  {name}: {left!r} -> {right!r}" for name, (left, right) in found[title].items()]
    if rows["most"]:
        lines += ["", "rows on which they differ most:"]
        for row in rows["most"]:
            lines += difference(row)
    return "\n".join(lines)


def difference(row: Mapping[str, Any]) -> list[str]:
    """A row of two runs as lines: what both have, and what each predicts; lists of parts, such as words, are long."""
    first, second = row["first"], row["second"]
    both = {key: value for key, value in first.items() if second.get(key) == value and key != "id"}

    def written(values: Mapping[str, Any]) -> str:
        short = {key: value for key, value in values.items() if "{" not in str(value) or not isinstance(value, list)}
        return f"{json.dumps(short or values, ensure_ascii=False):.200}"

    sides = ({key: value for key, value in side.items() if key not in both | {"id": ""}} for side in (first, second))
    return [f"  {row['id']} {written(both) if both else ''}".rstrip(), *(f"    {written(side)}" for side in sides)]


def command_line() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m d2v.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=given_path, help="folders of runs; the first is compared with the others"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--replications", type=int, default=1000, help="resampled sets (default 1000); 0: no intervals")
    parser.add_argument("--picture", type=given_path, default=Path("compare.png"), help="where the curves are drawn")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Compare runs from the command line; exit code 2 for bad input."""
    options = command_line().parse_args(args)
    try:
        if len(options.runs) < 2:
            raise InputError("name two runs or more")
        if len(set(options.runs)) < len(options.runs):
            raise InputError("a run is named twice")
        if options.replications < 0:
            raise InputError(f"--replications should be at least 0, not {options.replications}")
        first, *others = options.runs
        found = [compare(first, other, replications=options.replications) for other in others]
    except InputError as error:
        exit_with(2, f"error: {error}")
    if options.json:
        print(json.dumps(found, ensure_ascii=False, indent=1, default=str))
    else:
        print("\n\n".join(map(report, found)))
    try:
        plot_curves(options.runs, options.picture)
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        print(f"the curves could not be drawn: {error or type(error).__name__} (--picture)", file=sys.stderr)


if __name__ == "__main__":
    main()
