"""Any source that `datasets` reads, and the usual layouts of folders, as splits with the columns of a recipe."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d2v.config import Data, Job
from d2v.data.annotations import with_tiers
from d2v.data.cache import first_on_its_node
from d2v.data.columns import known_columns, unlabelled
from d2v.data.facts import note
from d2v.data.files import fitting
from d2v.data.labels import checkpoint_labels, given_type
from d2v.data.rows import Split, group_name
from d2v.data.shards import check_stream, open_shards, train_shards
from d2v.data.sources import read
from d2v.data.splits import hold_out, on_both_sides, parse_fold, parts, shared_groups
from d2v.data.tables import read_sample, reason
from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
PURPOSE = {"train": "train on", "validation": "validate on", "test": "test on"}


def load(
    job: Job,
    demo: Callable[[], Mapping[str, "Dataset"]],
    *,
    inputs: Mapping[str, str | None],
    targets: Mapping[str, str | None] | None = None,
    reader: Callable[[Any], Mapping[str, "Dataset"]] | None = None,
) -> dict[str, Split]:
    """The splits that a recipe's configuration asks for, or those of its demo; see `choose_splits`.

    Args:
        job: from `d2v.training.job.start`.
        demo: makes all splits of the demo.
        inputs: purpose -> column of the model's inputs; purposes whose column is None are not needed.
        targets: likewise for labels, which every mode except predict needs.
        reader: reads all splits of a source, by default `read`.
    """
    data = job.config.data
    streams = None
    if data.streaming and job.training:
        check_stream(job)
        streams = train_shards(data)
    elif data.streaming:
        data = replace(data, streaming=False)
    with first_on_its_node(job, None):
        source = demo() if data.path is None else (reader or read)(data)
        if getattr(data, "tiers", None):
            source = with_tiers(source, data)
        splits = choose_splits(job, source, inputs, targets or {}, streams)
    for fact, line, values in getattr(source, "remarks", ()):
        note(job, fact, line, **values)
    return splits


def load_also(job: Job, demo: Callable[[], Any], **columns: Any) -> dict[str, Split]:
    """The further test splits in `data.also`, by the ending of their metrics' names.

    Args:
        job: from `d2v.training.job.start`; there are none without labels.
        demo, columns: as in `load`.

    Raises:
        InputError: one has the name of a split of the run.
    """
    also = job.config.data.also if job.labelled else {}
    found: dict[str, Split] = {}
    if taken := [ending for ending in also if ending in SPLITS]:
        raise InputError(f"data.also: {taken[0]} is a split of the run; should be another ending, such as mm")
    for ending, name in also.items():
        config = replace(job.config, mode="evaluate", data=replace(job.config.data, test_split=name, fold=None))
        found[ending] = load(replace(job, config=config), demo, **columns)["test"]
    return found


def choose_splits(
    job: Job,
    source: Mapping[str, "Dataset"],
    inputs: Mapping[str, str | None],
    targets: Mapping[str, str | None] | None = None,
    streams: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Split]:
    """The splits that a run uses; a line says which of the source's splits is used for what.

    Args:
        job: from `d2v.training.job.start`; its data say how the splits are named and how much of them to use.
        source: all splits of the source, from `read` or the demo.
        inputs: purpose -> column; a missing one is an error.
        targets: likewise for labels.
        streams: from `train_shards`, if train is to be streamed.

    Returns:
        `train`, `validation` and `test`, as far as they are wanted and exist. In training the first two always exist;
        without a validation split, validation is a share of train, and a test without labels is left out, so that
        validation is scored. In other modes a source with a single split, such as a file, is the test, whatever the
        split is called. With `data.fold` the test is a part of train.

    Raises:
        InputError: a split or a column is missing, or a split is empty.
    """
    data, seed, training = job.config.data, job.config.run.seed, job.training
    labels = {purpose: column for purpose, column in (targets or {}).items() if column and job.labelled}
    classes = {column: column for column in getattr(data, "label_columns", ()) if job.labelled}
    columns = {purpose: column for purpose, column in inputs.items() if column} | labels
    known = columns | ({purpose: column for purpose, column in (targets or {}).items() if column} if data.fold else {})
    roles: tuple[str, ...] = SPLITS if training else ("test",)
    if data.fold:
        roles = ("train", "validation") if training else ("train",)
    splits: dict[str, Split] = {}
    if streams is not None:
        roles = roles[1:]
        parts_of_train = source_splits(streams, data, "train", training=True)
        train = open_shards(job, [streams[part]() for part in parts_of_train], columns)
        of = tuple((part, 0) for part in parts_of_train)
        splits["train"] = check_split(replace(train, parts=of, group=data.group_column), data, columns)
    for name in roles:
        names = source_splits(source, data, name, training=training)
        if name == "test" and training and len(names) > 1 and data.test_split == type(data).test_split:
            several = f"{', '.join(names)} may be meant by 'test', so none is used; data.test_split names one"
            note(job, "test not used", several, splits=names)
            continue
        if not names:
            continue
        only = len(source) == 1 and not fitting(getattr(data, f"{name}_split"), source)
        called = [name] if only else names
        tables = [sample_ids(job, known_columns(job, source[part], known)) for part in names]
        table, rows = join(tables, f"{data.path or 'demo'}, {'+'.join(names)}"), [len(table) for table in tables]
        split = Split(name, table, np.arange(len(table)), tuple(zip(called, rows, strict=True)), data.group_column)
        if training and name != "train" and (why := unlabelled(split, labels | classes)):
            other = "validation" if name == "test" else "a share of train"
            line = f"{'+'.join(names)}: has no labels ({why}), so {other} is used in its place"
            note(job, "unlabelled split", line, split=name, rows=len(split))
            continue
        splits[name] = check_split(split, data, columns)
    how = {}
    if data.fold:
        splits, how["test"] = fold(job, splits, known)  # by class in all modes, so that the parts are the same
        if training and data.test_split is None:
            del splits["test"]  # left for later, and not trained on
    if streams is not None and "validation" not in splits:
        raise InputError(
            f"{data.path}: no files of a validation split, and of a stream, whose rows are not counted, no share can "
            "be held out (data.validation_split)"
        )
    if training and "validation" not in splits:
        train = splits["train"]
        splits["train"], splits["validation"], by = hold_out(train, data, seed, *traits(job, train, labels))
        how["validation"] = f"held out of {{}} (data.validation_share {data.validation_share:g}{by})"
    splits = {name: splits[name] for name in SPLITS if name in splits}
    for name, split in splits.items():
        most = getattr(data, f"max_{name}_samples")
        if most is not None and most < len(split) and split.stream is None:
            order = np.arange(len(split)) if data.running else np.random.default_rng(seed).permutation(len(split))
            splits[name] = split.select(order[:most])
    say_splits(job, source, splits, how)
    if data.group_column:
        groups = {name: split.groups() for name, split in splits.items() if split.stream is None}
        if nameless := sum(values.count(None) for values in groups.values()):
            line = f"{data.group_column}: {nameless} rows have none, and are held out each by itself"
            note(job, "no group", line, rows=nameless)
        texts = [splits[name].column(data.group_column) for name in groups]
        written = {value for values in texts for value in values if isinstance(value, str) and group_name(value)}
        if others := len(written) - len({group_name(value) for value in written}):
            line = (
                f"{data.group_column}: {others} groups differ from others in white space or accents, and are the same"
            )
            note(job, "groups alike", line, groups=others)
        for one, two, both in shared_groups(groups):
            line = f"{data.group_column}: {len(both)} groups are in {one} and in {two}; the first is {both[0]!r}"
            note(job, "groups on both sides", line, splits=[one, two], groups=len(both), first=both[0])
    return splits


def sample_ids(job: Job, table: "Dataset") -> "Dataset":
    """The table with the sample submission's ids, if one of its columns has the name of the sample's first column."""
    if not (sample := job.config.data.submission) or job.labelled:
        return table
    wanted = read_sample(Path(sample))[0][0].strip().casefold()
    found = [name for name in table.column_names if name.strip().casefold() == wanted]
    kinds = {name: str(getattr(table.features[name], "dtype", "")) for name in found}
    plain = [name for name, kind in kinds.items() if kind.endswith("string") or re.fullmatch(r"u?int\d+", kind)]
    if len(found) == 1 and not plain and kinds[found[0]] in ("float32", "float64"):
        raise InputError(
            f"column {found[0]!r} has the ids of {sample} as {kinds[found[0]]}; should be text or whole numbers"
        )
    if len(plain) != 1 or plain == ["id"]:
        if job.config.data.modality == "text" and not {"id", "idx"} & {*table.column_names}:
            line = f"no column is called {wanted!r}, as the ids of {sample} are: rows are called by their numbers"
            note(job, "ids", line, column=wanted)
        return table
    line = f"column {plain[0]!r} has the rows' ids, as in {sample}"
    note(job, "column", line, column=plain[0], **{"as": "id"})
    ids = table.select_columns(plain).with_format("arrow")[:][plain[0]]
    return table.remove_columns([name for name in table.column_names if name == "id"]).add_column("id", ids)


def source_splits(source: Mapping[str, "Dataset"], data: Data, name: str, *, training: bool) -> list[str]:
    """A source's names of the splits to use as train, validation or test; empty if it has none.

    In training a test that nobody named may have several names.

    Raises:
        InputError: a split that was asked for does not exist, or the name is ambiguous.
    """
    wanted = getattr(data, f"{name}_split")
    if wanted is None:
        if not training:
            raise InputError(f"data.{name}_split is null; --mode evaluate and predict need a split")
        return []
    asked = wanted != getattr(type(data), f"{name}_split")
    found = []
    for part in [wanted] if wanted in source else wanted.split("+"):
        names = fitting(part, source)
        if len(names) > 1 and training and name == "test" and not asked:
            return names
        if len(names) > 1:
            several, both = ", ".join(names), "+".join(names)
            raise InputError(
                f"{data.path or 'demo'}: {several} may be meant by {part!r}; name one (data.{name}_split), or {both}"
            )
        if not names:
            # Splits of the usual names may be missing; a split that the user named must exist.
            if not asked and training and name != "train":
                return []
            if not asked and not training and len(source) == 1:
                return list(source)
            there = ", ".join(source)
            raise InputError(f"{data.path or 'demo'}: no split {wanted!r} (data.{name}_split); there are {there}")
        found += names
    return found


def check_split(split: Split, data: Data, columns: Mapping[str, str]) -> Split:
    """The split; InputError if it lacks a column or has no rows."""
    where, there = f"{data.path or 'demo'}, {split.name}", split.table.column_names
    needed = dict(columns) | ({"group": data.group_column} if data.group_column else {})
    for purpose, column in needed.items():
        if column not in there:
            raise InputError(f"{where}: no column {column!r} (data.{purpose}_column); there are {', '.join(there)}")
    if not len(split):
        raise InputError(f"{where}: no rows")
    return split


def traits(job: Job, split: Split, labels: Mapping[str, str]) -> tuple[list[Any] | None, list[Any] | None]:
    """The class of each row, if it has one, and its group, if any: of `group_column`, or of rows to keep together."""
    data = job.config.data
    kind = getattr(data, "problem_type", "")
    if kind is None and not job.training and job.config.model:  # as in training, so that folds are the same
        kind = given_type(job, checkpoint_labels(job.config.model))
    single = "label" in labels and kind in (None, "single_label")
    classes = split.column(labels["label"]) if single else None
    if classes is not None and any(isinstance(value, list) for value in classes):
        classes = None
    column = split.group or data.together
    groups = [(i,) if name is None else name for i, name in enumerate(split.groups(column))] if column else None
    if groups and not split.group and len(set(groups)) == len(groups):
        groups = None
    return classes, groups


def fold(job: Job, splits: dict[str, Split], labels: Mapping[str, str]) -> tuple[dict[str, Split], str]:
    """The splits with a part of train as the test, and the rest as train; and how the part was chosen."""
    data, seed = job.config.data, job.config.run.seed
    number, several = parse_fold(data.fold or "")
    whole = splits["train"]
    if len(whole) < several:
        raise InputError(f"data.fold {data.fold}: train has {len(whole)} rows")
    columns = {name: each for name, each in labels.items() if each in whole.table.features}
    classes, groups = traits(job, whole, columns)
    counts = Counter(groups or ())  # of groups that nobody named; parts should be of about equal size
    unfit = not whole.group and (len(counts) < several or max(counts.values()) > 2 * len(whole) / several)
    part = parts(len(whole), several, seed, classes, None if unfit else groups, running=data.running)
    remark = on_both_sides(groups, part == number - 1, data) if groups and not whole.group else ""
    splits |= {
        name: whole.select(np.flatnonzero((part == number - 1) == (name == "test")), name) for name in ("train", "test")
    }
    return splits, f"of {{}} (data.fold {data.fold}{remark})"


def say_splits(job: Job, source: Mapping[str, Any], splits: Mapping[str, Split], how: Mapping[str, str]) -> None:
    """Note which splits were found, and what each is used for."""
    purposes = PURPOSE if job.labelled else {"test": "predict"}
    if not job.training:
        splits = {"test": splits["test"]}
    said, used = [], set()
    for name, split in splits.items():
        used |= {part for part, _ in split.parts}
        rows = f"{len(split)} row{'s' * (len(split) != 1)}" if split.stream is None else "a stream"
        whole = "+".join(part for part, _ in split.parts)
        where = "" if len(source) == 1 and not how and not job.training else how.get(name, "of {}").format(whole)
        if name != "train" and name not in how and job.training:
            where += ", as train has" * bool({*split.parts} & {*splits["train"].parts})
        said.append(f"{purposes[name]} {rows} {where}".strip())
    others = [name for name in source if name not in used] if len(source) > 1 else []
    rest = f"; not used: {', '.join(others)}" if others else ""
    values = {name: {"rows": len(split), "of": [part for part, _ in split.parts]} for name, split in splits.items()}
    note(job, "splits", f"{job.config.data.path or 'demo'}: {', '.join(said)}{rest}", splits=values, unused=others)


def join(parts: list["Dataset"], where: str) -> "Dataset":
    """Several data sets joined, with class names instead of numbers if the parts number their classes differently."""
    import datasets

    if len(parts) == 1:
        return parts[0]
    for name, feature in parts[0].features.items():
        if isinstance(feature, datasets.ClassLabel) and any(
            part.features.get(name, feature) != feature for part in parts
        ):
            parts = [as_names(part, name) for part in parts]
    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as error:
        raise InputError(f"{where}: cannot be joined ({reason(error)})") from error


def as_names(part: "Dataset", column: str) -> "Dataset":
    """The table with the names of a column's classes in place of their numbers."""
    import datasets

    if not isinstance(part.features.get(column), datasets.ClassLabel):
        return part
    names = part.features[column].names
    texts = [names[i] if i is not None and i >= 0 else None for i in part[column][:]]
    return part.remove_columns([column]).add_column(column, texts)
