"""Where data come from: files and folders as people have them, and what `datasets` reads; each split on its own."""

import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from d2v.config import Data
from d2v.data.cache import cache_folder, states
from d2v.data.files import (
    AUDIO,
    OTHERS,
    PICTURES,
    UNREAD,
    counted,
    fitting,
    table_splits,
    usual,
    usual_file,
    usual_place,
    walk,
)
from d2v.data.folders import (
    Media,
    left_out,
    listed_files,
    make_table,
    media_of,
    name_files,
    place_files,
    read_documents,
    read_media,
    read_transcripts,
)
from d2v.data.prepared import read_as_text, sounds_as_files
from d2v.data.rows import has_paths
from d2v.data.splits_of_tables import asked_splits, divided, missing_shards, of_one_kind, paths_in, unused_splits
from d2v.data.tables import TABLES, Remark, ending, first_rows, read_table, reason
from d2v.errors import InputError
from d2v.hub import PREPARE, read_json, split_revision, write_json

if TYPE_CHECKING:
    from datasets import Dataset

NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "id2label.json"}
SUBMISSION = re.compile(r"sample[-_ ]?submission|submission[-_ ]?(sample|format)", re.IGNORECASE)
NOT_TEXT = re.compile("readme|licen[cs]e|changelog|citation|requirements|notice|authors|copying", re.IGNORECASE)


class Source(Mapping[str, "Dataset"]):
    """The splits of a source by name, each read when it is asked for, so that a damaged one harms no other.

    Attributes:
        readers: a function for each split that reads it.
        remarks: what reading met that is worth noting.
    """

    def __init__(self, readers: Mapping[str, Callable[[], "Dataset"]], remarks: list[Remark] | None = None):
        self.readers = {name: readers[name] for name in sorted(readers, key=usual_place)}
        self.remarks = [] if remarks is None else remarks
        self.tables: dict[str, Dataset] = {}

    def __getitem__(self, name: str) -> "Dataset":
        if name not in self.tables:
            self.tables[name] = undecoded(self.readers[name]())
        return self.tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def read(data: Data) -> Source:
    """All splits of a source, sound and images left undecoded.

    Raises:
        InputError: it is not there, or has nothing that can be read; each split is read when it is asked for.
    """
    path, remarks = Path(data.path or ""), list[Remark]()
    if path.is_file():
        return read_file(path, data, remarks)
    if ending(path) in TABLES or path.suffix.lower() in AUDIO | PICTURES:
        raise InputError(f"{path}: no such file")
    if path.is_dir() and not data.name and not has_card(path) and (source := read_folder(path, data, remarks)):
        return source
    return read_hub(data)


STATED = {"parquet", "arrow", "webdataset", "text", "csv"}
"""Kinds of files that say themselves of what type their columns are, of CSV text; of others, such as folders of
classes, all splits together do."""


def read_hub(data: Data) -> Source:
    """What `datasets` finds, a data set of the hub or a folder with a card: of its splits those that are asked for.

    Which splits there are is known from the names of the files; each is fetched and prepared when it is read, in a
    place of its own, so that a start without a network finds it there.
    """
    import datasets

    path = Path(data.path or "")
    name, revision = (str(path.resolve()), None) if path.is_dir() else split_revision(str(data.path))
    if revision and Path(name).exists():
        raise InputError(f"{data.path}: {name} is not of the hub, and has no revision {revision!r}")
    files = states([str(path / file) for file in walk(path)]) if path.is_dir() else b""  # on the hub a commit says that
    key = hashlib.sha256(repr((name, data.name, revision)).encode() + files).hexdigest()[:16]
    place, remarks = cache_folder() / "hub" / key, list[Remark]()
    listed = place / "splits.json"
    unreachable: tuple[type[Exception], ...] = (*offline_errors(), FileNotFoundError)
    with explained(data):
        try:
            builder = datasets.load_dataset_builder(name, data.name, revision=revision)
        except unreachable:
            if not listed.is_file():
                raise
            builder = None
        found = getattr(getattr(builder, "config", None), "data_files", None) or {}
        kind = type(builder).__module__.rpartition(".")[2]
        if (builder is None or kind == "cache") and listed.is_file():
            names = read_json(listed)["splits"]
        elif kind == "csv" or (
            kind in STATED and len(found) > 1 and not Path(builder.cache_dir, "dataset_info.json").is_file()
        ):
            names = list(map(str, found))
            place.mkdir(parents=True, exist_ok=True)
            write_json(listed, {"splits": names})
        else:
            splits = datasets.load_dataset(name, data.name, revision=revision)
            parts = {split: (splits[split], data, found.get(split), split, remarks) for split in splits}
            return Source({split: partial(with_own_paths, *part) for split, part in parts.items()}, remarks)
    return Source({it: partial(read_split, data, name, revision, place / it, it, remarks) for it in names}, remarks)


def read_split(
    data: Data, name: str, revision: str | None, place: Path, split: str, remarks: list[Remark]
) -> "Dataset":
    """One split of a data set of several, fetched and prepared by itself.

    Args:
        data: whose set it is.
        name, revision: of the set, as `datasets` takes it.
        place: of this split in the cache.
        split: its name.
        remarks: gets what is worth saying.
    """
    import datasets

    with explained(data):
        builder = datasets.load_dataset_builder(name, data.name, revision=revision, cache_dir=str(place))
        files = builder.config.data_files
        if files:
            builder.config.data_files = type(files)({split: files[split]})
            if not Path(builder.cache_dir, "dataset_info.json").is_file():
                print(f"{data.path}: {split} is fetched and prepared, {len(files[split])} files", flush=True)
                if type(builder).__module__.endswith(".csv"):
                    read_as_text(builder, data, files[split])
        builder.download_and_prepare(verification_mode="no_checks")  # which would miss the other splits
        table = builder.as_dataset(split=split)
    return with_own_paths(table, data, files[split] if files else None, split, remarks)


def with_own_paths(
    table: "Dataset", data: Data, files: Sequence[str] | None, split: str, remarks: list[Remark]
) -> "Dataset":
    """A split that `datasets` read of a folder's tables, with the paths of what lies beside them."""
    first = Path(files[0]) if files and Path(data.path or "").is_dir() else Path()
    return with_paths(table, data, first.parent, split, None, remarks) if ending(first) in TABLES else table


@contextmanager
def explained(data: Data) -> Iterator[None]:
    """Within, whatever `datasets` cannot do is an InputError of one line."""
    import datasets
    import yaml

    try:
        with sounds_as_files():
            yield
    except (
        OSError,
        ValueError,
        yaml.YAMLError,
        *offline_errors(),
        datasets.exceptions.DatasetGenerationError,
    ) as error:
        why = reason(error)
        if Path(data.path or "").is_dir():
            why += f"; there are {counted(walk(Path(data.path or ''))) or 'no files'}; looked for {looked_for()}"
        elif datasets.config.HF_HUB_OFFLINE or isinstance(error, offline_errors()):
            what = "neither a folder nor a file, not in the cache, and the hub cannot be reached"
            raise InputError(f"{data.path}: {what}; {PREPARE}") from error
        raise InputError(f"{data.path}: not a folder, file or hub id that can be read ({why})") from error


def offline_errors() -> tuple[type[Exception], ...]:
    """What is raised where there is no network."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    found: list[type[Exception]] = [ConnectionError, LocalEntryNotFoundError]
    for name in ("httpx", "httpx2"):  # what the hub's client is made of, by version; older ones raise an OSError
        with suppress(ImportError):
            found.append(importlib.import_module(name).TransportError)
    return tuple(found)


def looked_for() -> str:
    """The endings of files that are read."""
    return f"tables ({' '.join(TABLES)}), sounds ({' '.join(sorted(AUDIO))}), images ({' '.join(sorted(PICTURES))})"


def has_card(folder: Path) -> bool:
    """Whether a folder's README.md lists its files, as on the hub."""
    card = folder / "README.md"
    text = card.read_text("utf-8", "replace") if card.is_file() else ""
    listed = bool(re.match(r"\ufeff?---\n(.*\n)*?(configs|dataset_info):", text))
    if listed and text.startswith("\ufeff"):  # `datasets` would not see what it lists
        raise InputError(f"{card}: begins with a byte order mark; should be plain UTF-8, for its lists to be found")
    return listed


def read_file(path: Path, data: Data, remarks: list[Remark]) -> Source:
    """A single file, a table, a sound or an image, as train."""
    media = media_of(path.parent, [PurePath(path.name)], data)
    if media:
        return Source(read_media(media, {}, (), classes=False))
    if ending(path) not in TABLES:
        raise InputError(f"{path}: should be a folder, or a file that ends in {', '.join(TABLES)}")
    whole = undecoded(read_named([path], data, "", None, remarks))
    parts = {} if data.streaming else divided(whole, data, remarks)
    return Source(parts or {"train": lambda: whole}, remarks)


def read_named(files: Sequence[Path], data: Data, split: str, media: Media | None, remarks: list[Remark]) -> "Dataset":
    """A split's tables, with the paths of the sounds and images that they name."""
    import datasets

    if not media_columns(data, media):
        return read_table(files, data, remarks)
    tables = []
    for folder in dict.fromkeys(file.parent for file in files):
        table = read_table([file for file in files if file.parent == folder], data, remarks)
        tables.append(with_paths(table, data, folder, split, media, remarks))
    return datasets.concatenate_datasets(tables) if len(tables) > 1 else tables[0]


def media_columns(data: Data, media: Media | None) -> list[str]:
    """The columns of sounds, images and masks that a recipe looks for."""
    columns = [getattr(data, f"{kind}_column", None) for kind in ("mask", "audio", "image")]
    return [column for column in dict.fromkeys([*columns, media.column if media else None]) if column]


def with_paths(
    table: "Dataset", data: Data, folder: Path, split: str, media: Media | None, remarks: list[Remark]
) -> "Dataset":
    """A table of a folder, with the paths of the sounds and images that it names, see `name_files`."""
    known = [media.root / path for path in media.samples] if media else []
    files = [media.root / path for path in media.files] if media and not hasattr(data, "mask_column") else []
    for column in media_columns(data, media):
        table = name_files(paths_as_text(table, column), column, folder, split, known, remarks, files)
    return table


def paths_as_text(table: "Dataset", column: str) -> "Dataset":
    """The table, with a column of files that has their paths alone as text."""
    import pyarrow.compute as pc

    if column not in table.column_names or not has_paths(table.data.schema.field(column).type):
        return table
    values = table.select_columns([column]).with_format("arrow")[:][column]
    fields = [field.name for field in values.type if field.name in ("bytes", "array")]
    if any(pc.struct_field(values, name).null_count < len(values) for name in fields):
        return table
    return table.remove_columns([column]).add_column(column, pc.struct_field(values, "path"))


def read_folder(folder: Path, data: Data, remarks: list[Remark]) -> Source | None:
    """The splits of a folder of tables, sounds, images or texts; None if it has none of them."""
    files = walk(folder)
    tables = [path for path in files if TABLES.get(ending(path), "text") != "text" and path.name not in NOT_DATA]
    if (samples := [path for path in tables if SUBMISSION.search(path.stem)]) and len(samples) < len(tables):
        remarks.append(left_out(folder, samples, "not read: {}, a sample submission (data.submission)"))
        tables = [path for path in tables if path not in samples]
    media = media_of(folder, files, data)
    if media:
        if others := [path for path in files if path.suffix.lower() in OTHERS]:
            remarks.append(left_out(folder, others, "not read: {}"))
        named = [path for path in tables if names_files(folder / path, media, data)]
        if others := [path for path in tables if path not in named]:
            remarks.append(left_out(folder, others, "not read: {}, which name none of its files"))
        if not named:
            return read_loose(media, files, data, remarks)
        tables = named
    elif not tables:
        tables = [path for path in files if ending(path) == ".txt" and not NOT_TEXT.match(path.name)]
        if tables and hasattr(data, "text_column") and (documents := read_documents(folder, tables, data, remarks)):
            return Source(documents, remarks)
    if not tables or (hasattr(data, "image_column") and TABLES[ending(tables[0])] == "text"):
        return None
    if others := [path for path in files if path.suffix.lower() in UNREAD]:
        remarks.append(left_out(folder, others, "not read: {}"))
    splits = table_splits(tables, asked_splits(data))
    readers = {}
    for name, paths in splits.items():
        kept = of_one_kind(folder, paths, remarks)
        remarks += missing_shards(name, kept)
        readers[name] = partial(read_named, [folder / path for path in kept], data, name, media, remarks)
        if len(splits) > 1:
            readers[name] = partial(unused_splits, readers[name], data, name, remarks)
    if list(readers) == ["train"] and not data.streaming:
        whole = undecoded(readers["train"]())
        named_so = any(
            usual(part) or usual_file(part) for path in splits["train"] for part in (*path.parent.parts, path.stem)
        )
        parts = divided(whole, data, remarks, None if named_so else media) or {"train": lambda: whole}
        return Source(parts | unnamed_test(media, tables, parts, set(paths_in(whole, media))), remarks)
    return Source(readers | unnamed_test(media, tables, readers), remarks)


def unnamed_test(
    media: Media | None, tables: Sequence[PurePath], readers: Mapping[str, Any], named: Set[str | None] = frozenset()
) -> dict[str, Callable[[], "Dataset"]]:
    """The folder of a test whose files no table names, as competitions have it; nothing where there is another test.

    Args:
        media: the files of a folder.
        tables: that name some of them.
        readers: of the splits that the tables have.
        named: paths that they name, as far as they were read.
    """
    if media is None or fitting("test", readers):
        return {}
    described = {path.parts[0] for path in tables if len(path.parts) > 1}
    paths: dict[str, list[str]] = {}
    for path in media.files:
        if len(path.parts) > 1 and usual(path.parts[0]) == "test" and path.parts[0] not in described:
            paths.setdefault(path.parts[0], []).append(str(media.root / path))
    paths = {name: each for name, each in paths.items() if named.isdisjoint(each)}
    return {name: partial(make_table, {media.column: each}, "", None, []) for name, each in paths.items()}


def names_files(table: Path, media: Media, data: Data) -> bool:
    """Whether a table beside sounds or images names some of them, or has the recipe's own column.

    Raises:
        InputError: it is called metadata and does not.
    """
    rows = first_rows(table, data)
    known = [media.root / path for path in media.samples]
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows if isinstance(row.get(name), str) and row[name]]
        if name == media.column or place_files(values, table.parent, table.stem, known):
            return True
    if table.stem.lower() == "metadata":
        there = read_table([table], data, []).column_names
        if "file_name" in there:
            first = rows[0]["file_name"] if rows else ""
            raise InputError(f"{table}: none of the files that it names is there, such as {first!r}")
        raise InputError(f"{table}: no column 'file_name'; there are {', '.join(there)}")
    return False


def read_loose(media: Media, files: Sequence[PurePath], data: Data, remarks: list[Remark]) -> Source:
    """Splits of sounds or images that no table names: by folders, or lists of files such as `testing_list.txt`."""
    texts = (
        read_transcripts(media.root, files, media.files) if media.column == getattr(data, "audio_column", "") else {}
    )
    classes = any(hasattr(data, f"{kind}_column") for kind in ("label", "speaker"))
    lists = listed_files(media.root, files, media.files, remarks)
    if "train" in lists:
        named = {path for paths in lists.values() for path in paths}
        if others := [path for path in media.files if path not in named]:
            remarks.append(left_out(media.root, others, "not read: {}, which no list names"))
        media = replace(media, files=tuple(path for path in media.files if path in named))
    readers = read_media(media, texts, asked_splits(data), lists, remarks, classes=classes)
    return Source(readers, remarks)


def undecoded(split: "Dataset") -> "Dataset":
    """The split with sound and images as bytes and path: they are decoded where they are used, without FFmpeg."""
    for name, feature in split.features.items():
        if (plain := undecoded_type(feature)) is not feature:
            split = split.cast_column(name, plain)
    return split


def undecoded_type(feature: Any) -> Any:
    """A column's type, of sound and images as bytes and path."""
    import datasets

    decodes = isinstance(feature, datasets.Audio | datasets.Image) and feature.decode
    return type(feature)(decode=False) if decodes else feature
