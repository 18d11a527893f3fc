"""Diarization error rate, by pyannote.metrics, its baselines, and F1 of frames.

Segments are (start, end, speaker) in seconds, as in `d2v.data.diarization`. Shapes: T frames, C speakers.
"""

import math
import os
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from d2v.data.diarization import Segment, segments_to_frames
from d2v.decode.diarization import decode_segments
from d2v.errors import InputError

Recordings = Mapping[str, Sequence[Segment]]


def diarization_error(references: Recordings, hypotheses: Recordings, *, collar: float = 0.0) -> dict[str, float]:
    """`der` of a set, and its parts `miss`, `false_alarm` and `confusion`, as shares of the reference speakers' time.

    Speakers are matched optimally over each whole recording; overlapping speech is scored; seconds are added up over
    all recordings before they are divided. As in dscore without a UEM file, all time with speech on either side is
    scored.

    Args:
        references: recording -> right segments.
        hypotheses: recording -> predicted segments; a missing recording has no speech.
        collar: seconds before and after each boundary of a reference segment that are ignored: 0 in SUPERB, 0.25 in
            VoxSRC and NIST's evaluations. (pyannote's own option is the width of both sides.)

    Returns:
        The shares; NaN (undefined) without reference speech to score.

    Raises:
        InputError: a hypothesis for no reference.
    """
    if unknown := hypotheses.keys() - references.keys():
        raise InputError(f"recording {min(unknown)!r} has no reference; there are {', '.join(list(references)[:20])}")
    parts, total = error_seconds(references, hypotheses, collar=collar)
    total = total or math.nan  # of silence, or of segments under the collar
    shares = {name: seconds / total for name, seconds in parts.items()}
    return {"der": sum(shares.values())} | shares


def error_seconds(references: Recordings, hypotheses: Recordings, *, collar: float) -> tuple[dict[str, float], float]:
    """Seconds of `miss`, `false_alarm` and `confusion`, and of the reference speakers; as for `diarization_error`."""
    from pyannote.core import Segment as Span
    from pyannote.core import Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    metric = DiarizationErrorRate(collar=2 * collar)
    for recording, reference in references.items():
        hypothesis = hypotheses.get(recording, [])
        if ends := [end for _, end, _ in (*reference, *hypothesis)]:
            metric(annotation(reference), annotation(hypothesis), uem=Timeline([Span(0, max(ends))]))
    parts = {"miss": "missed detection", "false_alarm": "false alarm", "confusion": "confusion"}
    seconds: dict[str, Any] = {name: metric[name] for name in ("total", *parts.values())}
    return {ours: float(seconds[theirs]) for ours, theirs in parts.items()}, float(seconds["total"])


def annotation(segments: Sequence[Segment]):
    """The segments as pyannote's annotation; a speaker's segments that touch or overlap are joined."""
    from pyannote.core import Annotation
    from pyannote.core import Segment as Span

    records = ((Span(start, end), i, speaker) for i, (start, end, speaker) in enumerate(segments))
    return Annotation.from_records(records).support()


def name_speakers(references: Recordings, hypotheses: Recordings) -> dict[str, list[Segment]]:
    """The hypotheses under the reference's names, each speaker matched as in `diarization_error`.

    Args:
        references: recording -> right segments.
        hypotheses: the same recordings. An unmatched speaker gets a name that says so.
    """
    from pyannote.metrics.diarization import DiarizationErrorRate

    metric, named = DiarizationErrorRate(), {}
    for recording, segments in hypotheses.items():
        names = metric.optimal_mapping(annotation(references[recording]), annotation(segments))
        named[recording] = [(start, end, names.get(speaker, f"{speaker} (nobody)")) for start, end, speaker in segments]
    return named


def baselines(references: Recordings, seconds: Mapping[str, float]) -> dict[str, float]:
    """The `der` of predicting that one speaker, `always_one`, or two, `always_both`, talk throughout a recording.

    Args:
        references: recording -> right segments.
        seconds: recording -> duration.
    """
    speakers = {"always_one": ("a",), "always_both": ("a", "b")}
    hypotheses = {
        name: {recording: [(0.0, seconds[recording], label) for label in labels] for recording in references}
        for name, labels in speakers.items()
    }
    return {name: diarization_error(references, hypothesis)["der"] for name, hypothesis in hypotheses.items()}


def choose_threshold(
    probabilities: Mapping[str, np.ndarray],
    references: Recordings,
    hop: float,
    thresholds: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7),
    filters: Sequence[int] = (1, 11),
) -> tuple[float, int, float]:
    """The options of `binarise` with the lowest error rate on a development set.

    The grid is that of EEND and of s3prl's SUPERB (`downstream/diarization/score.sh`), which searches the test set.

    Args:
        probabilities: recording -> (T, C).
        references: recording -> right segments; further recordings are ignored.
        hop: seconds from frame to frame.
        thresholds: probabilities to try.
        filters: sizes of the median filter to try, in frames.

    Returns:
        Threshold, filter size and their error rate; the first of equally good ones.
    """
    references = {recording: references[recording] for recording in probabilities}

    def error(threshold: float, size: int) -> float:
        names = [str(i) for i in range(next(iter(probabilities.values())).shape[1])]
        return diarization_error(references, decode_segments(probabilities, names, hop, threshold, size))["der"]

    tried = ((threshold, size, error(threshold, size)) for threshold, size in product(thresholds, filters))
    return min(tried, key=lambda row: math.inf if math.isnan(row[2]) else row[2])


def frame_f1(references: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> dict[str, float]:
    """`frame_f1` of active frames, all recordings together; 0 if nothing is active.

    Args:
        references: zeros and ones or booleans for each recording: (T,) for speech or none, or (T, C) once the columns
            stand for the same speakers as the predictions'.
        predictions: the same shapes.
    """
    from sklearn.metrics import f1_score

    pairs = [np.stack(pair).reshape(2, -1) for pair in zip(references, predictions, strict=True)]
    reference, prediction = np.concatenate(pairs, axis=1).astype(bool)
    return {"frame_f1": float(f1_score(reference, prediction, zero_division=0))}


def diarization_metrics(
    references: Recordings, hypotheses: Recordings, frames: Mapping[str, int], hop: float, *, free_names: bool
) -> dict[str, float]:
    """The metrics of segments: `frame_f1` and, of speakers, all of `diarization_error` and `der_collar_025`.

    Args:
        references: recording -> its segments.
        hypotheses: recording -> its segments.
        frames: recording -> how many it has, of those that are scored.
        hop: seconds from frame to frame.
        free_names: the names in the hypotheses mean nothing, as in diarization; else those of the references.
    """
    errors, references = {}, {recording: references[recording] for recording in frames}
    if free_names:
        errors = diarization_error(references, hypotheses)
        errors["der_collar_025"] = diarization_error(references, hypotheses, collar=0.25)["der"]
        hypotheses = name_speakers(references, hypotheses)
    sides: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for recording, count in frames.items():
        both = references[recording], hypotheses[recording]
        names = sorted({name for segments in both for *_, name in segments})
        for side, segments in zip(sides, both, strict=True):
            side.append(segments_to_frames(segments, names, count, hop))
    return errors | frame_f1(*sides)


def plot_timelines(
    references: Recordings, hypotheses: Recordings, path: str | os.PathLike, *, free_names: bool, most: int = 6
) -> None:
    """Plot who spoke when, the reference above the hypothesis; each speaker has a line and in both the same colour.

    Args:
        references: recording -> who spoke when.
        hypotheses: the same recordings, or some of them.
        path: of the picture.
        free_names: as for `diarization_metrics`.
        most: recordings to plot, the first of the hypotheses.
    """
    from matplotlib.figure import Figure

    shown = list(hypotheses)[:most]
    hypotheses = name_speakers(references, hypotheses) if free_names else hypotheses
    figure = Figure(figsize=(10, 1.2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), squeeze=False)
    for recording, axis in zip(shown, axes[:, 0], strict=True):
        sides = hypotheses[recording], references[recording]
        speakers = list(dict.fromkeys(speaker for side in reversed(sides) for *_, speaker in side))
        for bottom, segments in enumerate(sides):
            for start, end, speaker in segments:
                line, height = speakers.index(speaker), 0.8 / len(speakers)
                top = bottom + 0.9 - line * height
                axis.broken_barh([(start, end - start)], (top - height, height), color=f"C{line}")
        axis.set_yticks([0.5, 1.5], ["recognised", "reference"])
        axis.set(ylim=(0, 2), xlim=(0, None))
        axis.set_title(recording, fontsize=9, loc="left")
    axes[-1, 0].set_xlabel("seconds")
    figure.savefig(path, dpi=100)
