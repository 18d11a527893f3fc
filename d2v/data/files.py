"""The files of a folder, and the split that each belongs to."""

import gzip
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

AUDIO = {
    ".wav",
    ".wave",
    ".flac",
    ".mp3",
    ".ogg",
    ".oga",
    ".opus",
    ".aif",
    ".aiff",
    ".aifc",
    ".au",
    ".snd",
    ".caf",
    ".sph",
    ".nist",
    ".w64",
    ".rf64",
    ".voc",
}
"""Endings of the sound files that libsndfile reads; their content decides."""
PICTURES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"}
PICTURES |= {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"}
"""Endings of the images that are read, see `d2v.processors.image.FORMATS`; their content decides."""
OTHERS = {
    ".m4a",
    ".aac",
    ".wma",
    ".mp4",
    ".m4v",
    ".mov",
    ".avi",
    ".mkv",
    ".webm",
    ".mka",
    ".amr",
    ".3gp",
    ".ape",
    ".wv",
    ".aa",
    ".heic",
    ".heif",
    ".svg",
    ".dcm",
}
OTHERS |= {".avif", ".jxl", ".tga", ".psd", ".ico", ".exr", ".hdr", ".pcx", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
"""Endings of sounds and images that are not read, only counted."""

UNREAD = {".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar", ".tgz", ".arrow", ".feather", ".xlsx", ".xls", ".ods"}
UNREAD |= {".pkl", ".pickle", ".h5", ".hdf5", ".npz", ".npy", ".sqlite", ".db", ".orc", ".avro", ".tfrecord"}
"""Endings of files that may hold tables, but are not read, only counted."""

JUNK = {
    "__macosx",
    "__pycache__",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}
WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
"""Usual names of splits, in any case. `eval` is the test, as for `datasets`, unless there is another test."""
WORD = {word: split for split, words in WORDS.items() for word in words}


def walk(folder: Path) -> list[PurePath]:
    """The files below a folder, relative to it and sorted, without hidden files and those of systems and runs.

    Links are followed, except to a folder that contains the link.
    """
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        if of_run(files):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if wanted(name) and not leads_back(Path(where, name)))
        found += [PurePath(where, name).relative_to(folder) for name in sorted(files) if wanted(name)]
    return sorted(found, key=lambda path: path.parts)


def leads_back(folder: Path) -> bool:
    """Whether a folder is a link to a folder that contains it, which would repeat without end."""
    return folder.is_symlink() and any(map(folder.samefile, folder.absolute().parents))


def of_run(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is a run's, not data."""
    return {"config.yaml", "environment.json"} <= set(names)


def wanted(name: str) -> bool:
    """Whether a file or folder may be data."""
    return not name.startswith((".", "~$")) and name.lower() not in JUNK


def usual(name: str) -> str | None:
    """The split that a name means: train, validation or test; None for other names.

    Spark and pandas write parts of a table to folders such as `split=train`.
    """
    return WORD.get(name.lower().removeprefix("split="))


def usual_place(name: str) -> int:
    """The order of splits: train, validation, test, those of other names."""
    split = usual(name) or usual_folder(name) or usual_file(name)
    return list(WORDS).index(split) if split else len(WORDS)


def usual_folder(name: str) -> str | None:
    """As `usual`, for folders such as `train-clean-100`, `dev.other` and `val2017` too."""
    match = re.fullmatch(r"([a-z]+)(?:[-.]\S+|_?\d+)?", name.lower())
    return WORD.get(match[1]) if match else None


def usual_file(stem: str) -> str | None:
    """As `usual`, for files with exactly one such word in their names, such as `en_ewt-ud-dev`."""
    splits = {WORD[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in WORD}
    return splits.pop() if len(splits) == 1 else None


def fitting(wanted: str, names: Iterable[str]) -> list[str]:
    """The names that may mean a split: the same name, else those that mean the same.

    `val` and `Validation` are found for "validation"; of several names the one that is only this word. `eval` is the
    validation if there is another test, else the test.
    """
    names = list(names)
    for same in (str, str.lower):
        if found := [name for name in names if same(name) == same(wanted)]:
            return found
    split = usual(wanted)
    if split is None:
        return []
    roles = {name: usual(name) or usual_folder(name) or usual_file(name) for name in names}
    evals = {name for name in names if usual(name) == "test" and name.lower().startswith("eval")}
    tests = {name for name, role in roles.items() if role == "test"} - evals
    if evals and tests:
        free = "validation" not in roles.values()
        roles |= dict.fromkeys(evals, "validation" if free else "eval")
    found = [name for name, role in roles.items() if role == split]
    return [name for name in found if usual(name)] or found


def split_level(files: Sequence[PurePath], asked: Iterable[str] = (), *, classes: bool = False) -> int | None:
    """The level of the folders, from 0 for the outermost, that are splits; None if none are.

    At the outermost level all folders are splits if one has a split's name; if folders may be classes, and a class may
    be called `train`, a second one needs such a name, or `train` subfolders. Further in, all need such names.

    Args:
        files: relative paths.
        asked: names of splits that were asked for, which may be any.
        classes: whether folders may be classes.
    """
    for level in range(3):
        folders = {path.parts[level] for path in files if len(path.parts) > level + 1}
        exact = {name: usual(name) for name in folders if usual(name)}
        loose = {name: usual_folder(name) for name in folders if usual_folder(name)}
        inside = all(len(path.parts) > level + 1 for path in files)
        if level == 0 and folders:
            if set(asked) & folders or len(set(exact.values())) > 1 or (exact and not classes):
                return 0
            nested = any(usual(path.parts[0]) == "train" and len(path.parts) > 2 for path in files)
            if "train" in exact.values() and nested and len(folders) > 1:
                return 0
        if inside and folders and (exact.keys() == folders or (loose.keys() == folders and level == 0)):
            return level
    return None


def table_splits(files: Sequence[PurePath], asked: Iterable[str] = ()) -> dict[str, list[PurePath]]:
    """Tables by split: by their folders, else by their own names; if neither names a split all are train.

    Tables of the same name in several folders are separate splits, such as `fold0/train`.

    Args:
        files: relative paths.
        asked: names of splits that were asked for.
    """
    level = split_level(files, asked)
    counts = Counter(path.name.lower() for path in files)
    splits: dict[str, list[PurePath]] = {}
    for path in files:
        inside = level is not None and len(path.parts) > level + 1
        name = path.parts[level] if inside else split_name(path)  # type: ignore[index]
        if not inside and usual_file(name) and counts[path.name.lower()] > 1:
            name = (path.parent / name).as_posix()  # a fold, language or copy: a split of its own
        splits.setdefault(name, []).append(path)
    named = level is not None or set(asked) & splits.keys()
    if named or any(usual(name) or usual_file(name) for name in splits):
        return splits
    return {"train": list(files)}


def split_name(path: PurePath) -> str:
    """The split in a file's name: "train" for `train-00000-of-00001.parquet` and `train_2.csv`."""
    stem = path.name.removesuffix("".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix)
    stem = re.sub(r"-\d{5}-of-\d{5}(-[0-9a-f]{16})?$", "", stem)
    short = re.sub(r"[-_.]?\d+$", "", stem)
    return short if usual(short) else stem


def counted(files: Iterable[PurePath]) -> str:
    """Counts of files by ending, such as "3 .m4a, 1 .mp4"."""
    return ", ".join(f"{count} {suffix}" for suffix, count in Counter(path.suffix.lower() for path in files).items())


def described(splits: Mapping[str, int]) -> str:
    """Splits with their rows, such as "train (20 rows), dev (1 row)"."""
    return ", ".join(f"{name} ({rows} row{'s' * (rows != 1)})" for name, rows in splits.items())


def open_binary(file: Path) -> Any:
    """The bytes of a file, unpacked where its name ends in `.gz`."""
    return gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb")
