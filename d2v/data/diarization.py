"""Who speaks when, or which sounds occur when: segments from rows and RTTM files, and a model's frame labels.

A segment is (start, end, speaker), in seconds; in place of the speaker there may be another label. Shapes: B batch, T
frames, C speakers.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from d2v.config import Job
from d2v.data.audio import AudioData, clip_rows
from d2v.data.class_names import Match, as_number
from d2v.data.facts import note
from d2v.data.files import AUDIO, walk
from d2v.data.frame_classes import Segment, matched_segments, segment_classes
from d2v.data.labels import label_problem
from d2v.data.rows import Rows, Split
from d2v.data.rttm import Recordings, nearest_folders, read_rttm_folders
from d2v.data.tables import TABLES, ending
from d2v.errors import InputError
from d2v.losses import IGNORE
from d2v.models.audio import Data2VecAudioConfig
from d2v.processors.audio import Part

TOLERANCE = 0.01
"""Tolerance of annotated times in seconds: many corpora round both onset and duration to 10 ms."""
UNNAMED = "speech"
"""The class of segments without a label."""


@dataclass
class SegmentData(AudioData):
    """The data; without a path the embedded demo.

    Attributes:
        segments_column: column of the segments, lists of objects with start and end in seconds and a label.
        label_key: key of a segment's label, such as speaker; null where all segments are of one kind.
        match: how segments' labels are matched with a given model's classes: by name; by number; or by order, the first
            of the sorted labels being the model's first. Speakers have no order.
        rttm: RTTM file, or folder of such files, with the segments of all splits' recordings; by default
            segments_column has them, or the RTTM files in a folder that has sounds and no table.
        crop_seconds: length of the random crops of longer recordings in training, in seconds; other splits stay whole.
        chunk_seconds: length of the windows that longer recordings are computed in, in seconds; by default none.
        stride_seconds: context at either end of a window, in seconds; by default a sixth of the window. Speakers are
            matched over the time that two windows share, twice the context, so it should not be 0.
    """

    whole: ClassVar[str | None] = "recordings are cut into windows before training"

    segments_column: str = "turns"
    label_key: str | None = "speaker"
    match: Match = "name"
    rttm: str | None = None
    crop_seconds: float = 8.0
    chunk_seconds: float | None = None
    stride_seconds: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.rttm is None and self.path and Path(self.path).is_dir():
            endings = set(map(ending, walk(Path(self.path))))
            tables = {each for each in endings if TABLES.get(each, "text") != "text"}
            self.rttm = self.path if ".rttm" in endings and not tables else None


def read_segments(job: Job, splits: Mapping[str, Split]) -> dict[str, list[list[Segment] | str]]:
    """The segments of each row of each split; for a row that cannot be read, a text that says why.

    `segment_problem` checks their times.

    Args:
        job: its data have the options of `SegmentData`.
        splits: from `d2v.data.load.load`.

    Raises:
        InputError: the RTTM file cannot be read.
    """
    data: SegmentData = job.config.data
    if not job.labelled:
        return {}
    column, key = data.segments_column, data.label_key
    if data.rttm is None:
        return {
            name: [parse_segments(value, column, key, names_of(split, column, key)) for value in split.column(column)]
            for name, split in splits.items()
        }
    recordings, segments = read_rttm_folders(data.rttm, job, data.channel), {}
    called = {name: split.ids(data.audio_column) for name, split in splits.items()}
    unheard = sorted(recordings.keys() - {recording_name(clip) for clips in called.values() for clip in clips})
    of: dict[tuple[str, str], dict[str, None]] = {}  # name and folder of segments -> their recordings
    for name, split in splits.items():
        clips = called[name]
        files = [file or clip for file, clip in zip(split.files(data.audio_column), clips, strict=True)]
        for clip, file in zip(clips, files, strict=True):
            for folder in nearest_folders(list(recordings.get(recording_name(clip), ())), file):
                of.setdefault((recording_name(clip), str(folder)), {})[file] = None
        rows = list(zip(clips, files, strict=True))
        silent = [i for i, clip in enumerate(clips) if recording_name(clip) not in recordings]
        if len(silent) == len(clips):  # more likely names differ than that all are silent
            segments[name] = [segments_of(recordings, clip, file, key) for clip, file in rows]
            continue
        segments[name] = [segments_of(recordings, clip, file, key, silence=True) for clip, file in rows]
        if silent:
            line = f"{name}: {len(silent)} of {len(clips)} recordings have no line in {data.rttm} and count as silence"
            first = f"{split.where(silent[0])}: {recording_name(clips[silent[0]])}"
            first += f"; names there that are of no sound: {len(unheard)}, such as {unheard[0]}" if unheard else ""
            note(
                job,
                "silence",
                f"{line}; the first is {first}",
                split=name,
                rows=len(silent),
                of=len(clips),
                first=first,
            )
    if several := {name: list(files) for (name, _), files in of.items() if len(files) > 1}:
        name, files = next(iter(several.items()))
        line = f"{data.rttm}: {len(several)} names are of several recordings each, which all have the same segments"
        line += f"; the first is {name}, of {files[0]} and {files[1]}"
        note(job, "recordings of one name", line, names=len(several), first=name)
    return segments


def names_of(split: Split, column: str, label_key: str | None) -> list[str] | None:
    """The names of numbered labels, if the type of a column of segments lists them."""
    kind = split.table.features[column]
    keys = getattr(kind, "feature", kind)
    label = keys.get(label_key) if isinstance(keys, dict) else None
    return getattr(getattr(label, "feature", label), "names", None)


def parse_segments(
    value: Any, column: str, label_key: str | None, names: Sequence[str] | None = None
) -> list[Segment] | str:
    """A row's segments from a column, or what is wrong with them.

    Args:
        value: dicts of `start`, `end` and `label_key`.
        column: of the value.
        label_key: key of the label, which becomes a single word; None labels all segments `UNNAMED`.
        names: of labels that are numbers.
    """
    keys = ["start", "end", *([label_key] if label_key else [])]
    lists = list(value.values()) if isinstance(value, dict) else []
    if lists and all(isinstance(each, list) and len(each) == len(lists[0]) for each in lists):  # a Sequence's form
        value = [dict(zip(value, each, strict=True)) for each in zip(*lists, strict=True)]
    if not isinstance(value, list):
        return f"{column} is {value!r:.40}; should be a list of segments with {', '.join(keys)}"
    segments = []
    for each in value:
        if not isinstance(each, dict) or any(each.get(key) in (None, "") for key in keys):
            return f"{column} has {each!r:.80}; a segment has {', '.join(keys)} (data.label_key)"
        start, end = (as_number(each[key]) for key in ("start", "end"))
        label = each[label_key] if label_key else UNNAMED
        if names is not None and isinstance(label, int) and not 0 <= label < len(names):
            return f"{column} has the {label_key} {label}; there are {len(names)} names"
        label = names[label] if names is not None and isinstance(label, int) else label
        segments.append((start, end, one_word(str(label)) if label_key else UNNAMED))
    return segments


def segments_of(
    recordings: Recordings, clip: str, file: str | None, label_key: str | None, *, silence: bool = False
) -> list[Segment] | str:
    """The segments of a clip, from the RTTM file nearest to it; or a text if no file, or more than one, has them.

    Args:
        recordings: from `read_rttm_folders`.
        clip: its id or file.
        file: of the sound.
        label_key: None labels all segments `UNNAMED`.
        silence: whether a clip that is missing in the file has no segments.
    """
    name = recording_name(clip)
    if silence and name not in recordings:
        return []
    if name not in recordings:
        return f"data.rttm has no recording {name!r}; it has {', '.join(list(recordings)[:5])}, ..."
    nearest = nearest_folders(list(recordings[name]), file)
    if len(nearest) > 1:
        return f"data.rttm has {name!r} in {nearest[0]} and in {nearest[1]}, and neither is nearer to {file}"
    return [(start, end, label if label_key else UNNAMED) for start, end, label in recordings[name][nearest[0]]]


def frame_head(segments: Iterable[list[Segment] | str] | None = None) -> dict[str, Any]:
    """The fields of a model's configuration for a head with the classes of these segments, or with speakers.

    Args:
        segments: of train, from `read_segments`; None for diarization, with `num_labels` speakers.
    """
    if segments is None:
        return {"frame_loss": "pit_bce"}
    return {"frame_loss": "cross_entropy", "id2label": dict(enumerate(segment_classes(segments)))}


def segment_rows(
    job: Job,
    splits: Mapping[str, Split],
    rate: int,
    settings: Data2VecAudioConfig,
    segments: Mapping[str, Sequence[list[Segment] | str]],
) -> dict[str, Rows]:
    """The usable recordings of each split, with their segments as references.

    Args:
        job: its data have the options of `SegmentData`.
        splits: from `d2v.data.load.load`.
        rate: samples per second.
        settings: the model's configuration; its `frame_loss` says whether outputs are speakers or classes.
        segments: from `read_segments`.
    """
    diarization = settings.frame_loss == "pit_bce"
    classes = None if diarization else settings.label2id
    if classes and segments and not job.training:
        segments = matched_segments(job, segments, list(settings.id2label.values()))
    return clip_rows(
        *(job, splits, rate, settings.shortest_clip, segments),
        problem=lambda segments, seconds: segment_problem(segments, seconds, classes, most=len(settings.id2label)),
        eval_problem=lambda segments, seconds: segment_problem(segments, seconds, classes),
        crop_seconds=job.config.data.crop_seconds,
        settle=partial(settle_segments, merge=diarization),
    )


def segment_problem(
    segments: list[Segment] | str, seconds: float, classes: Mapping[str, int] | None = None, most: int | None = None
) -> str | None:
    """Why a recording's segments cannot be used for training or scoring, or None.

    Args:
        segments: from `read_segments`.
        seconds: the recording's duration.
        classes: allowed labels; None if labels are speakers.
        most: maximum number of speakers.
    """
    if isinstance(segments, str):
        return segments
    labels = [label for *_, label in segments]
    if classes is not None:
        # Segments of one class may overlap, those of one speaker may not.
        apart = [(start, end, str(i)) for i, (start, end, _) in enumerate(segments)]
        return check_segments(apart, seconds) or label_problem(labels, classes, "segment", multi_label=True)
    if most is not None and (count := len(set(labels))) > most:
        return f"{count} speakers; the model has {most} (arch.num_labels)"
    return check_segments(segments, seconds)


def settle_segments(
    segments: list[Segment] | str, seconds: float, part: Part | None, *, merge: bool
) -> tuple[list[Segment] | str, dict[str, int]]:
    """Segments adapted to the part of a recording that is read, and counts of the changes.

    Segments are cut at the end of the recording. A part of a recording keeps those in it, with times from its start.

    Args:
        segments: from `read_segments`.
        seconds: duration of the recording, or of its part.
        part: the part that is read; None for all.
        merge: join a label's overlapping segments, as a speaker cannot talk twice at once.
    """
    if isinstance(segments, str) or any(not is_time(time) for segment in segments for time in segment[:2]):
        return segments, {}
    done: Counter[str] = Counter()
    begin = part[0] if part else 0.0
    settled: list[Segment] = []
    for start, end, label in segments:
        if start > end:
            return segments, {}  # `check_segments` reports it
        if part and start < end:
            start, end = max(round(start - begin, 6), 0.0), min(round(end - begin, 6), seconds)
            if start >= end:
                continue
        elif start == end:
            done["segments without a length left out"] += 1
            continue
        elif start < seconds < end - TOLERANCE:
            done["segments cut at the recording's end"] += 1
            end = seconds
        settled.append((start, end, label))
    if not merge:
        return settled, done
    last: dict[str, int] = {}  # label -> its previous segment
    merged: list[Segment] = []
    for start, end, label in sorted(settled):
        before = last.get(label)
        if before is not None and start < merged[before][1] - TOLERANCE:
            done["overlapping segments of one speaker merged"] += 1
            merged[before] = (merged[before][0], max(end, merged[before][1]), label)
        else:
            last[label] = len(merged)
            merged.append((start, end, label))
    return (merged if done["overlapping segments of one speaker merged"] else settled), +done


def is_time(value: Any) -> bool:
    """Whether a value is a number of seconds, at least 0."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


def check_segments(segments: Sequence[Segment], seconds: float) -> str | None:
    """Why a recording's reference cannot be used for training or scoring, or None.

    Args:
        segments: of one recording.
        seconds: its duration.
    """
    for start, end, _ in segments:
        if not (isinstance(start, Real) and isinstance(end, Real) and 0 <= start < end):
            return f"a segment from {start} to {end} s; should begin at 0 or later, and end after that"
        if end > seconds + TOLERANCE:
            return f"a segment from {start:g} to {end:g} s; the clip ends at {seconds:g} s"
    last: dict[str, float] = {}  # speaker -> the end of the previous segment
    for start, end, speaker in sorted(segments):
        if start < last.get(speaker, 0) - TOLERANCE:
            return f"two segments of speaker {speaker} overlap at {start:g} s; they should be one"
        last[speaker] = end
    return None


def frame_labels(
    rows: Sequence[Mapping[str, Any]],
    lengths: Sequence[int],
    starts: Sequence[int],
    config: Data2VecAudioConfig,
    rate: int,
) -> Tensor:
    """The labels of parts of recordings, (B, T, C) float32: zeros, ones, and `IGNORE` after the end of a part.

    With `frame_loss` "pit_bce" speakers have no order, and come in the order in which they first speak in the
    recording; the model's other speakers are silent. A recording with more speakers than the model has is ignored.

    Args:
        rows: B rows, whose `reference` is the whole recording's segments.
        lengths, starts: number of samples of the parts, and their first samples in the recordings.
        config: the model's.
        rate: samples per second.
    """
    hop, labels = config.inputs_to_logits_ratio / rate, []
    for row, length, start in zip(rows, lengths, starts, strict=True):
        segments, columns = sorted(row["reference"]), list(config.id2label.values())
        if config.frame_loss == "pit_bce":
            speakers = dict.fromkeys(speaker for *_, speaker in segments)
            if len(speakers) > len(columns):  # it can still be scored
                labels.append(torch.full((config.frames(length), len(columns)), float(IGNORE)))
                continue
            columns = [*speakers, *[""] * (len(columns) - len(speakers))]
        activity = segments_to_frames(segments, columns, config.frames(length), hop, begin=start / rate)
        labels.append(torch.from_numpy(activity))
    return pad_sequence(labels, batch_first=True, padding_value=IGNORE)


def segments_to_frames(
    segments: Sequence[Segment], speakers: Sequence[str], frames: int, hop: float, *, begin: float = 0.0
) -> np.ndarray:
    """Who speaks in each frame. Frame t is the time from begin + t * hop to begin + (t + 1) * hop; its centre decides.

    Args:
        segments: of one recording, in any order; parts beyond the frames are cut off.
        speakers: of the columns.
        frames: number of frames.
        hop: seconds from frame to frame.
        begin: time in seconds at which the first frame begins.

    Returns:
        (T, C) float32 of zeros and ones.

    Raises:
        InputError: a segment of another speaker.
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
    """A clip's name in RTTM and other files: a single word, without folder and without a sound file's ending."""
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
