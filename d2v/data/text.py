"""Texts: the tokenizer of a run, and splits as tokens."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from tokenizers import Encoding

from d2v.config import Data, Job, at_least
from d2v.data.cache import FORMAT, WORTH, cache_folder, first_on_its_node, map_rows
from d2v.data.facts import note
from d2v.data.rows import CHUNK, Rows, Split, check_rows
from d2v.data.streams import rows_of
from d2v.errors import InputError
from d2v.processors.text import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

Truncation = Literal["head", "tail", "windows"]

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

    modality: ClassVar[str] = "text"
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
        tokenizer = train_tokenizer(job, texts, add_prefix_space=add_prefix_space)
    if job.training and (new := [token for token in job.config.data.add_tokens if token not in tokenizer.vocab]):
        tokenizer.add_tokens(new)
        note(job, "tokens added", f"vocabulary: {len(new)} tokens are new: {', '.join(new)}", tokens=new)
    return tokenizer


def train_tokenizer(job: Job, texts: Callable[[], Iterable[str]], *, add_prefix_space: bool) -> Tokenizer:
    """A new tokenizer; that of many texts is trained once, by one process of each machine, and kept."""
    options = {"vocab_size": job.config.data.vocab_size, "add_prefix_space": add_prefix_space}
    found, count = hashlib.sha256(repr((FORMAT, options)).encode()), 0
    for text in texts():
        found.update(text.encode("utf-8", "surrogatepass") + b"\0")
        count += 1
    if count < WORTH:
        return Tokenizer.train(texts(), **options)
    folder = cache_folder() / f"{found.hexdigest()[:32]}-tokenizer"
    line = f"train: learning a vocabulary from {count} texts, which is kept for the next start"
    with first_on_its_node(job, None if folder.is_dir() else line):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as made:
                Tokenizer.train(texts(), **options).save_pretrained(Path(made, "whole"))
                with suppress(OSError):  # another machine, on the same disk, was quicker
                    Path(made, "whole").rename(folder)
    return Tokenizer.from_pretrained(folder, add_prefix_space=add_prefix_space or None)


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
    references: Any = None,
    problem: Callable[[Any], str | None] = lambda reference: None,
    truncation: Truncation = "head",
    stride: int = 0,
) -> Rows:
    """The rows of a split that can be used as tokens, `ids` (T,) int32; those that are cut are counted.

    With windows a row of the split may be several rows, which `d2v.data.windows.group_windows` puts together again.

    Args:
        job: from `d2v.training.job.start`.
        tokenizer: of the model.
        split: rows.
        columns: one, or two for pairs, of which the longer text is cut.
        max_length: most tokens of a row; longer ones are treated as `truncation` says.
        references: of each row; of a stream a function that returns those of a block.
        problem: says why a reference cannot be used, or None.
        truncation: what is kept of longer texts: their head, their tail, or all of them in windows.
        stride: number of tokens that a window shares with the one before it.

    Raises:
        InputError: a row has no text or an unusable reference, unless `data.bad_rows` skips it.
    """
    if split.stream is not None:
        return rows_of(
            split,
            lambda part: text_rows(
                *(job, tokenizer, part, columns, max_length, references and references(part), problem),
                truncation=truncation,
                stride=stride,
            ),
        )
    reasons = text_problems(split, columns)
    if references is not None:
        reasons = [reason or problem(reference) for reason, reference in zip(reasons, references, strict=True)]
    good = check_rows(job, split, reasons) if truncation != "windows" else np.arange(len(split))
    encode = partial(encode_table, tokenizer=tokenizer, columns=list(columns), max_length=max_length)
    if truncation != "head":
        encode = partial(encode, truncation=truncation, stride=stride)
    found, rows = map_rows(job, split, list(dict.fromkeys(columns)), encode, "making tokens", parallel=False)
    if truncation == "windows":
        problems = found.data.table.column("problem").take(rows).to_pylist()
        good = check_rows(job, split, [each or other for each, other in zip(reasons, problems, strict=True)])
    ids, kept = TokenRows(found, rows[good]), split.select(good)
    references = None if references is None else [references[i] for i in good]
    if truncation == "windows":
        return token_windows(job, kept, ids, references, max_length)
    note_cut(job, kept, ids.number_cut(), len(good), max_length, truncation)
    return Rows(kept, kept.ids(), ids.lengths().tolist(), references, ids)


def token_windows(job: Job, split: Split, found: "TokenRows", references: Sequence[Any] | None, longest: int) -> Rows:
    """The windows of a split's texts as rows, each with its text's id and reference; how many have several is noted."""
    import pyarrow.compute as pc

    counts = found.lengths()  # of windows
    windows = TokenWindows(found, np.repeat(np.arange(len(counts)), counts))
    if several := int((counts > 1).sum()):
        line = f"{split.name}: {several} of {len(counts)} texts are longer than {longest} tokens and read in windows"
        line += f", {len(windows)} in all; the logits of a text's windows are averaged"
        note(job, "texts in windows", line, split=split.name, rows=several, of=len(counts), windows=len(windows))
    lists = found.table.data.column("ids").take(found.rows)
    ids = split.ids()
    return Rows(
        split=split,
        ids=[ids[source] for source in windows.sources],
        lengths=pc.list_value_length(pc.list_flatten(lists)).to_pylist(),
        references=None if references is None else [references[source] for source in windows.sources],
        items=windows,
    )


class TokenWindows(Sequence[dict[str, Any]]):
    """Windows of texts, `ids` (T,) int32 and `source`, the number of the text.

    Attributes:
        found: the texts, whose `ids` are lists of windows.
        sources: (M,) the text of each window, in order.
        within: (M,) which of its windows it is.
    """

    def __init__(self, found: "TokenRows", sources: np.ndarray):
        self.found, self.sources = found, sources
        self.within = np.arange(len(sources)) - np.searchsorted(sources, sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, i: Any) -> Any:
        windows = self.found.table.data.column("ids")[int(self.found.rows[self.sources[i]])]
        ids = windows.values[int(self.within[i])].values.to_numpy().astype(np.int32)
        return {"ids": ids, "source": int(self.sources[i])}


class TokenRows(Sequence[dict[str, Any]]):
    """Rows of tokens, `ids` (T,) int32, that stay in the file that they were written to.

    Attributes:
        table: from `encode_table`, a `datasets.Dataset`.
        rows: (N,) those of it that are meant.
    """

    def __init__(self, table: Any, rows: np.ndarray):
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        ids = self.table.data.column("ids")[int(self.rows[i])]
        return {"ids": ids.values.to_numpy().astype(np.int32)}

    def lengths(self) -> np.ndarray:
        """(N,) how many tokens each row has."""
        import pyarrow.compute as pc

        return pc.list_value_length(self.table.data.column("ids")).to_numpy()[self.rows]

    def number_cut(self) -> int:
        """How many rows were cut."""
        return int(self.table.data.column("cut").to_numpy()[self.rows].sum())


def encode_table(
    table: "pa.Table",
    *,
    tokenizer: Tokenizer,
    columns: list[str],
    max_length: int,
    truncation: Truncation = "head",
    stride: int = 0,
) -> "pa.Table":
    """The tokens of texts, or of pairs of them, as `ids`, and whether they were `cut`; those of no texts are none.

    In windows `ids` are a list of those of each; of pairs the second text is cut.
    """
    import pyarrow as pa

    texts = [[text if isinstance(text, str) else "" for text in table[column].to_pylist()] for column in columns]
    kind = pa.uint16() if len(tokenizer) <= 1 << 16 else pa.int32()
    if truncation == "windows":
        strategy = "longest_first" if len(columns) == 1 else "only_second"
        encode = partial(tokenizer, max_length=max_length, truncation=strategy, stride=stride)
        encodings, problems = encode_each(encode, texts, "data.truncation windows, data.stride, data.max_length")
        windows = [[one.ids for one in (each, *each.overflowing)] if each else [] for each in encodings]
        ids, why = pa.array(windows, pa.list_(pa.list_(kind))), pa.array(problems, pa.string())
        return pa.table({"ids": ids, "cut": [len(each) > 1 for each in windows], "problem": why})
    encodings = tokenizer(*texts, max_length=max_length, side="left" if truncation == "tail" else "right")
    ids = pa.array([encoding.ids for encoding in encodings], pa.list_(kind))
    return pa.table({"ids": ids, "cut": [bool(encoding.overflowing) for encoding in encodings]})


def encode_each(
    encode: Callable[..., list[Encoding]], texts: Sequence[Sequence[str]], options: str
) -> tuple[Sequence[Encoding | None], list[str | None]]:
    """Texts, or pairs of them, as tokens; None where a pair leaves no room for a window, and why.

    Args:
        encode: `Tokenizer` with its options.
        texts: one list, or two of one length.
        options: that the message names.

    Raises:
        InputError: the options fit no text.
    """
    none: list[str | None] = [None] * len(texts[0])
    try:
        return encode(*texts), none
    except InputError as error:
        if not str(error).startswith("row "):
            raise InputError(f"{error} ({options})") from error
    encodings: list[Encoding | None] = []
    for i, row in enumerate(zip(*texts, strict=True)):
        try:
            encodings += encode(*([text] for text in row))
        except InputError as error:
            encodings.append(None)
            none[i] = f"{str(error).removeprefix('row 0: ')} ({options})"
    return encodings, none


def text_problems(split: Split, columns: Sequence[str]) -> list[str | None]:
    """Why each row's columns cannot be read, see `text_problem`; only those are looked at that may be wrong."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = split.table.select_columns(list(dict.fromkeys(columns))).with_format("arrow")[:]
    odd = np.ones(len(split), bool)
    if all(pa.types.is_string(field.type) or pa.types.is_large_string(field.type) for field in table.schema):
        blank = np.ones(len(table), bool)
        missing = np.zeros(len(table), bool)
        for column in table.columns:
            length = pc.binary_length(pc.utf8_trim_whitespace(column)).fill_null(0)
            blank &= length.to_numpy() == 0
            missing |= column.is_null().to_numpy()
        odd = (blank | missing)[split.index]
    reasons: list[str | None] = [None] * len(split)
    rows = np.flatnonzero(odd).tolist()
    for i, row in zip(rows, split.select(rows).iterate(list(dict.fromkeys(columns))), strict=True):
        reasons[i] = text_problem({column: row[column] for column in columns})
    return reasons


def note_cut(
    job: Job, split: Split, cut: int, texts: int, max_length: int, truncation: Truncation | None = None
) -> None:
    """Note how many texts of a split were cut, and where the options say it which part is kept."""
    if cut:
        last = "their last " if truncation == "tail" else ""
        line = f"{split.name}: {cut} of {texts} texts cut to {last}{max_length} tokens"
        note(job, "texts cut", line, split=split.name, rows=cut, of=texts)


def token_batch(tokenizer: Tokenizer, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """`input_ids` (B, T), `attention_mask` (B, T), the `lengths` of rows, on the host, and their sum as `size`."""
    lengths = list(map(len, ids))
    return tokenizer.pad(ids) | {"lengths": lengths, "size": sum(lengths)}


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> tuple[list[np.ndarray], int]:
    """Texts as tokens, some at a time; encodings take much memory, their ids little.

    Args:
        tokenizer: of the model.
        texts: N of them.
        max_length: most tokens of a row.

    Returns:
        (T,) int32 for each row, and how many rows were cut.
    """
    rows, cut = [], 0
    for start in range(0, len(texts), CHUNK):
        encodings = tokenizer(texts[start : start + CHUNK], max_length=max_length)
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
