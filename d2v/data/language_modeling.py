"""Running text for language models: its tokens one after another, the windows it is cut into, and masks over them.

Shapes: N tokens of a text, T tokens of a window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from d2v.data.rows import CHUNK
from d2v.data.text import TextData
from d2v.errors import InputError
from d2v.processors.text import Tokenizer


@dataclass
class LanguageData(TextData):
    """The data; without a path the embedded demo.

    Attributes:
        text_column: column of the text.
        separator: characters between rows that are lines of one text, such as a line break, or none ("") if they have
            theirs; by default each row is a document of its own.
        max_length: number of tokens of a window; the model's positions bound it too.
    """

    text_column: str = "text"
    separator: str | None = None


@dataclass
class Stream:
    """The tokens of a whole split.

    Attributes:
        ids: (N,) int32; each document, or the whole text, is between `<s>` and `</s>`.
        starts: (N,) bool, True where a word begins: letters, digits or signs, with the space before them.
        characters: of the text, separators counted.
    """

    ids: np.ndarray
    starts: np.ndarray
    characters: int


def pieces(texts: Sequence[str], separator: str | None, name: str) -> list[str]:
    """What is encoded by itself: each row with the separator that follows it; of documents those that are not empty.

    Args:
        texts: the rows of a split.
        separator: as in `LanguageData`.
        name: of the split, for messages.

    Raises:
        InputError: a row is no text, or no row has any.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{name}, row {i}: {text!r:.40} should be text")
    if not any(text.strip() for text in texts):
        raise InputError(f"{name}: no row has any text")
    if separator is None:
        return [text for text in texts if text]
    return [*(text + separator for text in texts[:-1]), texts[-1]]


def read_stream(pieces: Sequence[str], tokenizer: Tokenizer, *, documents: bool) -> Stream:
    """Encode a text piece by piece, so that the memory it takes is that of its tokens.

    Args:
        pieces: from the function `pieces`.
        tokenizer: of the model.
        documents: each piece is a document; else all are one.
    """
    ids, starts = [], []
    for first in range(0, len(pieces), CHUNK):
        for encoding in tokenizer(pieces[first : first + CHUNK]):
            inner = slice(None) if documents else slice(1, -1)
            words = np.array([-1 if word is None else word for word in encoding.word_ids[inner]], dtype=np.int32)
            ids.append(np.array(encoding.ids[inner], dtype=np.int32))
            starts.append(np.diff(words, prepend=-2) != 0)
    if not documents:
        begin, end = ([np.array([token], np.int32)] for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
        one = [np.ones(1, dtype=bool)]
        ids, starts = begin + ids + end, one + starts + one
    return Stream(np.concatenate(ids), np.concatenate(starts), sum(map(len, pieces)))


def windows(length: int, size: int, stride: int | None = None) -> list[dict[str, int]]:
    """Windows over a text that score every item once.

    Args:
        length: items of the text.
        size: most items of a window.
        stride: items that a window scores, at most all; those before them are there to be seen. By default all, so that
            windows do not overlap, but for the last, which is as long as the others.

    Returns:
        `start`, `first` and `end` of each: it holds items `start` to `end` and scores them from `first` on.
    """
    found, first, step = [], 0, min(stride or size, size)
    while first < length:
        end = min(first + (step if first else size), length)
        found.append({"start": max(end - size, 0), "first": first, "end": end})
        first = end
    return found


def training_windows(length: int, size: int) -> list[dict[str, int]]:
    """As many full windows as fit into a text, for `cut` to shift; a text that is shorter is one."""
    return windows(length - length % size or length, size)


def cut(values: np.ndarray, row: dict[str, Any], more: int = 0) -> np.ndarray:
    """The items of a window.

    In training every epoch begins to cut at a place of its own, so that a token is not always seen after the same
    others; what is left at the end of the text goes before its beginning.

    Args:
        values: (N,) of a stream.
        row: a window, in training with its `seed`.
        more: items to add that follow the window.
    """
    shift = 0
    if "seed" in row:
        seed, epoch, _ = row["seed"]
        shift = np.random.default_rng((seed, epoch)).integers(row["end"] - row["start"])
    return values.take(np.arange(row["start"], row["end"] + more) + shift, mode="wrap")


def masker(tokenizer: Tokenizer, share: float, *, whole_words: bool) -> Callable:
    """A function that masks tokens as BERT does (Devlin et al., 2019, section 3.1).

    Of the tokens to predict 80 % become `<mask>`, 10 % any token and 10 % stay. Special tokens are neither predicted
    nor put in.

    Args:
        tokenizer: of the model.
        share: of words or tokens to predict; rounded up or down at random, but at least one.
        whole_words: all tokens of a word together.

    Returns:
        `mask(ids, starts, seed)`: tokens (T,), where words start (T,), and numbers to seed the masks with, to the
        masked tokens (T,) and which are to be predicted, (T,) bool.
    """
    special = [i for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special]
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), special)
    tokens = {"special": special, "ordinary": ordinary, "mask_token": tokenizer.mask_token_id}
    return partial(mask_tokens, share=share, whole_words=whole_words, **tokens)


def mask_tokens(
    ids: np.ndarray,
    starts: np.ndarray,
    seed: tuple[int, ...],
    *,
    share: float,
    whole_words: bool,
    special: list[int],
    ordinary: np.ndarray,
    mask_token: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The masked tokens (T,) of a window, and which of them are to be predicted, (T,) bool; see `masker`."""
    rng = np.random.default_rng(seed)
    units = starts.cumsum() if whole_words else np.arange(len(ids))
    free = ~np.isin(ids, special)
    there = np.unique(units[free])
    count = min(max(int(share * len(there) + rng.random()), 1), len(there))
    chosen = np.isin(units, rng.choice(there, count, replace=False)) & free
    fate = rng.random(len(ids))
    masked = np.where(chosen & (fate < 0.8), mask_token, ids)
    return np.where(chosen & (fate >= 0.9), rng.choice(ordinary, len(ids)), masked), chosen
