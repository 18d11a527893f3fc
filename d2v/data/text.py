"""Texts: the tokenizer of a run, and splits as tokens."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from d2v.config import Data, at_least
from d2v.errors import InputError
from d2v.processors.text import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

ROWS = 1000  # that are encoded at once: enough for all cores; encodings take much memory, their ids little


@dataclass
class TextData(Data):
    """Data with text.

    Attributes:
        max_length: tokens of a text, special ones counted; the model's positions bound it too.
        batch_tokens: most tokens in a batch, padding counted.
        vocab_size: of the tokenizer that is trained on the texts of train where there is no checkpoint.
    """

    max_length: int = 512
    batch_tokens: int = 8192
    vocab_size: int = 8000
    batch_size: int = 32

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "data", self, ("max_length", "batch_tokens"))


def tokenizer_for(
    model: str | None, texts: Callable[[], Iterable[str]], vocab_size: int, *, add_prefix_space: bool = False
) -> Tokenizer:
    """A checkpoint's tokenizer, or without a checkpoint a new one.

    Args:
        model: hub id or folder.
        texts: returns the texts that a new one is trained on, those of train.
        vocab_size: most tokens of a new one.
        add_prefix_space: words are given split.
    """
    if model:
        return Tokenizer.from_pretrained(model, add_prefix_space=add_prefix_space or None)
    return Tokenizer.train(texts(), vocab_size, add_prefix_space=add_prefix_space)


def all_texts(split: "Dataset", columns: Sequence[str]) -> Iterable[str]:
    """The texts of these columns, for a tokenizer to learn from; what is no text is left to `encode_texts`."""
    for column in columns:
        yield from (text for text in split[column] if isinstance(text, str))


def encode_texts(
    tokenizer: Tokenizer, split: "Dataset", columns: Sequence[str], name: str, max_length: int
) -> list[np.ndarray]:
    """The tokens of each row's text, or pair of texts; too long ones are cut at their end and counted on the terminal.

    Args:
        tokenizer: of the model.
        split: rows.
        columns: one, or two for pairs, of which the longer text is cut.
        name: of the split, for messages.
        max_length: most tokens of a row.

    Returns:
        (T,) int32 for each row.

    Raises:
        InputError: a row has no text.
    """
    rows, cut = [], 0
    for part in split.select_columns(list(columns)).iter(ROWS):
        texts = [part[column] for column in columns]
        for i, values in enumerate(zip(*texts, strict=True), start=len(rows)):
            check_text(dict(zip(columns, values, strict=True)), f"{name}, row {i}")
        encodings = tokenizer(*texts, max_length=max_length)
        rows += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        cut += sum(bool(encoding.overflowing) for encoding in encodings)
    if cut:
        print(f"{name}: {cut} of {len(rows)} texts cut to {max_length} tokens")
    return rows


def check_text(texts: dict[str, str], where: str) -> None:
    """Raise InputError unless a row's columns are text, and not all of them blank: QQP has pairs with an empty side."""
    for column, text in texts.items():
        if not isinstance(text, str):
            # pandas, which reads CSV, takes words such as NA and null for nothing
            raise InputError(f"{where}: {column} is {text!r}; should be text")
    if not any(text.strip() for text in texts.values()):
        raise InputError(f"{where}: {' and '.join(texts)} {'is' if len(texts) == 1 else 'are'} empty; should be text")
