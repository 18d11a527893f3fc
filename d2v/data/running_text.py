"""The tokens of running text: in memory, or of a long text in files that all processes map.

Shapes: N tokens of a text.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from d2v.config import Job
from d2v.data.cache import agree, cache_folder, digest, first_on_its_node
from d2v.data.rows import CHUNK, Split
from d2v.data.text import WITHOUT_SPACES
from d2v.hub import in_place_of, read_json, write_json
from d2v.processors.text import Tokenizer


@dataclass
class Stream:
    """The tokens of a whole split; those of a long text stay in files, which all processes map into memory.

    Attributes:
        ids: (N,) int32, or in a file what takes least; each document, or the whole text, is between `<s>` and `</s>`.
        starts: (N,) bool, True where a word begins: letters, digits or signs, with the space before them; in scripts
            without spaces a character.
        characters: of the text, separators counted.
    """

    ids: np.ndarray
    starts: np.ndarray
    characters: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers that are not forked open the files again."""
        if isinstance(self.ids, np.memmap):
            return open_stream, (Path(self.ids.filename or "").with_suffix(""),)
        return Stream, (self.ids, self.starts, self.characters)


LONG = 4_000_000
"""Bytes of text whose tokens are kept in files."""


class Pieces(Sequence[str]):
    """What is encoded by itself, see `pieces`; read from the table when it is asked for.

    Attributes:
        job: from `d2v.training.job.start`.
        split: the rows.
        column: of their texts.
        separator: what follows each but the last.
    """

    def __init__(self, job: Job, split: Split, column: str, separator: str):
        self.job, self.split, self.column, self.separator = job, split, column, separator

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: Any) -> Any:
        i = range(len(self))[i]  # as lists have it
        return self.split[i][self.column] + self.separator * (i + 1 < len(self))

    def __iter__(self) -> Iterator[str]:
        texts = (row[self.column] for row in self.split.iterate([self.column]))
        for i, text in enumerate(texts):
            yield text + self.separator * (i + 1 < len(self))

    @property
    def bytes(self) -> int:
        """Of the texts."""
        return int(text_sizes(self.split, self.column).sum())


def text_sizes(split: Split, column: str) -> np.ndarray:
    """(N,) bytes of each text; -1 where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = split.table.select_columns([column]).with_format("arrow")[:][column]
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return np.full(len(split), -1)
    return pc.binary_length(values).fill_null(-1).to_numpy()[split.index]


def read_stream(pieces: Sequence[str], tokenizer: Tokenizer, *, documents: bool) -> Stream:
    """Encode a text piece by piece, so that the memory it takes is that of its tokens, or of nothing where it is long.

    Args:
        pieces: from the function `pieces`.
        tokenizer: of the model.
        documents: each piece is a document; else all are one.
    """
    if isinstance(pieces, Pieces) and pieces.split.offset is None and pieces.bytes >= LONG:
        return kept_stream(pieces, tokenizer, documents=documents)
    ids, starts, characters = zip(*encode_pieces(pieces, tokenizer, documents=documents), strict=True)
    return Stream(np.concatenate(ids), np.concatenate(starts), sum(characters))


def kept_stream(pieces: Pieces, tokenizer: Tokenizer, *, documents: bool) -> Stream:
    """The tokens of a long text, which one process of each machine writes to the cache, and only once."""
    job, split = pieces.job, pieces.split
    rows = split.table.select_columns([pieces.column]).select(split.index)
    key = agree(job, lambda: digest(rows, tokenizer, pieces.separator, documents))
    file = cache_folder() / f"{key}-tokens"
    missing = not file.with_suffix(".json").is_file()
    line = f"{split.name}: making tokens of {pieces.bytes / 1e6:.0f} MB of text, which are kept for the next start"
    with first_on_its_node(job, line if missing else None):
        if not file.with_suffix(".json").is_file():
            write_stream(file, encode_pieces(pieces, tokenizer, documents=documents), len(tokenizer))
    return open_stream(file)


def write_stream(file: Path, parts: Iterable[tuple[np.ndarray, np.ndarray, int]], vocabulary: int) -> None:
    """Write what `encode_pieces` gives to `<file>.ids` and `<file>.starts`, and last `<file>.json`, of what kind it is.

    Another process that does the same at the same time, as on a disk that machines share, writes the same.
    """
    kind = np.uint16 if vocabulary <= 1 << 16 else np.int32
    characters = 0
    with (
        in_place_of(file.with_suffix(".ids")) as of_ids,
        in_place_of(file.with_suffix(".starts")) as of_starts,
        of_ids.open("wb") as first,
        of_starts.open("wb") as second,
    ):
        for ids, starts, count in parts:
            first.write(ids.astype(kind).tobytes())
            second.write(starts.tobytes())
            characters += count
    write_json(file.with_suffix(".json"), {"characters": characters, "kind": np.dtype(kind).name})


def open_stream(file: Path) -> Stream:
    """What `write_stream` wrote."""
    about = read_json(file.with_suffix(".json"))
    ids = np.memmap(file.with_suffix(".ids"), dtype=about["kind"], mode="r")
    return Stream(ids, np.memmap(file.with_suffix(".starts"), dtype=bool, mode="r"), about["characters"])


def encode_pieces(
    pieces: Iterable[str], tokenizer: Tokenizer, *, documents: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """The tokens of a text, some pieces at a time: ids, where words start, and how many characters they are of."""
    one = np.ones(1, dtype=bool)
    if not documents:
        yield np.array([tokenizer.bos_token_id], np.int32), one, 0
    left = iter(pieces)
    while some := list(islice(left, CHUNK)):
        ids, starts = [], []
        for text, encoding in zip(some, tokenizer(some), strict=True):
            inner = slice(None) if documents else slice(1, -1)
            words = np.array([-1 if word is None else word for word in encoding.word_ids[inner]], dtype=np.int32)
            ids.append(np.array(encoding.ids[inner], dtype=np.int32))
            starts.append((np.diff(words, prepend=-2) != 0) | begins_character(text, encoding.offsets[inner]))
        yield np.concatenate(ids), np.concatenate(starts), sum(map(len, some))
    if not documents:
        yield np.array([tokenizer.eos_token_id], np.int32), one, 0


def begins_character(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray | bool:
    """Which tokens of a text begin another character of a script without spaces, where a word is a character.

    Args:
        text: the text.
        offsets: from and to which character each token is; of the bytes of one character the same.
    """
    if not WITHOUT_SPACES.search(text):
        return False
    firsts = np.array([first for first, _ in offsets])
    alone = [bool(WITHOUT_SPACES.match(text[first : first + 1])) for first, _ in offsets]
    # The token after such a character begins something too, such as a Latin word.
    return (np.diff(firsts, prepend=-1) != 0) & (np.array(alone) | np.array([False, *alone[:-1]]))
