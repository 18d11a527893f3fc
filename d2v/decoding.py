"""From CTC logits to text.

Shapes: B batch, T frames, C vocabulary.
"""

from itertools import groupby
from typing import Any

from torch import Tensor

from d2v.processors.audio import CTCTokenizer


def greedy(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """The best class of every real frame, row by row.

    Args:
        logits: (B, T, C).
        lengths: (B,) real frames; what lies behind them is not decoded.
    """
    best = logits.argmax(dim=-1)  # (B, T)
    return [row[:length].tolist() for row, length in zip(best, lengths.tolist(), strict=True)]


def words_with_times(frames: list[int], tokenizer: CTCTokenizer, seconds_per_frame: float) -> list[dict[str, Any]]:
    """Words with `start` and `end` in seconds, from the frames of their first and last characters.

    Args:
        frames: best class of every frame.
        tokenizer: whose ids they are.
        seconds_per_frame: 0.02 in the released models.
    """
    words, characters, begin, end, position = [], [], 0, 0, 0
    for token, group in groupby([*frames, tokenizer.word_delimiter_token_id]):
        length = len(list(group))
        if token == tokenizer.word_delimiter_token_id:
            if word := tokenizer.decode(characters, group=False):
                times = {"start": round(begin * seconds_per_frame, 3), "end": round(end * seconds_per_frame, 3)}
                words.append({"word": word} | times)
            characters = []
        elif token != tokenizer.pad_token_id:
            begin = begin if characters else position
            characters.append(token)
            end = position + length
        position += length
    return words
