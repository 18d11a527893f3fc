"""Shards: the files of a split that is too large to prepare, each of which is read by itself, block by block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from d2v.config import Data, Job
from d2v.data.columns import known_columns
from d2v.data.facts import note
from d2v.data.files import counted, table_splits, walk
from d2v.data.folders import place_files
from d2v.data.rows import Split
from d2v.data.sources import NOT_DATA, has_card, undecoded_type
from d2v.data.splits_of_tables import asked_splits, of_one_kind
from d2v.data.tables import SAMPLE, check_same_classes, ending, named_classes, reason
from d2v.errors import InputError
from d2v.hub import split_revision

KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".tar": "webdataset"}
"""Local files that are streamed, with `.gz` behind their endings too, and what `datasets` calls them."""
BLOCK = 256
"""Rows of a shard that are read and checked at once."""
FIRST = 10_000
"""First rows of a stream, of which a new vocabulary is made."""


@dataclass(frozen=True)
class Shards:
    """The shards of train.

    Attributes:
        parts: of each split of the source that is train its shards, a `datasets.IterableDataset`, and their names.
        renamed: columns of the shards, and what the recipe looks for them as.
        media: columns of sounds and images, whose paths begin at the shard's folder.
        places: where the files of a shard's folder and of a column are instead, and what their names lack.
    """

    parts: Sequence[tuple[Any, Sequence[str]]]
    renamed: Mapping[str, str]
    media: Sequence[str] = ()
    places: Mapping[tuple[Path, str], tuple[Path, str]] = field(default_factory=dict)

    @property
    def shards(self) -> list[str]:
        """What to call each shard in messages."""
        return [name for _, names in self.parts for name in names]

    def tables(self, shard: int, first: int = 0, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """A shard's rows from the first that is wanted on, as pyarrow tables of `BLOCK` rows; nothing is decoded.

        Raises:
            InputError: it is missing or damaged.
        """
        name, index, read = self.shards[shard], shard, first
        for part, names in self.parts:
            if index < len(names):
                rows = part.shard(num_shards=len(names), index=index)
                break
            index -= len(names)
        columns = columns or list(rows.features or ())  # always in the same order, which an archive's last row has not
        rows = rows.select_columns(list(columns)) if columns else rows
        try:
            for table in rows.skip(first).with_format("arrow").iter(batch_size=BLOCK):
                read += len(table)
                yield table.rename_columns([self.renamed.get(column, column) for column in table.column_names])
        except FileNotFoundError as error:
            raise InputError(f"{name}: no such file, though it was there when it was looked for") from error
        except Exception as error:  # nearly anything can come of a damaged file
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{name}: cannot be read after row {read} ({reason:.300})") from error

    def split(self, shard: int, offset: int, table: Any, epoch: int = 0) -> Split:
        """Rows of a shard, which begin at a row of it, as a split."""
        import datasets
        import pyarrow as pa

        name = self.shards[shard]
        for column in {*self.media} & {*table.column_names}:
            kind = table[column].type
            if (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and "://" not in name:
                values, folder = table[column].to_pylist(), Path(name).parent
                place, end = self.places.get((folder, column), (folder, ""))
                paths = [value and f"{place / value}{end}" for value in values]
                table = table.set_column(table.column_names.index(column), column, pa.array(paths, kind))
        kinds = {self.renamed.get(each, each): kind for each, kind in (self.parts[0][0].features or {}).items()}
        kinds = {each: undecoded_type(kinds[each]) for each in table.column_names if kinds}
        features = datasets.Features(kinds) if kinds else None
        # Its fingerprint is a name, so that nobody looks through the rows to make one.
        rows = datasets.Dataset(table, info=datasets.DatasetInfo(features=features), fingerprint=f"{shard}-{offset}")
        return Split("train", rows, np.arange(len(rows)), ((f"train, {name}", len(rows)),), offset=offset, epoch=epoch)

    def first(self, column: str) -> list[Any]:
        """The values of a column in the first rows."""
        own = {new: old for old, new in self.renamed.items()}.get(column, column)
        values: list[Any] = []
        for shard in range(len(self.shards)):
            for table in self.tables(shard, columns=[own]):
                values += table[column].to_pylist()
                if len(values) >= FIRST:
                    return values[:FIRST]
        return values


def train_shards(data: Data) -> dict[str, Callable[[], tuple[Any, Sequence[str]]]]:
    """The splits of a source that can be streamed: for each a function that opens it, and returns shards and names.

    Raises:
        InputError: it cannot be streamed.
    """
    import datasets

    path, files = Path(data.path or ""), list[PurePath]()
    if path.is_file():
        path, files = path.parent, [PurePath(path.name)]
    elif path.is_dir() and not data.name and not has_card(path):
        files = walk(path)
    found = [file for file in files if ending(file) in KINDS and file.name not in NOT_DATA]
    if files and not found:
        raise InputError(f"{data.path}: data.streaming reads {', '.join(KINDS)}; there are {counted(files)}")
    if found:
        splits = table_splits(found, asked_splits(data))
        return {name: partial(open_files, path, of_one_kind(path, splits[name], [])) for name in splits}
    folder = Path(data.path or "").is_dir()
    name, revision = (str(data.path), None) if folder else split_revision(str(data.path))
    try:
        builder = datasets.load_dataset_builder(name, data.name, revision=revision)
    except Exception as error:  # of the network, of the hub, of its files
        raise InputError(f"{data.path}: not a folder, file or hub id that can be streamed ({reason(error)})") from error
    return {str(split): partial(open_split, builder, str(split)) for split in builder.config.data_files or {}}


def open_files(folder: Path, files: Sequence[PurePath]) -> tuple[Any, Sequence[str]]:
    """Local shards, and their names."""
    import datasets

    names = [str(folder / file) for file in files]
    if KINDS[ending(files[0])] == "parquet":
        check_same_classes([folder / file for file in files])
    builder = datasets.load_dataset_builder(KINDS[ending(files[0])], data_files={"train": names})
    return open_split(builder, "train", names)


def open_split(builder: Any, split: str, names: Sequence[str] = ()) -> tuple[Any, Sequence[str]]:
    """The shards of a builder's split, and their names, by default the addresses of its files."""
    names = names or list(map(str, builder.config.data_files[split]))
    try:
        table = builder.as_streaming_dataset(split=split)
    except Exception as error:  # nearly anything can come of a damaged first file
        raise InputError(f"{names[0]}: cannot be read ({reason(error)})") from error
    if table.num_shards != len(names):
        names = [f"{split}, shard {i}" for i in range(table.num_shards)]
    return table, names


def open_shards(job: Job, parts: Sequence[tuple[Any, Sequence[str]]], columns: Mapping[str, str]) -> Split:
    """The stream of train: a split whose table is its beginning.

    Args:
        job: whose data are streamed.
        parts: from `train_shards`.
        columns: what a column is for -> its name.

    Raises:
        InputError: options that need all rows, or none can be read.
    """
    data = job.config.data
    first = named_classes(parts[0][0].features)
    for part, _ in parts[1:]:
        for column, names in named_classes(part.features).items():
            if first.get(column) != names:
                unlike = f"train's splits number the classes of {column!r} in different orders"
                raise InputError(f"{data.path}: {unlike}, which in a stream are not put right")
    media = [getattr(data, f"{kind}_column", None) for kind in ("audio", "image", "mask")]
    stream = Shards(parts, {}, [column for column in media if column])
    table = next(stream.tables(0), None)
    if table is None:
        raise InputError(f"{stream.shards[0]}: no rows")
    beginning = stream.split(0, 0, table)
    known = known_columns(job, beginning.table, columns)
    pairs = list(zip(beginning.table.column_names, known.column_names, strict=True))
    folder, places = Path(stream.shards[0]).parent, {}
    for own, name in pairs:
        values = table[own].to_pylist() if name in stream.media and "://" not in stream.shards[0] else []
        if found := place_files([value for value in values if isinstance(value, str) and value][:SAMPLE], folder):
            places[folder, name] = found[:2]
    stream = replace(stream, renamed={own: name for own, name in pairs if own != name}, places=places)
    count, processes = len(stream.shards), job.accelerator.num_processes
    line = f"train: a stream of {count} shards, {data.buffer_rows} rows at a time; a new vocabulary is made of the "
    note(job, "stream", f"{line}first {FIRST} rows", shards=count, rows=data.buffer_rows)
    if count % processes:
        line = f"train: {count} shards cannot be dealt evenly to {processes} processes; each reads all of them and uses"
        note(job, "shards", f"{line} its share of the rows", shards=count, processes=processes)
    return replace(beginning, table=known, stream=stream)


def check_stream(job: Job) -> None:
    """Raise InputError if options need what a stream has not: a number of rows, or all of them at once."""
    data = job.config.data
    needs = {
        "is for data of one's own, see data.path": data.path is None,
        "has no length; --run.max_steps says when training ends": job.config.run.max_steps is None,
        f"cannot be of this recipe: {data.whole}": data.whole is not None,
        "has no number of rows to take a part of (data.fold, data.max_train_samples)": bool(
            data.fold or data.max_train_samples
        ),
        "does not read files beside the recordings (data.tiers)": bool(getattr(data, "tiers", None)),
        "has rows of a group in several places (data.group_column)": bool(data.group_column),
        "is not counted before; data.class_weights can be given by name": getattr(data, "class_weights", 0)
        == "balanced",
    }
    if problem := next((line for line, bad in needs.items() if bad), None):
        raise InputError(f"data.streaming: a stream {problem}")
