"""Token classification: `Data2VecTextForTokenClassification`, F1 of names and other chunks, or accuracy of words.

    accelerate launch recipes/token_classification.py
    accelerate launch recipes/token_classification.py --model facebook/data2vec-text-base --data.path DIR
    accelerate launch recipes/token_classification.py --mode evaluate --model runs/token_classification/best
    accelerate launch recipes/token_classification.py --mode predict --model runs/token_classification/best \
        --data.path words.jsonl --run.out predicted

Without a data option it fine-tunes d2v's small model to put capitals and punctuation back into Python's documentation,
in minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from d2v import losses
from d2v.cli import run
from d2v.config import Recipe, Run
from d2v.data.conll import read_words
from d2v.data.load import load
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.text import token_batch, tokenizer_for
from d2v.data.token_classification import (
    TokenData,
    firsts,
    inside_classes,
    piece_labels,
    tagged_rows,
    word_rows,
)
from d2v.decode.token_classification import join_windows, write_conll
from d2v.demo.text import docs_tagging
from d2v.metrics.classification import plot_confusion, write_classes
from d2v.metrics.statistics import word_statistics
from d2v.metrics.token_classification import are_chunks, token_classification_metrics
from d2v.models.text_heads import Data2VecTextForTokenClassification
from d2v.training import About, build, finish, fit, predict, predict_test, start


@dataclass
class Config(Recipe):
    """Token classification."""

    data: TokenData = field(default_factory=TokenData)
    run: Run = field(default_factory=lambda: Run(out="runs/token_classification"))


def collate(rows: list[dict], *, tokenizer, numbers, inside) -> dict[str, Any]:
    """A batch of windows, with the first token of each word that is scored there."""
    batch = token_batch(tokenizer, [row["ids"] for row in rows])
    batch["firsts"] = [firsts(row["words"]) for row in rows]
    if "reference" in rows[0]:
        labels = [np.array([numbers.get(name, losses.IGNORE) for name in row["reference"]]) for row in rows]
        pieces = [piece_labels(row["words"], label, inside) for row, label in zip(rows, labels, strict=True)]
        batch["labels"] = pad_labels(pieces)
    return batch


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a tagger of words, evaluate one or tag with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: words, their labels, and each word encoded as after a space
    columns = {"inputs": {"tokens": data.tokens_column}, "targets": {"tags": data.tags_column}}
    splits = load(job, docs_tagging, reader=read_words, **columns)
    splits, sentences, labels, tags = tagged_rows(job, splits)
    tokenizer = tokenizer_for(job, lambda: map(" ".join, sentences["train"]), add_prefix_space=True)

    # Model: one output per class for every token
    id2label = dict(enumerate(labels.names))
    model = build(job, Data2VecTextForTokenClassification, tokenizer=tokenizer, id2label=id2label)
    names, numbers, rows, chunks = labels.names, labels.numbers, {}, are_chunks(labels.names)
    longest = min(data.max_length, model.config.max_tokens)
    for name, each in splits.items():
        rows[name] = word_rows(job, each, sentences[name], tags.get(name), labels, tokenizer, longest)
    inside = inside_classes(numbers) if data.label_all_pieces else None
    collate_rows = partial(collate, tokenizer=tokenizer, numbers=numbers, inside=inside)

    # Loss: cross-entropy of each word's first token, or of all its tokens
    def loss_fn(model, batch):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits  # (B, T, C)
        return losses.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), **labels.loss_options)

    # Prediction: the labels of all words, windows of a sentence joined
    def predict_fn(model, batch):
        classes = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1).cpu().numpy()  # (B, T)
        words = [row[: len(first)][first] for row, first in zip(classes, batch["firsts"], strict=True)]
        return [[names[number] for number in row.tolist()] for row in words]

    def predict_split(model, split):
        windows = predict(job, model, eval_loader(job, rows[split], collate_rows), predict_fn)
        return join_windows(rows[split], windows)

    # Metrics: F1 of chunks by seqeval, or accuracy
    def compute_metrics(predictions, split="validation"):
        references, predicted = rows[split].compare(predictions)
        return token_classification_metrics(references, [row["labels"] for row in predicted], chunks=chunks)

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    metric = "f1" if chunks else "accuracy"
    if job.training:
        batches = train_loader(job, rows["train"], collate_rows)
        model = fit(job, model, batches, loss_fn, evaluate, keep=[tokenizer], metric=metric)

    # Test: labels of words, on a split that was not used to choose the checkpoint
    split, predictions, seconds = predict_test(rows, predict_split, model)
    metrics = compute_metrics(predictions, split) if job.labelled else {}
    statistics = word_statistics(*rows[split].compare(predictions), numbers, chunks=chunks) if job.labelled else None
    keys = ["tokens", "reference", "labels"] if job.labelled else ["tokens", "labels"]  # as conlleval reads them
    kept, records = ("id", "group", *keys), rows[split].records(predictions)
    records = [{key: record[key] for key in kept if key in record} for record in records]
    if job.is_main:
        write_conll(job.out / "predictions.conll", records, keys)

    def confusion():
        pairs = [pair for row in records for pair in zip(row["reference"], row["labels"], strict=True) if pair[0]]
        truth, predicted = zip(*pairs, strict=True)
        write_classes(job.out / "classes.csv", truth, predicted, names)
        plot_confusion(truth, predicted, names, job.out / "confusion.png")

    draw = confusion if job.labelled else None
    about: About = {"metric": metric, "task": "token-classification", "demo": "Python's documentation"}
    return finish(job, metrics, records, statistics, draw, split=split, seconds=seconds, **about)


if __name__ == "__main__":
    run(main, Config)
