"""Causal language modelling: `Data2VecTextForCausalLM`, perplexity, and nats per character.

    accelerate launch recipes/causal_lm.py
    accelerate launch recipes/causal_lm.py --config recipes/configs/causal_lm/shakespeare.yaml --data.path DIR
    accelerate launch recipes/causal_lm.py --mode evaluate --model runs/causal_lm/best --data.stride 64 --run.out again
    accelerate launch recipes/causal_lm.py --mode predict --model runs/causal_lm/best --data.path prompts.txt

Without a data option it learns the English of Python's documentation, in a few minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from d2v import losses
from d2v.cli import run
from d2v.config import Recipe, Run, at_least
from d2v.data.language_modeling import LanguageData, cut, pieces, prompt_batch, prompt_rows, stream_rows, text_windows
from d2v.data.load import load
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.text import tokenizer_for
from d2v.decode.causal_lm import Sampling, continue_texts, show_samples, window_losses
from d2v.demo.text import docs_text
from d2v.metrics.language_modeling import language_modeling_metrics
from d2v.metrics.statistics import loss_statistics
from d2v.models.text_heads import Data2VecTextForCausalLM
from d2v.training import About, build, finish, fit, predict, start, test_split, timed


@dataclass
class CausalData(LanguageData):
    """Data with running text; without a path the embedded demo. In `--mode predict` rows are texts to continue.

    Attributes:
        stride: number of tokens from one window's start to the next one's in the test: fewer take longer, but every
            prediction has at least `max_length - stride` tokens of context; by default windows do not overlap.
    """

    stride: int | None = None

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "data", self, ("stride",))


@dataclass
class Config(Recipe):
    """Causal language modelling.

    Attributes:
        sampling: how texts are continued.
    """

    sampling: Sampling = field(default_factory=Sampling)
    data: CausalData = field(default_factory=CausalData)
    run: Run = field(default_factory=lambda: Run(out="runs/causal_lm"))


def collate(rows: list[dict], *, tokenizer, stream) -> dict[str, Any]:
    """A batch of windows; each token's label is the next token. Windows of a stream may be shorter than others."""
    ids = pad_labels([cut(row.get("text", stream).ids, row, more=1) for row in rows])  # (B, T + 1)
    labels, ids = ids[:, 1:].clone(), ids.where(ids != losses.IGNORE, tokenizer.pad_token_id)
    labels[labels == tokenizer.bos_token_id] = losses.IGNORE  # the first token of a text is not predicted
    for label, row in zip(labels, rows, strict=True):
        label[: row["first"] - row["start"]] = losses.IGNORE  # scored in the window before
    lengths = [labels.shape[1]] * len(rows)
    return {"input_ids": ids[:, :-1], "labels": labels, "lengths": lengths, "size": labels.numel()}


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a language model, evaluate one or continue texts with one; returns the content of `results.json`."""
    job, data, sampling = start(config), config.data, config.sampling

    # Data and processors: running text, or prompts to continue
    splits = load(job, docs_text, inputs={"text": data.text_column})
    texts = {name: pieces(job, split) for name, split in splits.items()} if job.labelled else {}
    tokenizer = tokenizer_for(job, lambda: texts["train"])

    # Model: a decoder, and windows over the text
    decoder = {"is_decoder": True}  # in evaluation too, or it would attend to the tokens that it predicts
    model = build(job, Data2VecTextForCausalLM, tokenizer=tokenizer, always=decoder)
    size = min(data.max_length, model.config.max_tokens)
    rows, collates, streams = {}, {}, {}
    for name, each in splits.items():
        if job.labelled:
            rows[name], streams[name] = text_windows(job, each, texts[name], tokenizer, size, ahead=1)
            collates[name] = partial(collate, tokenizer=tokenizer, stream=streams[name])
        else:
            rows[name] = prompt_rows(job, each, data.text_column, tokenizer, *sampling.bounds(model.config))
            collates[name] = partial(prompt_batch, tokenizer=tokenizer)

    def forward(model, batch):
        scored = batch["labels"] != losses.IGNORE  # (B, T)
        logits = model(batch["input_ids"], logits_at=scored, use_cache=False).logits  # (n, C)
        return logits[:, : len(tokenizer)], batch["labels"][scored], scored  # no probability for unused rows

    # Loss: cross-entropy of every next token
    def loss_fn(model, batch):
        logits, labels, _ = forward(model, batch)
        return losses.cross_entropy(logits, labels)

    # Prediction: losses of windows, or continuations of prompts
    def predict_fn(model, batch):
        if not job.labelled:
            texts = continue_texts(model, batch, tokenizer, sampling, config.run.seed)
            return [{"prompt": prompt, "text": text} for prompt, text in zip(batch["prompts"], texts, strict=True)]
        logits, labels, scored = forward(model, batch)
        return window_losses(logits, labels, scored.sum(dim=1).tolist(), tokenizer)

    def predict_split(model, split):
        return predict(job, model, eval_loader(job, rows[split], collates[split]), predict_fn)

    # Metrics: perplexity, and nats per character
    def compute_metrics(predictions, split="validation"):
        sums = ([row[key] for _, row in predictions] for key in ("loss", "tokens"))
        return language_modeling_metrics(*sums, characters=streams[split].characters)

    def evaluate(model):
        metrics = compute_metrics(predict_split(model, "validation"))
        if job.is_main:
            show_samples(model, tokenizer, sampling, config.run.seed)
        return metrics

    if job.training:
        batches, keep = train_loader(job, rows["train"], collates["train"]), [tokenizer]
        model = fit(job, model, batches, loss_fn, evaluate, keep=keep, metric="loss")

    # Test: the loss of the text, or continuations, on a split that was not used to choose the checkpoint
    split = test_split(rows)
    if job.labelled and data.stride:
        rows[split] = stream_rows(splits[split], len(streams[split].ids), size, stride=data.stride, ahead=1)
    predictions, seconds = timed(predict_split, model, split)
    metrics = compute_metrics(predictions, split) if job.labelled else {}
    statistics = loss_statistics(predictions, characters=streams[split].characters) if job.labelled else None
    if config.mode == "evaluate" and job.is_main:
        show_samples(model, tokenizer, sampling, config.run.seed)
    notes = {"stride": data.stride} if job.labelled and data.stride else None
    about: About = {"metric": "loss", "task": "text-generation", "demo": "Python's documentation"}
    records = rows[split].records(predictions)
    return finish(job, metrics, records, statistics, split=split, seconds=seconds, notes=notes, **about)


if __name__ == "__main__":
    run(main, Config)
