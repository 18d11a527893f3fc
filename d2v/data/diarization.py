"""Who speaks or what is heard when: segments from rows and RTTM files, and the frames that a model learns.

A segment is (start, end, speaker), in seconds; in place of the speaker there may be another label. Shapes: T frames, C
speakers.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from d2v.data.columns import read_columns
from d2v.data.labels import label_problem
from d2v.data.load import AUDIO
from d2v.errors import InputError

Segment = tuple[float, float, str]
TOLERANCE = 0.01
"""Seconds that annotated times may be off: many corpora round them to 10 ms, onset and duration each."""
UNNAMED = "speech"
"""The class of segments that do not say what they are."""


def read_segments(
    row: Mapping[str, Any],
    audio_column: str,
    segments_column: str,
    label_key: str | None,
    recordings: Mapping[str, Sequence[Segment]] | None = None,
) -> list[Segment]:
    """The segments of a row.

    Args:
        row: of a data set.
        audio_column: its sound, whose path names the recording if the row has no `id`.
        segments_column: its segments, dicts of `start`, `end` and `label_key`.
        label_key: what says who or what it is, for us a single word; None calls all segments `UNNAMED`.
        recordings: from `read_rttm`, in place of the column.

    Raises:
        InputError: there are none to read; `check_segments` looks at their times.
    """
    if recordings is not None:
        audio = row[audio_column]
        name = recording_name(str(row["id"] if "id" in row else audio["path"] if isinstance(audio, dict) else audio))
        if name not in recordings:
            raise InputError(f"data.rttm has no recording {name!r}; it has {', '.join(list(recordings)[:5])}, ...")
        return [(start, end, label if label_key else UNNAMED) for start, end, label in recordings[name]]
    listed, keys = row[segments_column], ["start", "end", *([label_key] if label_key else [])]
    if not isinstance(listed, list):
        raise InputError(f"{segments_column} is {listed!r:.40}; should be a list of segments with {', '.join(keys)}")
    segments = []
    for each in listed:
        if not isinstance(each, dict) or any(each.get(key) in (None, "") for key in keys):
            raise InputError(f"{segments_column} has {each!r:.80}; a segment has {', '.join(keys)} (data.label_key)")
        segments.append((each["start"], each["end"], one_word(str(each[label_key])) if label_key else UNNAMED))
    return segments


def segment_classes(rows: Iterable[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], list[Segment]]) -> list[str]:
    """The labels of a split's segments, in order.

    Args:
        rows: of the split; those that cannot be read are passed over, to be named by whoever checks them.
        read: `read_segments` with its options.

    Raises:
        InputError: there is no segment.
    """
    classes = set()
    for row in rows:
        with suppress(InputError):
            classes |= {label for *_, label in read(row)}
    if not classes:
        raise InputError("train: has no segment; data.turns_column, data.label_key and data.rttm say where they are")
    return sorted(classes)


def segment_problem(
    row: Mapping[str, Any],
    seconds: float,
    read: Callable[[Mapping[str, Any]], list[Segment]],
    classes: Mapping[str, int] | None = None,
    most: int | None = None,
) -> str | None:
    """Why a row's segments cannot be learnt from or scored against, or None.

    Args:
        row: of a data set.
        seconds: that its sound lasts.
        read: `read_segments` with its options.
        classes: what segments may be; None if their labels are speakers.
        most: speakers that there may be.
    """
    try:
        segments = read(row)
    except InputError as error:
        return str(error)
    labels = [label for *_, label in segments]
    if classes is not None:
        # Segments of one class may overlap, those of one speaker may not.
        apart = [(start, end, str(i)) for i, (start, end, _) in enumerate(segments)]
        return check_segments(apart, seconds) or label_problem(labels, classes, "segment", several=True)
    if most is not None and (count := len(set(labels))) > most:
        return f"{count} speakers; the model has {most} (arch.num_labels)"
    return check_segments(segments, seconds)


def read_rttm(path: str | os.PathLike) -> dict[str, list[Segment]]:
    """The segments of each recording in a Rich Transcription Time Marked file (NIST RT-09, appendix A).

    Raises:
        InputError: a line that is no speaker's segment; the message names file and line. Lines of SPKR-INFO and
            comments are passed over.
    """
    recordings: dict[str, list[Segment]] = {}
    for where, fields in read_columns(path):
        if fields[0] == "SPKR-INFO" or fields[0].startswith(";;"):
            continue
        if fields[0] != "SPEAKER" or len(fields) < 9:
            raise InputError(
                f"{where}: should be SPEAKER <recording> 1 <onset> <duration> <NA> <NA> <speaker> <NA> <NA>"
            )
        try:
            onset, duration = float(fields[3]), float(fields[4])
        except ValueError:
            onset = duration = math.nan
        if not (0 <= onset < math.inf and 0 < duration < math.inf):
            raise InputError(
                f"{where}: onset {fields[3]}, duration {fields[4]}; should be seconds, at least 0 and above 0"
            )
        # Rounded, so that segments which touch in the file also do in binary.
        recordings.setdefault(fields[1], []).append((onset, round(onset + duration, 6), fields[7]))
    return recordings


def check_segments(segments: Sequence[Segment], seconds: float) -> str | None:
    """Why a recording's reference cannot be learnt from or scored against, or None.

    Args:
        segments: of one recording.
        seconds: that it lasts.
    """
    for start, end, _ in segments:
        if not (isinstance(start, Real) and isinstance(end, Real) and 0 <= start < end):
            return f"a segment from {start} to {end} s; should begin at 0 or later, and end after that"
        if end > seconds + TOLERANCE:
            return f"a segment from {start:g} to {end:g} s; the clip ends at {seconds:g} s"
    last: dict[str, float] = {}  # speaker -> the end of the segment before
    for start, end, speaker in sorted(segments):
        if start < last.get(speaker, 0) - TOLERANCE:
            return f"two segments of speaker {speaker} overlap at {start:g} s; they should be one"
        last[speaker] = end
    return None


def segments_to_frames(
    segments: Sequence[Segment], speakers: Sequence[str], frames: int, hop: float, *, begin: float = 0.0
) -> np.ndarray:
    """Who speaks in each frame. Frame t is the time from begin + t * hop to begin + (t + 1) * hop; its centre decides.

    Args:
        segments: of one recording, in any order; what lies beyond the frames is cut off.
        speakers: what the columns stand for.
        frames: how many there are.
        hop: seconds from frame to frame.
        begin: seconds at which the first begins.

    Returns:
        (T, C) float32 of zeros and ones.

    Raises:
        InputError: a segment of somebody else.
    """

    def first_frame(seconds: float) -> int:
        # Rounded, since a boundary on a frame's centre must not fall to either side by its last bit.
        return min(max(math.ceil(round((seconds - begin) / hop - 0.5, 6)), 0), frames)

    activity = np.zeros((frames, len(speakers)), np.float32)
    for start, end, speaker in segments:
        if speaker not in speakers:
            raise InputError(f"a segment's speaker is {speaker!r}; should be one of {', '.join(speakers)}")
        activity[first_frame(start) : first_frame(end), speakers.index(speaker)] = 1
    return activity


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
