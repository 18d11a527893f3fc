"""A run's output for people: results, predictions, curves, a model card, and the last lines on the terminal."""

import csv
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from heapq import nlargest
from operator import itemgetter
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch

from d2v.config import Job, Recipe, demo_file, named_model, recipe_file
from d2v.data.facts import say_decoded
from d2v.devices import on_cuda
from d2v.errors import InputError, Prepared
from d2v.hub import PACKAGED, fetch_file, local_folder, read_json, split_revision, write_json
from d2v.metrics.intervals import Statistics, intervals, save_statistics
from d2v.pretrained import push_folder
from d2v.training.engine import wait_less
from d2v.training.identity import RUN, flat, plain
from d2v.training.log import read_log
from d2v.training.resume import checkpoints
from d2v.training.submission import row_id, write_submission

Result = TypeVar("Result")


def peak_memory_mb() -> float | None:
    """This process's peak memory in MB, that of its GPU if it has one; None where the system does not tell."""
    if on_cuda():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # macOS counts bytes, Linux kilobytes


def timed(function: Callable[..., Result], *args: Any) -> tuple[Result, float]:
    """The result of a call, and its time in seconds."""
    begun = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - begun


class About(TypedDict):
    """Arguments of `finish` that describe a recipe; see there."""

    metric: str
    task: str
    demo: str


def finish(
    job: Job,
    metrics: dict[str, float],
    predictions: list[dict[str, Any]],
    statistics: Statistics | None = None,
    draw: Callable[[], Any] | None = None,
    *,
    split: str,
    seconds: float,
    metric: str,
    task: str,
    demo: str,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """End a run: `results.json`, `predictions.jsonl`, after training also `curves.png` and a model card, and a summary.

    Args:
        job: from `d2v.training.job.start`; its main process writes.
        metrics: fractions, not per cent; NaN where undefined; empty without labels.
        predictions: one row per example.
        statistics: each row's contribution to the metrics, from which the intervals are computed.
        draw: draws the recipe's pictures, after the results are written; it may fail.
        split: the predicted split.
        seconds: time of the predictions.
        metric: the metric that chose the best checkpoint.
        task: the hub's name for the task, such as "automatic-speech-recognition".
        demo: name of the embedded data.
        notes: further entries of `results.json`, such as how the metrics were computed.

    Returns:
        The content of `results.json`; without intervals on processes other than the main one.

    Raises:
        InputError: the submission cannot be filled or the hub cannot be pushed to; everything else is written.
    """
    say_decoded(job)
    notes = ({"freeze": job.config.freeze} if job.training else {}) | (notes or {})
    metric = (job.config.run.metric or metric).partition(",")[0].strip().removeprefix("eval_")
    results = (
        {key: float(value) if math.isfinite(value) else None for key, value in metrics.items()}  # null: undefined
        | notes
        | {
            "metric": metric,
            "split": split,
            "examples": len(predictions),
            "seconds": round(seconds, 3),
            "examples_per_second": round(len(predictions) / seconds, 3),
            "peak_memory_mb": peak_memory_mb(),
        }
    )
    if statistics and job.is_main:  # only the main process writes them
        ids = list(map(row_id, predictions))
        clusters = [row.get("group", name) for row, name in zip(predictions, ids, strict=True)]
        run = job.config.run
        found = intervals(statistics, clusters, replications=run.replications, seed=run.seed)
        results["intervals"] = {name: found.get(name) for name in metrics}
    if job.is_main:
        write_json(job.out / "results.json", results)
        most = getattr(job.config.data, "listed_scores", 0)
        write_jsonl(job.out / "predictions.jsonl", map(partial(rounded, most=most), predictions))
        if statistics:
            save_statistics(job.out / "statistics.npz", statistics, ids, clusters)
        if job.training:
            write_model_card(job, task=task, demo=demo, results=results, metrics=list(metrics))
        for picture in ([partial(plot_curves, job.out, metric)] if job.training else []) + ([draw] if draw else []):
            try:
                picture()
            except (OSError, RuntimeError, ValueError, MemoryError) as error:
                print(f"a picture could not be drawn: {error or type(error).__name__}")
        print(summary(job.out, results, list(metrics), notes | from_scratch(job)))
        if job.config.data.submission and job.config.mode == "predict":
            path = job.out / "submission.csv"
            said = write_submission(Path(job.config.data.submission), predictions, path)
            print(f"{path}  submission" + (f"; {said}" if said else ""))
        if job.training and job.config.run.push:
            address = push_folder(job.out / "best", job.config.run.push, private=job.config.run.private)
            print(f"pushed to {address}")
    return results


def end_preparation(job: Job, batches: Any) -> None:
    """Data and model are ready: end a run of `--mode prepare`, else wait less long for processes from here on.

    Args:
        job: from `d2v.training.job.start`.
        batches: of training.

    Raises:
        Prepared: in this mode.
    """
    if job.config.mode != "prepare":
        wait_less(job)
        return
    if job.config.model:
        licence_of(job.config.model)  # the card will name it
    job.accelerator.wait_for_everyone()
    rows = f"{len(batches.loader.dataset)} rows to train on" if hasattr(batches, "loader") else "the data"
    model = f" and the model {job.config.model}" if job.config.model else ""
    words = [word for word, before in zip(sys.argv, ["", *sys.argv], strict=False) if "--mode" not in (word, before)]
    command = shlex.join(word for word in words if not word.startswith("--mode="))
    line = f"prepared: {rows}{model}; with HF_HUB_OFFLINE=1 in the environment this trains without a network: {command}"
    raise Prepared(line if job.is_main else "")


def with_interval(results: Mapping[str, Any], metric: str) -> str:
    """A metric with its 95 % interval, if it has one."""
    ends = results.get("intervals", {}).get(metric)
    if results[metric] is None:
        return "undefined"
    return f"{results[metric]:.4f}" + (f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends else "")


def rounded(row: dict[str, Any], most: int = 0) -> dict[str, Any]:
    """A prediction as it is written, its scores rounded to six decimals; metrics use them unrounded.

    Args:
        row: of `Rows.records`.
        most: maximum number of classes to list, in that case the likeliest first; 0 lists all.
    """
    scores = row.get("scores")
    if not isinstance(scores, Mapping):
        return row
    listed = scores.items() if not most or len(scores) <= most else nlargest(most, scores.items(), key=itemgetter(1))
    return row | {"scores": {name: round(float(score), 6) for name, score in listed}}


def from_scratch(job: Job) -> dict[str, str]:
    """The result of the same demo from random weights, for the summary of one that started from a pretrained model."""
    source = recipe_file(type(job.config))
    figures = source and source.with_name("results.csv")
    if figures is None or not figures.is_file() or job.config.model not in PACKAGED or not is_demo(job.config):
        return {}
    with figures.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["recipe"], row["config"]) == (job.recipe, "demo")]
    lines = [f"{row['metric']} {float(row['scratch']) / 100:.4f} (--model none)" for row in rows if row["scratch"]]
    return {"from scratch": lines[0]} if lines else {}


def is_demo(config: Recipe) -> bool:
    """Whether a run is that of `configs/<recipe>/demo.yaml`, up to options that do not affect its result."""
    import yaml

    if (demo := demo_file(type(config))) is None:
        return False
    options = dict(flat(yaml.safe_load(demo.read_text("utf-8"))))
    wanted = dict(flat(plain(type(config)()))) | options | {"model": named_model(options.get("model"), config.data)}
    found, lengths = dict(flat(plain(config))), ("run.epochs", "run.max_steps", "run.max_minutes")
    names = [name for name in wanted | found if not name.startswith("run.") or name in lengths]
    return all(wanted.get(name) == found.get(name) for name in names if name != "data.workers")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_ranked_csv(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one line per record: its file's name, up to five likeliest classes, and their scores.

    If files in several folders have the same name, all are written with their whole paths.
    """
    names = [Path(row["id"]).name for row in records]
    names = names if len(set(names)) == len(names) else [row["id"] for row in records]
    ranks = range(1, 1 + min(len(records[0]["scores"]), 5))
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["filename", *(f"top{i}" for i in ranks), *(f"p{i}" for i in ranks)])
        for name, row in zip(names, records, strict=True):
            best = nlargest(len(ranks), row["scores"].items(), key=itemgetter(1))
            lines.writerow([name, *(each for each, _ in best), *(round(float(score), 6) for _, score in best)])


def plot_curves(out: Path, metric: str) -> None:
    """Draw `curves.png` from `log.jsonl`: both losses, and the metric on validation, over updates."""
    from matplotlib.figure import Figure

    log = read_log(out / "log.jsonl")
    # Fixed margins: an automatic layout draws everything twice, which takes half of a short run's last second.
    margins = {"left": 0.07, "right": 0.98, "bottom": 0.13, "top": 0.92}
    figure = Figure(figsize=(10, 4))
    axes = figure.subplots(1, 2, gridspec_kw=margins)
    for axis, key, label in (
        (axes[0], "loss", "training"),
        (axes[0], "eval_loss", "validation"),
        (axes[1], f"eval_{metric}", ""),
    ):
        if points := [(entry["step"], entry[key]) for entry in log if key in entry]:
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=label)
    for axis, title in zip(axes, ("loss", f"{metric} on validation"), strict=True):
        lowest = min((y for line in axis.lines for y in line.get_ydata()), default=0)
        axis.set(xlabel="updates", title=title, ylim=(0 if lowest >= 0 else None, None))
        axis.grid(alpha=0.3)
    if axes[0].lines:
        axes[0].legend()
    figure.savefig(out / "curves.png", dpi=100)


def write_model_card(
    job: Job, *, task: str, demo: str, results: dict[str, Any], metrics: list[str], use: str | None = None
) -> None:
    """Write `README.md` of `best/`, with a `model-index` for the hub; it names no path of this machine.

    Args:
        job: of the run.
        task: the hub's name for the task, such as "automatic-speech-recognition".
        demo: name of the embedded data.
        results: content of `results.json`.
        metrics: keys of `results` to list.
        use: script and options that use the model; by default the recipe with `--mode predict`.
    """
    from huggingface_hub import EvalResult, ModelCardData

    data, folder, saved = job.config.data, job.out / "best", checkpoints(job.out)
    local = data.path is not None and Path(data.path).expanduser().exists()
    source = demo if data.path is None else Path(data.path).expanduser().resolve().stem if local else data.path
    name = source if data.name is None else f"{source}, {data.name}"
    about = {"task_type": task, "dataset_type": source, "dataset_name": name, "dataset_config": data.name}
    about["dataset_split"] = results["split"]
    scored = [key for key in metrics if results[key] is not None]
    base = None if not job.config.model or local_folder(job.config.model) else split_revision(job.config.model)[0]
    card = ModelCardData(
        model_name=folder.resolve().parent.name,
        pipeline_tag=task,
        tags=["data2vec", "d2v"],
        base_model=base,
        datasets=None if local or data.path is None else [split_revision(data.path)[0]],
        **(licence_of(job.config.model) if job.config.model else {}),
        eval_results=[EvalResult(metric_type=key, metric_value=results[key], **about) for key in scored],
    )
    use = use or f"recipes/{job.recipe}.py --mode predict"
    listed = ", ".join(f"{key} {with_interval(results, key)}" for key in scored)
    rows = read_json(saved[-1] / RUN).get("rows") if saved and (saved[-1] / RUN).is_file() else None
    trained = f"trained on {rows} rows of {name}" if rows else f"trained on {name}"
    (folder / "README.md").write_text(
        f"---\n{card.to_yaml()}\n---\n\n# {folder.resolve().parent.name}\n\n"
        f"A Data2Vec model from `recipes/{job.recipe}.py` of d2v, {trained}.\n"
        f"On the split `{results['split']}` ({results['examples']} examples): {listed}.\n\n"
        '```python\nimport d2v.auto\n\nmodel = d2v.auto.from_pretrained("best")\n```\n\n'
        f"```bash\naccelerate launch {use} --model best --data.path DIR\n```\n",
        "utf-8",
    )


def licence_of(model: str) -> dict[str, Any]:
    """The licence in the card of the model that a run started from; empty if there is none that can be read.

    Includes the name and link that the hub requires for other licences than its own (`license: other`).
    """
    import yaml

    try:
        card = fetch_file(model, "README.md")
        front = yaml.safe_load(card.read_text("utf-8").split("---")[1]) if card else None
    except (InputError, OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    found = front if isinstance(front, dict) and isinstance(front.get("license"), str) else {}
    names = ("license", "license_name", "license_link")
    return {name: found[name] for name in names if isinstance(found.get(name), str)}


FILES = {
    "results.json": "metrics",
    "predictions.jsonl": "one prediction per line",
    "statistics.npz": "what each row adds to the metrics, for python -m d2v.compare",
    "submission.csv": "predictions in the sample submission's format",
    "predictions.csv": "the five likeliest classes of each image",
    "predictions.json": "predictions for SQuAD's scripts",
    "nbest_predictions.json": "answers with their probabilities",
    "na_prob.json": "probability that there is no answer",
    "predictions.conll": "predictions for conlleval",
    "confusion.png": "confusion matrix",
    "classes.csv": "metrics of each class",
    "overlays.png": "label maps over their images",
    "masks": "label maps, one class number per pixel",
    "hypothesis.rttm": "predicted segments as RTTM",
    "annotations": "predictions for Praat and media players",
    "scores.txt": "scores of trials, as VoxSRC takes them",
    "det.png": "miss and false alarm rates over thresholds",
    "timeline.png": "predictions below their references",
    "probabilities": "probabilities of each frame",
    "best": "best model",
    "curves.png": "loss and metric over updates",
    "log.jsonl": "losses and metrics as numbers",
    "checkpoints": "checkpoints for --run.resume true",
    "config.yaml": "all options, for --config",
    "data.json": "what was read, and what was left out or changed",
}


def summary(out: Path, results: dict[str, Any], metrics: list[str], notes: dict[str, Any] | None = None) -> str:
    """The last lines of a run on the terminal: its metrics, how they were computed, and its files."""
    rows = [(key, with_interval(results, key)) for key in metrics]
    rows += [(key, str(value)) for key, value in (notes or {}).items()]
    rows += [("examples", f"{results['examples']} ({results['split']}), {results['examples_per_second']} a second")]
    rows += [(str(out / name), what) for name, what in FILES.items() if (out / name).exists()]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in rows)
