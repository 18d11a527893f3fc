"""Trials of speaker verification, read from a list or sampled, and the clips that they name.

A trial is (label, enrolment clip, test clip): label 1 for one speaker, 0 for two, None if it is unknown. A clip goes by
its number or, in a named trial, its name.
"""

import math
import os
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations, compress, count
from pathlib import Path
from typing import Any, ClassVar

from d2v.config import Job, at_least
from d2v.data.audio import AudioData
from d2v.data.class_names import check_classes, name_values, note_tidied
from d2v.data.columns import read_columns
from d2v.data.facts import note
from d2v.data.rows import Rows, Split
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig

Trial = tuple[int | None, int, int]
NamedTrial = tuple[int | None, str, str]


@dataclass
class TrialData(AudioData):
    """The data; without a path the embedded demo.

    Attributes:
        speaker_column: column of the speakers, names or numbers.
        crop_seconds: length of the random crops of longer clips in training, in seconds; other splits stay whole.
        held_out_speakers: speakers that are left out of train and validation, and are alone in test.
        trials: file of the trials, two ids or files of the test split a line, with 1, 0, target or nontarget before or
            after them, or without; by default they are sampled from its speakers, and in prediction they are all pairs
            of its clips.
        sampled_trials: maximum number of sampled trials, half of them of one speaker.
    """

    whole: ClassVar[str | None] = "the speakers of train are the classes, and all have to be known"

    speaker_column: str = "speaker"
    crop_seconds: float = 8.0
    held_out_speakers: list[str] = field(default_factory=list)
    trials: str | None = None
    sampled_trials: int = 10_000

    def __post_init__(self):
        super().__post_init__()
        at_least(2, "data", self, ("sampled_trials",))


def read_speakers(job: Job, splits: Mapping[str, Split]) -> tuple[dict[str, Split], dict[str, list[Any]]]:
    """The splits and the name of each row's speaker; who is held out is in test alone, and nobody else is there.

    Nobody is named in prediction, or where trials of a list are scored.

    Args:
        job: whose data have the options of `TrialData`.
        splits: from `d2v.data.load.load`.

    Raises:
        InputError: test has not all of the held-out speakers, or some names are text and others numbers.
    """
    data: TrialData = job.config.data
    if not job.labelled or (data.trials and not job.training):
        return dict(splits), {}
    column = data.speaker_column
    named = {name: name_values(split, column, split.table[column][:]) for name, split in splits.items()}
    note_tidied(job, named, column)
    speakers = {name: each.labels for name, each in named.items()}
    held = set(data.held_out_speakers)
    if not held:
        return dict(splits), speakers
    tested = {speaker for speaker in speakers.get("test", []) if isinstance(speaker, str)}
    if unknown := sorted(held - tested):
        others = ", ".join(sorted(tested)[:20])
        raise InputError(f"test: no speaker {unknown[0]!r} (data.held_out_speakers); there are {others}")
    kept = {
        name: [i for i, speaker in enumerate(each) if (speaker in held) == (name == "test")]
        for name, each in speakers.items()
    }
    return (
        {name: split.select(kept[name]) for name, split in splits.items()},
        {name: [each[i] for i in kept[name]] for name, each in speakers.items()},
    )


def speaker_problem(speaker: Any, seconds: float, *, column: str) -> str | None:
    """Why a row's speaker cannot be used, or None; the clip's length does not matter."""
    return None if isinstance(speaker, str) else f"{column} is {speaker!r}; should be a name or number"


def speaker_head(job: Job, speakers: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The fields of a model's configuration that give it a head for the speakers of train, in order of their names.

    Args:
        job: whose data name the column; but for training a model keeps its head.
        speakers: of each split's rows, from `read_speakers`.

    Raises:
        InputError: there are fewer than two.
    """
    if not job.training:
        return {}
    classes = sorted({speaker for speaker in speakers["train"] if isinstance(speaker, str)})
    return {"id2label": dict(enumerate(check_classes(classes, job.config.data.speaker_column)))}


def shortest_clip(config: Data2VecAudioConfig, rate: int, crop_seconds: float) -> int:
    """Samples that a clip has at the least: the head's convolutions leave two frames of it, as a deviation takes.

    Args:
        config: the model's.
        rate: samples a second.
        crop_seconds: length of the crops of train.

    Raises:
        InputError: the crops are shorter.
    """
    lengths = count(config.shortest_clip, config.inputs_to_logits_ratio)  # of clips, one frame after another
    shortest = next(length for length in lengths if config.frames(length) >= config.tdnn_context + 2)
    if crop_seconds < shortest / rate:
        raise InputError(f"data.crop_seconds {crop_seconds:g}: the model's frames take {shortest / rate:.3f} s")
    return shortest


def cohort_clips(split: Split, speakers: Sequence[str], most: int = 20) -> tuple[Split, list[str]]:
    """The first clips of each speaker, and whose they are; a mean of twenty embeddings hardly changes with more.

    Args:
        split: of train.
        speakers: of each row.
        most: clips of a speaker.
    """
    first = first_clips(speakers, most)
    return split.select(first, name="cohort"), [speakers[i] for i in first]


def choose_trials(job: Job, rows: Rows) -> tuple[list[Trial], list[NamedTrial], str]:
    """The trials of the test: those of `data.trials`, else sampled ones, else, without labels, all pairs.

    Args:
        job: whose data have the options of `TrialData`.
        rows: of the split, whose references are speakers.

    Returns:
        Trials between rows by number, the same with the names of clips, and what results call them.

    Raises:
        InputError: the file cannot be used, see `read_trials`, or there are no pairs to sample from.
    """
    data: TrialData = job.config.data
    if data.trials:
        files = [path or name for path, name in zip(rows.split.files(data.audio_column), rows.ids, strict=True)]
        clips = number_clips(files) | number_clips(rows.ids)
        named = read_trials(data.trials, clips, labelled=job.labelled, job=job)
        trials = [(label, clips[enrol], clips[test]) for label, enrol, test in named]
        return trials, named, Path(data.trials).name
    trials = sampled_trials(job, rows) if job.labelled else all_trials(len(rows))
    named = [(label, rows.ids[enrol], rows.ids[test]) for label, enrol, test in trials]
    return trials, named, f"sampled from {rows.split.name}" if job.labelled else "all pairs"


LABELS = {"1": 1, "target": 1, "tgt": 1, "true": 1, "same": 1}
LABELS |= {"0": 0, "nontarget": 0, "non-target": 0, "imposter": 0, "imp": 0, "false": 0, "different": 0}


def read_trials(
    path: str | os.PathLike, clips: Container[str] | None = None, *, labelled: bool = False, job: Job | None = None
) -> list[NamedTrial]:
    """The trials of a list as VoxCeleb has it: `1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav` a line.

    Fields are separated by white space or commas. The label may come last, as in Kaldi: `a b target`; all lines may
    lack it.

    Args:
        path: of the list.
        clips: what may be named; by default anything.
        labelled: the labels are needed.
        job: if its data skip bad rows, trials of other clips are left out and counted.

    Raises:
        InputError: a line of another form, or that names no clip, with file and line in the message; or labels that are
            needed, but not there or all the same.
    """
    lines = list(read_columns(path))
    if all(line.count(",") in (1, 2) for line in (" ".join(fields) for _, fields in lines)):
        lines = [(where, [field.strip(' "') for field in " ".join(fields).split(",")]) for where, fields in lines]
    threes = [fields for _, fields in lines if len(fields) == 3]
    first, last = (sum(fields[place].lower() in LABELS for fields in threes) for place in (0, 2))
    width = 3 if labelled or len(lines[0][1]) == 3 else 2
    place = 2 if last > first else 0
    expected = "<enrolment clip> <test clip>"
    if width == 3:
        expected = f"{expected} <1 or 0>" if place else f"<1 or 0> {expected}"
    if clips is not None and lines[1:] and width == 3 and len(lines[0][1]) == 3:
        head = lines[0][1]  # perhaps names of columns
        lines = lines[1:] if head[place].lower() not in LABELS and not any(name in clips for name in head) else lines
    trials: list[NamedTrial] = []
    unknown = []
    for where, fields in lines:
        if len(fields) != width or (width == 3 and fields[place].lower() not in LABELS):
            raise InputError(f"{where}: should be {expected}")
        label = LABELS[fields.pop(place).lower()] if width == 3 else None
        enrol, test = fields
        if missing := [clip for clip in fields if clips is not None and clip not in clips]:
            unknown.append(f"{where}: there is no clip {missing[0]!r}")
        else:
            trials.append((label, enrol, test))
    if unknown and (job is None or job.config.data.bad_rows == "refuse" or not trials):
        raise InputError(unknown[0] + (f"; {len(unknown)} such trials of {len(lines)}" if len(unknown) > 1 else ""))
    if unknown and job:
        line = f"{path}: {len(unknown)} of {len(lines)} trials left out; the first is {unknown[0]}"
        note(job, "trials left out", line, rows=len(unknown), of=len(lines), first=unknown[0])
    if labelled and job:
        said = {label: {(min(pair), max(pair)) for each, *pair in trials if each == label} for label in (0, 1)}
        if both := sorted(said[0] & said[1]):
            line = f"{path}: {len(both)} pairs are labelled 1 and 0; the first is {' '.join(both[0])}"
            note(job, "trials labelled twice", line, rows=len(both), first=both[0])
    if labelled and len({label for label, _, _ in trials}) < 2:
        raise InputError(
            f"{path}: all trials are labelled {trials[0][0]}; some should be 1, one speaker, others 0, two"
        )
    return trials


def embedded_trials(
    job: Job, embeddings: Container[int], trials: Sequence[Trial], named: Sequence[NamedTrial] = ()
) -> tuple[list[Trial], list[NamedTrial]]:
    """The trials that have an embedding of both clips; the others, whose clips could not be decoded, are counted.

    Args:
        job: where to note how many.
        embeddings: clips by number.
        trials: by number.
        named: the same trials, with names.

    Raises:
        InputError: none has.
    """
    if not trials:
        raise InputError("there is no pair of clips to compare; two clips or more are needed")
    kept = [enrol in embeddings and test in embeddings for _, enrol, test in trials]
    if not all(kept):
        line = f"{len(kept) - sum(kept)} of {len(kept)} trials left out, of clips that cannot be decoded"
        if not any(kept):
            raise InputError(line)
        note(job, "trials without clips", line, rows=len(kept) - sum(kept), of=len(kept))
    return list(compress(trials, kept)), list(compress(named, kept))


def number_clips(names: Sequence[str]) -> dict[str, int]:
    """Clip -> number, by the clip's name or as much of the end of its path as no other clip has.

    So a list that says `id10270/x6uYqmx31kE/00001.wav` finds the file wherever it lies.
    """
    numbers: dict[str, int] = {}
    shared: set[str] = set()
    for number, name in enumerate(names):
        parts = Path(name).parts
        for end in ("/".join(parts[i:]) for i in range(1, len(parts))):
            if numbers.setdefault(end, number) != number:
                shared.add(end)
    counts = Counter(names)  # several parts of a recording are of one file
    whole = {name: number for number, name in enumerate(names) if counts[name] == 1}
    return {end: number for end, number in numbers.items() if end not in shared} | whole


MOST_TRIALS = 10_000_000
"""Of all pairs, as 4472 clips have: by number and by name they take 1.5 GB, before they are scored."""


def all_trials(clips: int) -> list[Trial]:
    """Every pair of so many clips, which trials have by number; InputError if there are more than `MOST_TRIALS`."""
    if (pairs := math.comb(clips, 2)) > MOST_TRIALS:
        there = f"{clips} clips make {pairs} trials, more than {MOST_TRIALS}"
        raise InputError(f"{there}; data.trials should list those to score")
    return [(None, enrol, test) for enrol, test in combinations(range(clips), 2)]


def sample_trials(speakers: Sequence[str | int], count: int, seed: int, split: str = "trials") -> list[Trial]:
    """Random trials of clips of known speakers: as many targets as non-targets, no pair twice, no clip with itself.

    Every pair of a kind is as likely as any other.

    Args:
        speakers: of each clip; trials have the clips' numbers.
        count: how many; fewer if there are not as many pairs.
        seed: the same trials for the same seed.
        split: its name, for messages.

    Raises:
        InputError: there is no target pair, or no other.
    """
    order = sorted(range(len(speakers)), key=lambda clip: speakers[clip])
    ends = [bisect_right(order, speakers[clip], key=lambda other: speakers[other]) for clip in order]
    # With clips sorted by speaker, the partners of the one at position p are p + 1 to its speaker's end (targets) and
    # from there to the last (non-targets). So pairs can be numbered, and sampled by number, without a list of them all.
    partners = {
        1: [range(position + 1, end) for position, end in enumerate(ends)],
        0: [range(end, len(order)) for end in ends],
    }
    totals = {label: sum(map(len, ranges)) for label, ranges in partners.items()}
    if not all(totals.values()):
        raise InputError(
            f"{split}: {len(order)} clips of {len(set(speakers))} speakers; "
            "trials need two speakers, and one who has two clips"
        )
    trials: list[Trial] = []
    generator = random.Random(seed)
    half = min(count // 2, *totals.values())
    for label, ranges in partners.items():
        firsts = list(accumulate(map(len, ranges), initial=0))  # the number of each position's first pair
        for number in generator.sample(range(totals[label]), half):
            position = bisect_right(firsts, number) - 1
            trials.append((label, order[position], order[ranges[position][number - firsts[position]]]))
    return trials


def sampled_trials(job: Job, rows: Rows) -> list[Trial]:
    """Random trials between the rows of a split, see `sample_trials`; the same for the same `run.seed`."""
    return sample_trials(rows.references or [], job.config.data.sampled_trials, job.config.run.seed, rows.split.name)


def first_clips(speakers: Sequence[str], most: int) -> list[int]:
    """The first clips of each speaker, by number."""
    counts: Counter[str] = Counter()
    kept = []
    for clip, speaker in enumerate(speakers):
        counts[speaker] += 1
        if counts[speaker] <= most:
            kept.append(clip)
    return kept
