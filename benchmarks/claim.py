r"""Whether pretraining pays, and which part of it: what a model reaches with few labels, by how it began.

    python -m benchmarks.claim audio --data DIR --out OUT --minutes 40
    python -m benchmarks.claim text --data DIR --texts input.txt --out OUT --shares 0.05 --seeds 3 --arms scratch both

DIR is the small set of that modality, those of the configurations `asr_ctc/digits`, `token_classification/ud_ewt` and
`image_classification/cifar10`. Every arm fine-tunes the same model on the same share of the labels with the same
options; arms that pretrain do so on train without its labels, for as many CPU minutes each. Text is also pretrained on
Python's documentation and on `--texts`, without the sentences of validation and test.

`OUT/claim.json` has an object a line: arm, share, seed, metric, value, low, high, minutes. A run that was stopped goes
on.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.recipe import RECIPES, load_recipe
from d2v.cli import parse
from d2v.data.cores import granted_cores
from d2v.errors import Prepared
from d2v.hub import read_json, write_json
from d2v.metrics.intervals import paired_differences

# What each arm adds to `configs/pretrain_<modality>/small.yaml`; None begins from random weights. A teacher with a
# half-life of 1e9 runs never learns.
ARMS: dict[str, list[str] | None] = {
    "scratch": None,
    "scratch_longer": None,
    "data2vec": ["--auxiliary.weight=1", "--auxiliary.until=0.35"],
    "both": ["--auxiliary.weight=1", "--auxiliary.until=null"],
    "auxiliary": ["--auxiliary.weight=1", "--auxiliary.until=null", "--teacher.weight=0"],
    "random_teacher": ["--auxiliary.weight=0", "--teacher.half_life=1e9", "--teacher.final_half_life=1e9"],
}


@dataclass(frozen=True)
class Task:
    """What is fine-tuned in a modality.

    Attributes:
        recipe, config: the recipe, and its configuration.
        metric: of which the error is taken, 1 - metric unless it is one.
        judged: share of the labels with which arms are compared.
        shares: all of them.
        updates: of fine-tuning.
        options: of fine-tuning, alike in all arms.
        pretraining: options of pretraining, alike in all arms.
    """

    recipe: str
    config: str
    metric: str
    judged: float
    shares: tuple[float, ...]
    updates: int
    options: tuple[str, ...] = ()
    pretraining: tuple[str, ...] = ()


TASKS = {
    "audio": Task(
        "asr_ctc",
        "digits",
        "wer",
        judged=0.1,
        shares=(0.03, 0.1, 0.3, 1.0),
        updates=1200,
        options=("--arch.conv_bias=true",),  # else random convolutions and their norms pass nothing of loudness on
        pretraining=("--data.batch_size=8",),
    ),
    "text": Task(
        "token_classification",
        "ud_ewt",
        "accuracy",
        judged=0.05,
        shares=(0.01, 0.05, 0.2, 1.0),
        updates=600,
        options=("--optim.ema=0.995", "--arch.hidden_dropout_prob=0.3"),
        pretraining=(
            "--data.separator=null",  # sentences between <s> and </s>, as they are tagged
            "--data.max_length=128",
            "--data.batch_size=24",  # 3,072 tokens
            "--data.max_validation_samples=500",
        ),
    ),
    "vision": Task(
        "image_classification",
        "cifar10",
        "accuracy",
        judged=0.1,
        shares=(0.03, 0.1, 0.3, 1.0),
        updates=1200,
        options=("--arch.use_shared_relative_position_bias=false",),  # which the economy does without
        # Those of small.yaml are for digits.
        pretraining=("--augment.flip=0.5", "--augment.crop=[0.3,1.0]", "--augment.color_jitter=0.0"),
    ),
}


def run_recipe(name: str, args: Sequence[str], out: Path) -> float:
    """Run a recipe in this process, unless it was run before; the CPU minutes that it took, all sessions together."""
    spent, begun = out / "minutes.json", time.process_time()
    before = read_json(spent)["minutes"] if spent.is_file() else 0.0
    if (out / "results.json").is_file():
        return before
    out.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(name)
    try:
        with (out.parent / f"{out.name}.log").open("a", encoding="utf-8") as log, redirect_stdout(log):
            recipe.main(parse(recipe.Config, [*args, f"--run.out={out}", "--run.resume=true", "--run.tracker=null"]))
    finally:
        minutes = before + (time.process_time() - begun) / 60
        write_json(spent, {"minutes": minutes})
    return minutes


def updates_in(minutes: float, name: str, args: Sequence[str]) -> int:
    """How many updates of a pretraining take so many CPU minutes, by a short run and a shorter one."""
    with TemporaryDirectory() as folder:
        few = ["--run.eval_every=1000", "--optim.warmup=1"]
        # The first one fills caches, and does not count.
        counts = enumerate((10, 20, 120))
        _, *spent = [run_recipe(name, [*args, *few, f"--run.max_steps={n}"], Path(folder, str(i))) for i, n in counts]
    return max(round(minutes / max((spent[1] - spent[0]) / 100, 1e-9)), 20)


def train_rows(task: Task, args: Sequence[str], out: Path) -> int:
    """The rows of train that labels are taken from."""
    if not (found := out / "prepare/data.json").is_file():
        recipe = load_recipe(task.recipe)
        with suppress(Prepared):  # once all is there
            recipe.main(parse(recipe.Config, [*args, "--model=none", "--mode=prepare", f"--run.out={out}"]))
    facts = read_json(found)["facts"]
    return next(fact["splits"]["train"]["rows"] for fact in facts if fact["fact"] == "splits")


def write_texts(data: Path, files: Sequence[Path], folder: Path) -> Path:
    """The text to pretrain on, as a folder: train's sentences, Python's documentation, and files of text.

    A sentence that validation or test has too is left out.
    """
    import datasets

    from d2v.demo.text import documentation_paragraphs

    found: dict[str, list[str]] = {}
    for split in ("train", "validation", "test"):
        table = datasets.load_dataset("parquet", data_files=[str(each) for each in sorted(data.glob(f"{split}-*"))])
        found[split] = [" ".join(words) for words in table["train"]["tokens"]]
    held_out = {*found["validation"], *found["test"]}
    # Train's sentences twice, so that half of the tokens are theirs; each begins with a space, as tagged words do.
    texts = 2 * [f" {text}" for text in found["train"] if text not in held_out] + documentation_paragraphs()
    for file in files:
        texts += [block for block in file.read_text("utf-8").split("\n\n") if block.strip()]
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"text": texts}).to_parquet(folder / "train.parquet")
    return folder


def pretraining_args(modality: str, data: Path, arch: dict[str, Any]) -> list[str]:
    """The options that all arms pretrain with: those of `small.yaml`, and the sizes of the model that is fine-tuned."""
    args = [f"--config={RECIPES / f'configs/pretrain_{modality}/small.yaml'}", f"--data.path={data}"]
    without = {"mask_time_prob", "mask_feature_prob", "layerdrop", "hidden_dropout_prob"}
    return args + [f"--arch.{name}={json.dumps(value)}" for name, value in arch.items() if name not in without]


def error(task: Task, results: dict[str, Any]) -> tuple[float, float, float]:
    """The error of a run and its 95 % interval."""
    value, ends = results[task.metric], (results["intervals"] or {}).get(task.metric) or (float("nan"),) * 2
    return (value, *ends) if task.metric == "wer" else (1 - value, 1 - ends[1], 1 - ends[0])


def pooled(metric: str, runs: Sequence[Path]) -> dict[str, dict[str, np.ndarray]]:
    """The statistics of a metric, of runs over the same rows, as sums over the runs."""
    from d2v.compare import read_run

    sides = [read_run(run)["statistics"][0] for run in runs]
    if metric in sides[0].get("sums", {}):
        return {"sums": {name: np.mean([side["sums"][name] for side in sides], 0) for name in sides[0]["sums"]}}
    classes = [side["classes"] for side in sides]
    right = [(each["reference"] == each["prediction"]).astype(float) for each in classes]
    if "row" in classes[0]:
        rows = classes[0]["row"]
        hits = np.mean([np.bincount(rows, each) for each in right], 0)
        return {"sums": {"accuracy": np.stack((hits, np.bincount(rows).astype(float)), 1)}}
    return {"sums": {"accuracy": np.stack((np.mean(right, 0), np.ones(len(right[0]))), 1)}}


def verdicts(task: Task, runs: dict[tuple[str, float, int], Path]) -> list[str]:
    """At the judged share: by how much less an arm errs than another, over all seeds, with a paired interval."""
    arms = {arm: [run for (name, share, _), run in runs.items() if (name, share) == (arm, task.judged)] for arm in ARMS}
    lines = []
    for second, first in (
        ("both", "scratch"),
        ("both", "scratch_longer"),
        ("data2vec", "scratch"),
        ("auxiliary", "scratch"),
        *((arm, "auxiliary") for arm in ("data2vec", "both")),
    ):
        if not arms[first] or not arms[second]:
            continue
        sides = [pooled(task.metric, arms[first]), pooled(task.metric, arms[second])]
        rows = len(next(iter(sides[0]["sums"].values())))
        a, b, _, differences = paired_differences(*sides, range(rows))[task.metric]
        sign = 1 if task.metric == "wer" else -1
        base = a if task.metric == "wer" else 1 - a
        low, high = np.quantile(sign * differences / base, [0.025, 0.975])
        lines.append(f"{second} errs {sign * (b - a) / base:+.0%} ({low:+.0%} to {high:+.0%}) against {first}")
    return lines


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the error of each arm over the share of labels, means and extremes of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        shares = sorted({row["share"] for row in rows if row["arm"] == arm})
        values = [[row["value"] for row in rows if (row["arm"], row["share"]) == (arm, share)] for share in shares]
        means = list(map(mean, values))
        below = [middle - min(found) for middle, found in zip(means, values, strict=True)]
        above = [max(found) - middle for middle, found in zip(means, values, strict=True)]
        axis.errorbar([100 * share for share in shares], means, (below, above), marker=".", capsize=3, label=arm)
    axis.set(xscale="log", xlabel="labels, %", ylabel=f"error on test ({rows[0]['metric']})", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def run_all(task: Task, options: argparse.Namespace, submit: Callable) -> dict[tuple[str, float, int], Path]:
    """Pretrain and fine-tune every arm; the folder of each arm, share and seed, and a line of `claim.json` for each."""
    fine_tuning = [f"--config={RECIPES / f'configs/{task.recipe}/{task.config}.yaml'}", f"--data.path={options.data}"]
    fine_tuning += [*task.options, f"--run.precision={options.precision}", *options.fine_tuning]
    config = parse(load_recipe(task.recipe).Config, fine_tuning)
    total, name = train_rows(task, fine_tuning, options.out / "labels"), f"pretrain_{options.modality}"
    data = options.data
    if options.modality == "text":
        data = write_texts(data, options.texts, options.out / "texts")
    common = [*pretraining_args(options.modality, data, config.arch), f"--run.precision={options.precision}"]
    common += [*task.pretraining, *options.pretraining]
    pretrained, before = {}, {}
    arms = [arm for arm in ARMS if arm in options.arms]  # in this order: one takes the pace of another
    for arm, extra in ((arm, ARMS[arm]) for arm in arms if ARMS[arm] is not None):
        steps = options.out / f"{arm}/updates.json"
        if not steps.is_file():
            steps.parent.mkdir(parents=True, exist_ok=True)
            count = submit(updates_in, options.minutes, name, [*common, *extra]).result()
            write_json(steps, {"updates": count})
        args = [*common, *extra, f"--run.max_steps={read_json(steps)['updates']}"]
        for seed in range(options.pretraining_seeds):
            out = options.out / f"{arm}/pretrained-{seed}"
            pretrained[arm, seed] = out, submit(run_recipe, name, [*args, f"--run.seed={seed}"], out)
    for key, (_, future) in pretrained.items():
        before[key] = future.result()
    waiting, runs = [], {}
    for share in options.shares:
        few = share != task.judged
        for arm in (arm for arm in arms if arm != "scratch_longer" or not few):
            for seed in range(1 if few else options.seeds):
                out, updates = options.out / f"{arm}/share-{share:g}-{seed}", options.updates or task.updates
                key, model = (arm, seed % options.pretraining_seeds), "none"
                if key in pretrained:
                    model = str(pretrained[key][0] / "best")
                if arm == "scratch_longer":  # as many minutes as a pretrained arm has had, at the pace of `scratch`
                    first = options.out / f"scratch/share-{share:g}-0/minutes.json"
                    spent = read_json(first)["minutes"]
                    updates = round(updates * (1 + options.minutes / max(spent, 0.01)))
                args = [*fine_tuning, f"--model={model}", f"--run.seed={seed}", f"--run.max_steps={updates}"]
                args += [f"--run.eval_every={max(updates // 10, 1)}"]
                args += [f"--data.max_train_samples={max(round(share * total), 2)}"]
                future = submit(run_recipe, task.recipe, args, out)
                if arm == "scratch" and "scratch_longer" in arms and not few:
                    future.result()
                waiting.append((key, share, seed, out, future))
    with (options.out / "claim.json").open("w", encoding="utf-8") as file:
        for (arm, _), share, seed, out, future in waiting:
            minutes = future.result() + before.get((arm, seed % options.pretraining_seeds), 0.0)
            value, low, high = error(task, read_json(out / "results.json"))
            row = {"arm": arm, "share": share, "seed": seed, "metric": task.metric, "value": value}
            file.write(json.dumps(row | {"low": low, "high": high, "minutes": round(minutes, 2)}) + "\n")
            runs[arm, share, seed] = out
    return runs


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.claim", description=__doc__.partition("\n")[0])
    parser.add_argument("modality", choices=TASKS)
    parser.add_argument("--data", type=Path, required=True, help="folder of the small set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shares", type=lambda text: [float(each) for each in text.split(",")])
    parser.add_argument("--seeds", type=int, default=5, help="at the judged share; 1 at the others")
    parser.add_argument("--pretraining-seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=40.0, help="CPU minutes of each pretraining")
    parser.add_argument("--updates", type=int, help="of fine-tuning, by default the task's")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="files of text to pretrain on as well")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time, each on its share of the cores")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="auto")
    further = {"nargs": "*", "action": "extend", "default": []}
    parser.add_argument("--pretraining", **further, help="options of pretraining, as --pretraining=--optim.lr=1e-3")
    parser.add_argument("--fine-tuning", **further, help="and of fine-tuning")
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = command_line()
    options = parser.parse_args(argv)
    task = TASKS[options.modality]
    options.shares = options.shares or list(task.shares)
    if "scratch_longer" in options.arms and "scratch" not in options.arms:
        parser.error("--arms scratch_longer needs scratch, whose pace it takes")
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ["OMP_NUM_THREADS"] = str(max(granted_cores() // options.processes, 1))
    with ProcessPoolExecutor(options.processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        try:
            runs = run_all(task, options, pool.submit)
        except BaseException:  # one that failed fails in minutes, and not once all others are done
            for process in active_children():
                process.terminate()  # which saves, so that the same command goes on
            pool.shutdown(cancel_futures=True)
            raise
    rows = [json.loads(line) for line in (options.out / "claim.json").read_text("utf-8").splitlines()]
    print(f"{'arm':<16}{'share':>7}{'seeds':>7}{'error':>9}   smallest to largest   CPU minutes")
    for arm, share in dict.fromkeys((row["arm"], row["share"]) for row in rows):
        found = [row for row in rows if (row["arm"], row["share"]) == (arm, share)]
        values, minutes = [row["value"] for row in found], mean(row["minutes"] for row in found)
        spread = f"{min(values):.4f} to {max(values):.4f}"
        print(f"{arm:<16}{share:>7g}{len(found):>7}{mean(values):>9.4f}   {spread:<22}{minutes:>8.1f}")
    print("\n".join(verdicts(task, runs)))
    plot(rows, options.out / "claim.png")


if __name__ == "__main__":
    main(sys.argv[1:])
