"""Multiple choice: `Data2VecTextForMultipleChoice`, accuracy; any number of choices, which may differ from row to row.

    accelerate launch recipes/multiple_choice.py
    accelerate launch recipes/multiple_choice.py --config recipes/configs/multiple_choice/swag.yaml
    accelerate launch recipes/multiple_choice.py --model facebook/data2vec-text-base --data.path exam.jsonl \
        --data.prompt_column question --data.choice_columns '[answers]' --lora.rank 8 --optim.lr 3e-4
    accelerate launch recipes/multiple_choice.py --mode evaluate --model runs/multiple_choice/best --run.out again
    accelerate launch recipes/multiple_choice.py --mode predict --model runs/multiple_choice/best --data.path new.csv

Without a data option it learns to tell how a docstring of Python's goes on, in a few minutes on a CPU.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from d2v import losses
from d2v.config import Lora, Optim, Run, check_mode, run
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.multiple_choice import encode_choices, read_choices
from d2v.data.text import TextData, tokenizer_for
from d2v.demo.text import docs_next
from d2v.lora import save_adapted
from d2v.metrics.classification import accuracy_and_f1
from d2v.models.text_heads import Data2VecTextForMultipleChoice
from d2v.training.build import text_model
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish


@dataclass
class ChoiceData(TextData):
    """The data, by default with SWAG's columns; without a path the embedded demo.

    Attributes:
        prompt_column: what comes first: a sentence, a question, a text to be asked about.
        start_column: what all choices of a row begin with; null for nothing.
        choice_columns: columns of one choice each; or a single one that holds lists of them.
        label_column: the number of the right choice, from 0.
    """

    prompt_column: str = "sent1"
    start_column: str | None = "sent2"
    choice_columns: list[str] = field(default_factory=lambda: [f"ending{i}" for i in range(4)])
    label_column: str = "label"


@dataclass
class Config:
    """Multiple choice.

    Attributes:
        mode: train and score, score a model, or write down what a model chooses.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecTextConfig` that are to differ, such as `--arch.hidden_dropout_prob 0.2`.
        lora: train low-rank adapters instead of all weights.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    lora: Lora = field(default_factory=Lora)
    data: ChoiceData = field(default_factory=ChoiceData)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=lambda: Run(out="runs/multiple_choice"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    columns = {"prompt": data.prompt_column, "start": data.start_column}
    columns["label"] = data.label_column if labelled else None
    splits = load(config, docs_next, {use: column for use, column in columns.items() if column}, accelerator)
    texts = {name: read_choices(split, name, **columns, choices=data.choice_columns) for name, split in splits.items()}

    # Tokenizer
    tokenizer = tokenizer_for(
        config.model,
        lambda: (text for row in texts["train"] for text in (row["prompt"], *row["choices"])),
        data.vocab_size,
    )

    # Model
    model = text_model(Data2VecTextForMultipleChoice, config, tokenizer, {})

    # Rows
    longest, rows, lengths = min(data.max_length, model.config.max_tokens), {}, {}
    for name, found in texts.items():
        rows[name], lengths[name] = encode_choices(found, tokenizer, name, longest)

    def collate(rows: list[dict]) -> dict[str, Any]:
        ids = [choice for row in rows for choice in row["ids"]]
        batch = tokenizer.pad(ids) | {"choices": [len(row["ids"]) for row in rows], "size": sum(map(len, ids))}
        return batch | ({"labels": torch.tensor([row["label"] for row in rows])} if labelled else {})

    # What is learnt, and how it is judged
    def scores(model, batch) -> Tensor:
        # Each choice goes through the model as if it were the only one, so that rows may differ in how many they have.
        alone = (batch[name].unsqueeze(1) for name in ("input_ids", "attention_mask"))  # (B * choices, 1, T)
        logits = model(*alone).logits.float().squeeze(1).split(batch["choices"])
        return pad_sequence(logits, batch_first=True, padding_value=-torch.inf)  # (B, most choices)

    def loss_fn(model, batch):
        return losses.cross_entropy(scores(model, batch), batch["labels"])

    def choose(model, batch) -> list[list[float]]:
        found = scores(model, batch).softmax(-1).tolist()
        return [row[:count] for row, count in zip(found, batch["choices"], strict=True)]

    def answer(model, name: str) -> list[dict[str, Any]]:
        batches = eval_loader(rows[name], lengths[name], collate, data, data.batch_tokens, accelerator)
        found = []
        for row, shares in zip(rows[name], predict(model, batches, choose, accelerator), strict=True):
            best = shares.index(max(shares))
            found.append(
                {"choice": best, "text": row["choices"][best], "scores": [round(share, 6) for share in shares]}
            )
            if labelled:
                found[-1]["reference"] = row["label"]
        return [{"id": row} | choice for row, choice in zip(row_names(splits[name]), found, strict=True)]

    def rates(found: list[dict[str, Any]]) -> dict[str, float]:
        sides = ([row[key] for row in found] for key in ("reference", "choice"))
        return {"accuracy": accuracy_and_f1(*sides)["accuracy"]}

    def save(folder: Path) -> None:
        save_adapted(model, folder)
        tokenizer.save_pretrained(folder)

    if training:
        options = (collate, data, data.batch_tokens, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(rows["train"], lengths["train"], *options),
            loss_fn,
            lambda model: rates(answer(model, "validation")),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric="accuracy",
            higher_is_better=True,
            unit="tokens",
        )
        model = Data2VecTextForMultipleChoice.from_pretrained(out / "best", verbose=False)

    # The end: what the best model chooses in rows that chose nothing
    name, begun = "test" if "test" in rows else "validation", time.perf_counter()
    found = answer(model, name)
    seconds = time.perf_counter() - begun
    return finish(
        out,
        rates(found) if labelled else {},
        found,
        split=name,
        seconds=seconds,
        trained="accuracy" if training else None,
        recipe="multiple_choice",
        task="multiple-choice",
        data=data.path or "Python's documentation",
        accelerator=accelerator,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/multiple_choice/demo.yaml")
