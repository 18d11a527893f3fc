"""Text classification: `Data2VecTextForSequenceClassification`, a class, several, or a value of a text or two; GLUE.

    accelerate launch recipes/text_classification.py
    accelerate launch recipes/text_classification.py --config recipes/configs/text_classification/mnli.yaml
    accelerate launch recipes/text_classification.py --model facebook/data2vec-text-base --lora.rank 8 --optim.lr 3e-4 \
        --data.path reviews.csv
    accelerate launch recipes/text_classification.py --config recipes/configs/text_classification/mnli.yaml \
        --mode evaluate --model runs/mnli/best --run.out runs/mnli_again
    accelerate launch recipes/text_classification.py --config recipes/configs/text_classification/mnli.yaml \
        --mode predict --model runs/mnli/best --data.test_split test_matched --run.out runs/mnli_m
    accelerate launch recipes/text_classification.py --config recipes/configs/text_classification/mnli.yaml \
        --mode predict --model runs/mnli/best --data.name ax --data.test_split test --run.out runs/ax

`python -m d2v.leaderboards glue` packs such predictions for GLUE's server. Without a data option it learns which area
of Python's standard library a paragraph documents, in a few minutes on a CPU.
"""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from d2v import losses
from d2v.config import Lora, Optim, Run, check_mode, run
from d2v.data.labels import check_classes, label_problem, name_classes
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.text import TextData, all_texts, encode_texts, tokenizer_for
from d2v.demo.text import docs_classification
from d2v.errors import InputError
from d2v.lora import save_adapted
from d2v.metrics.classification import choose_metrics, classification_metrics, plot_confusion
from d2v.models.text_heads import Data2VecTextForSequenceClassification
from d2v.training.build import problem_type, text_model
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish, write_jsonl

KINDS = {"one": "single_label_classification", "several": "multi_label_classification", "value": "regression"}


@dataclass
class ClassificationData(TextData):
    """The data; without a path the embedded demo.

    Attributes:
        text_column: the text.
        pair_column: a second text, such as a hypothesis on the first.
        label_column: class names or numbers; with `labels` several lists of them, with value numbers.
        labels: what is learnt of a row: one class, several (any number of them), or a value.
        metrics: their names; the first of them chooses the best checkpoint. By default accuracy and macro_f1; of
            several labels map and micro_f1, of values pearson and spearmanr.
        also: other splits to score at the end, by what the names of their metrics end in: MNLI's `mm`.
    """

    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    labels: Literal["one", "several", "value"] = "one"
    metrics: list[str] = field(default_factory=list)
    also: dict[str, str] = field(default_factory=dict)


@dataclass
class Config:
    """Text classification.

    Attributes:
        mode: train and score, score a model, or write down what a model reads.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecTextConfig` that are to differ, such as `--arch.hidden_dropout_prob 0.0`.
        lora: train low-rank adapters instead of all weights.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    lora: Lora = field(default_factory=Lora)
    data: ClassificationData = field(default_factory=ClassificationData)
    optim: Optim = field(default_factory=lambda: Optim(eps=1e-6, weight_decay=0.1, clip=0.0, warmup=0.06))
    run: Run = field(default_factory=lambda: Run(out="runs/text_classification"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    sides = {"text": data.text_column} | ({"pair": data.pair_column} if data.pair_column else {})
    columns = sides | ({"label": data.label_column} if labelled else {})
    splits = load(config, docs_classification, columns, accelerator)
    for ending, split in data.also.items() if labelled else ():
        other = replace(config, mode="evaluate", data=replace(data, test_split=split))
        splits[ending] = load(other, docs_classification, columns, accelerator)["test"]
    kind = KINDS[data.labels] if training else problem_type(config.model)
    several, values = kind == "multi_label_classification", kind == "regression"
    problem_kind = kind.removesuffix("_classification")
    metrics, classes = choose_metrics(data.metrics, problem_kind), []
    if labelled and not values:
        splits, classes = name_classes(splits, data.label_column)

    # Tokenizer
    texts = list(sides.values())
    tokenizer = tokenizer_for(config.model, lambda: all_texts(splits["train"], texts), data.vocab_size)

    # Model
    changes = {"problem_type": kind} if training else {}
    if training and values:
        changes["num_labels"] = 1
    elif training:
        changes["id2label"] = dict(enumerate(check_classes(classes, data.label_column)))
    model = text_model(Data2VecTextForSequenceClassification, config, tokenizer, changes)
    numbers = model.config.label2id
    names = sorted(numbers, key=numbers.get)

    # Rows
    def problem(label: Any) -> str | None:
        if not values:
            return label_problem(label, numbers, data.label_column, several=several)
        number = isinstance(label, int | float) and math.isfinite(label)
        return None if number else f"{data.label_column} is {label!r}; should be a number"

    rows, lengths = {}, {}
    for name, split in splits.items():
        labels = list(split[data.label_column]) if labelled else [None] * len(split)
        for i, label in enumerate(labels if labelled else ()):
            if reason := problem(label):
                raise InputError(f"{name}, row {i}: {reason}")
        ids = encode_texts(tokenizer, split, texts, name, min(data.max_length, model.config.max_tokens))
        rows[name], lengths[name] = list(zip(ids, labels, strict=True)), list(map(len, ids))

    def targets(labels: list[Any]) -> Tensor:
        if values:
            return torch.tensor(labels, dtype=torch.float32)  # (B,)
        if several:
            return torch.tensor([[float(name in label) for name in names] for label in labels])  # (B, C)
        return torch.tensor([numbers[label] for label in labels])  # (B,)

    def collate(rows: list[tuple]) -> dict[str, Any]:
        ids, labels = zip(*rows, strict=True)
        batch = tokenizer.pad(ids) | {"size": sum(map(len, ids))}
        return batch | ({"labels": targets(labels)} if labelled else {})

    # What is learnt, and how it is judged
    def loss_fn(model, batch):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits  # (B, C)
        return losses.classification(logits, batch["labels"], kind)

    def scores(model, batch) -> list[list[float]]:
        logits = model(batch["input_ids"], batch["attention_mask"]).logits.float()  # (B, C)
        return (logits if values else logits.sigmoid() if several else logits.softmax(-1)).tolist()

    def describe(row: list[float]) -> dict[str, Any]:
        if values:
            return {"value": row[0]}
        found = {name: round(score, 6) for name, score in zip(names, row, strict=True)}
        if several:
            return {"labels": [name for name, score in found.items() if score > 0.5], "scores": found}
        return {"label": names[row.index(max(row))], "scores": found}

    def read(model, name: str) -> list[dict[str, Any]]:
        batches = eval_loader(rows[name], lengths[name], collate, data, data.batch_tokens, accelerator)
        found = [describe(row) for row in predict(model, batches, scores, accelerator)]
        if labelled:
            found = [row | {"reference": label} for row, (_, label) in zip(found, rows[name], strict=True)]
        return [{"id": text} | row for text, row in zip(row_names(splits[name]), found, strict=True)]

    def figures(found: list[dict[str, Any]]) -> dict[str, float]:
        references = [row["reference"] for row in found]
        if several:
            guesses = [list(row["scores"].values()) for row in found]
            return classification_metrics(metrics, problem_kind, targets(references).numpy(), guesses, names)
        guesses = [row["value" if values else "label"] for row in found]
        return classification_metrics(metrics, problem_kind, references, guesses, names)

    def save(folder: Path) -> None:
        save_adapted(model, folder)
        tokenizer.save_pretrained(folder)

    if training:
        options = (collate, data, data.batch_tokens, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(rows["train"], lengths["train"], *options),
            loss_fn,
            lambda model: figures(read(model, "validation")),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric=metrics[0],
            higher_is_better=True,
            unit="tokens",
        )
        model = Data2VecTextForSequenceClassification.from_pretrained(out / "best", verbose=False)

    # The end: what the best model makes of texts that chose nothing
    name, begun = "test" if "test" in rows else "validation", time.perf_counter()
    found = read(model, name)
    seconds = time.perf_counter() - begun
    results = figures(found) if labelled else {}
    for ending in data.also if labelled else ():
        other = read(model, ending)
        results |= {f"{key}_{ending}": value for key, value in figures(other).items()}
        if accelerator.is_main_process:
            write_jsonl(out / f"predictions_{ending}.jsonl", other)
    if labelled and kind == KINDS["one"] and accelerator.is_main_process:
        references, guesses = [row["reference"] for row in found], [row["label"] for row in found]
        plot_confusion(references, guesses, names, out / "confusion.png")
    return finish(
        out,
        results,
        found,
        split=name,
        seconds=seconds,
        trained=metrics[0] if training else None,
        recipe="text_classification",
        task="text-classification",
        data=data.path or "Python's documentation",
        accelerator=accelerator,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/text_classification/demo.yaml")
