"""Who spoke when: segments, the frames that a model labels, and RTTM files.

A segment is (start, end, speaker), in seconds. Shapes: T frames, C speakers.
"""

import math
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path

import numpy as np

from d2v.data.columns import read_columns
from d2v.errors import InputError

Segment = tuple[float, float, str]
TOLERANCE = 0.01
"""Seconds that annotated times may be off: many corpora round them to 10 ms, onset and duration each."""


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


def frames_to_segments(activity: np.ndarray, hop: float, names: Sequence[str]) -> list[Segment]:
    """The runs of active frames, by start.

    Args:
        activity: (T, C), true where the speaker talks.
        hop: seconds from frame to frame.
        names: what to call the C speakers.
    """
    segments = []
    for name, active in zip(names, np.asarray(activity, bool).T, strict=True):
        edges = np.flatnonzero(np.diff(active, prepend=False, append=False))
        segments += [(start * hop, end * hop, name) for start, end in edges.reshape(-1, 2).tolist()]
    return sorted(segments)


def median_filter(activity: np.ndarray, size: int) -> np.ndarray:
    """Each frame becomes what most of the `size` frames around it are; outside the recording nobody speaks.

    Args:
        activity: (T, C) of zeros and ones, or booleans.
        size: an odd number of frames; 1 changes nothing.
    """
    from scipy import ndimage

    if size < 1 or size % 2 == 0:
        raise InputError(f"a median filter of {size} frames; should be an odd number, or 1 for none")
    filtered = ndimage.median_filter(activity.astype(np.uint8), size=(size, 1), mode="constant")
    return filtered.astype(activity.dtype)


def binarise(probabilities: np.ndarray, threshold: float, filter_size: int) -> np.ndarray:
    """Who speaks, (T, C) booleans: where the probability is above the threshold, then filtered by `median_filter`."""
    return median_filter(probabilities > threshold, filter_size)


def hear_segments(
    probabilities: Mapping[str, np.ndarray], names: Sequence[str], hop: float, threshold: float, filter_size: int
) -> dict[str, list[Segment]]:
    """The segments of recordings: `binarise`, then `frames_to_segments`.

    Args:
        probabilities: recording -> (T, C).
        names, hop, threshold, filter_size: as there.
    """
    return {
        recording: frames_to_segments(binarise(values, threshold, filter_size), hop, names)
        for recording, values in probabilities.items()
    }


def read_rttm(path: str | os.PathLike) -> dict[str, list[Segment]]:
    """The segments of each recording in a Rich Transcription Time Marked file (NIST RT-09, appendix A).

    Raises:
        InputError: a line that is no speaker's turn; the message names file and line. Lines of SPKR-INFO and comments
            are passed over.
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
        # Rounded, so that turns which touch in the file also do in binary.
        recordings.setdefault(fields[1], []).append((onset, round(onset + duration, 6), fields[7]))
    return recordings


def write_rttm(path: str | os.PathLike, recordings: Mapping[str, Sequence[Segment]]) -> None:
    """Write RTTM: ten fields, milliseconds. A segment that rounds to nothing is left out, since scorers refuse it.

    Raises:
        InputError: a name that is empty or has white space, which would be two fields.
    """
    lines = []
    for recording, segments in recordings.items():
        for start, end, speaker in sorted(segments):
            for name in (recording, speaker):
                if len(name.split()) != 1 or name != name.strip():
                    raise InputError(f"{path}: the name {name!r} should be one word; RTTM separates fields by spaces")
            onset, duration = round(start, 3), round(end, 3) - round(start, 3)
            if round(duration, 3) > 0:
                lines.append(f"SPEAKER {recording} 1 {onset:.3f} {duration:.3f} <NA> <NA> {speaker} <NA> <NA>\n")
    Path(path).write_text("".join(lines), "utf-8")


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
