"""Any source that `datasets` reads, as splits with the columns a recipe needs."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d2v.config import Data, Job
from d2v.data.rows import Split
from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
AUDIO = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".au"}


def load(
    job: Job,
    demo: Callable[[], dict[str, "Dataset"]],
    *,
    inputs: Mapping[str, str | None],
    targets: Mapping[str, str | None] | None = None,
    reader: Callable[[Any], dict[str, "Dataset"]] | None = None,
) -> dict[str, Split]:
    """The splits that a recipe's configuration asks for, or those of its demo; see `choose_splits`.

    Args:
        job: from `d2v.training.job.start`.
        demo: makes all splits of the demo.
        inputs: purpose -> column of what the model reads; purposes whose column is None are not needed.
        targets: likewise of the labels, which are needed in all modes but predict.
        reader: reads all splits of a source, by default `read`.
    """
    data, columns = job.config.data, {**inputs, **((targets or {}) if job.labelled else {})}
    with job.accelerator.main_process_first():
        source = demo() if data.path is None else (reader or read)(data)
        needed = {purpose: column for purpose, column in columns.items() if column}
        return choose_splits(source, data, job.config.run.seed, needed, training=job.training)


def choose_splits(
    source: dict[str, "Dataset"], data: Data, seed: int, columns: Mapping[str, str], *, training: bool
) -> dict[str, Split]:
    """The splits a run works on.

    Args:
        source: all splits of the source, from `read` or the demo.
        data: what the splits are called, and how much of them to use.
        seed: of the rows sampled for `max_*_samples` and of the share of train that is held out.
        columns: what a column is for -> its name; a missing one is an error.
        training: train and validation are needed besides test.

    Returns:
        `train`, `validation` and `test`, as far as they were asked for and are there. While training there always are
        the first two; without a validation split, validation is a share of train. Otherwise a source of a single split,
        such as a file, is the test whatever the split is called.

    Raises:
        InputError: a split or a column is missing, or a split is empty.
    """
    splits: dict[str, Split] = {}
    for name in ("train", "validation", "test") if training else ("test",):
        wanted = getattr(data, f"{name}_split")
        parts = wanted.split("+")
        names = parts
        if not source.keys() >= set(parts):
            # The usual names need not be there; a name that somebody gave has to be.
            usual = wanted == getattr(type(data), f"{name}_split")
            if usual and training and name != "train":
                continue
            if not (usual and not training and len(source) == 1):
                there = ", ".join(source)
                raise InputError(f"{data.path or 'demo'}: no split {wanted!r} (data.{name}_split); there are {there}")
            parts, names = list(source), [name]
        table, rows = join([source[part] for part in parts]), [len(source[part]) for part in parts]
        splits[name] = Split(name, table, np.arange(len(table)), tuple(zip(names, rows, strict=True)))
    if training and "validation" not in splits:
        splits["train"], splits["validation"] = hold_out(splits["train"], data, seed)
    for name, split in splits.items():
        where = f"{data.path or 'demo'}, {name}"
        there = split.table.column_names
        for purpose, column in columns.items():
            if column not in there:
                raise InputError(f"{where}: no column {column!r} (data.{purpose}_column); there are {', '.join(there)}")
        most = getattr(data, f"max_{name}_samples")
        if most is not None and most < len(split):
            splits[name] = split.select(np.random.default_rng(seed).permutation(len(split))[:most])
        if not len(split):
            raise InputError(f"{where}: no rows")
    return splits


def hold_out(train: Split, data: Data, seed: int) -> tuple[Split, Split]:
    """The split without a random share of its rows, and that share as validation."""
    share, count = data.validation_share, len(train)
    if not 0 < share < 1:
        raise InputError(f"data.validation_share should be between 0 and 1, not {share}")
    held = math.ceil(share * count)
    if held >= count:
        where = data.path or "demo"
        raise InputError(f"{where}, train: {count} rows are too few to hold out a share of {share}")
    order = np.random.default_rng(seed).permutation(count)
    return train.select(order[held:]), train.select(order[:held], name="validation")


def join(parts: list["Dataset"]) -> "Dataset":
    """One data set of several."""
    import datasets

    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def read(data: Data) -> dict[str, "Dataset"]:
    """All splits of a source, sound and images left undecoded."""
    import datasets

    path = Path(data.path or "")
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
            columns = table.to_dict()
            columns["audio"] = [str(folder / file) for file in columns.pop("file_name")]
            return datasets.Dataset.from_dict(columns)
    files = sorted(str(file) for file in folder.rglob("*") if file.suffix.lower() in AUDIO)
    return datasets.Dataset.from_dict({"audio": files})
