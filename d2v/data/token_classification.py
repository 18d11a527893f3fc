"""Sentences of labelled words as tokens.

Shapes: T tokens of a window, special ones counted, C classes.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np

from d2v.config import Job
from d2v.data.cache import arrays, map_table
from d2v.data.class_names import ClassOptions, Named, as_list, name_reader, name_values, with_stream
from d2v.data.labels import Labels, checkpoint_labels, label_problem, settle_classes, weighted
from d2v.data.rows import Rows, Split, check_rows
from d2v.data.streams import rows_of
from d2v.data.text import TextData
from d2v.data.windows import window_rows
from d2v.errors import InputError
from d2v.losses import IGNORE
from d2v.processors.text import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class TokenData(ClassOptions, TextData):
    """The data; without a path the embedded demo.

    Attributes:
        tokens_column: column of lists of words, or of text with words separated by spaces.
        tags_column: column of lists of the words' labels, names or numbers, or of text separated by spaces; null, -1
            and -100 are ignored, as are negative numbers if the column's type names the classes.
        label_all_pieces: train on the labels of all tokens of a word; by default on its first token's.
        max_length: maximum number of tokens of a window; a longer sentence takes several.
        stride: number of tokens that a window shares with the one before it; a shared word is scored where it has more
            context.
    """

    tokens_column: str = "tokens"
    tags_column: str = "tags"
    label_all_pieces: bool = False
    stride: int = 64


NO_TAGS = (-100, -1, "-100", "-1", "")
"""Ignored labels of words, as other programs write them; null is ignored too."""


def tagged_rows(
    job: Job, splits: Mapping[str, Split]
) -> tuple[dict[str, Split], dict[str, list[list[str]]], Labels, dict[str, Any]]:
    """The usable rows of each split, their words, the model's labels, and the labels of the words.

    A word whose label is None is ignored. For a stream, the words are those of its first rows, for a new tokenizer,
    and the labels are a function that returns those of a block.

    Args:
        job: its data have the options of `TokenData`; in prediction there are no labels.
        splits: from `d2v.data.load.load`.

    Raises:
        InputError: some labels are text and others numbers, train has fewer than two classes, or a row cannot be used.
    """
    data: TokenData = job.config.data
    labels, tags = read_tags(job, splits)
    kept, sentences = {}, {}
    for name, split in splits.items():
        if split.stream is not None:
            words = [as_words(row, job) for row in split.column(data.tokens_column)] if not job.config.model else []
            kept[name] = split
            sentences[name] = [each for each in words if words_problem(each, data.tokens_column) is None]
        else:
            kept[name], sentences[name], own = usable_rows(job, split, labels, tags.get(name))
            tags |= {name: own} if name in tags else {}
    return kept, sentences, labels, tags


def usable_rows(
    job: Job, split: Split, labels: Labels, tags: Sequence[Any] | None
) -> tuple[Split, list[list[str]], list[Any] | None]:
    """The usable rows of a split, their words, and the words' labels, see `tagged_rows`."""
    data: TokenData = job.config.data
    words = [as_words(row, job) for row in split.column(data.tokens_column)]
    reasons = [words_problem(each, data.tokens_column) for each in words]
    if tags is not None:
        rows = zip(reasons, words, tags, strict=True)
        reasons = [reason or tags_problem(each, labels, row, data) for reason, each, row in rows]
    good = check_rows(job, split, reasons)
    return split.select(good), [words[i] for i in good], None if tags is None else [tags[i] for i in good]


def word_rows(
    job: Job,
    split: Split,
    words: Sequence[Sequence[str]],
    tags: Any,
    labels: Labels,
    tokenizer: Tokenizer,
    max_length: int,
) -> Rows:
    """The windows of a split's sentences as rows, see `word_windows`; its words and tags are from `tagged_rows`."""
    if split.stream is None:
        return window_rows(split, word_windows(job, split, words, tokenizer, max_length), tags)

    def of(part: Split) -> Rows:
        kept, sentences, own = usable_rows(job, part, labels, tags(part))
        return window_rows(kept, word_windows(job, kept, sentences, tokenizer, max_length), own)

    return rows_of(split, of)


def as_words(value: Any, job: Job) -> Any:
    """The words or labels of a row: a list, a list written as text, or text separated by spaces; other values stay.

    In labelled data, text in brackets that is no list stays: an array that was cut when it was written.
    """
    found = as_list(value, None)
    cut = isinstance(found, str) and found.startswith("[") and (found.rstrip().endswith("]") or "..." in found)
    return found.split() if isinstance(found, str) and not (job.labelled and cut) else found


def words_problem(words: Any, column: str) -> str | None:
    """Why a row's words cannot be used, or None."""
    if not isinstance(words, list) or not words:
        return f"{column} is {words!r:.40}; should be a list of words"
    for i, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            return f"{column} has {word!r} as word {i}; should be text"
    return None


def read_tags(job: Job, splits: Mapping[str, Split]) -> tuple[Labels, dict[str, Any]]:
    """The model's labels of a word, and the names of the labels of each row's words; see `tagged_rows`."""
    data: TokenData = job.config.data
    labels = Labels(["LABEL_0"], "single_label", data.tags_column)
    if job.config.model:
        labels = replace(checkpoint_labels(job.config.model, data.tags_column), problem_type="single_label")
    if not job.labelled:
        return labels, {}

    def read(split: Split) -> Named:
        values = [as_words(row, job) for row in split.table[data.tags_column][:]]
        return name_values(split, data.tags_column, values, NO_TAGS)

    columns = {name: read(split) for name, split in splits.items()}
    columns = with_stream(job, splits, columns, data.tags_column, several=True)
    labels, tags = settle_classes(job, labels, columns, data.match)
    train = tags.get("train")
    labels = weighted(labels, data, None if train is None else chain.from_iterable(filter(None, train)))
    if job.training and splits["train"].stream is not None:
        return labels, tags | {"train": name_reader(read, columns["train"], tags["train"])}
    return labels, tags


def tags_problem(words: Sequence[str], labels: Labels, tags: Any, data: TokenData) -> str | None:
    """Why a row's labels cannot be used, or None; each word needs one of the model's labels, or None."""
    shown = labels.data_names or labels.names
    counting = [tag for tag in tags if tag is not None] if isinstance(tags, list) else tags
    reason = label_problem(counting, labels.numbers, data.tags_column, shown, multi_label=True)
    if reason is None and len(tags) != len(words):
        reason = f"{len(words)} words in {data.tokens_column}, {len(tags)} labels in {data.tags_column}"
        reason += "; should be as many"
    return reason


def word_windows(
    job: Job, split: Split, sentences: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int
) -> list[dict[str, Any]]:
    """Sentences as tokens, long ones in windows, so that every word is scored in exactly one window.

    Args:
        job: its data have the `stride`, the maximum number of tokens that a window shares with the one before it.
        split: of the sentences.
        sentences: the words of each.
        tokenizer: of the model, with `add_prefix_space`.
        max_length: maximum number of tokens of a window.

    Returns:
        For each window `source`, the number of its sentence, `tokens`, all words of that, `ids` (T,) int32, and `words`
        (T,) int32: the number of the word that a token belongs to, or -1 if it belongs to no word scored here.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table({"words": sentences})
    encode = partial(encode_words, tokenizer=tokenizer, max_length=max_length, stride=job.config.data.stride)
    found = map_table(job, table, encode, f"{split.name}: making tokens", parallel=False).data
    counts = pc.list_value_length(found.column("ids")).to_numpy()
    each = (arrays(pc.list_flatten(found.column(name))) for name in ("ids", "words"))
    return [
        {"source": source, "tokens": sentences[source], "ids": ids, "words": words}
        for source, ids, words in zip(np.repeat(np.arange(len(counts)), counts).tolist(), *each, strict=True)
    ]


def encode_words(table: "pa.Table", *, tokenizer: Tokenizer, max_length: int, stride: int) -> "pa.Table":
    """The `ids` of the windows of each row of a table of words, and their `words`, see `word_windows`."""
    import pyarrow as pa

    if (room := max_length - 2) < 1:
        raise InputError(f"data.max_length is {max_length}; should be at least 3: a token and the two around a text")
    ids: list[list[list[int]]] = []
    counting: list[list[np.ndarray]] = []
    for encoding in tokenizer(table.column("words").to_pylist(), is_split_into_words=True):
        ids.append([])
        counting.append([])
        words = np.array(encoding.word_ids[1:-1], np.int32)
        starts = [*np.flatnonzero(np.diff(words, prepend=-1)).tolist(), len(words)]
        for begin, end, first, last in cut_words(np.diff(starts).tolist(), room, stride):
            part = slice(starts[begin], min(starts[end], starts[begin] + room))
            ids[-1].append([encoding.ids[0], *encoding.ids[1:-1][part], encoding.ids[-1]])
            counts = (words[part] >= first) & (words[part] < last)
            counting[-1].append(np.pad(np.where(counts, words[part], -1), 1, constant_values=-1))
    kind = pa.list_(pa.list_(pa.int32()))
    return pa.table({"ids": pa.array(ids, kind), "words": pa.array(counting, kind)})


def cut_words(pieces: Sequence[int], room: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows over a sentence, of whole words.

    Args:
        pieces: number of tokens of each word; of more than `room` only the first are used.
        room: maximum number of tokens of a window.
        stride: maximum number of tokens that a window shares with the one before it.

    Yields:
        The words of a window, from `begin` to before `end`, and those scored in it, from `first` to before `last`: each
        word once, where it is farther from the window's edge.
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
    """(T,) bool: whether a token is the first of a word scored here, for `words` of `word_windows`."""
    return (np.diff(words, prepend=-1) != 0) & (words >= 0)


def piece_labels(words: np.ndarray, labels: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """The labels of a window's tokens, (T,) int64.

    Args:
        words: (T,) from `word_windows`.
        labels: numbers of the labels of all the sentence's words, `IGNORE` for ignored ones.
        inside: class -> class of a word's tokens after its first, from `inside_classes`; None gives these no label.
    """
    own = labels[words]
    others = IGNORE if inside is None else np.where((words >= 0) & (own >= 0), inside[own.clip(0)], IGNORE)
    return np.where(firsts(words), own, others)


def inside_classes(numbers: Mapping[str, int]) -> np.ndarray:
    """(C,) the class that continues each class: for B, with or without a type, the I of its type, else the same."""
    begins = re.compile(r"B(?=[-_]|$)")
    return np.array([numbers.get(begins.sub("I", name), i) for name, i in numbers.items()])
