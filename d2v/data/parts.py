"""Which part of its recording a row means: columns such as `start` and `end`, or `offset` and `duration`."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d2v.config import Data, Job
from d2v.data.facts import note
from d2v.data.rows import Split
from d2v.errors import InputError
from d2v.processors.audio import OVERHANG, AudioInfo, Part

ROLES = dict.fromkeys(("start", "begin", "beginning", "beg", "onset", "from", "tmin", "xmin", "t0"), "start")
ROLES |= dict.fromkeys(("end", "ending", "stop", "finish", "to", "tmax", "xmax", "t1"), "end")
ROLES |= {"duration": "duration", "dur": "duration", "length": "duration", "len": "duration", "offset": "offset"}
"""Words in names of columns. An offset is an end beside an onset, as in DCASE, and else a start, as in NeMo."""
ABOUT = {"time", "times", "timestamp", "ts", "at", "in", "segment", "seg", "part", "clip", "audio", "utterance", "utt"}
ABOUT |= {"interval", "region", "chunk", "event", "turn", "sentence", "speech"}
"""Words that may stand beside them."""
UNITS = dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0)
UNITS |= dict.fromkeys(("ms", "msec", "msecs", "millis", "millisecond", "milliseconds"), 0.001)
UNITS |= dict.fromkeys(("sample", "samples"), math.nan)
"""The last word of a name may be a unit, here in seconds; NaN for samples of the recording."""
CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)")


@dataclass
class PartData(Data):
    """Data whose rows may be parts of recordings.

    Attributes:
        start_column: column of the seconds at which the part begins that a row means; auto looks for the usual names,
            such as start, begin_time or offset, and null reads recordings whole.
        end_column: column of the seconds at which the part ends; auto likewise.
        duration_column: column of the seconds that the part lasts, where no column has its end; auto likewise, beside a
            column of starts.
        tiers: tiers of the ELAN (.eaf) or Praat (.TextGrid) file beside each recording whose intervals are the rows, or
            the recording's segments; [*] means all. By default such files are not read.
    """

    start_column: str | None = "auto"
    end_column: str | None = "auto"
    duration_column: str | None = "auto"
    tiers: list[str] | None = None


def find_columns(
    names: Sequence[str], columns: Sequence[str], data: PartData, where: str
) -> dict[str, tuple[str, float]]:
    """The columns that say which parts are meant: start, end, duration -> name and unit in seconds; perhaps none.

    Args:
        names: of the columns that may be times.
        columns: names of all columns.
        data: whose options may name them.
        where: what to call the table in messages.

    Raises:
        InputError: a column that was named is not there, or several may be meant.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    for name in names:
        words = re.findall(r"[a-z]+\d*", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
        unit = UNITS.get(words[-1]) if len(words) > 1 else None
        words = [word for word in (words if unit is None else words[:-1]) if word not in ABOUT]
        if len(words) == 2 and words[1] == "offset" and words[0] in ("start", "end"):
            words = words[:1]
        if len(words) == 1 and words[0] in ROLES:
            found.setdefault(ROLES[words[0]], []).append((name, 1.0 if unit is None else unit))
    if offsets := found.pop("offset", []):
        starts = found.setdefault("start", [])
        if any("onset" in name.lower() for name, _ in starts):
            found.setdefault("end", []).extend(offsets)
        elif not ("end" in found and starts):
            starts.extend(offsets)
    chosen = {}
    for role in ("start", "end", "duration"):
        option = getattr(data, f"{role}_column")
        if option not in ("auto", None):
            if option not in columns:
                raise InputError(f"{where}: no column {option!r} (data.{role}_column); there are {', '.join(columns)}")
            unit = dict(found.get(role, [])).get(option, 1.0)
            chosen[role] = (option, unit)
        elif option == "auto" and (several := found.get(role)):
            if role == "duration" and ("end" in chosen or "start" not in chosen):
                continue
            if len(several) > 1:
                listed = ", ".join(name for name, _ in several)
                raise InputError(f"{where}: columns {listed}; --data.{role}_column says which has the {role}s of parts")
            chosen[role] = several[0]
    if "end" in chosen and data.duration_column == "auto":
        chosen.pop("duration", None)
    # A lone end is more likely to be something else than a part from the recording's beginning.
    return chosen if {"start", "duration"} & chosen.keys() or data.end_column not in ("auto", None) else {}


def seconds_of(value: Any, unit: float, rate: int) -> float | None:
    """A time in seconds: of a number, or of text such as "1.5" or "0:01:02.5"; None where there is none.

    Raises:
        ValueError: something else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and (clock := CLOCK.fullmatch(value.strip())):
        hours, minutes, seconds = (float((part or "0").replace(",", ".")) for part in clock.groups())
        return 3600 * hours + 60 * minutes + seconds
    number = float(value.replace(",", ".") if isinstance(value, str) else value)
    if math.isnan(number):
        return None
    return number / rate if math.isnan(unit) else number * unit


def read_parts(job: Job, split: Split, infos: Sequence[AudioInfo | str]) -> list[Part | str | None] | None:
    """The part of its recording that each row means; None for all of it, or what is wrong with it.

    Args:
        job: whose data have the options of `PartData`.
        split: the rows.
        infos: what the header of each row's file says; where it is text nothing is known.

    Returns:
        None where no column says anything of parts.
    """
    data: PartData = job.config.data
    names = _columns_of_times(split)
    columns = find_columns(names, split.table.column_names, data, split.name)
    if not columns:
        _note_unused(job, split, infos, names)
        return None
    values = {role: split.column(name) for role, (name, _) in columns.items()}
    parts: list[Part | str | None] = []
    whole = []
    for i, info in enumerate(infos):
        if isinstance(info, str):
            parts.append(None)
            continue
        try:
            times = {role: seconds_of(values[role][i], unit, info.rate) for role, (_, unit) in columns.items()}
        except (TypeError, ValueError):
            shown = ", ".join(f"{name} is {values[role][i]!r:.40}" for role, (name, _) in columns.items())
            parts.append(f"{shown}; should be seconds (data.start_column null hears recordings whole)")
            continue
        part = place_part(times, info.seconds, " and ".join(name for name, _ in columns.values()))
        if part == "whole":
            whole.append(i)
        parts.append(None if part == "whole" else part)
    said = " to ".join(name for role, (name, _) in columns.items() if role != "duration")
    said += f" for {columns['duration'][0]}" if "duration" in columns else ""
    count = sum(isinstance(part, tuple) for part in parts)
    if count:
        line = f"{split.name}: {count} of {len(split)} rows are the part of their recording from {said}"
        note(job, "parts of recordings", line, split=split.name, rows=count, of=len(split))
    if whole:
        line = (
            f"{split.name}: {len(whole)} of {len(split)} recordings last as long as the part from {said} and are heard"
        )
        note(job, "recordings are parts", f"{line} whole", split=split.name, rows=len(whole), of=len(split))
    return parts


def has_parts(split: Split, data: PartData) -> bool:
    """Whether columns say which part of its recording a row is."""
    return bool(find_columns(_columns_of_times(split), split.table.column_names, data, split.name))


def place_part(times: Mapping[str, float | None], seconds: float, names: str) -> Part | str | None:
    """Where a part lies in its recording: None for all of it, "whole" where the file is the part, or what is wrong.

    Args:
        times: start, end and duration, as far as there are any.
        seconds: that the recording lasts.
        names: of the columns, for messages.
    """
    start, end, duration = (times.get(role) for role in ("start", "end", "duration"))
    if start is None and end is None and duration is None:
        return None
    start = start or 0.0
    if end is None:
        end = start + duration if duration is not None else seconds
    if not 0 <= start < end < math.inf:
        reason = "should begin at 0 or later, and end after that"
        return f"{names}: a part from {start:g} to {end:g} s; {reason} (data.start_column null hears recordings whole)"
    if start < seconds and end <= seconds + OVERHANG:
        return None if start == 0 and end >= seconds else (start, min(end, seconds))
    if abs(seconds - (end - start)) <= OVERHANG:
        return "whole"  # such as data sets that were cut into clips, and say where from
    reason = f"the recording ends at {seconds:g} s"
    return f"{names}: a part from {start:g} to {end:g} s; {reason} (data.start_column null hears recordings whole)"


def part_name(name: str, part: Part | None) -> str:
    """What to call a part of a file: as a media fragment, such as a.wav#t=1.5,3.0."""
    return name if part is None else f"{name}#t={','.join(str(round(t, 3)) for t in part if t is not None)}"


def _columns_of_times(split: Split) -> list[str]:
    """The columns that may be times: numbers, or text whose first value is one."""
    import pyarrow as pa

    names = []
    for field in split.table.data.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        if number or pa.types.is_null(field.type):
            names.append(field.name)
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            values = (
                value for value in split.table.data[field.name].slice(0, 1000).to_pylist() if value and value.strip()
            )
            try:
                seconds_of(next(values, None), 1.0, 1)
            except ValueError:
                continue
            names.append(field.name)
    return names


def _note_unused(job: Job, split: Split, infos: Sequence[AudioInfo | str], names: Sequence[str]) -> None:
    """Say which columns look like parts and are not used, where recordings are not heard whole on purpose."""
    data: PartData = job.config.data
    if data.start_column is None:
        return
    lone = [
        name for name in split.table.column_names if re.search(r"start|begin|onset|offset|(^|_)end(_|$)", name.lower())
    ]
    advice = "--data.start_column and --data.end_column name the columns of parts, null says that there are none"
    if lone:
        line = f"{split.name}: recordings are heard whole, whatever {', '.join(lone)} may say; {advice}"
        note(job, "columns not used", line, split=split.name, columns=lone)
    durations = [name for name in names if re.fullmatch(r"dur|duration(_s|_sec|_seconds)?", name.lower())]
    for name in durations[:1]:
        pairs = zip(split.column(name), infos, strict=True)
        less = [i for i, (value, info) in enumerate(pairs) if not isinstance(info, str) and _is_less(value, info)]
        if less:
            line = f"{split.name}: {name} says less than the recording lasts in {len(less)} of {len(split)} rows, which"
            line += (
                f" are heard whole; the first is {split.where(less[0])} (--data.duration_column {name} hears so much)"
            )
            note(job, "durations differ", line, split=split.name, rows=len(less), of=len(split))


def _is_less(value: Any, info: AudioInfo) -> bool:
    """Whether a duration is well below that of the recording."""
    try:
        seconds = seconds_of(value, 1.0, info.rate)
    except (TypeError, ValueError):
        return False
    return seconds is not None and 0 < seconds < info.seconds - max(0.5, 0.05 * info.seconds)
