"""The tables of a folder that make up a split: which files are read, and which of their rows."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from d2v.config import Data
from d2v.data.facts import shorten
from d2v.data.files import split_level, usual
from d2v.data.folders import Media, left_out
from d2v.data.tables import Remark, ending

if TYPE_CHECKING:
    from datasets import Dataset


def asked_splits(data: Data) -> list[str]:
    """The names of splits that somebody gave."""
    given = [getattr(data, f"{name}_split") for name in ("train", "validation", "test")]
    usual_names = [getattr(type(data), f"{name}_split") for name in ("train", "validation", "test")]
    return [
        part
        for one, other in zip(given, usual_names, strict=True)
        if one not in (other, None)
        for part in one.split("+")
    ]


def of_one_kind(folder: Path, paths: Sequence[PurePath], remarks: list[Remark]) -> list[PurePath]:
    """The files of the kind that most are of: two kinds in one split are the same rows twice, or one of them packed."""
    there = set(paths)
    if packed := [path for path in paths if path.suffix.lower() == ".gz" and path.with_suffix("") in there]:
        remarks.append(left_out(folder, packed, "not read beside what is in them: {}"))
        paths = [path for path in paths if path not in set(packed)]
    kinds = [ending(path) for path in paths]
    kind = max(dict.fromkeys(kinds), key=lambda each: (kinds.count(each), each == ".parquet"))
    if others := [path for path, other in zip(paths, kinds, strict=True) if other != kind]:
        remarks.append(left_out(folder, others, f"not read beside {kind} files: {{}}"))
    return [path for path, other in zip(paths, kinds, strict=True) if other == kind]


def missing_shards(split: str, paths: Sequence[PurePath]) -> list[Remark]:
    """The remark that files are not there which the others' names, such as `train-00000-of-00003`, count."""
    sets: dict[tuple[str, str], dict[int, str]] = {}
    for path in paths:
        name = re.sub(r"-[0-9a-f]{16}(?=\.\w+$)", "", path.as_posix())  # by which the hub told them apart
        if match := re.fullmatch(r"(.*-)(\d+)(-of-\d+.*)", name):
            sets.setdefault((match[1], match[3]), {})[int(match[2])] = match[2]
    remarks: list[Remark] = []
    for (before, after), there in sets.items():
        count, width = int(re.findall(r"\d+", after)[0]), len(next(iter(there.values())))
        if missing := [number for number in range(count) if number not in there]:
            first = f"{before}{missing[0]:0{width}}{after}"
            line = f"{split}: {len(missing)} of {count} files are not there; the first is {first}"
            remarks.append(("files missing", line, {"split": split, "files": len(missing), "of": count}))
    return remarks


def divided(
    table: "Dataset", data: Data, remarks: list[Remark], media: Media | None = None
) -> dict[str, Callable[[], "Dataset"]]:
    """The splits that the rows of one table say they are of: in a column `split`, or by the folders of their files.

    Args:
        table: of all rows.
        data: its columns are not looked at.
        remarks: gets how many rows are of no split.
        media: the files that it names, if any.
    """
    used = {value for name, value in vars(data).items() if name.endswith("_column")}
    asked = {name.lower() for name in asked_splits(data)}
    names = {name.strip().lower(): name for name in table.column_names if name not in used}
    for name in [names[each] for each in ("split", "set", "subset", "partition") if each in names]:
        if getattr(table.features[name], "dtype", "") not in ("string", "large_string"):
            continue
        values = np.array([(value or "").strip().lower() for value in table[name][:]], dtype=object)
        counts = Counter(values.tolist())
        splits = [value for value in counts if usual(value) or value in asked]
        if len(splits) < 2:
            if splits and len(counts) > 1:
                line = f"column {name!r}: is not used; of its values only {splits[0]!r} is a usual split"
                remarks.append(("column", line, {"column": name}))
            continue
        if others := {value: count for value, count in counts.items() if value not in splits}:
            listed = shorten(f"{value or 'none'} ({count})" for value, count in others.items())
            rows = sum(others.values())
            line = f"column {name!r}: {rows} rows are of no usual split and are left out: {listed}"
            remarks.append(("rows left out", line, {"column": name, "rows": rows}))
        return {value: partial(table.select, np.flatnonzero(values == value)) for value in splits}
    if media is None or (level := split_level(media.files, asked_splits(data))) is None:
        return {}
    folders = []
    for value in paths_in(table, media):
        parts = PurePath(value or "").parts[len(media.root.parts) :]
        folders.append(parts[level] if len(parts) > level + 1 else "elsewhere")
    places = np.array(folders, dtype=object)
    if len(set(folders)) < 2:
        return {}
    return {name: partial(table.select, np.flatnonzero(places == name)) for name in dict.fromkeys(folders)}


def paths_in(table: "Dataset", media: Media | None) -> list[str | None]:
    """The paths of files in a table that names them; none where it has them itself."""
    plain = media is not None and getattr(table.features.get(media.column), "dtype", "") in ("string", "large_string")
    return table[media.column][:] if media and plain else []


def unused_splits(read: Callable[[], "Dataset"], data: Data, split: str, remarks: list[Remark]) -> "Dataset":
    """The table of a split as it is read; that its rows say they are of several splits is worth a remark."""
    table = read()
    if len(parts := divided(table, data, [])) > 1:
        line = (
            f"{split}: its rows say that they are of {', '.join(parts)}, which is not used, since files say splits too"
        )
        remarks.append(("column", line, {"split": split, "splits": list(parts)}))
    return table
