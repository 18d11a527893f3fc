"""Masked language modelling: `Data2VecTextForMaskedLM`, perplexity and accuracy of the masked tokens.

    accelerate launch recipes/masked_lm.py
    accelerate launch recipes/masked_lm.py --config recipes/configs/masked_lm/wikitext103.yaml
    accelerate launch recipes/masked_lm.py --mode evaluate --model runs/masked_lm/best --run.out again
    accelerate launch recipes/masked_lm.py --mode predict --model runs/masked_lm/best --data.path gaps.txt

Without a data option it fine-tunes d2v's small model on the English of Python's documentation, in minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from d2v import losses
from d2v.cli import run
from d2v.config import Recipe, Run
from d2v.data.language_modeling import LanguageData, cut, gap_batch, gap_rows, masker, pieces, text_windows
from d2v.data.load import load
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.text import token_batch, tokenizer_for
from d2v.decode.masked_lm import fill_texts
from d2v.demo.text import docs_text
from d2v.errors import InputError
from d2v.metrics.language_modeling import language_modeling_metrics
from d2v.metrics.statistics import loss_statistics
from d2v.models.text_heads import Data2VecTextForMaskedLM
from d2v.training import About, build, finish, fit, predict, predict_test, start

EVALUATION = 0  # seeds the masks of evaluation, so that runs of all seeds predict the same tokens
SHOWN = 3  # texts printed at the end


@dataclass
class MaskedData(LanguageData):
    """Data with running text; without a path the embedded demo. In `--mode predict` rows are texts with `<mask>`.

    Attributes:
        mask_share: share of the words that are masked.
        whole_words: mask all tokens of a word together; otherwise tokens are masked one by one.
    """

    mask_share: float = 0.15
    whole_words: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mask_share < 1:
            raise InputError(f"data.mask_share should be between 0 and 1, not {self.mask_share}")


@dataclass
class Config(Recipe):
    """Masked language modelling."""

    data: MaskedData = field(default_factory=MaskedData)
    run: Run = field(default_factory=lambda: Run(out="runs/masked_lm"))


def collate(rows: list[dict], *, tokenizer, stream, mask) -> dict[str, Any]:
    """A batch of windows between `<s>` and `</s>`, with masks, and the tokens to predict as labels."""
    inputs, labels = [], []
    for row in rows:
        text = row.get("text", stream)
        ids, starts = (cut(values[1:-1], row) for values in (text.ids, text.starts))
        context, ids = np.split(ids, [row["first"] - row["start"]])  # tokens that the previous window scores
        masked, hidden = mask(ids, starts[len(context) :], row.get("seed", (EVALUATION, row["first"])))
        inputs.append([tokenizer.bos_token_id, *context, *masked, tokenizer.eos_token_id])
        labels.append([losses.IGNORE] * (1 + len(context)) + [*np.where(hidden, ids, losses.IGNORE), losses.IGNORE])
    return token_batch(tokenizer, inputs) | {"labels": pad_labels(labels)}


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a masked language model, evaluate one or fill gaps with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: running text, or texts with gaps
    splits = load(job, docs_text, inputs={"text": data.text_column})
    texts = {name: pieces(job, split) for name, split in splits.items()} if job.labelled else {}
    tokenizer = tokenizer_for(job, lambda: texts["train"])
    mask = masker(tokenizer, data.mask_share, whole_words=data.whole_words)

    # Model: an encoder, and windows over the text
    model = build(job, Data2VecTextForMaskedLM, tokenizer=tokenizer)
    size = min(data.max_length, model.config.max_tokens)
    rows, collates = {}, {}
    for name, each in splits.items():
        if job.labelled:
            rows[name], stream = text_windows(job, each, texts[name], tokenizer, size, special=2)
            collates[name] = partial(collate, tokenizer=tokenizer, stream=stream, mask=mask)
        else:
            rows[name] = gap_rows(job, each, data.text_column, tokenizer, size)
            collates[name] = partial(gap_batch, tokenizer=tokenizer)

    def forward(model, batch):
        masked = batch["labels"] != losses.IGNORE  # (B, T)
        logits = model(batch["input_ids"], batch["attention_mask"], logits_at=masked).logits  # (n, C)
        return logits[:, : len(tokenizer)], batch["labels"][masked], masked  # no probability for unused rows

    # Loss: cross-entropy of the masked tokens
    def loss_fn(model, batch):
        logits, labels, _ = forward(model, batch)
        return losses.cross_entropy(logits, labels)

    # Prediction: the tokens that fill the masks, with their loss
    def predict_fn(model, batch):
        logits, labels, masked = forward(model, batch)
        if job.labelled:
            return fill_texts(batch["input_ids"], masked, logits, tokenizer, labels)
        filled = fill_texts(batch["input_ids"], masked, logits, tokenizer)
        return [{"text": text} | row for text, row in zip(batch["texts"], filled, strict=True)]

    def predict_split(model, split):
        return predict(job, model, eval_loader(job, rows[split], collates[split]), predict_fn)

    # Metrics: perplexity and accuracy of masked tokens
    def compute_metrics(predictions):
        sums, tokens, correct = ([row[key] for _, row in predictions] for key in ("loss", "tokens", "correct"))
        return language_modeling_metrics(sums, tokens, correct=correct)

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    if job.training:
        batches, keep = train_loader(job, rows["train"], collates["train"]), [tokenizer]
        model = fit(job, model, batches, loss_fn, evaluate, keep=keep, metric="loss")

    # Test: masked tokens, on a split that was not used to choose the checkpoint
    split, predictions, seconds = predict_test(rows, predict_split, model)
    metrics = compute_metrics(predictions) if job.labelled else {}
    statistics = loss_statistics(predictions) if job.labelled else None
    if job.is_main:
        print("\n", *(row["filled"] for _, row in predictions[:SHOWN]), sep="\n", end="\n\n")
    about: About = {"metric": "loss", "task": "fill-mask", "demo": "Python's documentation"}
    return finish(job, metrics, rows[split].records(predictions), statistics, split=split, seconds=seconds, **about)


if __name__ == "__main__":
    run(main, Config)
