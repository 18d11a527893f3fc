"""Folders of sounds or images: their classes, texts and splits, and tables that name their files."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from d2v.config import Data
from d2v.data.files import AUDIO, PICTURES, counted, fitting, split_level, usual, usual_file, wanted
from d2v.data.tables import SAMPLE, Remark
from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Reader = Callable[[], "Dataset"]


@dataclass(frozen=True)
class Media:
    """The sounds or images of a folder, and the recipe's names of the columns made of them.

    Attributes:
        root: the folder.
        files: relative to it.
        column: of the files.
        label_column: of the folders that the files are in.
        text_column: of the texts beside the files.
    """

    root: Path
    files: tuple[PurePath, ...]
    column: str
    label_column: str
    text_column: str

    @property
    def samples(self) -> list[PurePath]:
        """One file per folder and ending."""
        return list({(path.parent, path.suffix): path for path in self.files}.values())


def media_of(root: Path, files: Sequence[PurePath], data: Data) -> Media | None:
    """The sounds of a folder for a speech recipe, its images for a vision recipe; None if it has none."""
    columns = {kind: getattr(data, f"{kind}_column", None) for kind in ("audio", "image")}
    kinds = [kind for kind in columns if columns[kind]] or ([] if hasattr(data, "max_length") else ["audio", "image"])
    for kind in kinds:
        endings = AUDIO if kind == "audio" else PICTURES
        if found := tuple(path for path in files if path.suffix.lower() in endings):
            label = getattr(data, "label_column", None) or getattr(data, "speaker_column", None) or "label"
            text = getattr(data, "text_column", None) or "text"
            return Media(root, found, columns[kind] or kind, label, text)
    return None


def read_media(
    media: Media,
    texts: Mapping[str, str],
    asked: Sequence[str],
    listed: Mapping[str, Sequence[PurePath]] | None = None,
    remarks: list[Remark] | None = None,
    *,
    classes: bool,
) -> dict[str, Reader]:
    """Splits of a folder without tables.

    If most files of a split lie in folders of classes, the others, such as a cover, have no class.

    Args:
        media: its files.
        texts: text of a file, by its path without ending.
        asked: names of splits that were asked for.
        listed: files of splits that lists name; the others are train.
        remarks: gets the files without a class.
        classes: whether folders may be classes.
    """
    level = None if listed else split_level(media.files, asked, classes=classes)
    split_of = {path: name for name, paths in (listed or {}).items() for path in paths}
    splits: dict[str, list[PurePath]] = {}
    for path in media.files:
        inside = level is not None and len(path.parts) > level + 1
        name = path.parts[level] if inside else split_of.get(path, "train")  # type: ignore[index]
        splits.setdefault(name, []).append(path)
    labels = {name: folder_labels(paths, level) for name, paths in splits.items()}
    learnt = next(iter(fitting("train", splits) or splits))
    names = sorted({label for label in labels[learnt] or [] if label})
    readers: dict[str, Reader] = {}
    for name, paths in splits.items():
        own = sorted({label for label in labels[name] or [] if label} - set(names))
        if remarks is not None and None in (labels[name] or []):
            others = [path for path, label in zip(paths, labels[name] or [], strict=True) if label is None]
            _, line, values = left_out(media.root, others, f"of no class: {{}} of {name}, in no folder of one")
            remarks.append(("no class", line, values))  # they are kept, for prediction
        # A single folder that is no class of train, such as test/unknown, holds files without a class.
        one = len(set(labels[name] or []) - {None}) < 2 and (bool(own) or len(names) < 2)
        columns: dict[str, list] = {media.column: [str(media.root / path) for path in paths]}
        if texts:
            columns[media.text_column] = [texts.get(path.with_suffix("").as_posix()) for path in paths]
        readers[name] = partial(make_table, columns, media.label_column, None if one else labels[name], [*names, *own])
    return readers


def left_out(folder: Path, others: Sequence[PurePath], why: str) -> Remark:
    """The remark that files of a folder are not read; `{}` in `why` is replaced by their numbers by kind."""
    line = f"{folder}: {why.format(counted(others))}; the first is {others[0]}"
    return "files left out", line, {"files": len(others), "first": str(others[0])}


def read_documents(
    root: Path, files: Sequence[PurePath], data: Data, remarks: list[Remark]
) -> dict[str, Reader] | None:
    """Splits of texts in folders of classes, one document per file, such as IMDB's reviews; None without class folders.

    Texts elsewhere, and texts without a class, are left out.

    Args:
        root: the folder.
        files: of texts, relative to it.
        data: names the columns.
    """
    level = split_level(files, classes=True)
    inside = [path for path in files if len(path.parts) > (1 if level is None else level + 2)]
    if not hasattr(data, "label_column") or len(inside) < len(files) / 2:
        return None
    inside = [path for path in inside if path.parent.name != "unsup"]  # IMDB's reviews without a class
    used = set(inside)
    if others := [path for path in files if path not in used]:
        remarks.append(left_out(root, others, f"not read: {len(others)} texts in no folder of a class"))
    media = Media(root, tuple(inside), data.text_column, data.label_column, "")  # type: ignore[attr-defined]
    readers = read_media(media, {}, (), classes=True)
    return {name: partial(with_texts, reader, media.column) for name, reader in readers.items()}


def with_texts(reader: Reader, column: str) -> "Dataset":
    """The table with the texts of files instead of their paths."""
    table = reader()
    texts = [read_text(Path(path)) for path in table[column][:]]
    return table.rename_column(column, "id").add_column(column, texts)


def make_table(
    columns: dict[str, list], label_column: str, labels: Sequence[str | None] | None, names: list[str]
) -> "Dataset":
    """The data set of these columns, with a column of classes if there are `labels`; `names` are all classes."""
    import datasets

    table = datasets.Dataset.from_dict(columns)
    if labels is None:
        return table
    numbers = {name: i for i, name in enumerate(names)}
    return table.add_column(
        label_column, [each and numbers[each] for each in labels], feature=datasets.ClassLabel(names=names)
    )


def folder_labels(files: Sequence[PurePath], level: int | None) -> list[str | None] | None:
    """The outermost folder of each file below its split's; None if most files lie in none."""
    folders = []
    for path in files:
        parts = [part for i, part in enumerate(path.parts[:-1]) if i != level]
        folders.append(parts)
    while folders and all(folders) and len({parts[0] for parts in folders}) == 1 and all(len(x) > 1 for x in folders):
        folders = [parts[1:] for parts in folders]  # a folder of all files is no class
    return [parts[0] if parts else None for parts in folders] if 2 * sum(map(bool, folders)) > len(folders) else None


TIMED = re.compile(r"\s*\d+(\.\d+)?\s+\d+(\.\d+)?\s+\S")
"""A line of labels with their beginnings and ends, whatever their unit."""


def read_transcripts(root: Path, files: Sequence[PurePath], sounds: Sequence[PurePath]) -> dict[str, str]:
    """The text of each sound, by path without ending: from LibriSpeech's `*.trans.txt`, or a `.txt` beside it."""
    texts = {}
    for path in files:
        if path.name.endswith(".trans.txt"):
            lines = map(str.strip, read_text(root / path).split("\n"))  # texts may contain other line separators
            for line in filter(None, lines):
                name, *text = line.split(maxsplit=1)
                texts[(path.parent / name).as_posix()] = " ".join(text)
    if not texts:
        beside = {path.with_suffix("").as_posix(): path for path in files if path.suffix.lower() in (".txt", ".lab")}
        for path in sounds:
            if (stem := path.with_suffix("").as_posix()) in beside:
                content = read_text(root / beside[stem])
                timed = [TIMED.match(line) for line in content.split("\n") if line.strip()]
                if timed and all(timed):
                    should = "should be the text alone, or a table with start and end"
                    what = f"each line begins with two times, as Audacity's, HTK's and TIMIT's do; {should}"
                    raise InputError(f"{root / beside[stem]}: {what}")
                texts[stem] = " ".join(content.split())
    return texts


def listed_files(
    root: Path, files: Sequence[PurePath], media: Sequence[PurePath], remarks: list[Remark], first: str = ""
) -> dict[str, list[PurePath]]:
    """The files of splits that text files name, such as `testing_list.txt` and `ImageSets/Segmentation/val.txt`.

    A name is a whole line if such a file exists, else the part before its first space.

    Args:
        root: the folder.
        files: all of its files, relative to it.
        media: those that may be named, with or without their endings and some of their folders.
        remarks: gets the lists that are used, and the files in them that do not exist.
        first: a folder whose lists have priority.
    """
    stems = [path.with_suffix("") for path in media]
    counts, beside = Counter(stem.name for stem in stems), set(stems)
    places = {stem.name: path for stem, path in zip(stems, media, strict=True) if counts[stem.name] == 1}
    places |= {"/".join(stem.parts[-2:]): path for stem, path in zip(stems, media, strict=True)}
    places |= {stem.as_posix(): path for stem, path in zip(stems, media, strict=True)}

    def named(name: str) -> PurePath | None:
        name = name.replace("\\", "/").removeprefix("./")
        keys = [each for stem in (name, re.sub(r"\.\w+$", "", name)) for each in (stem, "/".join(stem.split("/")[-2:]))]
        return next((places[key] for key in keys if key in places), None)

    texts = [path for path in files if path.suffix.lower() == ".txt" and path.with_suffix("") not in beside]
    found: dict[str, list[PurePath]] = {}
    others: list[PurePath] = []
    # `train.txt` comes before `cat_train.txt`.
    for path in sorted(texts, key=lambda path: (first not in path.parts, usual(path.stem) is None)):
        split = usual_file(path.stem)
        if split is None or split in found:
            continue
        lines = [line.strip() for line in read_text(root / path).split("\n") if line.strip()]
        there = [named(line) or named(line.split()[0]) for line in lines]
        if not any(there):
            others.append(path)
            continue
        found[split] = list(dict.fromkeys(each for each in there if each))
        missing = [line for line, each in zip(lines, there, strict=True) if each is None]
        line = f"{split}: the {len(found[split])} files that {path} names"
        line += f"; {len(missing)} others are not there, the first is {missing[0]:.80}" if missing else ""
        remarks.append(("files", line, {"split": split, "list": str(path), "missing": len(missing)}))
    if others:
        line = f"{root}: {others[0]} names none of the files and is no list of a split"
        line += f"; nor are {len(others) - 1} others" if others[1:] else ""
        remarks.append(("files", line, {"files": len(others), "first": str(others[0])}))
    return found


def read_text(file: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a readable text file ({error})") from error


def name_files(
    table: "Dataset",
    column: str,
    folder: Path,
    split: str,
    known: Sequence[Path],
    remarks: list[Remark],
    files: Sequence[Path] = (),
) -> "Dataset":
    """The table of a file, with its names of files turned into paths, and the names as `id` if it has none.

    Names are relative to the table first; then to the folders beside it, with or without an ending, and last to the
    working directory.

    Args:
        table: any; one without names of files stays as it is.
        column: of the names in the recipe. If the table lacks it, the column whose files exist is used.
        folder: of the table.
        split: name of the split.
        known: files that may be meant.
        remarks: gets facts to note.
        files: all of them, for names that occur in several folders; empty where the same names are expected, as of
            images and masks.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = {name: getattr(value, "dtype", None) for name, value in table.features.items()}
    strings = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
    first = table.select_columns([name for name in strings if name == column or column not in kinds])[:SAMPLE]
    sample = {name: [value for value in values if value] for name, values in first.items()}
    places = {name: place_files(values, folder, split, known) for name, values in sample.items()}
    if column in sample and places[column] is None:
        places[column] = (folder, "", "")
        if any(Path(value).is_file() for value in sample[column]):
            line = f"{column}: files are not beside the table, but where the command runs, such as {sample[column][0]}"
            remarks.append(("files", line, {"column": column}))
            return table
    found = {name: place for name, place in places.items() if place is not None}
    named = [name for name in found if name == column or re.search("file|path", name.lower())]
    whole_names = [name for name, (_, end, _) in found.items() if not end]
    likely = named or whole_names or list(found)
    if len(likely) != 1:
        return table
    (name,) = likely
    place, end, form = found[name]
    written = table.select_columns([name]).with_format("arrow")[:][name].cast(pa.string())  # pandas 3 has large_string
    slashed = pc.replace_substring(written, "\\", "/")  # names written on Windows
    slashed = pc.utf8_normalize(slashed, form) if form else slashed
    whole = pc.match_substring_regex(written, r"^$|^(/|\\\\|[A-Za-z]:[/\\]|\w+://)")
    paths = pc.binary_join_element_wise(pa.scalar(str(place)), slashed, os.sep)
    paths = pc.binary_join_element_wise(paths, pa.scalar(end), "") if end else paths
    elsewhere = (
        other_places(table, [it and it + end for it in slashed.to_pylist()], folder, place, files) if files else {}
    )
    if elsewhere:
        paths = pa.array([elsewhere.get(i, path) for i, path in enumerate(paths.to_pylist())], pa.string())
    if name != column:
        fact = {"column": name, "as": column}
        remarks.append(("column", f"column {name!r} has the files of {column!r}", fact))
    if form:
        remarks.append(("files", f"column {name!r}: the files' names have accents in the other form", {"form": form}))
    if (place, end) != (folder, ""):
        more = f", of {len(elsewhere)} rows in other folders" if elsewhere else ""
        line = f"column {name!r}: files are in {place}{more}" + (f" and end in {end}" if end else "")
        remarks.append(("files", line, {"column": name, "folder": str(place), "ending": end}))
    ids = written
    if elsewhere:  # names that occur in several rows
        ids = pa.array([os.path.relpath(it, folder) if it else it for it in paths.to_pylist()], pa.string())
    made = table if "id" in kinds else table.add_column("id", ids)
    made = made.remove_columns([name]) if name == column else made
    return made.add_column(column, pc.if_else(whole, written, paths))


def other_places(
    table: "Dataset", names: Sequence[str | None], folder: Path, place: Path, files: Sequence[Path]
) -> dict[int, str]:
    """By row, the files that are not in the folder of most files, for names that occur in several folders.

    A column of the table, such as of classes, speakers or splits, gives the folder if it does so for every such row;
    else all are taken from the folder of most files.

    Args:
        table: its other columns may have names of folders.
        names: of each row's file, or None.
        folder: of the table; its own files come first.
        place: the folder of most files.
        files: that may be meant.

    Raises:
        InputError: the table names all files of several folders, and no column tells them apart.
    """
    folders: dict[str, list[Path]] = {}
    for file in files:
        folders.setdefault(file.name, []).append(file.parent)
    several = {name: places for name, places in folders.items() if len(places) > 1 and folder not in places}
    rows = [i for i, name in enumerate(names) if name in several]
    if not rows:
        return {}
    parts = {each: {*each.parts[-3:], *map(usual, each.parts[-3:])} for each in {*chain(*several.values())}}
    for column in table.column_names:
        chosen: dict[int, Path] = {}
        for i, value in zip(rows, words_of(table, column, rows) or (), strict=False):
            meant = [it for it in several[str(names[i])] if {value, usual(value)} & parts[it] - {None}]
            if len(meant) != 1:
                break
            chosen[i] = meant[0]
        if len(chosen) == len(rows):
            return {i: f"{it}{os.sep}{names[i]}" for i, it in chosen.items() if it != place}
    counts = Counter(names[i] for i in rows)
    if all(counts[name] == len(several[str(name)]) for name in counts):
        one, two = (it / str(names[rows[0]]) for it in several[str(names[rows[0]])][:2])
        why = f"{len(rows)} rows name files that are in several folders"
        raise InputError(f"{folder}: row {rows[0]} may mean {one} or {two}; {why}; names should have theirs")
    return {}


def words_of(table: "Dataset", column: str, rows: Sequence[int]) -> list[str] | None:
    """The texts or classes of some rows; None if the column has neither, or a row has none."""
    feature: Any = table.features[column]
    if not hasattr(feature, "dtype"):
        return None
    values: list[Any] = table.select_columns([column])[list(rows)][column]
    if hasattr(feature, "names"):
        values = [feature.names[value] if value is not None and value >= 0 else None for value in values]
    return values if all(isinstance(value, str) for value in values) else None


def place_files(
    values: Sequence[str], folder: Path, split: str = "", known: Sequence[Path] = ()
) -> tuple[Path, str, str] | None:
    """The folder and the ending that most of a table's names of files lack; None if no file is found.

    The third value is the Unicode form, NFC or NFD, of the files' names if the table's differ: macOS and archives made
    there write an accent as a character of its own. It is empty if the names are found as written.

    Args:
        values: some of the names.
        folder: of the table; it comes first, then its subfolders, the split's before others, and last its parent.
        split: name of the split.
        known: files that may be meant.
    """
    if not values or any(len(value) > 1000 for value in values):
        return None
    near = sorted(path for path in folder.iterdir() if path.is_dir() and wanted(path.name)) if folder.is_dir() else []
    near += dict.fromkeys(path.parent for path in known)
    near.sort(key=lambda path: (path.name != split, usual(path.name) != usual(split)))
    near = near[:100]
    endings = ["", *dict.fromkeys(path.suffix for path in known)]
    if PurePath(values[0]).suffix.lower() in AUDIO | PICTURES:
        endings = [""]
    elif not known:
        endings += sorted(AUDIO | PICTURES)
    best, most = None, 0
    forms = ["", *(each for each in ("NFC", "NFD") if any(unicodedata.normalize(each, it) != it for it in values))]
    for form, place, end in product(forms, dict.fromkeys([folder, *near, folder.parent]), endings):
        names = [(unicodedata.normalize(form, value) if form else value).replace("\\", "/") + end for value in values]
        if not ((place / names[0]).is_file() or (place / names[-1]).is_file()):
            continue  # else words would be looked up in many places, perhaps over a network
        hits = sum((place / name).is_file() for name in names)
        if hits > most:
            best, most = (place, end, form), hits
        if hits == len(values):
            break
    return best
