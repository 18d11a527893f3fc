r"""All combinations of some options, each with several seeds; the best by validation is scored on test, once.

    python -m d2v.sweep text_classification --grid optim.lr=1e-5,3e-5 --grid data.batch_size=16,32 --seeds 3 \\
        --out runs/sweep -- --model facebook/data2vec-text-base --data.path nyu-mll/glue --data.name cola

Everything behind `--` goes to each run. Every run has a folder of its own: one that is finished is not repeated, one
that was cut off goes on, so that the same command after an interrupt ends with the same table. `sweep.csv` and
`sweep.md` have a line a combination. This is how data2vec's paper chose for GLUE: the best of four learning rates, the
median of five seeds (Baevski et al., 2022, section 4.3).
"""

import argparse
import csv
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from d2v.cli import exit_with
from d2v.errors import InputError, Interrupted
from d2v.metrics import higher_is_better
from d2v.pretrained import read_json
from d2v.training.log import read_log

Combination = tuple[tuple[str, str], ...]
"""Options and their values, such as (("optim.lr", "1e-5"),)."""


def combinations(grids: Sequence[str]) -> list[Combination]:
    """All combinations of `option=value,value`; a value with commas stands in brackets.

    Raises:
        InputError: a grid is not that, or an option comes twice.
    """
    options: dict[str, list[str]] = {}
    for grid in grids:
        name, equals, values = grid.removeprefix("--").partition("=")
        listed = split_values(values)
        if not (name and equals and all(listed)):
            raise InputError(f"--grid {grid}: should be an option and its values, such as optim.lr=1e-5,3e-5")
        if name in options:
            raise InputError(f"--grid {grid}: {name} comes twice; name all of its values at once")
        if name in ("run.seed", "run.out", "run.resume", "mode"):
            raise InputError(f"--grid {grid}: {name} is the sweep's own; --seeds says how many seeds")
        options[name] = listed
    return [tuple(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def split_values(text: str) -> list[str]:
    """The values of a list with commas, of which those in brackets do not count."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            values.append("")
        else:
            values[-1] += character
    return values


def folder_of(out: Path, combination: Combination, seed: int) -> Path:
    """The folder of a run, named after what it was given."""
    name = ",".join(f"{option}={value}" for option, value in combination) or "defaults"
    return out / quote(name, safe="=,+[] ") / f"seed-{seed}"


def find_recipe(name: str) -> Path:
    """The script of a recipe by path or name: in `recipes/` here, or of the checkout that this package is in."""
    places = [Path(name), *(folder / "recipes" / f"{name}.py" for folder in (Path.cwd(), Path(__file__).parents[1]))]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"{name}: no such recipe; looked for {', '.join(map(str, places))}")


def run_all(commands: Sequence[list[str]], processes: int) -> None:
    """Run commands, some at a time, one device each.

    Raises:
        InputError: one failed; the others that had begun are waited for.
        Interrupted: a signal came; it was passed on, and the runs saved.
    """
    waiting, running = list(commands), dict[int, tuple[subprocess.Popen, list[str]]]()
    failed: list[list[str]] = []
    stopped: list[int] = []

    def stop(number, frame):
        stopped.append(number)
        for process, _ in running.values():
            process.send_signal(signal.SIGTERM)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        while (waiting and not failed and not stopped) or running:
            for slot in range(processes):
                if slot not in running and waiting and not failed and not stopped:
                    command = waiting.pop(0)
                    device = {"CUDA_VISIBLE_DEVICES": str(slot)} if processes > 1 and has_devices() else {}
                    print("+", " ".join(command), flush=True)
                    running[slot] = subprocess.Popen(command, env=os.environ | device), command
            for slot, (process, command) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    if process.returncode and not stopped:
                        failed.append(command)
            time.sleep(0.2)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if stopped:
        raise Interrupted("the runs are saved; the same command goes on")
    if failed:
        raise InputError(
            f"a run failed, its lines stand above: {' '.join(failed[0])}; the same command goes on after it"
        )


def has_devices() -> bool:
    """Whether there are GPUs to give each process one of."""
    import torch

    return torch.cuda.is_available()


def sweep(
    recipe: Path, grids: Sequence[str], seeds: int, out: Path, options: Sequence[str], processes: int = 1
) -> list[dict[str, Any]]:
    """Train every combination with every seed, and score the best combination on test.

    Args:
        recipe: its script.
        grids: of `combinations`.
        seeds: 0 to `seeds` - 1.
        out: folder of all runs.
        options: of each run.
        processes: runs at a time.

    Returns:
        A row a combination: its options, `metric`, `mean`, `sd`, `min` and `max` over seeds on validation, and of the
        best `test_mean`, `test_sd` and so on.

    Raises:
        InputError: a run failed, or the options are the sweep's own.
        Interrupted: a signal came.
    """
    if own := [each for each in options if each.split("=")[0] in ("--run.out", "--run.seed", "--run.resume", "--mode")]:
        raise InputError(f"{own[0]} is the sweep's own; --out and --seeds say it")
    trained = {
        (combination, seed): folder_of(out, combination, seed)
        for combination in combinations(grids)
        for seed in range(seeds)
    }
    commands = []
    for (combination, seed), folder in trained.items():
        if not (folder / "results.json").exists():
            chosen = [f"--{name}={value}" for name, value in combination]
            own = [f"--run.seed={seed}", f"--run.out={folder}", "--run.resume=true", "--data.test_split=null"]
            commands.append([sys.executable, str(recipe), *options, *chosen, *own])
    run_all(commands, processes)
    scores: dict[Combination, list[float]] = {}
    for (combination, _), folder in trained.items():
        results = read_json(folder / "results.json")
        metric = results["metric"]
        scores.setdefault(combination, []).append(validated(folder, results))
    best = (max if higher_is_better(metric) else min)(scores, key=lambda each: statistics.fmean(scores[each]))
    tests = {seed: trained[best, seed] / "test" for seed in range(seeds)}
    evaluate = [sys.executable, str(recipe), *options, "--mode=evaluate"]  # of two equal options the later one counts
    commands = [
        [*evaluate, f"--model={folder.parent}/best", f"--run.out={folder}", f"--run.seed={seed}"]
        for seed, folder in tests.items()
        if not (folder / "results.json").exists()
    ]
    run_all(commands, processes)
    tested = [read_json(folder / "results.json") for folder in tests.values()]
    shown = metric if metric in tested[0] else next(iter(tested[0]["intervals"]))  # there is no loss of test
    rows = []
    for combination, values in scores.items():
        row: dict[str, Any] = dict(combination) | {"metric": metric} | spread(values)
        if combination == best:
            row |= {"test_metric": shown} if shown != metric else {}
            row |= {f"test_{name}": value for name, value in spread([each[shown] for each in tested]).items()}
        rows.append(row)
    return sorted(rows, key=lambda row: row["mean"], reverse=higher_is_better(metric))


def validated(folder: Path, results: Mapping[str, Any]) -> float:
    """A run's metric on validation; of the loss, which only the log has, the best model's."""
    metric = results["metric"]
    if metric in results:
        return results[metric]
    return min(entry[f"eval_{metric}"] for entry in read_log(folder / "log.jsonl") if f"eval_{metric}" in entry)


def spread(values: Sequence[float]) -> dict[str, float]:
    """`mean`, `sd`, the sample's standard deviation, `min` and `max`."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": deviation, "min": min(values), "max": max(values)}


def write_table(rows: Sequence[Mapping[str, Any]], out: Path) -> str:
    """Write `sweep.csv` and `sweep.md`, best first; returns the latter."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[f"{row[name]:.4f}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in columns]
             for row in rows]  # fmt: skip
    with (out / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *cells])
    lines = [f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *cells]]
    (out / "sweep.md").write_text("\n".join(lines) + "\n", "utf-8")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m d2v.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="name or path of a recipe")
    parser.add_argument("--grid", action="append", default=[], help="an option and its values: optim.lr=1e-5,3e-5")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each combination, from 0 (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"), help="folder of all runs (default runs/sweep)")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, one GPU each (default 1)")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Sweep from the command line; exit code 2 for bad input, 130 for an interrupt that was saved."""
    given = list(sys.argv[1:] if args is None else args)
    cut = given.index("--") if "--" in given else len(given)
    parsed = build_parser().parse_args(given[:cut])
    try:
        if min(parsed.seeds, parsed.processes) < 1:
            raise InputError("--seeds and --processes should be at least 1")
        recipe = find_recipe(parsed.recipe)
        rows = sweep(recipe, parsed.grid, parsed.seeds, parsed.out, given[cut + 1 :], parsed.processes)
    except InputError as error:
        exit_with(2, f"error: {error}")
    except Interrupted as error:
        exit_with(130, f"interrupted: {error}")
    print(write_table(rows, parsed.out))


if __name__ == "__main__":
    main()
