"""Any source that `datasets` reads, as splits with the columns a recipe needs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2v.config import Data
from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
AUDIO = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".au"}


def load(
    config: Any,
    demo: Callable[[], dict[str, "Dataset"]],
    columns: dict[str, str],
    accelerator,
    reader: Callable[[Data], dict[str, "Dataset"]] | None = None,
) -> dict[str, "Dataset"]:
    """The splits that a recipe's configuration asks for, or those of its demo; see `choose_splits`.

    Args:
        config: a recipe's, with `mode`, `data` and `run`.
        demo: makes all splits of the demo.
        columns: as for `choose_splits`.
        accelerator: from `d2v.training.loop.start`.
        reader: makes all splits of a source, by default `read`.
    """
    with accelerator.main_process_first():
        found = demo() if config.data.path is None else (reader or read)(config.data)
        return choose_splits(found, config.data, config.run.seed, columns, training=config.mode == "train")


def choose_splits(
    found: dict[str, "Dataset"], data: Data, seed: int, columns: dict[str, str], *, training: bool
) -> dict[str, "Dataset"]:
    """The splits a run works on.

    Args:
        found: all splits of the source, from `read` or the demo.
        data: what the splits are called, and how much of them to use.
        seed: of the rows drawn for `max_*_samples` and of the share of train that is held out.
        columns: what a column is for -> its name; a missing one is an error.
        training: train and validation are needed besides test.

    Returns:
        `train`, `validation` and `test`, as far as they were asked for and are there. While training there always are
        the first two; without a validation split, validation is a share of train. Otherwise a source of a single split,
        such as a file, is the test whatever the split is called.

    Raises:
        InputError: a split or a column is missing, or a split is empty.
    """
    splits = {}
    for role in ("train", "validation", "test") if training else ("test",):
        split = getattr(data, f"{role}_split")
        parts = split.split("+")
        if not found.keys() >= set(parts):
            # The usual names need not be there; a name that somebody gave has to be.
            usual = split == getattr(type(data), f"{role}_split")
            if usual and training and role != "train":
                continue
            if not (usual and not training and len(found) == 1):
                raise InputError(
                    f"{data.path or 'demo'}: no split {split!r} (data.{role}_split); there are {', '.join(found)}"
                )
            parts = list(found)
        splits[role] = join([found[name] for name in parts])
    if training and "validation" not in splits:
        if not 0 < data.validation_share < 1:
            raise InputError(f"data.validation_share should be between 0 and 1, not {data.validation_share}")
        try:
            halves = splits["train"].train_test_split(data.validation_share, seed=seed)
        except ValueError as error:
            count, share = len(splits["train"]), data.validation_share
            message = f"{data.path or 'demo'}, train: {count} rows are too few to hold out a share of {share}"
            raise InputError(message) from error
        splits |= {"train": halves["train"], "validation": halves["test"]}
    for role, split in splits.items():
        for purpose, name in columns.items():
            if name not in split.column_names:
                there_are = ", ".join(split.column_names)
                where = f"{data.path or 'demo'}, {role}"
                raise InputError(f"{where}: no column {name!r} (data.{purpose}_column); there are {there_are}")
        most = getattr(data, f"max_{role}_samples")
        if most is not None and most < len(split):
            splits[role] = split.shuffle(seed=seed).select(range(most))
        if not len(splits[role]):
            raise InputError(f"{data.path or 'demo'}, {role}: no rows")
    return splits


def join(parts: list["Dataset"]) -> "Dataset":
    """One data set of several."""
    import datasets

    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def read(data: Data) -> dict[str, "Dataset"]:
    """All splits of a source, sound and images left undecoded."""
    import datasets

    path = Path(data.path)
    if path.suffix in BUILDERS and not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if path.is_dir() and (tables := audio_tables(path)):
            splits = {split: read_audio_folder(table, datasets) for split, table in tables.items()}
        elif path.is_file():
            if path.suffix not in BUILDERS:
                raise InputError(f"{path}: should be a folder, or a file that ends in {', '.join(BUILDERS)}")
            options = {"sep": "\t"} if path.suffix == ".tsv" else {}
            splits = datasets.load_dataset(BUILDERS[path.suffix], data_files=str(path), **options)
        elif not data.name and (files := shards(path)):
            splits = datasets.load_dataset("parquet", data_files=files)
        else:
            splits = datasets.load_dataset(data.path, data.name)
        for split in splits.values():
            if split.info.builder_name == "json":  # whose reader does not look at what strings are made of
                split.data.validate(full=True)
    except InputError:
        raise
    except (OSError, ValueError, ConnectionError, datasets.exceptions.DatasetGenerationError) as error:
        reason = error.__cause__ or error  # such as a byte that is not UTF-8
        raise InputError(f"{data.path}: not a folder, file or hub id that can be read ({reason})") from error
    return {name: undecoded(split) for name, split in splits.items()}


def shards(folder: Path) -> dict[str, list[str]]:
    """The files `<split>-00000-of-00001.parquet` of a folder by split, if one has a name that `datasets` passes over.

    On its own it looks for the usual names, and for others in `data/` only.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*-of-*.parquet")):
        if match := re.fullmatch(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}", file.stem):
            found.setdefault(match[1], []).append(str(file))
    usual = re.compile("train(ing)?|val(id(ation)?)?|dev(elopment)?|test(ing)?|eval(uation)?")
    return {} if all(usual.fullmatch(name) for name in found) else found


def undecoded(split: "Dataset") -> "Dataset":
    """The split with sound and images as bytes and path: they are decoded where they are used, without FFmpeg."""
    import datasets

    for name, feature in split.features.items():
        if isinstance(feature, datasets.Audio | datasets.Image) and feature.decode:
            split = split.cast_column(name, type(feature)(decode=False))
    return split


def audio_tables(folder: Path) -> dict[str, Path]:
    """The folders of sound files, by split: `train/`, `validation/`, `test/`, or else the folder itself as train.

    Read here rather than by the `audiofolder` loader, which wants a decoder that needs FFmpeg.
    """
    named = {split: folder / split for split in ("train", "validation", "test") if (folder / split).is_dir()}
    tables = named or {"train": folder}
    has_audio = any(file.suffix.lower() in AUDIO for table in tables.values() for file in table.rglob("*"))
    return tables if has_audio else {}


def read_audio_folder(folder: Path, datasets) -> "Dataset":
    """A folder of sound files; `metadata.csv` or `metadata.jsonl` may add columns by `file_name`."""
    for name, builder in (("metadata.csv", "csv"), ("metadata.jsonl", "json")):
        if (folder / name).is_file():
            table = datasets.load_dataset(builder, data_files=str(folder / name), split="train")
            if "file_name" not in table.column_names:
                raise InputError(f"{folder / name}: no column 'file_name'; there are {', '.join(table.column_names)}")
            paths = [str(folder / file) for file in table["file_name"]]
            return table.remove_columns("file_name").add_column("audio", paths)
    files = sorted(str(file) for file in folder.rglob("*") if file.suffix.lower() in AUDIO)
    return datasets.Dataset.from_dict({"audio": files})


def row_names(split: "Dataset", files: str | None = None) -> list[str]:
    """What to call each row: its `id`, or else its file or GLUE's `idx`, or else its number.

    Args:
        split: the rows.
        files: the column of files, as paths or as `datasets` stores them, where there are some.
    """
    for column in ("id",) if files else ("id", "idx"):
        if column in split.column_names:
            return [str(name) for name in split[column]]
    paths = split[files] if files else [None] * len(split)
    return [str((path["path"] if isinstance(path, dict) else path) or i) for i, path in enumerate(paths)]
