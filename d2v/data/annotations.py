"""Field recordings: intervals in tiers of ELAN and Praat files beside the recordings, as rows or segments."""

import codecs
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from d2v.config import Data
from d2v.data.sources import Source
from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (".eaf", ".textgrid")
"""Endings of ELAN's and Praat's files, in lower case."""
NUMBER = re.compile(r"^(\s*(?:(?:xmin|xmax|number|time) = )?)([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*$", re.MULTILINE)
"""A line of a TextGrid with a time such as 5.7e-14, which Praat writes and pympi would read as 14."""


class Interval(NamedTuple):
    """An interval of a tier, in seconds."""

    start: float
    end: float
    text: str
    tier: str
    speaker: str
    """The tier's participant, or else its name."""


def read_annotations(
    path: Path, wanted: Sequence[str] = ("*",), met: Counter[str] | None = None
) -> dict[str, list[Interval]]:
    """The intervals of each tier of an ELAN or Praat file that have a text and times, in order.

    In ELAN several annotations of one interval, which have no times of their own, are one, joined by spaces.

    Args:
        path: of the file.
        wanted: names of tiers, or * for all.
        met: gets counts of what is not used as it stands.

    Raises:
        InputError: the file cannot be read, or the package for it is not installed.
    """
    try:
        import pympi  # noqa: F401
    except ImportError as error:
        raise InputError(f'{path}: reading it takes pympi-ling: pip install -e ".[annotations]"') from error
    met = Counter() if met is None else met
    try:
        read = read_elan if path.suffix.lower() == ".eaf" else read_praat
        tiers, counts = read(path)
    except Exception as error:  # the package may raise anything for a damaged file
        raise InputError(f"{path}: not readable as {path.suffix} ({type(error).__name__}: {error})") from error
    for name, each in counts.items():
        met.update(each if "*" in wanted or name in wanted else {})
    return {name: sorted(rows) for name, rows in tiers.items()}


Read = tuple[dict[str, list[Interval]], dict[str, Counter[str]]]
"""The intervals of each tier, and counts of what is not used as it stands."""


def read_elan(path: Path) -> Read:
    """The tiers of an ELAN file, whose time origin may lie later than the recording's."""
    import pympi

    document = pympi.Elan.Eaf(str(path), suppress_version_warning=True)
    origin = 0.0
    for media in document.media_descriptors:
        names = {PurePosixPath(media.get(key) or "").stem for key in ("MEDIA_URL", "RELATIVE_MEDIA_URL")}
        if path.stem in names or len(document.media_descriptors) == 1:
            origin = float(media.get("TIME_ORIGIN") or 0)
    tiers, met = dict[str, list[Interval]](), dict[str, Counter[str]]()
    for name in document.get_tier_names():
        speaker = document.tiers[name][2].get("PARTICIPANT") or name
        texts: dict[tuple[float, float], list[str]] = {}
        met[name] = Counter()
        refers = bool(document.tiers[name][1])
        for start, end, text, *_ in document.get_annotation_data_for_tier(name):
            if not (text and text.strip()):
                continue
            if start is None or end is None:
                met[name]["annotations have no times and are left out"] += 1
            else:
                texts.setdefault(((start + origin) / 1000, (end + origin) / 1000), []).append(text.strip())
        tiers[name] = []
        for (start, end), several in texts.items():
            met[name]["intervals have several annotations, joined by spaces"] += refers and len(several) > 1
            joined = [" ".join(several)] if refers else several
            tiers[name] += [Interval(start, end, text, name, speaker) for text in joined]
        met[name][f"intervals are heard {origin / 1000:g} s later, as the file has it"] += len(tiers[name]) * bool(
            origin
        )
    return tiers, met


def read_praat(path: Path) -> Read:
    """The tiers of a TextGrid; tiers of the same name are joined."""
    import pympi

    content = path.read_bytes()
    if not content.startswith(b"ooBinaryFile"):
        wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Praat's own, where a text is not ASCII
        text = re.sub("\r\n?", "\n", content.decode("utf-16" if wide else "utf-8-sig"))
        content = NUMBER.sub(
            lambda line: f"{line[1]}{max(float(line[2]), 0):.9f}".rstrip("0").rstrip("."), text
        ).encode()
    grid = pympi.Praat.TextGrid(xmax=0)
    grid.from_file(io.BytesIO(content), "utf-8")
    tiers, met = dict[str, list[Interval]](), dict[str, Counter[str]]()
    for tier in grid.get_tiers():
        rows = tier.get_intervals(True)
        if tier.tier_type != "IntervalTier":
            met.setdefault(tier.name, Counter())["points last no time and are left out"] += len(list(rows))
            continue
        texts = [(float(start), float(end), text.strip()) for start, end, text in rows if text.strip()]
        tiers.setdefault(tier.name, []).extend(Interval(*row, tier.name, tier.name) for row in texts)
    return tiers, met


def with_tiers(source: Mapping[str, "Dataset"], data: Data) -> Source:
    """The source with one row per interval of `data.tiers`, or, for a recipe of segments, one per recording.

    Args:
        source: its splits have a column of recordings' paths.
        data: with the options of `d2v.data.audio.AudioData`.
    """
    remarks = source.remarks if isinstance(source, Source) else []  # splits that are read later add to these
    return Source({name: partial(_expand, source, name, data, remarks) for name in source}, remarks)


def _expand(source: Mapping[str, "Dataset"], split: str, data: Any, remarks: list[Any]) -> "Dataset":
    """A split with the intervals of its recordings."""
    import datasets

    table, column = source[split], data.audio_column
    if column not in table.column_names:
        raise InputError(
            f"{split}: no column {column!r} (data.audio_column) of recordings whose data.tiers could be read"
        )
    paths = [value.get("path") if isinstance(value, dict) else value for value in table[column][:]]
    segments = hasattr(data, "segments_column")
    kept = table.select_columns([name for name in table.column_names if name not in (column, "id")])
    rows: list[dict[str, Any]] = []
    there, met = dict[str, None](), Counter[str]()
    alone, lacking = [], []
    beside = {folder: annotated(folder) for folder in {Path(path).parent for path in paths if path}}
    for path, others in zip(paths, kept if kept.column_names else [{}] * len(paths), strict=True):
        if not path or (file := beside[Path(path).parent].get(Path(path).stem)) is None:
            alone.append(path)
            continue
        tiers = read_annotations(file, data.tiers, met)
        there |= dict.fromkeys(tiers)
        wanted = list(tiers) if data.tiers == ["*"] else [name for name in data.tiers if name in tiers]
        found = sorted(interval for name in wanted for interval in tiers[name])
        if not wanted:  # that does not mean that nobody speaks
            lacking.append(file)
        elif segments:
            rows.append(others | {column: path, data.segments_column: [interval._asdict() for interval in found]})
        else:
            rows += [others | {column: path} | _named(interval._asdict(), data) for interval in found]
    if data.tiers != ["*"] and (unknown := [name for name in data.tiers if name not in there]):
        listed = ", ".join(there) or "none"
        raise InputError(f"{split}: no tier {unknown[0]!r} (data.tiers) beside {column}; there are {listed}")
    if not rows:
        raise InputError(
            f"{split}: no intervals; looked for .eaf, .TextGrid beside {len(paths)} recordings (data.tiers)"
        )
    if alone:
        line = (
            f"{split}: {len(alone)} of {len(paths)} recordings have no .eaf or .TextGrid beside them and are left out"
        )
        values = {"split": split, "rows": len(alone), "of": len(paths)}
        remarks.append(("recordings without tiers", f"{line}; the first is {alone[0]}", values))
    if lacking:
        line = (
            f"{split}: {len(lacking)} of {len(paths)} recordings have no tier {', '.join(data.tiers)} and are left out"
        )
        values = {"split": split, "rows": len(lacking), "of": len(paths)}
        remarks.append(("recordings without these tiers", f"{line}; the first is of {lacking[0]}", values))
    for what, count in met.items():
        if count:
            remarks.append((f"tiers: {what}", f"{split}: {count} {what} (data.tiers)", {"split": split, "rows": count}))
    return datasets.Dataset.from_list(rows)


def annotated(folder: Path) -> dict[str, Path]:
    """The ELAN and Praat files of a folder by name without ending; of two with one name ELAN's."""
    files = [file for file in (folder.iterdir() if folder.is_dir() else ()) if file.suffix.lower() in ENDINGS]
    return {file.stem: file for file in sorted(files, key=lambda file: -ENDINGS.index(file.suffix.lower()))}


def _named(row: dict[str, Any], data: Any) -> dict[str, Any]:
    """A row with the interval's text in the recipe's column of texts or labels, and its speaker."""
    named = {getattr(data, "text_column", None) or getattr(data, "label_column", None) or "text": row.pop("text")}
    named |= {getattr(data, "speaker_column", None) or "speaker": row.pop("speaker")}
    return row | named
