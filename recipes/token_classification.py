"""Labels of words: `Data2VecTextForTokenClassification`, F1 of names and other chunks, or accuracy of parts of speech.

    accelerate launch recipes/token_classification.py
    accelerate launch recipes/token_classification.py --config recipes/configs/token_classification/conll2003.yaml
    accelerate launch recipes/token_classification.py --mode evaluate --model runs/ner/best --run.out runs/again
    accelerate launch recipes/token_classification.py --mode predict --model runs/ner/best --data.path words.jsonl

Without a data option it learns to put capitals and punctuation back into Python's documentation, in minutes on a CPU.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from d2v.training.build import text_model

from d2v import losses
from d2v.config import Lora, Optim, Run, check_mode, run
from d2v.data.labels import check_classes, name_classes
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.text import TextData, tokenizer_for
from d2v.data.token_classification import (
    check_tags,
    check_words,
    encode_words,
    firsts,
    inside,
    piece_labels,
    write_conll,
)
from d2v.demo.text import docs_tagging
from d2v.lora import save_adapted
from d2v.metrics.classification import plot_confusion
from d2v.metrics.token_classification import are_chunks, token_classification_metrics
from d2v.models.text_heads import Data2VecTextForTokenClassification
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish


@dataclass
class TaggingData(TextData):
    """The data; without a path the embedded demo.

    Attributes:
        tokens_column: lists of words.
        tags_column: lists of their labels, names or numbers.
        label_all_pieces: learn the labels of all pieces of a word; else, as at the end, that of its first.
        max_length: tokens of a window; a sentence that is longer takes several.
        stride: tokens that a window shares with the one before it; a word counts where it is farther from the edge.
    """

    tokens_column: str = "tokens"
    tags_column: str = "tags"
    label_all_pieces: bool = False
    stride: int = 64


@dataclass
class Config:
    """Token classification.

    Attributes:
        mode: train and score, score a model, or write down its labels.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecTextConfig` that are to differ, such as `--arch.hidden_dropout_prob 0.2`.
        lora: train low-rank adapters instead of all weights.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    lora: Lora = field(default_factory=Lora)
    data: TaggingData = field(default_factory=TaggingData)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=lambda: Run(out="runs/token_classification"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    columns = {"tokens": data.tokens_column} | ({"tags": data.tags_column} if labelled else {})
    splits = load(config, docs_tagging, columns, accelerator)
    check_words(splits, data.tokens_column)
    sentences = {role: split[data.tokens_column][:] for role, split in splits.items()}
    if labelled:
        splits, classes = name_classes(splits, data.tags_column)

    # Tokenizer: each word as it is encoded after a space
    tokenizer = tokenizer_for(
        config.model, lambda: map(" ".join, sentences["train"]), data.vocab_size, add_prefix_space=True
    )

    # Model
    changes = {"id2label": dict(enumerate(check_classes(classes, data.tags_column)))} if training else {}
    model = text_model(Data2VecTextForTokenClassification, config, tokenizer, changes)
    names, numbers = model.config.id2label, model.config.label2id
    chunks = are_chunks(list(numbers))

    # Rows
    if labelled:
        check_tags(splits, data.tokens_column, data.tags_column, numbers)
    longest = min(data.max_length, model.config.max_tokens)
    windows = {role: encode_words(tokenizer, words, longest, data.stride) for role, words in sentences.items()}
    if training:
        labels = [np.array([numbers[name] for name in row]) for row in splits["train"][data.tags_column]]
        later = inside(numbers) if data.label_all_pieces else None
        for window in windows["train"]:
            window["labels"] = piece_labels(window["words"], labels[window["row"]], later)

    def collate(rows: list[dict]) -> dict[str, Any]:
        batch = tokenizer.pad([row["ids"] for row in rows]) | {"size": sum(len(row["ids"]) for row in rows)}
        if "labels" in rows[0]:  # rows of train
            return batch | {"labels": pad_labels([row["labels"] for row in rows])}
        return batch | {"firsts": [firsts(row["words"]) for row in rows]}

    # What is learnt, and how it is judged
    def loss_fn(model, batch):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits  # (B, T, C)
        return losses.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    def best(model, batch) -> list[list[int]]:
        found = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1).cpu().numpy()  # (B, T)
        return [row[: len(first)][first].tolist() for row, first in zip(found, batch["firsts"], strict=True)]

    def tag(model, role: str) -> list[list[str]]:
        lengths = [len(window["ids"]) for window in windows[role]]
        batches = eval_loader(windows[role], lengths, collate, data, data.batch_tokens, accelerator)
        found: list[list[str]] = [[] for _ in sentences[role]]
        for window, labels in zip(windows[role], predict(model, batches, best, accelerator), strict=True):
            found[window["row"]] += [names[label] for label in labels]
        return found

    def rates(found: list[list[str]], role: str) -> dict[str, float]:
        return token_classification_metrics(splits[role][data.tags_column][:], found, chunks=chunks)

    def save(folder: Path) -> None:
        save_adapted(model, folder)
        tokenizer.save_pretrained(folder)

    metric = "f1" if chunks else "accuracy"
    if training:
        lengths = [len(window["ids"]) for window in windows["train"]]
        options = (collate, data, data.batch_tokens, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(windows["train"], lengths, *options),
            loss_fn,
            lambda model: rates(tag(model, "validation"), "validation"),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric=metric,
            higher_is_better=True,
            unit="tokens",
        )
        model = Data2VecTextForTokenClassification.from_pretrained(out / "best", verbose=False)

    # The end: the best model's labels in sentences that chose nothing
    role, begun = "test" if "test" in splits else "validation", time.perf_counter()
    found = tag(model, role)
    seconds = time.perf_counter() - begun
    sides = {"labels": found}
    if labelled:
        sides = {"reference": splits[role][data.tags_column][:]} | sides
    if accelerator.is_main_process:
        write_conll(out / "predictions.conll", sentences[role], *sides.values())
        if labelled:
            flat = [[label for labels in side for label in labels] for side in sides.values()]
            plot_confusion(*flat, list(numbers), out / "confusion.png")
    predictions = [
        {"id": name, "tokens": words} | dict(zip(sides, labels, strict=True))
        for name, words, *labels in zip(row_names(splits[role]), sentences[role], *sides.values(), strict=True)
    ]
    return finish(
        out,
        rates(found, role) if labelled else {},
        predictions,
        split=role,
        seconds=seconds,
        trained=metric if training else None,
        recipe="token_classification",
        task="token-classification",
        data=data.path or "Python's documentation",
        accelerator=accelerator,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/token_classification/demo.yaml")
