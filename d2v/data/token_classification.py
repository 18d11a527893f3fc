"""Sentences of labelled words as tokens, and CoNLL's columns.

Shapes: T tokens of a window, special ones counted.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d2v.data.labels import label_problem
from d2v.data.text import ROWS
from d2v.errors import InputError
from d2v.losses import IGNORE
from d2v.processors.text import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset


def check_words(splits: dict[str, "Dataset"], column: str) -> None:
    """Raise InputError for the first row that is not a list of words."""
    for name, split in splits.items():
        for i, words in enumerate(split[column]):
            if not isinstance(words, list) or not words:
                raise InputError(f"{name}, row {i}: {column} is {words!r:.40}; should be a list of words")
            for j, word in enumerate(words):
                if not isinstance(word, str) or not word.strip():
                    raise InputError(f"{name}, row {i}: {column} has {word!r} as word {j}; should be text")


def check_tags(splits: dict[str, "Dataset"], words_column: str, column: str, known: dict[str, int]) -> None:
    """Raise InputError for the first row that has not one of the model's labels for each word."""
    for name, split in splits.items():
        for i, (words, labels) in enumerate(zip(split[words_column], split[column], strict=True)):
            problem = label_problem(labels, known, column, several=True)
            if problem is None and len(labels) != len(words):
                problem = f"{len(words)} words in {words_column}, {len(labels)} labels in {column}; should be as many"
            if problem:
                raise InputError(f"{name}, row {i}: {problem}")


def encode_words(
    tokenizer: Tokenizer, sentences: Sequence[Sequence[str]], max_length: int, stride: int
) -> list[dict[str, Any]]:
    """Sentences as tokens, one too long in windows, so that every word counts in exactly one.

    Args:
        tokenizer: of the model, with `add_prefix_space`.
        sentences: the words of each.
        max_length: most tokens of a window.
        stride: most tokens that a window shares with the one before it.

    Returns:
        For each window `row`, the number of its sentence, `ids` (T,) int32, and `words` (T,) int32: the number of the
        word that a token belongs to, or -1 if it belongs to none that counts here.
    """
    if (room := max_length - 2) < 1:
        raise InputError(f"data.max_length is {max_length}; should be at least 3: a token and the two around a text")
    windows = []
    for done in range(0, len(sentences), ROWS):
        encodings = tokenizer(sentences[done : done + ROWS], is_split_into_words=True)
        for row, encoding in enumerate(encodings, done):
            words = np.array(encoding.word_ids[1:-1], np.int32)
            starts = [*np.flatnonzero(np.diff(words, prepend=-1)).tolist(), len(words)]
            for begin, end, first, last in word_windows(np.diff(starts).tolist(), room, stride):
                part = slice(starts[begin], min(starts[end], starts[begin] + room))
                ids = [encoding.ids[0], *encoding.ids[1:-1][part], encoding.ids[-1]]
                counts = (words[part] >= first) & (words[part] < last)
                own = np.pad(np.where(counts, words[part], -1), 1, constant_values=-1)
                windows.append({"row": row, "ids": np.array(ids, np.int32), "words": own})
    return windows


def word_windows(pieces: Sequence[int], room: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows over a sentence, of whole words.

    Args:
        pieces: tokens of each word; of more than `room` the first are taken.
        room: most tokens of a window.
        stride: most tokens that a window shares with the one before it.

    Yields:
        The words that a window has, from `begin` to before `end`, and those that count in it, from `first` to before
        `last`: each word once, where it is farther from the window's edge.
    """
    ends = [0, *accumulate(min(count, room) for count in pieces)]
    begin = first = 0
    while (end := bisect_right(ends, ends[begin] + room) - 1) < len(pieces):
        following = bisect_left(ends, max(ends[end] - stride, ends[end + 1] - room))  # the next word has to fit
        middle = (following + end) // 2
        yield begin, end, first, middle
        begin, first = following, middle
    yield begin, end, first, end


def firsts(words: np.ndarray) -> np.ndarray:
    """(T,) bool: whether a token is the first of a word that counts, for `words` of `encode_words`."""
    return (np.diff(words, prepend=-1) != 0) & (words >= 0)


def piece_labels(words: np.ndarray, labels: np.ndarray, later: np.ndarray | None) -> np.ndarray:
    """The labels of a window's tokens, (T,) int64.

    Args:
        words: (T,) from `encode_words`.
        labels: numbers of the labels of all the sentence's words.
        later: class -> class of a word's pieces after the first, see `inside`; None gives these no label.
    """
    own = labels[words]
    others = IGNORE if later is None else np.where(words >= 0, later[own], IGNORE)
    return np.where(firsts(words), own, others)


def inside(known: dict[str, int]) -> np.ndarray:
    """For each class, that of what goes on in it: I- for B-, itself for others."""
    return np.array([known.get("I-" + name[2:], i) if name.startswith("B-") else i for name, i in known.items()])


def write_conll(path: Path, sentences: Sequence[Sequence[str]], *columns: Sequence[Sequence[str]]) -> None:
    """Write a word a line, its labels behind it, and a blank line after each sentence, as conlleval reads it.

    Args:
        path: file to write.
        sentences: words; white space within one becomes an underscore.
        columns: labels of all words; conlleval compares the last two.
    """
    with path.open("w", encoding="utf-8") as file:
        for words, *labels in zip(sentences, *columns, strict=True):
            file.writelines(
                f"{' '.join(('_'.join(word.split()), *rest))}\n" for word, *rest in zip(words, *labels, strict=True)
            )
            file.write("\n")
