"""Texts: the tokenizer of a run, and splits as tokens."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from d2v.config import Data, Job, at_least
from d2v.data.rows import CHUNK, Rows, Split
from d2v.errors import InputError
from d2v.processors.text import Tokenizer


@dataclass
class TextData(Data):
    """Data with text.

    Attributes:
        max_length: maximum number of tokens of a text, special ones counted; the model's positions bound it too.
        batch_tokens: maximum number of tokens in a batch, padding counted.
        vocab_size: number of tokens of the tokenizer that is trained on the texts of train where there is no model.
    """

    unit: ClassVar[str] = "tokens"

    max_length: int = 512
    batch_tokens: int = 8192
    vocab_size: int = 8000
    batch_size: int = 32

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "data", self, ("max_length", "batch_tokens"))

    @property
    def max_size(self) -> float:
        """Tokens of a batch."""
        return self.batch_tokens


def tokenizer_for(job: Job, texts: Callable[[], Iterable[str]], *, add_prefix_space: bool = False) -> Tokenizer:
    """The tokenizer of the run's model, or without a model a new one.

    Args:
        job: from `d2v.training.job.start`.
        texts: returns the texts that a new one is trained on, those of train.
        add_prefix_space: words are given split.
    """
    if job.config.model:
        return Tokenizer.from_pretrained(job.config.model, add_prefix_space=add_prefix_space or None)
    return Tokenizer.train(texts(), job.config.data.vocab_size, add_prefix_space=add_prefix_space)


def all_texts(split: Split, columns: Sequence[str]) -> Iterable[str]:
    """The texts of these columns, for a tokenizer to learn from; what is no text is left to `encode_texts`."""
    for column in columns:
        yield from (text for text in split.column(column) if isinstance(text, str))


def text_rows(
    tokenizer: Tokenizer, split: Split, columns: Sequence[str], max_length: int, references: Sequence[Any] | None = None
) -> Rows:
    """The rows of a split as tokens, `ids` (T,) int32.

    Args:
        tokenizer: of the model.
        split: rows.
        columns: one, or two for pairs, of which the longer text is cut.
        max_length: most tokens of a row.
        references: of each row.
    """
    ids = encode_texts(tokenizer, split, columns, max_length)
    return Rows(split, split.ids(), list(map(len, ids)), references, [{"ids": row} for row in ids])


def token_batch(tokenizer: Tokenizer, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """`input_ids` (B, T), `attention_mask` (B, T), the `lengths` of rows, on the host, and their sum as `size`."""
    lengths = list(map(len, ids))
    return tokenizer.pad(ids) | {"lengths": lengths, "size": sum(lengths)}


def encode_texts(tokenizer: Tokenizer, split: Split, columns: Sequence[str], max_length: int) -> list[np.ndarray]:
    """The tokens of each row's text, or pair of texts; too long ones are cut at their end and counted on the terminal.

    Args:
        tokenizer: of the model.
        split: rows.
        columns: one, or two for pairs, of which the longer text is cut.
        max_length: most tokens of a row.

    Returns:
        (T,) int32 for each row.

    Raises:
        InputError: a row has no text.
    """
    texts = [split.column(column) for column in columns]
    for i, values in enumerate(zip(*texts, strict=True)):
        if problem := text_problem(dict(zip(columns, values, strict=True))):
            raise InputError(f"{split.where(i)}: {problem}")
    rows, cut = encode_pairs(tokenizer, texts, max_length)
    if cut:
        print(f"{split.name}: {cut} of {len(rows)} texts cut to {max_length} tokens")
    return rows


def encode_pairs(tokenizer: Tokenizer, texts: Sequence[Sequence[str]], max_length: int) -> tuple[list[np.ndarray], int]:
    """Texts, or pairs of texts, as tokens, some at a time; encodings take much memory, their ids little.

    Args:
        tokenizer: of the model.
        texts: one list, or two of one length.
        max_length: most tokens of a row.

    Returns:
        (T,) int32 for each row, and how many rows were cut.
    """
    rows, cut = [], 0
    for start in range(0, len(texts[0]), CHUNK):
        encodings = tokenizer(*(column[start : start + CHUNK] for column in texts), max_length=max_length)
        rows += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        cut += sum(bool(encoding.overflowing) for encoding in encodings)
    return rows, cut


def text_problem(texts: Mapping[str, Any]) -> str | None:
    """Why a row's columns cannot be read, or None; not all of them may be blank: QQP has pairs with an empty side."""
    for column, text in texts.items():
        if not isinstance(text, str):
            # pandas, which reads CSV, takes words such as NA and null for nothing
            return f"{column} is {text!r}; should be text"
    if not any(text.strip() for text in texts.values()):
        return f"{' and '.join(texts)} {'is' if len(texts) == 1 else 'are'} empty; should be text"
    return None
