"""What a run leaves for people: results, predictions, curves, a model card, and the last lines on the terminal."""

import json
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from d2v.pretrained import write_json
from d2v.training.log import read_log


def peak_memory_mb() -> float:
    """The most memory this process has used, in MB: on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux kilobytes


def finish(
    out: Path,
    metrics: dict[str, float],
    predictions: list[dict[str, Any]],
    *,
    split: str,
    seconds: float,
    trained: str | None,
    recipe: str,
    task: str,
    data: str,
    accelerator,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """End a run: `results.json`, `predictions.jsonl`, after training also `curves.png` and a model card, and a summary.

    Args:
        out: the run's folder.
        metrics: fractions, not per cent.
        predictions: a row for each example.
        split: that they were made on.
        seconds: that making them took.
        trained: the metric that the best checkpoint was chosen by, or None if nothing was trained.
        recipe: its name.
        task: the hub's name for the task, such as "automatic-speech-recognition".
        data: hub id or folder of the data.
        accelerator: from `d2v.training.loop.start`; its main process writes.
        notes: what else `results.json` has to say, such as how the figures were made.

    Returns:
        The content of `results.json`.
    """
    results = (
        {key: float(value) for key, value in metrics.items()}
        | (notes or {})
        | {
            "split": split,
            "examples": len(predictions),
            "seconds": round(seconds, 3),
            "examples_per_second": round(len(predictions) / seconds, 3),
            "peak_memory_mb": round(peak_memory_mb(), 1),
        }
    )
    if accelerator.is_main_process:
        write_json(out / "results.json", results)
        write_jsonl(out / "predictions.jsonl", predictions)
        if trained:
            plot_curves(out, trained)
            write_model_card(out / "best", recipe=recipe, task=task, data=data, results=results, metrics=list(metrics))
        print(summary(out, results, list(metrics), notes))
    return results


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


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
    figures = ", ".join(f"{key} {results[key]:.4f}" for key in metrics)
    (folder / "README.md").write_text(
        f"---\n{card.to_yaml()}\n---\n\n# {folder.resolve().parent.name}\n\n"
        f"A Data2Vec model from `recipes/{recipe}.py` of d2v, trained on `{data}`.\n"
        f"On the split `{results['split']}` ({results['examples']} examples): {figures}.\n"
        "`config.yaml` beside the model's folder repeats the run.\n",
        "utf-8",
    )


FILES = {
    "results.json": "the figures",
    "predictions.jsonl": "every prediction",
    "predictions.csv": "the same, the five likeliest classes of each image",
    "predictions.json": "the same, as SQuAD's scripts read them",
    "nbest_predictions.json": "the next best answers too",
    "na_prob.json": "how likely there is no answer",
    "predictions.conll": "the same, as conlleval reads them",
    "confusion.png": "what is taken for what",
    "classes.csv": "of each class",
    "overlays.png": "label maps over their images",
    "masks": "all label maps, a class number for each pixel",
    "hypothesis.rttm": "the same, as scorers of diarization read it",
    "timeline.png": "some of it, below the reference",
    "probabilities": "of each frame",
    "best": "the best model",
    "curves.png": "loss and metric over updates",
    "log.jsonl": "the same in numbers",
    "checkpoints": "to go on from with --run.resume true",
    "config.yaml": "to repeat the run with --config",
}


def summary(out: Path, results: dict[str, Any], metrics: list[str], notes: dict[str, Any] | None = None) -> str:
    """The end of a run on the terminal: its figures, how they were made, and where everything is."""
    rows = [(key, f"{results[key]:.4f}") for key in metrics]
    rows += [(key, str(value)) for key, value in (notes or {}).items()]
    rows += [("examples", f"{results['examples']} ({results['split']}), {results['examples_per_second']} a second")]
    rows += [(str(out / name), what) for name, what in FILES.items() if (out / name).exists()]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in rows)
