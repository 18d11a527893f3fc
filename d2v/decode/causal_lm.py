"""Causal language models: the loss of each window, and texts continued.

Shapes: B windows or texts, T tokens, n tokens that are predicted, C vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from d2v import losses
from d2v.config import at_least
from d2v.data.language_modeling import encode_prompts
from d2v.errors import InputError
from d2v.models.sharded import is_sharded
from d2v.models.text import Data2VecTextConfig
from d2v.models.text_heads import Data2VecTextForCausalLM
from d2v.processors.text import Tokenizer


@dataclass
class Sampling:
    """How texts are continued: samples after each evaluation, and prompts in `--mode predict`.

    Attributes:
        prompts: beginnings of the samples; an empty one lets the model begin.
        max_new_tokens: maximum number of new tokens, at most half the model's number of positions.
        temperature: divisor of the logits: below 1 for likelier texts, above 1 for more varied ones; 0 takes the
            likeliest token each time instead of sampling.
        top_k: number of likeliest tokens to sample from; 0 for all.
        top_p: total probability of the likeliest tokens to sample from; 0 for the single likeliest.
        repetition_penalty: divisor of the logits of tokens already in the text, such as 1.2; 1 changes nothing.
    """

    prompts: list[str] = field(default_factory=lambda: [""])
    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    repetition_penalty: float = 1.0

    def __post_init__(self):
        at_least(0, "sampling", self, ("temperature", "top_k", "top_p"))
        at_least(1, "sampling", self, ("max_new_tokens",))
        if self.top_p > 1:
            raise InputError(f"sampling.top_p should be at most 1, not {self.top_p:g}")
        if self.repetition_penalty <= 0:
            raise InputError(f"sampling.repetition_penalty should be above 0, not {self.repetition_penalty:g}")

    def bounds(self, config: Data2VecTextConfig) -> tuple[int, int]:
        """Maximum numbers of prompt tokens and of new tokens: together at most the model's positions."""
        new = min(self.max_new_tokens, config.max_tokens // 2)
        return config.max_tokens - new + 1, new


def window_losses(logits: Tensor, labels: Tensor, counts: Sequence[int], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """For each window the scored `text`, its number of `tokens`, and their summed `loss`.

    Args:
        logits: (n, C) of all windows.
        labels: (n,).
        counts: (B,) tokens of each window.
        tokenizer: of the model.
    """
    if not counts:
        return []
    parts = zip(logits.split(counts), labels.split(counts), strict=True)
    sums = torch.stack([losses.cross_entropy(logits, labels)[0] for logits, labels in parts]).tolist()  # at once
    texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in labels.cpu().split(counts)]
    return [
        {"text": text, "tokens": count, "loss": loss} for text, count, loss in zip(texts, counts, sums, strict=True)
    ]


def continue_texts(
    model: Data2VecTextForCausalLM, batch: dict[str, Tensor], tokenizer: Tokenizer, sampling: Sampling, seed: int
) -> list[str]:
    """The continuation of each text.

    Args:
        model: in evaluation mode.
        batch: `input_ids` (B, T) and `attention_mask` (B, T) of prompts, from `encode_prompts`, and perhaps their
            numbers, `rows` (B,): a continuation depends on its number and the seed, not on the rest of the batch.
        tokenizer: of the model.
        sampling: how tokens are chosen.
        seed: of the samples.
    """
    ids, (_, new) = batch["input_ids"], sampling.bounds(model.config)
    options = {"do_sample": sampling.temperature > 0, "temperature": sampling.temperature or 1.0}
    options |= {"top_k": sampling.top_k, "top_p": sampling.top_p, "vocab_size": len(tokenizer)}
    options["repetition_penalty"] = sampling.repetition_penalty
    rows = batch.get("rows", range(len(ids)))
    own = [torch.Generator().manual_seed(seed * 1_000_003 + int(row)) for row in rows]
    texts = model.generate(ids, batch["attention_mask"], max_new_tokens=new, generator=own, **options)
    return [tokenizer.decode(row[ids.shape[1] :]) for row in texts]


def show_samples(model: Data2VecTextForCausalLM, tokenizer: Tokenizer, sampling: Sampling, seed: int) -> None:
    """Write `sampling.prompts` and their continuations to the terminal, above a progress bar."""
    if is_sharded(model):  # no process can compute by itself
        tqdm.write("no samples while the model is sharded; --mode evaluate shows some")
        return
    room, _ = sampling.bounds(model.config)
    batch = tokenizer.pad(encode_prompts(tokenizer, sampling.prompts, room)[0])
    batch = {name: values.to(model.device) for name, values in batch.items()}
    texts = continue_texts(model, batch, tokenizer, sampling, seed)
    for prompt, text in zip(sampling.prompts, texts, strict=True):
        tqdm.write(f"\n{prompt}{text}\n")
