"""From CTC logits to text; `d2v.decode.ctc_lm` does so with a language model.

Shapes: B batch, T frames, C vocabulary.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from d2v.processors.ctc import CTCTokenizer

NEVER = -1e4  # a log probability far below all others, but finite: hypotheses with it still differ otherwise


def greedy(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """The best class of every real frame, row by row.

    Args:
        logits: (B, T, C).
        lengths: (B,) real frames; frames after them are not decoded.
    """
    best = logits.argmax(dim=-1).cpu()  # (B, T), at once
    return [row[:length].tolist() for row, length in zip(best, lengths.tolist(), strict=True)]


def words_with_times(frames: list[int], tokenizer: CTCTokenizer, seconds_per_frame: float) -> list[dict[str, Any]]:
    """Words with `start` and `end` in seconds, from the frames of their first and last characters.

    Args:
        frames: best class of every frame.
        tokenizer: of the ids.
        seconds_per_frame: 0.02 in the released models.
    """
    words: list[dict[str, Any]] = []
    characters: list[int] = []
    begin = end = position = 0
    for token, group in groupby([*frames, tokenizer.word_delimiter_token_id]):
        length = len(list(group))
        if token == tokenizer.word_delimiter_token_id:
            if word := tokenizer.normalize(tokenizer.decode(characters, group=False)):
                times = {"start": round(begin * seconds_per_frame, 3), "end": round(end * seconds_per_frame, 3)}
                words.append({"word": word} | times)
            characters = []
        elif token != tokenizer.pad_token_id:
            begin = begin if characters else position
            characters.append(token)
            end = position + length
        position += length
    return words


def fit_vocabulary(logits: Tensor, size: int) -> Tensor:
    """Logits (B, T, C) for the tokens of a vocabulary, (B, T, size).

    A row of the head without a token is never output, and neither is a token without a row.
    """
    return F.pad(logits[..., :size], (0, max(size - logits.shape[-1], 0)), value=NEVER)


def transcribe(
    logits: Tensor,
    frames: Tensor,
    tokenizer: CTCTokenizer,
    hop: float,
    search: Callable[[Tensor, Tensor], list[str]] | None = None,
) -> list[dict[str, Any]]:
    """The result of greedy search for each row: its `text`, and its `words` with their times.

    Args:
        logits: (B, T, C).
        frames: (B,) real frames.
        tokenizer: of the model.
        hop: seconds from one frame to the next.
        search: beam search with a language model, whose text is `text_lm`.
    """
    logits = fit_vocabulary(logits, len(tokenizer))
    rows = greedy(logits, frames)
    texts = [tokenizer.normalize(tokenizer.decode(row)) for row in rows]  # as references are
    words = [words_with_times(row, tokenizer, hop) for row in rows]
    found: list[dict[str, Any]] = [{"text": text, "words": each} for text, each in zip(texts, words, strict=True)]
    if search is None:
        return found
    return [row | {"text_lm": text} for row, text in zip(found, search(logits, frames), strict=True)]
