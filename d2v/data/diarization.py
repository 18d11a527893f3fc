"""Who speaks when, or which sounds occur when: segments from rows and RTTM files, and the frames that a model learns.

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
"""Seconds that annotated times may be off: many corpora round them to 10 ms, onset and duration each."""
UNNAMED = "speech"
"""The class of segments that do not say what they are."""


@dataclass
class SegmentData(AudioData):
    """The data; without a path the embedded demo.

    Attributes:
        segments_column: column of the segments, lists of objects with start and end in seconds and a label.
        label_key: key of a segment's label, such as speaker; null where all segments are of one kind.
        match: how the labels of segments are a given model's classes: by name; by number; or by order, the first of the
            labels in order being the model's first. Speakers have no order.
        rttm: RTTM file, or folder of such files, of the segments of all splits' recordings; by default
            segments_column has them, or the RTTM files in a folder that has sounds and no table.
        crop_seconds: length of the random crops of longer recordings in training, in seconds; other splits stay whole.
        chunk_seconds: length of the windows that longer recordings are computed in, in seconds; by default none.
        stride_seconds: context at either end of a window, in seconds; by default a sixth of the window. Speakers are
            matched over the time that two windows share, which is twice as long, so that it should not be 0.
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
    """The segments of each row of each split; in place of those that cannot be read, what is wrong with them.

    `segment_problem` looks at their times.

    Args:
        job: whose data have the options of `SegmentData`.
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
    of: dict[tuple[str, str], dict[str, None]] = {}  # name and folder of its segments -> recordings that it means
    for name, split in splits.items():
        clips = called[name]
        files = [file or clip for file, clip in zip(split.files(data.audio_column), clips, strict=True)]
        for clip, file in zip(clips, files, strict=True):
            for folder in nearest_folders(list(recordings.get(recording_name(clip), ())), file):
                of.setdefault((recording_name(clip), str(folder)), {})[file] = None
        rows = list(zip(clips, files, strict=True))
        silent = [i for i, clip in enumerate(clips) if recording_name(clip) not in recordings]
        if len(silent) == len(clips):  # silence alone is less likely than names that differ
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
    """The names of numbered labels that the type of a column of segments lists, if it does."""
    kind = split.table.features[column]
    keys = getattr(kind, "feature", kind)
    label = keys.get(label_key) if isinstance(keys, dict) else None
    return getattr(getattr(label, "feature", label), "names", None)


def parse_segments(
    value: Any, column: str, label_key: str | None, names: Sequence[str] | None = None
) -> list[Segment] | str:
    """The segments that a column has of a row, or what is wrong with them.

    Args:
        value: dicts of `start`, `end` and `label_key`.
        column: where it is from.
        label_key: what says who or what it is, for us a single word; None calls all segments `UNNAMED`.
        names: of labels that are numbers.
    """
    keys = ["start", "end", *([label_key] if label_key else [])]
    lists = list(value.values()) if isinstance(value, dict) else []
    if lists and all(isinstance(each, list) and len(each) == len(lists[0]) for each in lists):  # as Sequence has it
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
    """The segments of a clip, from the file nearest to it, or that none has any of it, or several have.

    Args:
        recordings: from `read_rttm_folders`.
        clip: its id or file.
        file: of the sound.
        label_key: None calls all segments `UNNAMED`.
        silence: a clip that the file does not have is one without segments.
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
    """The fields of a model's configuration that give it a head: for the classes of these segments, or for speakers.

    Args:
        segments: of train, from `read_segments`; None for diarization, of as many speakers as `num_labels` says.
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
    """The recordings of each split that can be used, with their segments as references.

    Args:
        job: whose data have the options of `SegmentData`.
        splits: from `d2v.data.load.load`.
        rate: samples a second.
        settings: the model's configuration, whose `frame_loss` says whether it tells speakers or classes.
        segments: from `read_segments`.
    """
    diarization = settings.frame_loss == "pit_bce"
    classes = None if diarization else settings.label2id
    if classes and segments and not job.training:
        segments = matched_segments(job, segments, list(settings.id2label.values()))
    return clip_rows(
        *(job, splits, rate, settings.shortest_clip, segments),
        learn=lambda segments, seconds: segment_problem(segments, seconds, classes, most=len(settings.id2label)),
        score=lambda segments, seconds: segment_problem(segments, seconds, classes),
        crop_seconds=job.config.data.crop_seconds,
        settle=partial(settle_segments, merge=diarization),
    )


def segment_problem(
    segments: list[Segment] | str, seconds: float, classes: Mapping[str, int] | None = None, most: int | None = None
) -> str | None:
    """Why a recording's segments cannot be learnt from or scored against, or None.

    Args:
        segments: from `read_segments`.
        seconds: that the recording lasts.
        classes: what segments may be; None if their labels are speakers.
        most: speakers that there may be.
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
    """Segments as they fit to what is heard of a recording, and what was done to them, how often.

    Those that end after the recording are cut there. Of a part of a recording those in it remain, from its beginning.

    Args:
        segments: from `read_segments`.
        seconds: that the recording, or the part of it, lasts.
        part: which part is heard; None for all.
        merge: make one of a label's segments that overlap, as a speaker cannot talk twice at once.
    """
    if isinstance(segments, str) or any(not is_time(time) for segment in segments for time in segment[:2]):
        return segments, {}
    done: Counter[str] = Counter()
    begin = part[0] if part else 0.0
    settled: list[Segment] = []
    for start, end, label in segments:
        if start > end:
            return segments, {}  # which `check_segments` names
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
    last: dict[str, int] = {}  # label -> its segment before
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
    """Whether a value is a number of seconds from 0 on."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


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


def frame_labels(
    rows: Sequence[Mapping[str, Any]],
    lengths: Sequence[int],
    starts: Sequence[int],
    config: Data2VecAudioConfig,
    rate: int,
) -> Tensor:
    """What a model learns of parts of recordings, (B, T, C) float32: zeros, ones, and `IGNORE` where a part has ended.

    Where speakers have no order, `frame_loss` "pit_bce", they come in that in which they first speak in the recording;
    who is left of the model's speakers is silent. A recording of more speakers than the model has is ignored whole.

    Args:
        rows: B rows, whose `reference` are the segments of the whole recording.
        lengths, starts: samples of the parts, and where in the recordings they begin.
        config: the model's.
        rate: samples a second.
    """
    hop, labels = config.inputs_to_logits_ratio / rate, []
    for row, length, start in zip(rows, lengths, starts, strict=True):
        segments, columns = sorted(row["reference"]), list(config.id2label.values())
        if config.frame_loss == "pit_bce":
            speakers = dict.fromkeys(speaker for *_, speaker in segments)
            if len(speakers) > len(columns):  # which can be scored
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
