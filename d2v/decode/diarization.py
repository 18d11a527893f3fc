"""Who spoke when: from the probabilities of frames to segments and RTTM files.

Segments are those of `d2v.data.diarization`. Shapes: T frames, C speakers.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2v.data.diarization import Segment, SegmentData, one_word
from d2v.decode.windows import Windowed, windowed_logits
from d2v.errors import InputError
from d2v.hub import fetch_file, read_json
from d2v.models.audio import Data2VecAudioConfig

DECISION = "diarization.json"
"""File beside a model with the `threshold` and the `filter` of `decode_segments`, chosen on validation."""


def segment_windows(data: SegmentData, config: Data2VecAudioConfig, rate: int) -> Windowed | None:
    """A function for recordings longer than `data.chunk_seconds`, in windows with matched speakers; None without it."""
    if data.chunk_seconds is None:
        return None
    align = match_speakers if config.frame_loss == "pit_bce" else None
    return windowed_logits(config, rate, data.chunk_seconds, data.stride_seconds, data.batch_seconds, align)


def match_speakers(before: Tensor, after: Tensor) -> Tensor:
    """The order of the columns of `after`, (C,), that matches its speakers with those of `before`.

    Args:
        before, after: logits (T, C) of the same frames, from two windows that each have their own order of speakers.
    """
    from scipy.optimize import linear_sum_assignment

    both = before.float().sigmoid()[:, :, None], after.float().sigmoid()[:, None]
    apart = (both[0] - both[1]).abs().sum(0)  # (C, C)
    return torch.from_numpy(linear_sum_assignment(apart.numpy())[1])


def frames_to_segments(activity: np.ndarray, hop: float, names: Sequence[str]) -> list[Segment]:
    """The runs of active frames, by start.

    Args:
        activity: (T, C), true where the speaker talks.
        hop: seconds from frame to frame.
        names: of the C speakers.
    """
    segments = []
    for name, active in zip(names, np.asarray(activity, bool).T, strict=True):
        edges = np.flatnonzero(np.diff(active, prepend=False, append=False))
        segments += [(start * hop, end * hop, name) for start, end in edges.reshape(-1, 2).tolist()]
    return sorted(segments)


def median_filter(activity: np.ndarray, size: int) -> np.ndarray:
    """Each frame gets the majority value of the `size` frames around it; outside the recording nobody speaks.

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


def decode_segments(
    probabilities: Mapping[str, np.ndarray], names: Sequence[str], hop: float, threshold: float, filter_size: int
) -> dict[str, list[Segment]]:
    """The segments of recordings: `binarise`, then `frames_to_segments`.

    Args:
        probabilities: recording -> (T, C).
        names, hop, threshold, filter_size: as for these.
    """
    return {
        recording: frames_to_segments(binarise(values, threshold, filter_size), hop, names)
        for recording, values in probabilities.items()
    }


def read_decision(source: str | os.PathLike) -> dict[str, Any]:
    """The threshold and the filter beside a model; empty if it has none."""
    path = fetch_file(source, DECISION)
    return read_json(path) if path else {}


def segment_records(
    recordings: Mapping[str, Sequence[Segment]], named: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The prediction of each recording: its id, and its `segments`, rounded to milliseconds.

    Args:
        recordings: segments by recording.
        named: the `id` and perhaps the `group` of each, see `d2v.data.rows.Rows.named`.
    """
    return [
        {
            **named[recording],
            "segments": [
                {"start": round(start, 3), "end": round(end, 3), "speaker": speaker} for start, end, speaker in segments
            ],
        }
        for recording, segments in recordings.items()
    ]


def write_arrays(folder: Path, probabilities: Mapping[str, np.ndarray]) -> None:
    """Write each recording's probabilities (T, C) to `<recording>.npy` in a folder, made if needed."""
    folder.mkdir(exist_ok=True)
    for recording, values in probabilities.items():
        np.save(folder / f"{recording}.npy", values)


def write_rttm(path: str | os.PathLike, recordings: Mapping[str, Sequence[Segment]]) -> None:
    """Write RTTM: ten fields, milliseconds. A segment that rounds to nothing is left out, since scorers refuse it.

    Raises:
        InputError: a recording's name is empty or has white space, which would make two fields; in names of speakers
            and classes it becomes an underscore.
    """
    lines = []
    for recording, segments in recordings.items():
        for start, end, speaker in sorted(segments):
            speaker = one_word(speaker)
            for name in (recording, speaker):
                if len(name.split()) != 1 or name != name.strip():
                    raise InputError(f"{path}: the name {name!r} should be one word; RTTM separates fields by spaces")
            onset, duration = round(start, 3), round(end, 3) - round(start, 3)
            if round(duration, 3) > 0:
                lines.append(f"SPEAKER {recording} 1 {onset:.3f} {duration:.3f} <NA> <NA> {speaker} <NA> <NA>\n")
    Path(path).write_text("".join(lines), "utf-8")
