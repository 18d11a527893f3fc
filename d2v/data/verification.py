"""Trials of speaker verification, read from a list or sampled, and the clips that they name.

A trial is (label, enrolment clip, test clip): label 1 for one speaker, 0 for two, None if it is unknown. A clip goes by
its name or number.
"""

import os
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Hashable, Sequence
from itertools import accumulate, combinations
from pathlib import Path

from d2v.data.columns import read_columns
from d2v.errors import InputError

Trial = tuple[int | None, Hashable, Hashable]


def read_trials(path: str | os.PathLike, clips: Container[str] | None = None, *, labelled: bool = False) -> list[Trial]:
    """The trials of a list as VoxCeleb has it: `1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav` a line.

    Args:
        path: of the list; all its lines may lack the label.
        clips: what may be named; by default anything.
        labelled: the labels are needed.

    Raises:
        InputError: a line of another form, or that names no clip, with file and line in the message; or labels that are
            needed, but not there or all the same.
    """
    trials, width = [], 3 if labelled else None
    for where, fields in read_columns(path):
        width = width or (3 if len(fields) == 3 else 2)
        if len(fields) != width or (width == 3 and fields[0] not in ("0", "1")):
            label = "<1 or 0> " if width == 3 else ""
            raise InputError(f"{where}: should be {label}<enrolment clip> <test clip>")
        for clip in fields[-2:]:
            if clips is not None and clip not in clips:
                raise InputError(f"{where}: there is no clip {clip!r}")
        trials.append((int(fields[0]) if width == 3 else None, fields[-2], fields[-1]))
    if labelled and len({label for label, _, _ in trials}) < 2:
        raise InputError(
            f"{path}: all trials are labelled {trials[0][0]}; some should be 1, one speaker, others 0, two"
        )
    return trials


def number_clips(names: Sequence[str]) -> dict[str, int]:
    """Clip -> number, by the clip's name or as much of the end of its path as no other clip has.

    So a list that says `id10270/x6uYqmx31kE/00001.wav` finds the file wherever it lies.
    """
    numbers, shared = {}, set()
    for number, name in enumerate(names):
        parts = Path(name).parts
        for end in ("/".join(parts[i:]) for i in range(1, len(parts))):
            if numbers.setdefault(end, number) != number:
                shared.add(end)
    whole = {name: number for number, name in enumerate(names)}
    return {end: number for end, number in numbers.items() if end not in shared} | whole


def all_trials(clips: int) -> list[Trial]:
    """Every pair of so many clips, which trials have by number."""
    return [(None, *pair) for pair in combinations(range(clips), 2)]


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
    trials, generator = [], random.Random(seed)
    half = min(count // 2, *totals.values())
    for label, ranges in partners.items():
        firsts = list(accumulate(map(len, ranges), initial=0))  # the number of each position's first pair
        for number in generator.sample(range(totals[label]), half):
            position = bisect_right(firsts, number) - 1
            trials.append((label, order[position], order[ranges[position][number - firsts[position]]]))
    return trials


def first_clips(speakers: Sequence[str], most: int = 20) -> list[int]:
    """The first clips of each speaker, by number; a mean of twenty embeddings hardly changes with more of them."""
    counts: Counter[str] = Counter()
    kept = []
    for clip, speaker in enumerate(speakers):
        counts[speaker] += 1
        if counts[speaker] <= most:
            kept.append(clip)
    return kept
