"""Running text for language models: its tokens one after another, the windows it is cut into, and masks over them.

Shapes: N tokens of a text, B windows or texts, T tokens of each.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from d2v.config import Job
from d2v.data.facts import note
from d2v.data.rows import Rows, Split, check_rows
from d2v.data.running_text import Pieces, Stream, read_stream, text_sizes
from d2v.data.streams import rows_of
from d2v.data.text import TextData, encode_texts, note_cut, token_batch
from d2v.errors import InputError
from d2v.losses import IGNORE
from d2v.processors.text import Tokenizer


@dataclass
class LanguageData(TextData):
    """The data; without a path the embedded demo.

    Attributes:
        text_column: column of the text.
        separator: text between rows that are parts of one text, such as a line break, which may be written as a shell
            passes it on, a backslash and an n, or "" if they end with theirs; by default each row is a document.
        max_length: number of tokens of a window; the model's positions bound it too.
    """

    text_column: str = "text"
    separator: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.separator and re.fullmatch(r"(\\[nt])+", self.separator):
            self.separator = self.separator.replace("\\n", "\n").replace("\\t", "\t")

    @property
    def running(self) -> bool:
        """Whether rows are parts of one text."""
        return self.separator is not None


def pieces(job: Job, split: Split) -> Sequence[str]:
    """What is encoded by itself: each row with the separator that follows it; of documents those that are not empty.

    Args:
        job: whose data have the options of `LanguageData`.
        split: rows of text.

    Raises:
        InputError: a row is no text, unless `data.bad_rows` skips it, or no row has any.
    """
    data: LanguageData = job.config.data
    if split.stream is not None:  # for a new tokenizer alone
        column = split.column(data.text_column) if job.config.model is None else []
        return [text for text in column if isinstance(text, str) and text]
    split = with_text(job, split, data.text_column)
    if data.separator is None:
        split = split.select(np.flatnonzero(text_sizes(split, data.text_column)))
    found = Pieces(job, split, data.text_column, data.separator or "")
    if not any(text.strip() for text in found):
        if split.offset is not None:
            return []
        raise InputError(f"{split.name}: no row has any text")
    return found


def with_text(job: Job, split: Split, column: str) -> Split:
    """The rows that have a text; InputError for others, unless `data.bad_rows` skips them."""
    reasons: list[str | None] = [None] * len(split)
    odd = np.flatnonzero(text_sizes(split, column) < 0)
    for i, row in zip(odd.tolist(), split.select(odd).iterate([column]), strict=True):
        reasons[i] = f"{column} is {row[column]!r:.40}; should be text"
    return split.select(check_rows(job, split, reasons))


def read_texts(job: Job, split: Split, column: str) -> tuple[Split, list[str]]:
    """The rows that have a text, and their texts; InputError for others, unless `data.bad_rows` skips them."""
    split = with_text(job, split, column)
    return split, split.column(column)


@dataclass(frozen=True)
class Windows(Sequence[dict[str, int]]):
    """Windows over a text that score every item once, each made when it is asked for: a text may have millions.

    A window is `start`, `first` and `end`: it holds items `start` to `end` and scores them from `first` on.

    Attributes:
        length: items of the text.
        size: most items of a window.
        step: items that a window after the first scores, at most all; those before them are context.
    """

    length: int
    size: int
    step: int

    def __len__(self) -> int:
        return 0 if self.length <= 0 else 1 + max(-(-(self.length - self.size) // self.step), 0)

    def __getitem__(self, i: Any) -> Any:
        if not -len(self) <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        i %= len(self)
        first = self.size + (i - 1) * self.step if i else 0
        end = min(self.size + i * self.step, self.length)
        return {"start": max(end - self.size, 0), "first": first, "end": end}


def windows(length: int, size: int, stride: int | None = None) -> Windows:
    """Windows of a text, each of which scores `stride` items; by default all.

    Without a stride windows do not overlap, but for the last, which is as long as the others.
    """
    return Windows(length, size, min(stride or size, size))


def training_windows(length: int, size: int) -> Windows:
    """As many full windows as fit into a text, for `cut` to shift; a text that is shorter is one."""
    return windows(length - length % size or length, size)


def stream_rows(
    split: Split, length: int, size: int, *, stride: int | None = None, special: int = 0, ahead: int = 0
) -> Rows:
    """The windows of a split's text as rows, which are called by their numbers; those of train are for `cut` to shift.

    Args:
        split: whose text they are of.
        length: tokens of the text.
        size, stride: as in `windows`; those of train do not overlap.
        special: number of tokens that a batch adds to a window.
        ahead: number of tokens after a window that a batch needs too; in train the text begins again at its end.
    """
    if size < 1:
        least, given = special + 1, size + special
        raise InputError(
            f"data.max_length is {given}; should be at least {least}, of which {special} are special tokens"
        )
    items = training_windows(length, size) if split.name == "train" else windows(length - ahead, size, stride)
    lengths = [min(size, items.length) + special] * len(items)
    return Rows(split, list(map(str, range(len(items)))), lengths, items=items)


def text_windows(
    job: Job, split: Split, texts: Sequence[str], tokenizer: Tokenizer, size: int, *, special: int = 0, ahead: int = 0
) -> tuple[Rows, Any]:
    """The windows of a split's text, and its tokens; of a stream without these, its windows have their own.

    Args:
        job: whose data have the options of `LanguageData`.
        split: from `d2v.data.load.load`.
        texts: from `pieces`.
        tokenizer: of the model.
        size, special, ahead: as for `stream_rows`, special tokens counted in the size.
    """
    documents = job.config.data.separator is None
    if split.stream is None:
        stream = read_stream(texts, tokenizer, documents=documents)
        return stream_rows(split, len(stream.ids) - special, size - special, special=special, ahead=ahead), stream

    def of(part: Split) -> Rows:
        some = pieces(job, part)
        if not some:
            return Rows(part, [], [], items=[])
        block = read_stream(some, tokenizer, documents=documents)
        inner = slice(special // 2, len(block.ids) - special // 2)
        columns = [block.ids[inner], block.starts[inner]]
        rows = stream_rows(part, len(columns[0]), size - special, special=special)
        # Each pass begins to cut at another place, see `cut`; a block of 256 rows is a text of its own.
        first = int(np.random.default_rng((job.config.run.seed, part.epoch, part.offset or 0)).integers(size - special))
        items = []
        for window in rows.items or ():
            at = np.arange(window["start"], window["end"] + ahead) + first
            own = [np.pad(values.take(at, mode="wrap"), special // 2) for values in columns]
            text = Stream(own[0], own[1], characters=0)
            items.append({"start": 0, "first": 0, "end": window["end"] - window["start"], "text": text})
        return replace(rows, items=items)

    return rows_of(split, of), None


def cut(values: np.ndarray, row: dict[str, Any], more: int = 0) -> np.ndarray:
    """The items of a window.

    In training every epoch begins to cut at a place of its own, so that a token is not always seen after the same
    others; what is left at the end of the text goes before its beginning.

    Args:
        values: (N,) of a stream.
        row: a window, in training with its `seed`; one with a `text` of its own is cut already.
        more: items to add that follow the window.
    """
    shift = 0
    if "seed" in row and "text" not in row:
        seed, epoch, _ = row["seed"]
        shift = np.random.default_rng((seed, epoch)).integers(row["end"] - row["start"])
    taken = np.asarray(values.take(np.arange(row["start"], row["end"] + more) + shift, mode="wrap"))
    return taken if taken.dtype == bool else taken.astype(np.int32)


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
    return partial(
        mask_tokens,
        share=share,
        whole_words=whole_words,
        special=special,
        ordinary=ordinary,
        mask_token=tokenizer.mask_token_id,
    )


def mask_tokens(
    ids: np.ndarray,
    starts: np.ndarray,
    seed: tuple[int, ...],
    *,
    share: float,
    whole_words: bool,
    special: list[int],
    ordinary: np.ndarray,
    mask_token: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The masked tokens (T,) of a window, and which of them are to be predicted, (T,) bool; see `masker`."""
    rng = np.random.default_rng(seed)
    units = starts.cumsum() if whole_words else np.arange(len(ids))
    free = ~np.isin(ids, special)
    choices = np.unique(units[free])
    count = min(max(int(share * len(choices) + rng.random()), 1), len(choices))
    chosen = np.isin(units, rng.choice(choices, count, replace=False)) & free
    fate = rng.random(len(ids))
    masked = np.where(chosen & (fate < 0.8), mask_token, ids)
    return np.where(chosen & (fate >= 0.9), rng.choice(ordinary, len(ids)), masked), chosen


def prompt_rows(job: Job, split: Split, column: str, tokenizer: Tokenizer, room: int, new: int) -> Rows:
    """Texts to continue: `prompt`, and its tokens, `ids`.

    Args:
        job: from `d2v.training.job.start`.
        split: rows.
        column: of the texts.
        tokenizer: of the model.
        room: most tokens of a prompt; of longer ones the last are read, and they are counted.
        new: number of tokens that are to follow, which count in the length of a row.
    """
    split, prompts = read_texts(job, split, column)
    ids, longer = encode_prompts(tokenizer, prompts, room)
    if longer:
        line = f"{split.name}: of {longer} of {len(ids)} prompts only the last {room} tokens are read"
        note(job, "texts cut", line, split=split.name, rows=longer, of=len(ids))
    items = [{"prompt": prompt, "ids": row} for prompt, row in zip(prompts, ids, strict=True)]
    return Rows(split, split.ids(), [len(row) + new for row in ids], items=items)


def prompt_batch(rows: list[dict[str, Any]], *, tokenizer: Tokenizer) -> dict[str, Any]:
    """A batch of `prompt_rows`, with their texts as `prompts`."""
    return token_batch(tokenizer, [row["ids"] for row in rows]) | {"prompts": [row["prompt"] for row in rows]}


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str], room: int) -> tuple[list[list[int]], int]:
    """The tokens of texts to continue, without `</s>`, the last `room` of longer ones, and how many are longer."""
    ids = [encoding.ids[:-1] for encoding in tokenizer(prompts)]
    return [row[-room:] for row in ids], sum(len(row) > room for row in ids)


def gap_rows(job: Job, split: Split, column: str, tokenizer: Tokenizer, max_length: int) -> Rows:
    """Texts with `<mask>`: `text`, and its tokens, `ids`.

    Args:
        job: from `d2v.training.job.start`.
        split: rows.
        column: of the texts.
        tokenizer: of the model.
        max_length: most tokens of a row.

    Raises:
        InputError: a row is no text, or has no gap, unless `data.bad_rows` skips it.
    """
    split, texts = read_texts(job, split, column)
    ids, cut = encode_texts(tokenizer, texts, max_length)
    mask = tokenizer.special_tokens["mask_token"]
    good = check_rows(job, split, [None if tokenizer.mask_token_id in row else f"has no {mask} to fill" for row in ids])
    note_cut(job, split, cut, len(ids), max_length)
    items = [{"text": texts[i], "ids": ids[i]} for i in good]
    split = split.select(good)
    return Rows(split, split.ids(), [len(item["ids"]) for item in items], items=items)


def gap_batch(rows: list[dict[str, Any]], *, tokenizer: Tokenizer) -> dict[str, Any]:
    """A batch of `gap_rows`, with their `texts`, and `labels` (B, T) that are not ignored where the gaps are."""
    batch = token_batch(tokenizer, [row["ids"] for row in rows])
    gaps = batch["input_ids"] == tokenizer.mask_token_id
    return batch | {"labels": batch["input_ids"].where(gaps, IGNORE), "texts": [row["text"] for row in rows]}
