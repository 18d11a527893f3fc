"""Rows: which rows of a data set a run uses, their places in the user's files, and what is known of each.

Nothing is copied: a split is a table and the numbers of its rows, so that images and sounds stay where they are.
"""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from d2v.config import Job
from d2v.data.facts import Decoded, note
from d2v.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Value = TypeVar("Value")
CHUNK = 1000
"""Rows that are read at once: enough to make a call cheap, few enough to hold in memory with their sounds."""


@dataclass(frozen=True)
class Split:
    """Some rows of a table, in order.

    Attributes:
        name: use of the rows: train, validation or test.
        table: all rows of one or more splits of the source, sound and images undecoded.
        index: (N,) the table's rows that are used, in order.
        parts: the source's splits that the table joins, by name, with their numbers of rows.
        group: the column of the rows' groups, such as speakers, where there is one.
        stream: of `d2v.data.streams`, if train is read during training; the table is its beginning.
        offset: for a block of a stream, the number of rows before it in its shard.
        epoch: for a block, the pass over the stream in which it is read.
    """

    name: str
    table: "Dataset"
    index: np.ndarray
    parts: tuple[tuple[str, int], ...]
    group: str | None = None
    stream: Any = None
    offset: int | None = None
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.table[int(self.index[i])]

    def select(self, rows: Sequence[int] | np.ndarray, name: str | None = None) -> "Split":
        """The split with only these of its rows, in this order."""
        return replace(self, index=self.index[np.asarray(rows, dtype=np.int64)], name=name or self.name)

    def number(self, i: int) -> int:
        """The number of a row in the user's own split, whatever was sampled, held out or left out."""
        return self._place(i)[1]

    def where(self, i: int) -> str:
        """What to call a row in messages, such as "train, row 17"."""
        return "{}, row {}".format(*self._place(i))

    def numbers(self) -> np.ndarray:
        """(N,) of all rows, see `number`."""
        return self._places(self.index)[1]

    def _place(self, i: int) -> tuple[str, int]:
        part, row = self._places(self.index[i])
        return self.parts[int(part)][0], int(row)

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part that each row of the table is in, and its number there."""
        starts = np.array([0, *accumulate(rows for _, rows in self.parts)])
        part = np.searchsorted(starts, rows, side="right") - 1
        return part, rows - starts[part] + (self.offset or 0)

    def column(self, name: str, field: str | None = None) -> list[Any]:
        """The values of a column, read at once; for a column of objects only one field is read.

        For a stream those of its first rows.

        Args:
            name: of the column.
            field: of the objects, such as the `path` of sounds.
        """
        import pyarrow.compute as pc

        if self.stream is not None and field is None:
            return self.stream.first(name)
        whole = np.array_equal(self.index, np.arange(len(self.table)))
        if field is None:
            values = self.table[name][:]
            return values if whole else [values[i] for i in self.index]
        objects = self.table.select_columns([name]).with_format("arrow")[:][name]
        field_values = pc.struct_field(objects, field)
        return (field_values if whole else field_values.take(self.index)).to_pylist()

    def groups(self, column: str | None = None) -> list[str | None]:
        """The group of each row as text, by default of `group`; None where a row has none.

        The group of a file is its path, but None if the table holds its bytes, whose paths mean nothing.
        """
        import pyarrow as pa

        name = column or self.group or ""
        kind = self.table.data.schema.field(name).type
        if not has_paths(kind):
            if name != self.group and (
                pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
            ):
                return [None] * len(self)  # samples or bytes are not compared
            return list(map(group_name, self.column(name)))
        paths = paths_outside(self.table.select_columns([name]).with_format("arrow")[:][name])
        return list(map(group_name, paths.take(self.index).to_pylist()))

    def iterate(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows with these columns, read some at a time."""
        table = self.table.select_columns(list(columns))
        for start in range(0, len(self), CHUNK):
            part = table[self.index[start : start + CHUNK].tolist()]
            for values in zip(*part.values(), strict=True):
                yield dict(zip(part, values, strict=True))

    def ids(self, files: str | None = None) -> list[str]:
        """The name of each row in predictions: its `id`, or else its file or GLUE's `idx`, or else its number.

        If files in several folders have one name, the column `file` is used if there is one, as in SUPERB's data set.

        Args:
            files: the column of files, as paths or as `datasets` stores them, if there is one.
        """
        numbers = self._named([str(number) for number in self.numbers().tolist()])
        for column in ("id",) if files else ("id", "idx"):
            if column in self.table.column_names:
                values = self.column(column)
                names = self._named(list(map(str, values)))
                there = [value is not None and bool(str(value).strip()) for value in values]
                return [it if named else no for it, named, no in zip(names, there, numbers, strict=True)]
        if files is None:
            return numbers
        paths: list[Any] = self.files(files)
        if len(set(paths)) < len(paths) and files != "file" and "file" in self.table.column_names:
            paths = self.column("file")
        return [str(path or number) for path, number in zip(paths, numbers, strict=True)]

    def _named(self, names: list[str]) -> list[str]:
        """The names, with their split's name before them if names repeat in joined splits."""
        if len(self.parts) == 1 or len(set(names)) == len(names):
            return names
        parts = self._places(self.index)[0]
        return [f"{self.parts[part][0]}/{name}" for part, name in zip(parts.tolist(), names, strict=True)]

    def files(self, column: str) -> list[str | None]:
        """The paths in a column of files; None where a row has none."""
        import pyarrow as pa

        kind = self.table.data.schema.field(column).type
        if pa.types.is_struct(kind):
            has_path = any(kind.field(i).name == "path" for i in range(kind.num_fields))
            return self.column(column, "path") if has_path else [None] * len(self)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return self.column(column)
        return [None] * len(self)


def has_paths(kind: "pa.DataType") -> bool:
    """Whether a column's values are files as `datasets` stores them, with a `path`."""
    import pyarrow as pa

    return pa.types.is_struct(kind) and kind.get_field_index("path") >= 0


def paths_outside(column: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """The paths of a column of files; null for files whose bytes the table holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = pc.struct_field(column, "path")
    if column.type.get_field_index("bytes") < 0:
        return paths
    return pc.if_else(pc.is_valid(pc.struct_field(column, "bytes")), pa.scalar(None, paths.type), paths)


def group_name(value: Any) -> str | None:
    """A group as text, the same whether it is written as number, date or text; None where there is none."""
    if value is None or value != value:  # pandas' NaN
        return None
    if isinstance(value, float) and value.is_integer():  # pandas makes floats of whole numbers if one is missing
        value = int(value)
    return unicodedata.normalize("NFC", str(value)).strip() or None


@dataclass(frozen=True)
class Rows:
    """The usable rows of a split, and what is known of each.

    `rows[i]` is the input of a collate function: an item, or the table's row with its place `where` for messages, and
    its `reference` if there is one.

    Attributes:
        split: the rows in the user's data.
        ids: (N,) their names in predictions.
        lengths: (N,) in the unit of `d2v.config.Data.unit`.
        references: (N,) targets of training or scoring; None without labels.
        items: (N,) dicts made of the rows, such as tokens; by default the table's rows.
        parts: (N,) for recordings, start and end in seconds of the part that is read; None for all of it.
    """

    split: Split
    ids: list[str]
    lengths: Sequence[float]
    references: Sequence[Any] | None = None
    items: Sequence[dict[str, Any]] | None = None
    parts: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self.split[i] | {"where": self.split.where(i)} if self.items is None else self.items[i]
        row = row if self.parts is None else row | {"part": self.parts[i]}
        return row if self.references is None else row | {"reference": self.references[i]}

    def compare(self, predictions: Sequence[tuple[int, Any]]) -> tuple[list[Any], list[Any]]:
        """The references and the predictions of rows, from `d2v.training.prediction.predict`."""
        if self.references is None:
            raise ValueError("these rows have no references to compare predictions with")
        return [self.references[row] for row, _ in predictions], [prediction for _, prediction in predictions]

    def sources(self) -> Sequence[int] | None:
        """The split's row that each row or window comes from; None where windows come from more than one."""
        if self.items is not None and len(self) and "source" in self.items[0]:
            return [item["source"] for item in self.items]
        return range(len(self)) if len(self.split) == len(self) else None

    def named(self) -> list[dict[str, Any]]:
        """The `id` of each row, and its `group` if it has one."""
        first: list[dict[str, Any]] = [{"id": name} for name in self.ids]
        if self.split.group and (sources := self.sources()) is not None:
            groups = self.split.groups()
            own = [groups[source] for source in sources]
            first = [one if it is None else one | {"group": it} for one, it in zip(first, own, strict=True)]
        return first

    def records(self, predictions: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Predictions as they are written: the row's id, its group if any, the prediction, and the reference."""
        first = self.named()
        last = [{}] * len(self) if self.references is None else [{"reference": each} for each in self.references]
        return [first[row] | prediction | last[row] for row, prediction in predictions]


def check_rows(job: Job, split: Split, reasons: Sequence[str | None]) -> np.ndarray:
    """The numbers of the usable rows; `data.bad_rows` says whether the others are left out.

    Args:
        job: from `d2v.training.job.start`.
        split: the rows.
        reasons: what is wrong with each, or None.

    Raises:
        InputError: a bad row if they are refused, or no good one; the message names the first and counts them.
    """
    bad = [i for i, reason in enumerate(reasons) if reason]
    if bad:
        first = f"{split.where(bad[0])}: {reasons[bad[0]]}"
        if job.config.data.bad_rows == "refuse":
            others = f"; {len(bad)} such rows of {len(reasons)}" if len(bad) > 1 else ""
            raise InputError(f"{first}{others} (--data.bad_rows skip leaves such rows out)")
        line = f"{split.name}: {len(bad)} of {len(reasons)} rows left out; the first is {first}"
        if len(bad) == len(reasons) and split.offset is None:
            raise InputError(line)
        note(job, "rows left out", line, split=split.name, rows=len(bad), of=len(reasons), first=first)
    return np.array([i for i, reason in enumerate(reasons) if not reason], dtype=np.int64)


class NoneDecodedError(InputError):
    """No row of a batch could be decoded, and such rows are left out.

    Attributes:
        decoded: the rows, and why.
    """

    def __init__(self, message: str, decoded: Sequence[Decoded] = ()):
        super().__init__(message)
        self.decoded = list(decoded)


def decode_rows(
    rows: Sequence[dict[str, Any]], decode: Callable[[dict[str, Any]], Value], bad_rows: Literal["refuse", "skip"]
) -> tuple[list[dict[str, Any]], list[Value], list[Decoded]]:
    """Decode the rows of a batch; any error is reported with its row.

    Args:
        rows: of a split.
        decode: decodes a row.
        bad_rows: of the data.

    Returns:
        The rows that could be decoded, their decoded values, and the rows left out, for `decoded` of a batch.

    Raises:
        InputError: a row cannot be decoded and is not to be left out, or no row can be.
    """
    good, values, left_out = [], [], list[Decoded]()
    for row in rows:
        try:
            values.append(decode(row))
            good.append(row)
        except Exception as error:  # nearly anything can come of a damaged file
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            message = f"{row['where']}: {reason.removeprefix(row['where'] + ': ')}"
            if bad_rows == "refuse":
                raise InputError(f"{message} (--data.bad_rows skip leaves such rows out)") from error
            left_out.append((row["where"].rpartition(", row ")[0], "left out, cannot be decoded", message))
    if not good:
        raise NoneDecodedError(f"not one row of a batch can be decoded; the last is {message}", left_out)
    return good, values, left_out
