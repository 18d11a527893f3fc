"""Are two clips of one speaker? Trials, the scores of their embeddings, and the files for both.

A trial is (label, enrolment clip, test clip): label 1 for one speaker, 0 for two, None if nobody knows. A clip goes by
its name or number.
Shapes: E clips, K cohort, D width.
"""

import os
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Hashable, Mapping, Sequence
from itertools import accumulate, combinations
from pathlib import Path

import numpy as np
import torch

from d2v.data.columns import read_columns
from d2v.errors import InputError
from d2v.pretrained import fetch_file, read_weights_file, write_weights

COHORT = "cohort.safetensors"
Trial = tuple[int | None, Hashable, Hashable]
Embeddings = Mapping[Hashable, np.ndarray] | np.ndarray


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


def write_scores(path: str | os.PathLike, trials: Sequence[Trial], scores: Sequence[float]) -> None:
    """Write `<score> <enrolment clip> <test clip>` a line, as VoxSRC takes it: from 0 to 1, in the same order.

    Cosines are mapped by (x + 1) / 2, scores beyond them, as `s_norm` gives, by the logistic function.
    """
    scores = np.asarray(scores, dtype=float)
    cosines = np.abs(scores).max(initial=0) <= 1 + 1e-6  # more than 1 by rounding
    mapped = ((scores + 1) / 2).clip(0, 1) if cosines else 1 / (1 + np.exp(-scores))
    lines = [f"{score:.8f} {enrol} {test}\n" for score, (_, enrol, test) in zip(mapped, trials, strict=True)]
    Path(path).write_text("".join(lines), "utf-8")


def all_trials(clips: int) -> list[Trial]:
    """Every pair of so many clips, which trials have by number."""
    return [(None, *pair) for pair in combinations(range(clips), 2)]


def draw_trials(speakers: Sequence[str | int], count: int, seed: int, name: str = "trials") -> list[Trial]:
    """Trials from clips whose speakers are known: as many targets as non-targets, no pair twice, no clip with itself.

    Every pair of a kind is as likely as any other.

    Args:
        speakers: of each clip; trials have the clips' numbers.
        count: how many to draw; fewer if there are not as many pairs.
        seed: the same trials for the same seed.
        name: of the split, for messages.

    Raises:
        InputError: there is no target pair, or no other.
    """
    order = sorted(range(len(speakers)), key=lambda clip: speakers[clip])
    ends = [bisect_right(order, speakers[clip], key=lambda other: speakers[other]) for clip in order]
    # With clips sorted by speaker, the partners of the one at position p are p + 1 to its speaker's end (targets) and
    # from there to the last (non-targets). So pairs can be numbered, and drawn by number, without a list of them all.
    partners = {
        1: [range(position + 1, end) for position, end in enumerate(ends)],
        0: [range(end, len(order)) for end in ends],
    }
    totals = {label: sum(map(len, ranges)) for label, ranges in partners.items()}
    if not all(totals.values()):
        raise InputError(
            f"{name}: {len(order)} clips of {len(set(speakers))} speakers; "
            "trials need two speakers, and one who has two clips"
        )
    drawn, generator = [], random.Random(seed)
    half = min(count // 2, *totals.values())
    for label, ranges in partners.items():
        firsts = list(accumulate(map(len, ranges), initial=0))  # the number of each position's first pair
        for number in generator.sample(range(totals[label]), half):
            position = bisect_right(firsts, number) - 1
            drawn.append((label, order[position], order[ranges[position][number - firsts[position]]]))
    return drawn


def cosine_scores(embeddings: Embeddings, trials: Sequence[Trial], *, mean: np.ndarray | None = None) -> np.ndarray:
    """The cosine between the embeddings of each trial's clips, (N,).

    Args:
        embeddings: clip -> (D,); or (E, D) where clips are numbers.
        trials: whose labels are not looked at.
        mean: (D,) to take away first, such as that of the training clips.

    Raises:
        InputError: a clip without an embedding.
    """
    units, pairs = trial_units(embeddings, trials, mean)
    return np.array([units[enrol] @ units[test] for enrol, test in pairs])


def score_trials(
    embeddings: Embeddings, trials: Sequence[Trial], cohort: np.ndarray | None, *, center: bool, top: int
) -> np.ndarray:
    """The scores of trials, (N,): `cosine_scores`, and `s_norm` of them if asked for.

    Args:
        embeddings: clip -> (D,); or (E, D) where clips are numbers.
        trials: whose labels are not looked at.
        cohort: (K, D), each training speaker's mean embedding; None if neither of the following needs it.
        center: take the cohort's mean away first.
        top: scores that `s_norm` compares with; 0 for cosines as they are.
    """
    mean = cohort.mean(axis=0) if center else None
    scores = cosine_scores(embeddings, trials, mean=mean)
    return s_norm(scores, embeddings, trials, cohort, mean=mean, top=top) if top else scores


def s_norm(
    scores: np.ndarray,
    embeddings: Embeddings,
    trials: Sequence[Trial],
    cohort: np.ndarray,
    *,
    mean: np.ndarray | None = None,
    top: int = 300,
) -> np.ndarray:
    """Adaptive symmetric normalisation: how far a score stands out from those of each clip with other speakers.

    The mean of (score - m) / s over the trial's two clips, where m and s are mean and standard deviation of a clip's
    `top` highest scores with the cohort (Matejka et al., 2017, "Analysis of Score Normalization in Multilingual Speaker
    Recognition"; 300 as in WeSpeaker's VoxCeleb recipe).

    Args:
        scores: (N,) from `cosine_scores` with the same mean.
        embeddings: clip -> (D,); or (E, D) where clips are numbers.
        trials: whose labels are not looked at.
        cohort: (K, D), such as each training speaker's mean embedding.
        mean: (D,) to take away first.
        top: scores to compare with; all, if the cohort is smaller.

    Raises:
        InputError: a clip without an embedding, or a cohort of fewer than two.
    """
    if len(cohort) < 2:
        raise InputError(
            f"a cohort of {len(cohort)}; s-norm needs two other speakers or more, and some hundreds to help"
        )
    units, pairs = trial_units(embeddings, trials, mean)
    others = to_units(cohort, mean)
    best = [np.sort(others @ unit)[-top:] for unit in units]
    means, deviations = np.array([(near.mean(), near.std()) for near in best]).T  # (E,) each
    both = np.array(pairs)  # (N, 2)
    return ((np.asarray(scores)[:, None] - means[both]) / deviations[both]).mean(axis=1)


def first_clips(speakers: Sequence[str], most: int = 20) -> list[int]:
    """The first clips of each speaker, by number; a mean of twenty embeddings hardly changes with more of them."""
    seen: Counter[str] = Counter()
    kept = []
    for clip, speaker in enumerate(speakers):
        seen[speaker] += 1
        if seen[speaker] <= most:
            kept.append(clip)
    return kept


def speaker_means(embeddings: np.ndarray, speakers: Sequence[str]) -> np.ndarray:
    """The mean embedding of each speaker, (K, D) in the order of their names; of clips (E, D)."""
    names, owners = np.unique(speakers, return_inverse=True)
    return np.stack([embeddings[owners == speaker].mean(axis=0) for speaker in range(len(names))])


def write_cohort(folder: str | os.PathLike, means: np.ndarray) -> None:
    """Write `cohort.safetensors` beside a model: the mean embeddings of its training speakers, (K, D)."""
    write_weights({"embeddings": torch.from_numpy(means)}, Path(folder) / COHORT)


def read_cohort(source: str | os.PathLike, width: int) -> np.ndarray:
    """The cohort that lies beside a model, (K, D).

    Args:
        source: folder or hub repository of the model.
        width: of its embeddings.

    Raises:
        InputError: there is none, or it is of another width.
    """
    path = fetch_file(source, COHORT)
    if path is None:
        raise InputError(f"{source}: no {COHORT}, whose training speakers center and s_norm need; training writes it")
    means = read_weights_file(path).get("embeddings")
    if means is None or means.ndim != 2 or means.shape[1] != width:
        raise InputError(f"{path}: should hold embeddings of shape (speakers, {width})")
    return means.numpy()


def to_units(embeddings: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    """Embeddings (..., D) less the mean, at length 1; zeros stay zeros."""
    centred = np.asarray(embeddings) - (0 if mean is None else mean)
    return centred / np.linalg.norm(centred, axis=-1, keepdims=True).clip(min=1e-12)


def trial_units(
    embeddings: Embeddings, trials: Sequence[Trial], mean: np.ndarray | None
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The clips that the trials need, (E, D) at length 1, and each trial's two rows of it."""
    rows: dict[Hashable, int] = {}
    for _, *clips in trials:
        for clip in clips:
            rows.setdefault(clip, len(rows))
    try:
        units = to_units(np.stack([embeddings[clip] for clip in rows]), mean)
    except (KeyError, IndexError) as error:
        raise InputError(f"a trial names a clip that has no embedding ({error})") from error
    return units, [(rows[enrol], rows[test]) for _, enrol, test in trials]
