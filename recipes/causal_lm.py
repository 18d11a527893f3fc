"""Causal language modelling: `Data2VecTextForCausalLM`, perplexity, and nats a character.

    accelerate launch recipes/causal_lm.py
    accelerate launch recipes/causal_lm.py --config recipes/configs/causal_lm/shakespeare.yaml --data.path DIR
    accelerate launch recipes/causal_lm.py --mode evaluate --model runs/causal_lm/best --data.stride 64 --run.out again
    accelerate launch recipes/causal_lm.py --mode predict --model runs/causal_lm/best --data.path prompts.txt

Without a data option it learns the English of Python's documentation, in a few minutes on a CPU.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from d2v import losses
from d2v.config import Lora, Optim, Run, at_least, check_mode, run
from d2v.data.language_modeling import LanguageData, cut, pieces, read_stream, training_windows, windows
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.text import tokenizer_for
from d2v.demo.text import docs_text
from d2v.lora import save_adapted
from d2v.losses import IGNORE
from d2v.metrics.language_modeling import language_modeling_metrics
from d2v.models.text_heads import Data2VecTextForCausalLM
from d2v.training.build import text_model
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish


@dataclass
class CausalData(LanguageData):
    """Data with running text; without a path the embedded demo. In `--mode predict` rows are texts to continue.

    Attributes:
        stride: when all is learnt, score in windows that overlap, each so many tokens after the one before. That takes
            longer, but guesses from at least `max_length - stride` tokens before. By default they do not overlap.
    """

    stride: int | None = None

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "data", self, ("stride",))


@dataclass
class Sampling:
    """How texts are continued, to show after each evaluation what is learnt, and in `--mode predict`.

    Attributes:
        prompts: the beginnings of what is shown; an empty one lets the model begin.
        max_new_tokens: at most so many, and at most half as many as the model has positions.
        temperature: below 1 likelier texts, above 1 stranger ones; 0 takes the likeliest token each time.
        top_k: draw from the k likeliest tokens; 0 for all.
        top_p: draw from the likeliest tokens that have this probability together.
    """

    prompts: list[str] = field(default_factory=lambda: [""])
    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95

    def __post_init__(self):
        at_least(0, "sampling", self, ("temperature", "top_k", "top_p"))
        at_least(1, "sampling", self, ("max_new_tokens",))


@dataclass
class Config:
    """Causal language modelling.

    Attributes:
        mode: train and score, score a model, or continue texts.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecTextConfig` that are to differ, such as `--arch.hidden_size 192`.
        lora: train low-rank adapters instead of all weights.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    lora: Lora = field(default_factory=Lora)
    sampling: Sampling = field(default_factory=Sampling)
    data: CausalData = field(default_factory=CausalData)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=lambda: Run(out="runs/causal_lm"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, sampling, out = config.data, config.sampling, Path(config.run.out)
    training, scoring = config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    splits = load(config, docs_text, {"text": data.text_column}, accelerator)
    texts = {name: list(split[data.text_column]) for name, split in splits.items()}
    if scoring:
        texts = {name: pieces(rows, data.separator, name) for name, rows in texts.items()}

    # Tokenizer
    tokenizer = tokenizer_for(config.model, lambda: texts["train"], data.vocab_size)

    # Model
    decoder = {"is_decoder": True}  # else it would see what it is to guess
    model = text_model(Data2VecTextForCausalLM, config, tokenizer, decoder)
    most = model.config.max_tokens
    size, new = min(data.max_length, most), min(sampling.max_new_tokens, most // 2)

    # Rows: windows of a text, or prompts
    if scoring:
        whole = partial(read_stream, tokenizer=tokenizer, documents=data.separator is None)
        streams = {name: whole(rows) for name, rows in texts.items()}

    def collate(rows: list[dict], ids: np.ndarray) -> dict[str, Any]:
        ids = torch.from_numpy(np.stack([cut(ids, row, more=1) for row in rows])).long()  # (B, T + 1)
        labels = ids[:, 1:].clone()
        labels[labels == tokenizer.bos_token_id] = IGNORE  # where a text begins there is nothing to guess
        for label, row in zip(labels, rows, strict=True):
            label[: row["first"] - row["start"]] = IGNORE  # scored in the window before
        return {"input_ids": ids[:, :-1], "labels": labels, "size": labels.numel()}

    def encode(prompts: list[str]) -> list[dict]:
        room = most - new + 1
        ids = [encoding.ids[:-1] for encoding in tokenizer(prompts)]  # without </s>
        if longer := sum(len(row) > room for row in ids):
            accelerator.print(f"of {longer} of {len(ids)} prompts only the last {room} tokens are read")
        return [{"ids": row[-room:]} for row in ids]

    def pad(rows: list[dict]) -> dict[str, Any]:
        return tokenizer.pad([row["ids"] for row in rows])

    # What is learnt, and how it is judged
    def guess(model, batch):
        there = batch["labels"] != IGNORE  # (B, T)
        logits = model(batch["input_ids"], logits_at=there, use_cache=False).logits  # (n, C)
        return logits, batch["labels"][there], there

    def loss_fn(model, batch):
        logits, labels, _ = guess(model, batch)
        return losses.cross_entropy(logits, labels)

    def score(model, batch) -> list[dict[str, Any]]:
        logits, labels, there = guess(model, batch)
        counts = there.sum(dim=1).tolist()
        parts = zip(logits.split(counts), labels.split(counts), strict=True)
        totals = [(float(losses.cross_entropy(guessed, truth)[0]), truth) for guessed, truth in parts]
        return [
            {"text": tokenizer.decode(truth, skip_special_tokens=False), "tokens": len(truth), "loss": total}
            for total, truth in totals
        ]

    def read(model, name: str, stride: int | None = None) -> list[dict[str, Any]]:
        ids = streams[name].ids
        rows = windows(len(ids) - 1, size, stride)
        lengths = [row["end"] - row["start"] for row in rows]
        batches = eval_loader(rows, lengths, partial(collate, ids=ids), data, data.batch_tokens, accelerator)
        found = predict(model, batches, score, accelerator)
        return [{"id": str(i)} | row for i, row in enumerate(found)]

    def rates(found: list[dict[str, Any]], name: str) -> dict[str, float]:
        sums = ([row[key] for row in found] for key in ("loss", "tokens"))
        return language_modeling_metrics(*sums, characters=streams[name].characters)

    def go_on(model, batch) -> list[str]:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        chance = {"do_sample": sampling.temperature > 0, "temperature": sampling.temperature or 1.0}
        chance |= {"top_k": sampling.top_k, "top_p": sampling.top_p}
        generator = torch.Generator(ids.device).manual_seed(config.run.seed)
        told = model.generate(ids, mask, max_new_tokens=new, generator=generator, **chance)
        return [tokenizer.decode(row[ids.shape[1] :]) for row in told]

    def show(model) -> None:
        if accelerator.is_main_process:
            batch = {key: value.to(model.device) for key, value in pad(encode(sampling.prompts)).items()}
            for prompt, text in zip(sampling.prompts, go_on(model, batch), strict=True):
                tqdm.write(f"\n{prompt}{text}\n")

    def judge(model) -> dict[str, float]:
        metrics = rates(read(model, "validation"), "validation")
        show(model)
        return metrics

    def save(folder: Path) -> None:
        save_adapted(model, folder)
        tokenizer.save_pretrained(folder)

    if training:
        ids = streams["train"].ids
        rows = training_windows(len(ids), size)
        options = (data, data.batch_tokens, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(rows, [size] * len(rows), partial(collate, ids=ids), *options, draws=True),
            loss_fn,
            judge,
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric="loss",
            higher_is_better=False,
            unit="tokens",
        )
        model = Data2VecTextForCausalLM.from_pretrained(out / "best", verbose=False)

    # The end: how well the best model guesses a text that chose nothing, or how it continues prompts
    name, begun = "test" if "test" in splits else "validation", time.perf_counter()
    if scoring:
        found = read(model, name, data.stride)
    else:
        rows = encode(texts[name])
        batches = eval_loader(rows, [len(row["ids"]) + new for row in rows], pad, data, data.batch_tokens, accelerator)
        told = zip(row_names(splits[name]), texts[name], predict(model, batches, go_on, accelerator), strict=True)
        found = [{"id": row, "prompt": prompt, "text": text} for row, prompt, text in told]
    seconds = time.perf_counter() - begun
    if scoring and not training:
        show(model)
    return finish(
        out,
        rates(found, name) if scoring else {},
        found,
        split=name,
        seconds=seconds,
        trained="loss" if training else None,
        recipe="causal_lm",
        task="text-generation",
        data=data.path or "Python's documentation",
        accelerator=accelerator,
        notes={"stride": data.stride} if scoring and data.stride else None,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/causal_lm/demo.yaml")
