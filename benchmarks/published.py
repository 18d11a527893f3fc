r"""Each released Data2Vec checkpoint through the recipe that has a published figure for it, side by side with that.

    python -m benchmarks.published --out runs/published
    python -m benchmarks.published --out runs/published --only librispeech imagenet -- --run.precision bf16
    python -m benchmarks.published --out runs/published --launcher "accelerate launch --multi_gpu"

It needs a network, the data sets, and but for the first rows GPUs. Everything behind `--` goes to each run. Runs that
are finished are not repeated, those that were cut off go on; `published.csv` has a row as soon as its runs are done. A
row that cannot be measured, such as for a set that needs an agreement first, is named in the end, and the others go on.
"""

import argparse
import csv
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2v.hub import read_json
from d2v.training.log import read_log

ROOT = Path(__file__).parents[1]
PAPER = "Baevski et al., 2022"
COLUMNS = ["recipe", "config", "model", "data", "metric", "ours", "interval", "seeds"]
COLUMNS += ["reference", "source", "hardware", "hours", "commit", "date"]


@dataclass(frozen=True)
class Published:
    """A figure that others published.

    Attributes:
        name: of the row, and of the folder of its runs.
        recipe, config: that measure it.
        options: besides.
        metrics: of `results.json`, whose mean it is.
        reference: in per cent; empty where there is none for data2vec.
        source: of the reference.
        seeds: that it is a mean of.
    """

    name: str
    recipe: str
    config: str
    options: tuple[str, ...]
    metrics: tuple[str, ...]
    reference: str
    source: str
    seeds: int = 1


def recogniser(size: str, split: str, reference: str) -> Published:
    """A released recogniser on a split of LibriSpeech, without a language model."""
    model, config = f"facebook/data2vec-audio-{size}-960h", "librispeech_960h" + ("_large" if size == "large" else "")
    options = ("--mode=evaluate", f"--model={model}", f"--data.test_split={split}")
    name = f"librispeech_{split.replace('.', '_')}_{size}"
    return Published(name, "asr_ctc", config, options, ("wer",), reference, f"card of {model}")


def classifier(size: str, crop: str, reference: str, source: str) -> Published:
    """A released classifier on ImageNet's validation, by the images whole or by their centres."""
    options = ("--mode=evaluate", f"--model=facebook/data2vec-vision-{size}-ft1k", "--data.match=order")
    name, config = f"imagenet_{size}_crop_{crop}", f"imagenet_{size}"
    options = (*options, f"--data.crop_ratio={crop}")
    return Published(name, "image_classification", config, options, ("accuracy",), reference, source)


def glue(task: str, reference: str, *metrics: str, name: str = "") -> Published:
    """A task of GLUE, fine-tuned; the figures are those of the paper's second kind of masks, which the release has."""
    source = f"{PAPER}, table 4"
    return Published(name or f"glue_{task}", "text_classification", task, (), metrics, reference, source, seeds=5)


ROWS = [
    recogniser("base", "test.clean", "2.77"),
    recogniser("base", "test.other", "7.08"),
    recogniser("large", "test.clean", "1.89"),
    recogniser("large", "test.other", "4.07"),
    classifier("base", "0", "83.55", "card of tigeryi/imagenet1k"),
    classifier("base", "0.875", "84.2", f"{PAPER}, table 1"),
    classifier("large", "0.875", "86.6", f"{PAPER}, table 1"),
    glue("cola", "60.3", "matthews_correlation"),
    glue("sst2", "92.4", "accuracy"),
    glue("mrpc", "90.0", "accuracy", "f1"),
    glue("stsb", "87.7", "pearson", "spearmanr"),
    glue("qqp", "89.0", "accuracy", "f1"),
    glue("mnli", "82.8", "accuracy"),
    glue("mnli", "83.4", "accuracy_mm", name="glue_mnli_mm"),
    glue("qnli", "91.1", "accuracy"),
    glue("rte", "69.9", "accuracy"),
    Published(
        "ade20k",
        "semantic_segmentation",
        "ade20k_512",
        (),
        ("mean_iou",),
        "",
        "none for data2vec; BEiT base 45.6, MAE base 48.1",
    ),
]


def folder_of(out: Path, row: Published, seed: int) -> Path:
    """Where a run of a row is; rows that differ in their metrics alone share it."""
    name = next(other.name for other in [*ROWS, row] if other.options == row.options and other.config == row.config)
    return out / name / f"seed-{seed}"


def command(row: Published, folder: Path, seed: int, launcher: Sequence[str], more: Sequence[str]) -> list[str]:
    """The command of a run."""
    config = ROOT / f"recipes/configs/{row.recipe}/{row.config}.yaml"
    own = [f"--run.out={folder}", f"--run.seed={seed}", "--run.resume=true"]
    return [*launcher, str(ROOT / f"recipes/{row.recipe}.py"), f"--config={config}", *row.options, *more, *own]


def line_of(row: Published, folders: Sequence[Path]) -> dict[str, Any]:
    """The row of the table, from its finished runs."""
    import yaml

    runs = [read_json(folder / "results.json") for folder in folders]
    values = [100 * statistics.fmean(run[name] for name in row.metrics) for run in runs]
    ends = [100 * each for each in runs[0].get("intervals", {}).get(row.metrics[0]) or ()]
    if len(runs) > 1:
        ends = [min(values), max(values)]
    elif len(row.metrics) > 1:
        ends = []  # of a mean of two metrics there is none
    hours = 0.0
    for folder, run in zip(folders, runs, strict=True):
        trained = [entry["seconds"] for entry in read_log(folder / "log.jsonl") if "seconds" in entry]
        hours += (max(trained, default=0.0) + run["seconds"]) / 3600
    environment = read_json(folders[0] / "environment.json")
    options = yaml.safe_load((folders[0] / "config.yaml").read_text("utf-8"))
    data = options["data"]
    finished = (folders[-1] / "results.json").stat().st_mtime
    return {
        "recipe": row.recipe,
        "config": row.config,
        "model": options["model"],
        "data": " ".join(each for each in (data["path"], data["name"], runs[0]["split"]) if each),
        "metric": "+".join(row.metrics),
        "ours": f"{statistics.fmean(values):.2f}",
        "interval": " to ".join(f"{each:.2f}" for each in ends),
        "seeds": len(runs),
        "reference": row.reference,
        "source": row.source,
        "hardware": environment["device"],
        "hours": f"{hours:.2f}",
        "commit": ((environment.get("git") or {}).get("commit") or "")[:7],
        "date": time.strftime("%Y-%m-%d", time.localtime(finished)),
    }


def measure(
    rows: Sequence[Published],
    out: Path,
    run: Callable[[list[str]], int],
    launcher: Sequence[str] = (sys.executable,),
    more: Sequence[str] = (),
    seeds: int | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Run what is not yet finished, and write `published.csv` after each row.

    Args:
        rows: of `ROWS`.
        out: folder of all runs.
        run: runs a command and returns its exit status.
        launcher: words before the script.
        more: options of each run.
        seeds: in place of a row's own number, for a first look.

    Returns:
        The table, and the names of the rows that could not be measured.

    Raises:
        KeyboardInterrupt: a run was interrupted, and saved.
    """
    lines, failed = [], []
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        folders = [folder_of(out, row, seed) for seed in range(seeds or row.seeds)]
        for seed, folder in enumerate(folders):
            if (folder / "results.json").is_file():
                continue
            status = run(command(row, folder, seed, launcher, more))
            if status == 130:
                raise KeyboardInterrupt
            if status:
                failed.append(row.name)
                break
        else:
            lines.append(line_of(row, folders))
            with (out / "published.csv").open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                table.writeheader()
                table.writerows(lines)
            print(f"{row.name}: {lines[-1]['ours']} ({lines[-1]['interval']}), published {row.reference}", flush=True)
    return lines, failed


def run_command(words: list[str]) -> int:
    """Run a command; an interrupt reaches it too, and it saves."""
    print("+", shlex.join(words), flush=True)
    with subprocess.Popen(words) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def command_line() -> argparse.ArgumentParser:
    """Its parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/published"), help="folder of all runs")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names begin with one of these")
    parser.add_argument("--seeds", type=int, help="number of seeds of each row; by default as published")
    parser.add_argument("--launcher", default=sys.executable, help='such as "accelerate launch --multi_gpu"')
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Measure; exit code 2 where a row could not be measured, 130 for an interrupt."""
    given = list(sys.argv[1:] if args is None else args)
    cut = given.index("--") if "--" in given else len(given)
    options = command_line().parse_args(given[:cut])
    rows = [row for row in ROWS if row.name.startswith(tuple(options.only))]
    if not rows:
        sys.exit(f"error: --only {' '.join(options.only)}: rows are {', '.join(row.name for row in ROWS)}")
    try:
        launcher = shlex.split(options.launcher)
        _, failed = measure(rows, options.out, run_command, launcher, given[cut + 1 :], options.seeds)
    except KeyboardInterrupt:
        print("interrupted: the runs are saved; the same command goes on", file=sys.stderr)
        sys.exit(130)
    if failed:
        print(f"error: not measured, as their lines above say: {', '.join(failed)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
