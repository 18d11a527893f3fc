"""Masked language modelling: `Data2VecTextForMaskedLM`, perplexity and accuracy of the masked tokens.

    accelerate launch recipes/masked_lm.py
    accelerate launch recipes/masked_lm.py --config recipes/configs/masked_lm/wikitext103.yaml
    accelerate launch recipes/masked_lm.py --mode evaluate --model runs/masked_lm/best --run.out again
    accelerate launch recipes/masked_lm.py --mode predict --model runs/masked_lm/best --data.path gaps.txt

Without a data option it learns the English of Python's documentation, in a few minutes on a CPU.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from d2v import losses
from d2v.config import Lora, Optim, Run, check_mode, run
from d2v.data.language_modeling import LanguageData, cut, masker, pieces, read_stream, training_windows, windows
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.text import encode_texts, tokenizer_for
from d2v.demo.text import docs_text
from d2v.errors import InputError
from d2v.lora import save_adapted
from d2v.losses import IGNORE
from d2v.metrics.language_modeling import language_modeling_metrics
from d2v.models.text_heads import Data2VecTextForMaskedLM
from d2v.training.build import text_model
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish

EVALUATION = 0  # seeds the masks of evaluation, so that all runs, whatever their seed, guess the same tokens
GUESSES = 5  # that are written down for each gap
SHOWN = 3  # windows at the end, with [truth|guess] in the gaps


@dataclass
class MaskedData(LanguageData):
    """Data with running text; without a path the embedded demo. In `--mode predict` rows are texts with `<mask>`.

    Attributes:
        mask_share: share of the words that are masked.
        whole_words: mask all tokens of a word together; else tokens by themselves.
    """

    mask_share: float = 0.15
    whole_words: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mask_share < 1:
            raise InputError(f"data.mask_share should be between 0 and 1, not {self.mask_share}")


@dataclass
class Config:
    """Masked language modelling.

    Attributes:
        mode: train and score, score a model, or fill gaps.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecTextConfig` that are to differ, such as `--arch.hidden_size 192`.
        lora: train low-rank adapters instead of all weights.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    lora: Lora = field(default_factory=Lora)
    data: MaskedData = field(default_factory=MaskedData)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=lambda: Run(out="runs/masked_lm"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, scoring = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    splits = load(config, docs_text, {"text": data.text_column}, accelerator)
    texts = {name: list(split[data.text_column]) for name, split in splits.items()}
    if scoring:
        texts = {name: pieces(rows, data.separator, name) for name, rows in texts.items()}

    # Tokenizer
    tokenizer = tokenizer_for(config.model, lambda: texts["train"], data.vocab_size)
    begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]

    # Model
    model = text_model(Data2VecTextForMaskedLM, config, tokenizer, {})
    size = min(data.max_length, model.config.max_tokens) - 2  # beside <s> and </s>, which every window has

    # Rows: windows of a text, or texts with gaps
    if scoring:
        whole = partial(read_stream, tokenizer=tokenizer, documents=data.separator is None)
        streams = {name: whole(rows) for name, rows in texts.items()}
    mask = masker(tokenizer, data.mask_share, whole_words=data.whole_words)

    def hide(rows: list[dict], name: str) -> dict[str, Any]:
        inputs, labels = [], []
        for row in rows:
            ids, starts = (cut(values[1:-1], row) for values in (streams[name].ids, streams[name].starts))
            seen, new = np.split(ids, [row["first"] - row["start"]])  # what the window before has in common with it
            masked, hidden = mask(new, starts[len(seen) :], row.get("draw", (EVALUATION, row["first"])))
            inputs.append([*begin, *seen, *masked, *end])
            labels.append([IGNORE] * (1 + len(seen)) + [*np.where(hidden, new, IGNORE), IGNORE])
        return tokenizer.pad(inputs) | {"labels": pad_labels(labels), "size": sum(map(len, inputs))}

    def find_gaps(rows: list[dict]) -> dict[str, Any]:
        batch = tokenizer.pad([row["ids"] for row in rows])
        gaps = batch["input_ids"] == tokenizer.mask_token_id
        return batch | {"labels": batch["input_ids"].where(gaps, IGNORE)}

    # What is learnt, and how it is judged
    def guess(model, batch):
        there = batch["labels"] != IGNORE  # (B, T)
        logits = model(batch["input_ids"], batch["attention_mask"], logits_at=there).logits  # (n, C)
        return logits, batch["labels"][there], there

    def loss_fn(model, batch):
        logits, labels, _ = guess(model, batch)
        return losses.cross_entropy(logits, labels)

    def write(ids: torch.Tensor, gaps: torch.Tensor, words: list[str]) -> str:
        text, last = "", 0
        for place, word in zip(gaps.nonzero().flatten().tolist(), words, strict=True):
            text, last = text + tokenizer.decode(ids[last:place]) + word, place + 1
        return text + tokenizer.decode(ids[last:])

    def describe(ids: torch.Tensor, gaps: torch.Tensor, logits: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
        scores, best = logits.float().softmax(-1).topk(GUESSES)  # (n, GUESSES)
        guesses = [[tokenizer.decode([token]) for token in tokens] for tokens in best.tolist()]
        found = {"guesses": guesses, "scores": [[round(score, 6) for score in row] for row in scores.tolist()]}
        first = [row[0] for row in guesses]
        if not scoring:
            return {"filled": write(ids, gaps, first)} | found
        pairs = zip((tokenizer.decode([token]) for token in truth.tolist()), first, strict=True)
        total, count = losses.cross_entropy(logits, truth)
        sums = {"tokens": int(count), "loss": float(total), "correct": int((best[:, 0] == truth).sum())}
        return {"filled": write(ids, gaps, [f"[{right}|{guessed}]" for right, guessed in pairs])} | found | sums

    def fill(model, batch) -> list[dict[str, Any]]:
        logits, labels, there = guess(model, batch)
        counts = there.sum(dim=1).tolist()
        parts = (batch["input_ids"], there, logits.split(counts), labels.split(counts))
        return [describe(*row) for row in zip(*parts, strict=True)]

    def read(model, name: str) -> list[dict[str, Any]]:
        rows = windows(len(streams[name].ids) - 2, size)
        lengths = [row["end"] - row["start"] + 2 for row in rows]
        batches = eval_loader(rows, lengths, partial(hide, name=name), data, data.batch_tokens, accelerator)
        return [{"id": str(i)} | row for i, row in enumerate(predict(model, batches, fill, accelerator))]

    def fill_gaps(model, name: str) -> list[dict[str, Any]]:
        rows = [{"ids": ids} for ids in encode_texts(tokenizer, splits[name], [data.text_column], name, size + 2)]
        for i, row in enumerate(rows):
            if tokenizer.mask_token_id not in row["ids"]:
                raise InputError(f"{name}, row {i}: has no {tokenizer.special_tokens['mask_token']} to fill")
        batches = eval_loader(rows, [len(row["ids"]) for row in rows], find_gaps, data, data.batch_tokens, accelerator)
        found = zip(row_names(splits[name]), texts[name], predict(model, batches, fill, accelerator), strict=True)
        return [{"id": row, "text": text} | filled for row, text, filled in found]

    def rates(found: list[dict[str, Any]]) -> dict[str, float]:
        sums, tokens, correct = ([row[key] for row in found] for key in ("loss", "tokens", "correct"))
        return language_modeling_metrics(sums, tokens, correct=correct)

    def save(folder: Path) -> None:
        save_adapted(model, folder)
        tokenizer.save_pretrained(folder)

    if training:
        rows = training_windows(len(streams["train"].ids) - 2, size)
        options = (data, data.batch_tokens, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(rows, [size + 2] * len(rows), partial(hide, name="train"), *options, draws=True),
            loss_fn,
            lambda model: rates(read(model, "validation")),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric="loss",
            higher_is_better=False,
            unit="tokens",
        )
        model = Data2VecTextForMaskedLM.from_pretrained(out / "best", verbose=False)

    # The end: what the best model puts into the gaps of a text that chose nothing
    name, begun = "test" if "test" in splits else "validation", time.perf_counter()
    found = read(model, name) if scoring else fill_gaps(model, name)
    seconds = time.perf_counter() - begun
    accelerator.print("\n", *(row["filled"] for row in found[:SHOWN]), sep="\n", end="\n\n")
    return finish(
        out,
        rates(found) if scoring else {},
        found,
        split=name,
        seconds=seconds,
        trained="loss" if training else None,
        recipe="masked_lm",
        task="fill-mask",
        data=data.path or "Python's documentation",
        accelerator=accelerator,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/masked_lm/demo.yaml")
