"""Field recordings: tiers of ELAN and Praat files beside the recordings, whose intervals become rows or segments."""

import codecs
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from d2v.config import Data
from d2v.data.sources import Source
from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (".eaf", ".TextGrid", ".textgrid")
"""Of ELAN's files, and of Praat's."""


class Interval(NamedTuple):
    """What a tier has of a stretch of a recording, in seconds."""

    start: float
    end: float
    text: str
    tier: str
    speaker: str
    """The tier's participant, or else its name."""


def read_annotations(path: Path) -> dict[str, list[Interval]]:
    """The intervals of each tier of an ELAN or Praat file that have a text and times, in order.

    Raises:
        InputError: the file cannot be read, or the package that does is not there.
    """
    try:
        import pympi
    except ImportError as error:
        raise InputError(f'{path}: reading it takes pympi-ling: pip install -e ".[annotations]"') from error
    tiers: dict[str, list[tuple[Any, Any, Any]]] = {}
    speakers: dict[str, str] = {}
    try:
        if path.suffix == ".eaf":
            document = pympi.Elan.Eaf(str(path), suppress_version_warning=True)
            for name in document.get_tier_names():
                speakers[name] = document.tiers[name][2].get("PARTICIPANT") or name
                rows = [annotation[:3] for annotation in document.get_annotation_data_for_tier(name)]
                timed = [row for row in rows if row[0] is not None and row[1] is not None]
                tiers[name] = [(start / 1000, end / 1000, text) for start, end, text in timed]
        else:
            head = path.read_bytes()[:3]
            wide = head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Praat's own, where a text is not ASCII
            for tier in pympi.Praat.TextGrid(str(path), codec="utf-16" if wide else "utf-8-sig").get_tiers():
                if tier.tier_type == "IntervalTier":  # the other kind has points, which last no time
                    tiers[tier.name] = list(tier.get_all_intervals())
    except Exception as error:  # the package raises nearly anything of a damaged file
        raise InputError(f"{path}: not readable as {path.suffix} ({type(error).__name__}: {error})") from error
    return {
        name: sorted(
            Interval(float(start), float(end), text.strip(), name, speakers.get(name, name))
            for start, end, text in rows
            if text and text.strip()
        )
        for name, rows in tiers.items()
    }


def with_tiers(source: Mapping[str, "Dataset"], data: Data) -> Source:
    """The source with a row for each interval of `data.tiers`; for a recipe of segments with those of each recording.

    Args:
        source: whose splits have a column of recordings' paths.
        data: with the options of `d2v.data.audio.AudioData`.
    """
    remarks = list(getattr(source, "remarks", ()))
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
    rows: list[dict[str, Any]] = []
    there: Counter[str] = Counter()
    alone = []
    for path in paths:
        beside = [Path(str(path)).with_suffix(ending) for ending in ENDINGS]
        file = next((each for each in beside if each.is_file()), None)
        if file is None:
            alone.append(path)
            continue
        tiers = read_annotations(file)
        there.update(tiers)
        wanted = list(tiers) if data.tiers == ["*"] else [name for name in data.tiers if name in tiers]
        found = sorted(interval for name in wanted for interval in tiers[name])
        if segments:
            rows.append({column: path, data.segments_column: [interval._asdict() for interval in found]})
        else:
            rows += [{column: path} | interval._asdict() for interval in found]
    if data.tiers != ["*"] and (unknown := [name for name in data.tiers if name not in there]):
        listed = ", ".join(there) or "none"
        raise InputError(f"{split}: no tier {unknown[0]!r} (data.tiers) beside {column}; there are {listed}")
    if not rows:
        raise InputError(
            f"{split}: no intervals; looked for {', '.join(ENDINGS)} beside {len(paths)} recordings (data.tiers)"
        )
    if alone:
        line = (
            f"{split}: {len(alone)} of {len(paths)} recordings have no .eaf or .TextGrid beside them and are left out"
        )
        values = {"split": split, "rows": len(alone), "of": len(paths)}
        remarks.append(("recordings without tiers", f"{line}; the first is {alone[0]}", values))
    return datasets.Dataset.from_list(rows if segments else [_named(row, data) for row in rows])


def _named(row: dict[str, Any], data: Any) -> dict[str, Any]:
    """A row with the interval's text under the name that the recipe has for texts or labels, and its speaker."""
    named = {getattr(data, "text_column", None) or getattr(data, "label_column", None) or "text": row.pop("text")}
    named |= {getattr(data, "speaker_column", None) or "speaker": row.pop("speaker")}
    return row | named
