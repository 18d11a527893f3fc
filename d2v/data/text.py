"""Texts: the tokenizer of a run, and splits as tokens."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from d2v.config import Data, Job, at_least
from d2v.data.facts import note
from d2v.data.rows import CHUNK, Rows, Split, check_rows
from d2v.processors.text import Tokenizer

# Letters of scripts that do not put spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass
class TextData(Data):
    """Data with text.

    Attributes:
        max_length: maximum number of tokens of a text, special ones counted; the model's positions bound it too.
        batch_tokens: maximum number of tokens in a batch, padding counted.
        add_tokens: tokens that the model's tokenizer lacks, such as '[<user>, <system>]'; in training they are added,
            and begin as the mean of the others.
        vocab_size: number of tokens of the tokenizer that is trained on the texts of train where there is no model.
    """

    unit: ClassVar[str] = "tokens"

    max_length: int = 512
    batch_tokens: int = 8192
    vocab_size: int = 8000
    add_tokens: list[str] = field(default_factory=list)
    batch_size: int = 32

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "data", self, ("max_length", "batch_tokens"))

    @property
    def max_size(self) -> float:
        """Tokens of a batch."""
        return self.batch_tokens


def tokenizer_for(job: Job, texts: Callable[[], Iterable[str]], *, add_prefix_space: bool = False) -> Tokenizer:
    """The tokenizer of the run's model, or without a model a new one; in training with `data.add_tokens`.

    Args:
        job: from `d2v.training.job.start`.
        texts: returns the texts that a new one is trained on, those of train.
        add_prefix_space: words are given split.
    """
    if job.config.model:
        tokenizer = Tokenizer.from_pretrained(job.config.model, add_prefix_space=add_prefix_space or None)
    else:
        tokenizer = Tokenizer.train(texts(), job.config.data.vocab_size, add_prefix_space=add_prefix_space)
    if job.training and (new := [token for token in job.config.data.add_tokens if token not in tokenizer.vocab]):
        tokenizer.add_tokens(new)
        note(job, "tokens added", f"vocabulary: {len(new)} tokens are new: {', '.join(new)}", tokens=new)
    return tokenizer


def all_texts(split: Split, columns: Sequence[str]) -> Iterable[str]:
    """The texts of these columns, for a tokenizer to learn from; what is no text is left to `text_rows`."""
    for column in columns:
        yield from (text for text in split.column(column) if isinstance(text, str))


def text_rows(
    job: Job,
    tokenizer: Tokenizer,
    split: Split,
    columns: Sequence[str],
    max_length: int,
    references: Sequence[Any] | None = None,
    problem: Callable[[Any], str | None] = lambda reference: None,
) -> Rows:
    """The rows of a split that can be used as tokens, `ids` (T,) int32; those that are cut are counted.

    Args:
        job: from `d2v.training.job.start`.
        tokenizer: of the model.
        split: rows.
        columns: one, or two for pairs, of which the longer text is cut.
        max_length: most tokens of a row; longer ones are cut at their end.
        references: of each row.
        problem: says why a reference cannot be used, or None.

    Raises:
        InputError: a row has no text or an unusable reference, unless `data.bad_rows` skips it.
    """
    texts = [split.column(column) for column in columns]
    reasons = [text_problem(dict(zip(columns, values, strict=True))) for values in zip(*texts, strict=True)]
    if references is not None:
        reasons = [reason or problem(reference) for reason, reference in zip(reasons, references, strict=True)]
    good = check_rows(job, split, reasons)
    kept = split.select(good)
    ids, cut = encode_pairs(tokenizer, [[column[i] for i in good] for column in texts], max_length)
    note_cut(job, kept, cut, len(ids), max_length)
    references = None if references is None else [references[i] for i in good]
    return Rows(kept, kept.ids(), list(map(len, ids)), references, [{"ids": row} for row in ids])


def note_cut(job: Job, split: Split, cut: int, texts: int, max_length: int) -> None:
    """Note how many texts of a split were cut."""
    if cut:
        line = f"{split.name}: {cut} of {texts} texts cut to {max_length} tokens"
        note(job, "texts cut", line, split=split.name, rows=cut, of=texts)


def token_batch(tokenizer: Tokenizer, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """`input_ids` (B, T), `attention_mask` (B, T), the `lengths` of rows, on the host, and their sum as `size`."""
    lengths = list(map(len, ids))
    return tokenizer.pad(ids) | {"lengths": lengths, "size": sum(lengths)}


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
            return f"{column} is {text!r}; should be text"
    if not any(text.strip() for text in texts.values()):
        return f"{' and '.join(texts)} {'is' if len(texts) == 1 else 'are'} empty; should be text"
    return None
