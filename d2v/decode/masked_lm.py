"""Masked language models: texts with their gaps filled, and the loss.

Shapes: B texts, T tokens, n gaps, C vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2v import losses
from d2v.processors.text import Tokenizer

LISTED = 5
"""Tokens that are listed for each gap."""


def fill_texts(
    ids: Tensor, gaps: Tensor, logits: Tensor, tokenizer: Tokenizer, labels: Tensor | None = None
) -> list[dict[str, Any]]:
    """A prediction for each text, see `fill_text`.

    Args:
        ids: (B, T) the texts, padded.
        gaps: (B, T) bool, the tokens to predict.
        logits: (n, C) of all texts' gaps.
        tokenizer: of the model.
        labels: (n,) the right tokens; None if unknown.
    """
    counts = gaps.sum(dim=1).tolist()
    right = [None] * len(ids) if labels is None else labels.split(counts)
    return [fill_text(*row, tokenizer) for row in zip(ids, gaps, logits.split(counts), right, strict=True)]


def fill_text(ids: Tensor, gaps: Tensor, logits: Tensor, labels: Tensor | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """The text with the likeliest tokens, `filled`, and for each gap `guesses`, likeliest first, and their `scores`.

    With labels the gaps are filled as `[label|prediction]`, and the number of `tokens`, their summed `loss` and the
    number of `correct` ones are added.

    Args:
        ids, gaps: (T,).
        logits: (n, C).
        labels: (n,).
        tokenizer: of the model.
    """
    # A model may have more rows than its tokenizer has tokens: these are never guessed.
    scores, tokens = logits[:, : len(tokenizer)].float().softmax(-1).topk(LISTED)  # (n, LISTED)
    words = [[tokenizer.decode([token]) for token in row] for row in tokens.tolist()]
    listed = {"guesses": words, "scores": [[round(score, 6) for score in row] for row in scores.tolist()]}
    first = [row[0] for row in words]
    if labels is None:
        return {"filled": write_gaps(ids, gaps, first, tokenizer)} | listed
    pairs = zip((tokenizer.decode([token]) for token in labels.tolist()), first, strict=True)
    filled = write_gaps(ids, gaps, [f"[{label}|{word}]" for label, word in pairs], tokenizer)
    loss, count = losses.cross_entropy(logits, labels)
    sums = {"tokens": int(count), "loss": float(loss), "correct": int((tokens[:, 0].cpu() == labels.cpu()).sum())}
    return {"filled": filled} | listed | sums


def write_gaps(ids: Tensor, gaps: Tensor, words: Sequence[str], tokenizer: Tokenizer) -> str:
    """The text (T,) with these words in its gaps (T,)."""
    text, last, ids = "", 0, ids.cpu()  # at once
    for place, word in zip(torch.nonzero(gaps).flatten().tolist(), words, strict=True):
        text, last = text + tokenizer.decode(ids[last:place]) + word, place + 1
    return text + tokenizer.decode(ids[last:])
