r"""All combinations of some options, each with several seeds; the best by validation is scored on test, once.

    python -m d2v.sweep text_classification --grid optim.lr=1e-5,3e-5 --grid data.batch_size=16,32 --seeds 3 \\
        --out runs/sweep -- --model facebook/data2vec-text-base --data.path nyu-mll/glue --data.name cola

Everything behind `--` goes to each run. Every run has a folder of its own: one that is finished is not repeated, one
that was cut off goes on, so that the same command after an interrupt ends with the same table; `run.max_minutes` does
not hold. `sweep.json` keeps recipe and options, those in files too, and a folder takes no others. `sweep.csv` and
`sweep.md` have a line a combination: the mean over seeds, its 95 % interval over rows, and how far seeds lie apart,
with figures of test where there is a labelled one that was neither trained nor validated on. This is how data2vec's
paper chose for GLUE: the best of four learning rates, the mean of five seeds (Baevski et al., 2022, section 4.3).
"""

import argparse
import csv
import itertools
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from d2v.cli import config_files, exit_with, given_path
from d2v.devices import on_cuda
from d2v.errors import InputError, Interrupted
from d2v.hub import read_json, write_json
from d2v.metrics import higher_is_better
from d2v.metrics.intervals import interval_of_mean, load_statistics
from d2v.training.identity import flat
from d2v.training.log import read_log

Combination = tuple[tuple[str, str], ...]
"""Options and their values, such as (("optim.lr", "1e-5"),)."""

OWN = {
    "mode": "it trains, then evaluates",
    "run.out": "--out says where all runs are",
    "run.seed": "--seeds says how many seeds",
    "run.resume": "what was cut off goes on",
    "run.push": "every run would be pushed; python -m d2v.push pushes the one that was chosen",
    "run.max_minutes": "a run that stops early would count as finished; stop the sweep, and the same command goes on",
}
"""Options that are the sweep's own, and why."""
ALIKE = {
    "run.metric": "combinations are compared by one metric",
    "data.test_split": "the best combination alone is tested",
}
"""Options that all combinations share, and why."""


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
        if name in OWN:
            raise InputError(f"--grid {grid}: {name} is the sweep's own: {OWN[name]}")
        if name in ALIKE:
            raise InputError(f"--grid {grid}: {name} has one value: {ALIKE[name]}")
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
        InputError: there are fewer GPUs, or a command failed; the others that had begun are waited for.
        Interrupted: a signal came; it was passed on, and the runs saved.
    """
    gpus = gpu_ids() if processes > 1 else []
    if gpus and processes > len(gpus):
        raise InputError(f"--processes {processes}: each run takes a GPU, and there are {len(gpus)}: {', '.join(gpus)}")
    waiting, running = list(commands), dict[int, tuple[subprocess.Popen, list[str]]]()
    failed: list[list[str]] = []
    stopped: list[int] = []

    def stop(number, frame):
        stopped.append(number)
        for process, _ in running.values() if os.name == "posix" else ():  # Windows would end them; Ctrl-C reaches them
            process.send_signal(signal.SIGTERM)

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        while (waiting and not failed and not stopped) or running:
            for slot in range(processes):
                if slot not in running and waiting and not failed and not stopped:
                    command = waiting.pop(0)
                    device = {"CUDA_VISIBLE_DEVICES": gpus[slot]} if gpus else {}
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


def gpu_ids() -> list[str]:
    """The GPUs that runs may have, by the ids that `CUDA_VISIBLE_DEVICES` takes."""
    import torch

    if not on_cuda():
        return []
    ids = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return [each.strip() for each in ids.split(",")][: torch.cuda.device_count()]


def sweep(
    recipe: Path, grids: Sequence[str], seeds: int, out: Path, options: Sequence[str], processes: int = 1
) -> list[dict[str, Any]]:
    """Train every combination with every seed, and score the best combination on test.

    The table is written as soon as all are trained.

    Args:
        recipe: its script.
        grids: of `combinations`.
        seeds: 0 to `seeds` - 1.
        out: folder of all runs.
        options: of each run.
        processes: runs at a time.

    Returns:
        A row a combination, best first: its options, `metric`, and where the metric is defined `mean`, `sd`, `min` and
        `max` over seeds on validation, and `low` and `high`, the mean's 95 % interval, where there is one; of the best
        `test_mean`, `test_sd` and so on, where there is a test.

    Raises:
        InputError: a run failed, the recipe has nothing to choose by, the options are the sweep's own, or the folder's
            runs had others.
        Interrupted: a signal came.
    """
    for name in (option.split("=")[0].removeprefix("--") for option in options if option.startswith("--")):
        if name in OWN:
            raise InputError(f"--{name} is the sweep's own: {OWN[name]}")
    if "finish_pretraining(" in recipe.read_text("utf-8"):
        raise InputError(f"{recipe}: pretraining has no metric that combinations are chosen by; sweep what follows it")
    combined = combinations(grids)
    trained = {
        (combination, seed): folder_of(out, combination, seed) for combination in combined for seed in range(seeds)
    }
    gridded = [value for combination in combined for name, value in combination if name == "config"]
    keep_options(recipe, options, out, [*config_files(options)[0], *gridded])
    commands = []
    for (combination, seed), folder in trained.items():
        if not (folder / "results.json").exists():
            own = [f"--run.seed={seed}", f"--run.out={folder}", "--run.resume=true", "--data.test_split=null"]
            own += ["--run.max_minutes=null", "--run.push=null"]  # which a file of options may have
            commands.append([*command_of(recipe, options, combination), *own])
    run_all(commands, processes)
    found: dict[Combination, list[float | None]] = {}
    for (combination, _), folder in trained.items():
        results = read_json(folder / "results.json")
        metric = results.get("metric", "")
        found.setdefault(combination, []).append(validated(folder, results))
    scores = {combination: [each for each in values if each is not None] for combination, values in found.items()}
    defined = [combination for combination, values in found.items() if None not in values]
    defined.sort(key=lambda each: statistics.fmean(scores[each]), reverse=higher_is_better(metric))
    undefined = [combination for combination in found if combination not in defined]
    for combination in undefined:
        print(f"{folder_of(out, combination, 0).parent}: {metric} is undefined on validation, so it is not chosen")
    rows: list[dict[str, Any]] = [
        dict(each) | {"metric": metric} | spread(scores[each], [trained[each, i] for i in range(seeds)], metric)
        for each in defined
    ]
    rows += [dict(each) | {"metric": metric} for each in undefined]
    write_table(rows, out)
    if defined:
        command, folders = command_of(recipe, options, defined[0]), [trained[defined[0], i] for i in range(seeds)]
        rows[0] |= score_on_test(command, folders, metric, processes)
    return rows


def keep_options(recipe: Path, options: Sequence[str], out: Path, files: Sequence[str] = ()) -> None:
    """Keep in `sweep.json` what all runs of a folder have in common; InputError if those that it has had others.

    Args:
        recipe: its script.
        options: of each run.
        out: folder of all runs; while none of them has learnt anything, it takes others.
        files: that `--config` names, of which what they say is kept too: they may be edited between two runs.
    """
    file, common = out / "sweep.json", {"recipe": recipe.stem, "options": list(options)}
    said = {name: read_options(name) for name in files}
    if not file.exists():
        if earlier := next(out.glob("*/seed-*"), None):
            raise InputError(f"{earlier}: nothing says what made it ({file}); another --out begins a new sweep")
    elif next(out.glob("*/seed-*/log.jsonl"), None):
        kept = read_json(file)
        if {name: kept.get(name) for name in common} != common:
            had = shlex.join(map(str, [kept.get("recipe"), *kept.get("options", [])]))
            raise InputError(f"{out}: holds a sweep of {had}; another --out begins a new one")
        before = kept.get("files", {})
        for name in said.keys() & before.keys():
            old, new = before[name], said[name]
            if differing := [key for key in {**old, **new} if old.get(key) != new.get(key)]:
                was, now = (f"{values.get(differing[0], 'its default')!s:.60}" for values in (old, new))
                raise InputError(
                    f"{name}: says {differing[0]} {now}, and said {was} when the sweep in {out} began; another --out "
                    "begins a new one"
                )
        said = before | said
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, common | {"files": said})


def read_options(file: str) -> dict[str, Any]:
    """What a file of options says, by the options' names, as written."""
    import yaml

    try:
        values = yaml.load(Path(file).expanduser().read_text("utf-8"), yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {file}: cannot be read ({error})") from error
    return dict(flat(values)) if isinstance(values, dict) else {}


def command_of(recipe: Path, options: Sequence[str], combination: Combination) -> list[str]:
    """The command of a combination; what stands behind it counts where options are equal."""
    return [sys.executable, str(recipe), *options, *(f"--{name}={value}" for name, value in combination)]


def validated(folder: Path, results: Mapping[str, Any]) -> float | None:
    """A run's metric on validation, None where it is undefined; of the loss, which only the log has, the best model's.

    Raises:
        InputError: the run has no such metric.
    """
    metric = results.get("metric", "")
    if metric in results:
        return results[metric]
    losses = [entry[f"eval_{metric}"] for entry in read_log(folder / "log.jsonl") if f"eval_{metric}" in entry]
    if not losses:
        raise InputError(f"{folder}: neither results.json nor log.jsonl has the {metric} of validation (run.metric)")
    return min(filter(math.isfinite, losses), default=None)


def score_on_test(command: Sequence[str], folders: Sequence[Path], metric: str, processes: int) -> dict[str, Any]:
    """`test_mean` and so on of a combination; nothing, and a line that says why, where it has no test.

    Args:
        command: the combination's.
        folders: of its runs, one a seed.
        metric: that it was chosen by; where test has none, such as the loss, another is shown and is `test_metric`.
        processes: runs at a time.
    """
    if why := untested(command, folders[0].parent):
        print(f"no figures of test: {why}")
        return {}
    tests = {seed: folder / "test" for seed, folder in enumerate(folders)}
    commands = [
        [*command, "--mode=evaluate", f"--model={folder.parent}/best", f"--run.out={folder}", f"--run.seed={seed}"]
        for seed, folder in tests.items()
        if not (folder / "results.json").exists()
    ]
    run_all(commands, processes)
    results = [read_json(folder / "results.json") for folder in tests.values()]
    names = [metric, *(results[0].get("intervals") or {})]
    shown = next((name for name in names if all(each.get(name) is not None for each in results)), None)
    if shown is None:
        print(f"no figures of test: {metric} is undefined there")
        return {}
    row: dict[str, Any] = {"test_metric": shown} if shown != metric else {}
    figures = spread([each[shown] for each in results], list(tests.values()), shown)
    return row | {f"test_{name}": value for name, value in figures.items()}


def untested(command: Sequence[str], folder: Path) -> str | None:
    """Why a combination cannot be tested, None where it can: asked of the recipe itself, by `--mode prepare`.

    Evaluation alone would take a source's only split for the test, which is what was trained on.
    """
    import yaml

    def splits() -> dict[str, Any]:
        path = folder / "prepare/data.json"
        facts = read_json(path).get("facts", []) if path.exists() else []
        return next((each["splits"] for each in facts if each["fact"] == "splits" and "train" in each["splits"]), {})

    if not splits():
        run_all([[*command, "--mode=prepare", f"--run.out={folder}"]], 1)
    data, used = yaml.safe_load((folder / "prepare/config.yaml").read_text("utf-8"))["data"], splits()
    if data["test_split"] is None:
        return "data.test_split is null"
    if data["fold"] or data["test_split"] != "test":  # what was asked for
        return None
    if "test" not in used:
        return "the data have no split test with labels (data.test_split)"
    both = set(used["test"]["of"]) & {part for name in ("train", "validation") for part in used[name]["of"]}
    return f"{', '.join(sorted(both))} is trained or validated on too (data.test_split)" if both else None


def spread(values: Sequence[float], folders: Sequence[Path], metric: str) -> dict[str, float]:
    """A metric over seeds: `mean`, its 95 % interval `low` and `high`, `sd` of a sample, `min` and `max`."""
    files = [folder / "statistics.npz" for folder in folders]
    found = {"mean": statistics.fmean(values)}
    if all(file.exists() for file in files) and (
        interval := interval_of_mean([load_statistics(file) for file in files], metric)
    ):
        found |= dict(zip(("low", "high"), interval, strict=True))
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return found | {"sd": deviation, "min": min(values), "max": max(values)}


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


def command_line() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m d2v.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="name or path of a recipe")
    parser.add_argument("--grid", action="append", default=[], help="an option and its values: optim.lr=1e-5,3e-5")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each combination, from 0 (default 1)")
    parser.add_argument("--out", type=given_path, help="folder of all runs (default runs/sweep/<recipe>)")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, one GPU each (default 1)")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Sweep from the command line; exit code 2 for bad input, 130 for an interrupt that was saved."""
    given = list(sys.argv[1:] if args is None else args)
    cut = given.index("--") if "--" in given else len(given)
    parsed = command_line().parse_args(given[:cut])
    try:
        if min(parsed.seeds, parsed.processes) < 1:
            raise InputError("--seeds and --processes should be at least 1")
        recipe = find_recipe(parsed.recipe)
        out = parsed.out or Path("runs/sweep", recipe.stem)
        rows = sweep(recipe, parsed.grid, parsed.seeds, out, given[cut + 1 :], parsed.processes)
        table = write_table(rows, out)
    except (InputError, OSError) as error:
        exit_with(2, f"error: {error}")
    except Interrupted as error:
        exit_with(130, f"interrupted: {error}")
    print(table)


if __name__ == "__main__":
    main()
