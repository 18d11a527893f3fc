"""Text classification: `Data2VecTextForSequenceClassification`, one or several classes or a value of texts or pairs.

    accelerate launch recipes/text_classification.py
    accelerate launch recipes/text_classification.py --config recipes/configs/text_classification/mnli.yaml
    accelerate launch recipes/text_classification.py --model facebook/data2vec-text-base --data.path reviews.csv
    accelerate launch recipes/text_classification.py --config recipes/configs/text_classification/mnli.yaml \
        --mode evaluate --model runs/text_classification/best --run.out again
    accelerate launch recipes/text_classification.py --config recipes/configs/text_classification/mnli.yaml \
        --mode predict --model runs/text_classification/best --data.test_split test_matched --run.out mnli_m
    accelerate launch recipes/text_classification.py --config recipes/configs/text_classification/mnli.yaml \
        --mode predict --model runs/text_classification/best --data.name ax --data.test_split test --run.out ax

`python -m d2v.leaderboards glue` packs such predictions for GLUE's server. Without a data option it learns which area
of Python's standard library a paragraph documents, in a few minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from d2v import losses
from d2v.cli import run
from d2v.config import Optim, Recipe, Run
from d2v.data.labels import LabelData, read_labels
from d2v.data.load import load, load_also
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.text import TextData, Truncation, all_texts, text_rows, token_batch, tokenizer_for
from d2v.decode.text_classification import join_windows
from d2v.demo.text import docs_classification
from d2v.metrics.classification import choose_metrics, choose_thresholds, label_metrics, report_classes
from d2v.metrics.statistics import label_statistics
from d2v.models.text_heads import Data2VecTextForSequenceClassification
from d2v.training import About, build, finish, fit, predict, predict_test, start
from d2v.training.report import rounded, write_jsonl


@dataclass
class ClassificationData(LabelData, TextData):
    """The data; without a path the embedded demo.

    Attributes:
        text_column: column of the text.
        pair_column: column of a second text, such as a hypothesis about the first; by default there is none.
        also: other splits to test on, by the ending of their metrics' names, such as MNLI's mm.
        truncation: part that is kept of a text longer than max_length: its head, its tail, or all of it in windows,
            whose logits are averaged; of a pair the second text is cut into windows.
        stride: number of tokens that a window shares with the one before it.
    """

    text_column: str = "text"
    pair_column: str | None = None
    also: dict[str, str] = field(default_factory=dict)
    truncation: Truncation = "head"
    stride: int = 128
    batch_size: int = 16


@dataclass
class Config(Recipe):
    """Text classification."""

    data: ClassificationData = field(default_factory=ClassificationData)
    optim: Optim = field(default_factory=lambda: Optim(eps=1e-6, weight_decay=0.1, clip=0.0, warmup=0.06))
    run: Run = field(default_factory=lambda: Run(out="runs/text_classification"))


def collate(rows: list[dict], *, tokenizer, labels) -> dict[str, Any]:
    """A batch of texts."""
    targets = {"labels": labels.encode([row["reference"] for row in rows])} if "reference" in rows[0] else {}
    return token_batch(tokenizer, [row["ids"] for row in rows]) | targets


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a classifier of texts, evaluate one or classify with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: texts or pairs of them, and their labels
    inputs = {"text": data.text_column, "pair": data.pair_column}
    splits = load(job, docs_classification, inputs=inputs, targets=data.targets)
    splits |= load_also(job, docs_classification, inputs=inputs, targets=data.targets)
    labels, references = read_labels(job, splits)
    metric_names = choose_metrics(data.metrics, labels, references)
    texts = [data.text_column, *([data.pair_column] if data.pair_column else [])]
    tokenizer = tokenizer_for(job, lambda: all_texts(splits["train"], texts))

    # Model: a head on the first token
    model = build(job, Data2VecTextForSequenceClassification, tokenizer=tokenizer, **labels.head)
    settings, rows, cut = model.config, {}, (labels.problem, data.truncation, data.stride)
    longest = min(data.max_length, settings.max_tokens)
    for name, each in splits.items():
        rows[name] = text_rows(job, tokenizer, each, texts, longest, references.get(name), *cut)
    collate_rows = partial(collate, tokenizer=tokenizer, labels=labels)

    # Loss: cross-entropy of classes, or squared error of values
    def loss_fn(model, batch):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits  # (B, C)
        return losses.classification(logits, batch["labels"], settings.problem_type, **labels.loss_options)

    # Prediction: the classes of a text with their scores, or its value
    def predict_fn(model, batch):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits  # (B, C)
        if data.truncation == "windows":
            return list(logits.float().cpu())
        return [labels.decode(scores) for scores in labels.scores(logits).tolist()]

    def predict_split(model, split):
        predictions = predict(job, model, eval_loader(job, rows[split], collate_rows), predict_fn)
        return join_windows(rows[split], predictions, labels) if data.truncation == "windows" else predictions

    # Metrics: GLUE's and others
    def compute_metrics(predictions, split="validation"):
        return label_metrics(metric_names, labels, *rows[split].compare(predictions))

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    if job.training:
        batches = train_loader(job, rows["train"], collate_rows)
        model = fit(job, model, batches, loss_fn, evaluate, keep=[tokenizer], metric=metric_names[0])
        labels = choose_thresholds(job, labels, rows["validation"], partial(predict_split, model, "validation"))

    # Test: the metrics of every test split, none of which was used to choose the checkpoint
    split, predictions, seconds = predict_test(rows, predict_split, model)
    metrics = compute_metrics(predictions, split) if job.labelled else {}
    statistics = label_statistics(list(metrics), labels, *rows[split].compare(predictions)) if job.labelled else None
    for ending in data.also if job.labelled else ():
        others = predict_split(model, ending)
        metrics |= {f"{name}_{ending}": value for name, value in compute_metrics(others, ending).items()}
        if job.is_main:
            records = [rounded(row, data.listed_scores) for row in rows[ending].records(others)]
            write_jsonl(job.out / f"predictions_{ending}.jsonl", records)
    draw = partial(report_classes, job.out, labels, *rows[split].compare(predictions)) if job.labelled else None
    about: About = {"metric": metric_names[0], "task": "text-classification", "demo": "Python's documentation"}
    records, notes = rows[split].records(predictions), labels.notes(metrics)
    return finish(job, metrics, records, statistics, draw, notes=notes, split=split, seconds=seconds, **about)


if __name__ == "__main__":
    run(main, Config)
