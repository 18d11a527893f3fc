"""Who or what is heard when in the rows of a data set: by a column of segments, or by an RTTM file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from d2v.data.labels import label_problem
from d2v.data.load import AUDIO
from d2v.decode.diarization import Segment, check_segments
from d2v.errors import InputError

UNNAMED = "speech"
"""The class of segments that do not say what they are."""


def read_turns(
    row: Mapping[str, Any],
    audio_column: str,
    turns_column: str,
    label_key: str | None,
    recordings: Mapping[str, Sequence[Segment]] | None = None,
) -> list[Segment]:
    """The segments of a row.

    Args:
        row: of a data set.
        audio_column: its sound, whose path names the recording if the row has no `id`.
        turns_column: its segments, dicts of `start`, `end` and `label_key`.
        label_key: what says who or what it is, for us a single word; None calls all segments `UNNAMED`.
        recordings: from `d2v.decode.diarization.read_rttm`, in place of the column.

    Raises:
        InputError: there are none to read; `check_segments` looks at their times.
    """
    if recordings is not None:
        audio = row[audio_column]
        name = recording_name(str(row["id"] if "id" in row else audio["path"] if isinstance(audio, dict) else audio))
        if name not in recordings:
            raise InputError(f"data.rttm has no recording {name!r}; it has {', '.join(list(recordings)[:5])}, ...")
        return [(start, end, who if label_key else UNNAMED) for start, end, who in recordings[name]]
    turns, keys = row[turns_column], ["start", "end", *([label_key] if label_key else [])]
    if not isinstance(turns, list):
        raise InputError(f"{turns_column} is {turns!r:.40}; should be a list of segments with {', '.join(keys)}")
    for turn in turns:
        if not isinstance(turn, dict) or any(turn.get(key) in (None, "") for key in keys):
            raise InputError(f"{turns_column} has {turn!r:.80}; a segment has {', '.join(keys)} (data.label_key)")
    return [(turn["start"], turn["end"], one_word(str(turn[label_key])) if label_key else UNNAMED) for turn in turns]


def turn_classes(rows: Iterable[Mapping[str, Any]], turns: Callable[[Mapping[str, Any]], list[Segment]]) -> list[str]:
    """What there is in the segments of a split, in order.

    Args:
        rows: of the split; those that cannot be read are passed over, to be named by whoever checks them.
        turns: `read_turns` with its options.

    Raises:
        InputError: nothing is.
    """
    found = set()
    for row in rows:
        with suppress(InputError):
            found |= {what for *_, what in turns(row)}
    if not found:
        raise InputError("train: has no segment; data.turns_column, data.label_key and data.rttm say where they are")
    return sorted(found)


def turn_problem(
    row: Mapping[str, Any],
    seconds: float,
    turns: Callable[[Mapping[str, Any]], list[Segment]],
    classes: Mapping[str, int] | None = None,
    most: int | None = None,
) -> str | None:
    """Why a row's segments cannot be learnt from or scored against, or None.

    Args:
        row: of a data set.
        seconds: that its sound lasts.
        turns: `read_turns` with its options.
        classes: what segments may be; None if their labels are speakers.
        most: speakers that there may be.
    """
    try:
        found = turns(row)
    except InputError as error:
        return str(error)
    labels = [label for *_, label in found]
    if classes is not None:
        # Two of a class may be heard at once, but a speaker speaks only once.
        found = [(start, end, str(i)) for i, (start, end, _) in enumerate(found)]
        return check_segments(found, seconds) or label_problem(labels, classes, "segment", several=True)
    if most is not None and (count := len(set(labels))) > most:
        return f"{count} speakers; the model has {most} (arch.num_labels)"
    return check_segments(found, seconds)


def recording_name(clip: str) -> str:
    """What RTTM and other files call a clip: a single word, without folder and without the ending of a sound file."""
    path = Path(clip)
    return one_word(path.stem if path.suffix.lower() in AUDIO else path.name)


def recording_names(clips: Sequence[str], split: str) -> list[str]:
    """The names of a split's recordings; InputError if two have the same."""
    clip_of: dict[str, str] = {}
    for clip in clips:
        name = recording_name(clip)
        if name in clip_of:
            raise InputError(f"{split}: {clip_of[name]} and {clip} are both called {name}; names should differ")
        clip_of[name] = clip
    return list(clip_of)


def one_word(name: str) -> str:
    """A name without white space, which separates fields in RTTM."""
    return "_".join(name.split())
