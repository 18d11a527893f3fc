"""Multiple choice: `Data2VecTextForMultipleChoice`, accuracy; any number of choices, which may differ from row to row.

    accelerate launch recipes/multiple_choice.py
    accelerate launch recipes/multiple_choice.py --config recipes/configs/multiple_choice/swag.yaml
    accelerate launch recipes/multiple_choice.py --model facebook/data2vec-text-base --data.path exam.jsonl \
        --data.prompt_column question --data.start_column null --data.choice_columns '[answers]' --lora.rank 8
    accelerate launch recipes/multiple_choice.py --mode evaluate --model runs/multiple_choice/best --run.out again
    accelerate launch recipes/multiple_choice.py --mode predict --model runs/multiple_choice/best --data.path new.csv

Without a data option it learns to choose how one of Python's docstrings continues, in a few minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from d2v import losses
from d2v.cli import run
from d2v.config import Recipe, Run
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.multiple_choice import ChoiceData, choice_rows, every_text, read_choices, read_exams
from d2v.data.text import token_batch, tokenizer_for
from d2v.demo.text import docs_next
from d2v.metrics.classification import accuracy_and_f1
from d2v.metrics.statistics import choice_statistics
from d2v.models.text_heads import Data2VecTextForMultipleChoice
from d2v.training import About, build, finish, fit, predict, predict_test, start


@dataclass
class Config(Recipe):
    """Multiple choice."""

    data: ChoiceData = field(default_factory=ChoiceData)
    run: Run = field(default_factory=lambda: Run(out="runs/multiple_choice"))


def collate(rows: list[dict], *, tokenizer) -> dict[str, Any]:
    """A batch of texts, a row's choices one after another, each with the prompt before it."""
    batch = token_batch(tokenizer, [ids for row in rows for ids in row["ids"]])
    batch["choices"] = [row["choices"] for row in rows]
    if "reference" in rows[0]:
        batch["labels"] = torch.tensor([row["reference"] for row in rows])
    return batch


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a model that chooses, evaluate one or choose with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: prompts, their choices and the right one's number
    inputs = {"prompt": data.prompt_column, "start": data.start_column}
    splits = load(job, docs_next, inputs=inputs, targets={"label": data.label_column}, reader=read_exams)
    splits, texts, labels = read_choices(job, splits)
    tokenizer = tokenizer_for(job, lambda: every_text(texts["train"]))

    # Model: one score per choice
    model = build(job, Data2VecTextForMultipleChoice, tokenizer=tokenizer)
    longest = min(data.max_length, model.config.max_tokens)
    rows = {
        name: choice_rows(job, split, texts[name], labels.get(name), tokenizer, longest)
        for name, split in splits.items()
    }
    collate_rows = partial(collate, tokenizer=tokenizer)

    def forward(model, batch):
        # Each choice is computed as if it were the only one, so that rows may have different numbers of choices.
        texts = [batch[name].unsqueeze(1) for name in ("input_ids", "attention_mask")]  # (B * choices, 1, T)
        logits = model(*texts).logits.float().squeeze(1).split(list(map(len, batch["choices"])))
        return pad_sequence(logits, batch_first=True, padding_value=-torch.inf)  # (B, most choices)

    # Loss: cross-entropy over the choices of a row
    def loss_fn(model, batch):
        return losses.choice(forward(model, batch), batch["labels"], label_smoothing=data.label_smoothing)

    # Prediction: the choice with the highest score
    def predict_fn(model, batch):
        predictions = []
        for scores, choices in zip(forward(model, batch).softmax(-1).tolist(), batch["choices"], strict=True):
            scores = scores[: len(choices)]
            choice = scores.index(max(scores))
            rounded = [round(score, 6) for score in scores]
            predictions.append({"choice": choice, "text": choices[choice], "scores": rounded})
        return predictions

    def predict_split(model, split):
        return predict(job, model, eval_loader(job, rows[split], collate_rows), predict_fn)

    # Metrics: accuracy
    def compute_metrics(predictions, split="validation"):
        references, predicted = rows[split].compare(predictions)
        return {"accuracy": accuracy_and_f1(references, [row["choice"] for row in predicted])["accuracy"]}

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    if job.training:
        batches = train_loader(job, rows["train"], collate_rows)
        model = fit(job, model, batches, loss_fn, evaluate, keep=[tokenizer], metric="accuracy")

    # Test: choices, on a split that was not used to choose the checkpoint
    split, predictions, seconds = predict_test(rows, predict_split, model)
    metrics = compute_metrics(predictions, split) if job.labelled else {}
    statistics = choice_statistics(*rows[split].compare(predictions)) if job.labelled else None
    about: About = {"metric": "accuracy", "task": "multiple-choice", "demo": "Python's documentation"}
    return finish(job, metrics, rows[split].records(predictions), statistics, split=split, seconds=seconds, **about)


if __name__ == "__main__":
    run(main, Config)
