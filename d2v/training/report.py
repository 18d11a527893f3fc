"""What a run leaves for people: results, predictions, curves, a model card, and the last lines on the terminal."""

import csv
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch

from d2v.config import Job
from d2v.data.facts import say_decoded
from d2v.metrics.intervals import Statistics, intervals, save_statistics
from d2v.pretrained import write_json
from d2v.training.log import read_log

Result = TypeVar("Result")


def peak_memory_mb() -> float | None:
    """The most memory this process has used, in MB: on the GPU if there is one; None where the system does not say."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # macOS counts bytes, Linux kilobytes


def timed(function: Callable[..., Result], *args: Any) -> tuple[Result, float]:
    """The result of a call, and the seconds that it took."""
    begun = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - begun


class About(TypedDict):
    """What a recipe is about, for `finish`, which says what they are."""

    metric: str
    task: str
    demo: str


def finish(
    job: Job,
    metrics: dict[str, float],
    predictions: list[dict[str, Any]],
    statistics: Statistics | None = None,
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
        metrics: fractions, not per cent; NaN where undefined; none where there are no labels.
        predictions: a row for each example.
        statistics: what each row adds to the metrics, which their intervals are taken from.
        split: that they were made on.
        seconds: that making them took.
        metric: the metric that the best checkpoint was chosen by.
        task: the hub's name for the task, such as "automatic-speech-recognition".
        demo: name of the embedded data.
        notes: what else `results.json` has to say, such as how the metrics were computed.

    Returns:
        The content of `results.json`.
    """
    say_decoded(job)
    notes = ({"freeze": job.config.freeze} if job.training else {}) | (notes or {})
    results = (
        {key: float(value) if math.isfinite(value) else None for key, value in metrics.items()}  # null: undefined
        | notes
        | {
            "metric": (job.config.run.metric or metric).partition(",")[0].strip(),
            "split": split,
            "examples": len(predictions),
            "seconds": round(seconds, 3),
            "examples_per_second": round(len(predictions) / seconds, 3),
            "peak_memory_mb": peak_memory_mb(),
        }
    )
    if statistics:
        ids = [row.get("id") or f"{row['enrol']} {row['test']}" for row in predictions]  # trials have a pair
        run = job.config.run
        found = intervals(statistics, ids, replications=run.replications, seed=run.seed)
        results["intervals"] = {name: found.get(name) for name in metrics}
    if job.is_main:
        write_json(job.out / "results.json", results)
        write_jsonl(job.out / "predictions.jsonl", predictions)
        if statistics:
            save_statistics(job.out / "statistics.npz", statistics, ids, ids)
        if job.training:
            plot_curves(job.out, metric)
            data = job.config.data.path or demo
            defined = [key for key in metrics if results[key] is not None]
            write_model_card(
                job.out / "best", recipe=job.recipe, task=task, data=data, results=results, metrics=defined
            )
        print(summary(job.out, results, list(metrics), notes))
    return results


def with_interval(results: Mapping[str, Any], metric: str) -> str:
    """A metric and its 95 % interval, where it has one."""
    ends = results.get("intervals", {}).get(metric)
    if results[metric] is None:
        return "undefined"
    return f"{results[metric]:.4f}" + (f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends else "")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_ranked_csv(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a line a record: its file's name, the classes of its `scores`, their scores."""
    ranks = range(1, 1 + len(records[0]["scores"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["filename", *(f"top{i}" for i in ranks), *(f"p{i}" for i in ranks)])
        lines.writerows([Path(row["id"]).name, *row["scores"], *row["scores"].values()] for row in records)


def plot_curves(out: Path, metric: str) -> None:
    """Draw `curves.png` from `log.jsonl`: the training loss and the metric on validation over updates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    log = read_log(out / "log.jsonl")
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key, title in (
        (axes[0], "loss", "training loss"),
        (axes[1], f"eval_{metric}", f"{metric} on validation"),
    ):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None)
        axis.set(xlabel="updates", title=title, ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.savefig(out / "curves.png", dpi=100)
    pyplot.close(figure)


def write_model_card(
    folder: Path, *, recipe: str, task: str, data: str, results: dict[str, Any], metrics: list[str]
) -> None:
    """Write `README.md` with a `model-index` that the hub reads.

    Args:
        folder: of the model.
        recipe: name of the recipe.
        task: the hub's name of the task, such as "automatic-speech-recognition".
        data: hub id or folder of the data.
        results: content of `results.json`.
        metrics: keys of `results` to list.
    """
    from huggingface_hub import EvalResult, ModelCardData

    common = {"task_type": task, "dataset_type": data, "dataset_name": data, "dataset_split": results["split"]}
    card = ModelCardData(
        model_name=folder.resolve().parent.name,
        pipeline_tag=task,
        tags=["data2vec", "d2v"],
        eval_results=[EvalResult(metric_type=key, metric_value=results[key], **common) for key in metrics],
    )
    listed = ", ".join(f"{key} {with_interval(results, key)}" for key in metrics)
    (folder / "README.md").write_text(
        f"---\n{card.to_yaml()}\n---\n\n# {folder.resolve().parent.name}\n\n"
        f"A Data2Vec model from `recipes/{recipe}.py` of d2v, trained on `{data}`.\n"
        f"On the split `{results['split']}` ({results['examples']} examples): {listed}.\n"
        "`config.yaml` beside the model's folder repeats the run.\n",
        "utf-8",
    )


FILES = {
    "results.json": "metrics",
    "predictions.jsonl": "a prediction a line",
    "statistics.npz": "what each row adds to the metrics, for python -m d2v.compare",
    "predictions.csv": "the same, up to five classes of each image",
    "predictions.json": "the same, as SQuAD's scripts read them",
    "nbest_predictions.json": "answers with their probabilities",
    "na_prob.json": "probability that there is no answer",
    "predictions.conll": "the same, as conlleval reads them",
    "confusion.png": "confusion matrix",
    "classes.csv": "metrics of each class",
    "overlays.png": "label maps over their images",
    "masks": "label maps, a class number a pixel",
    "hypothesis.rttm": "the same as RTTM",
    "timeline.png": "predictions below their references",
    "probabilities": "probabilities of each frame",
    "best": "best model",
    "curves.png": "loss and metric over updates",
    "log.jsonl": "the same as numbers",
    "checkpoints": "checkpoints for --run.resume true",
    "config.yaml": "all options, for --config",
    "data.json": "what was read, and what was left out or changed",
}


def summary(out: Path, results: dict[str, Any], metrics: list[str], notes: dict[str, Any] | None = None) -> str:
    """The end of a run on the terminal: its metrics, how they were computed, and where everything is."""
    rows = [(key, with_interval(results, key)) for key in metrics]
    rows += [(key, str(value)) for key, value in (notes or {}).items()]
    rows += [("examples", f"{results['examples']} ({results['split']}), {results['examples_per_second']} a second")]
    rows += [(str(out / name), what) for name, what in FILES.items() if (out / name).exists()]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in rows)
