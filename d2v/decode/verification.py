"""Are two clips of one speaker? The scores of trials from the embeddings of their clips, and their files.

Trials are those of `d2v.data.verification`. Shapes: E clips, K cohort, D width, N trials.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2v.data.diarization import one_word
from d2v.data.verification import NamedTrial, Trial
from d2v.errors import InputError
from d2v.hub import fetch_file
from d2v.pretrained import read_weights_file, write_weights

COHORT = "cohort.safetensors"
Embeddings = Mapping[Any, np.ndarray] | np.ndarray
Trials = Sequence[Trial] | Sequence[NamedTrial]
Scores = Sequence[float] | np.ndarray


def cosine_scores(embeddings: Embeddings, trials: Trials, *, mean: np.ndarray | None = None) -> np.ndarray:
    """The cosine between the embeddings of each trial's clips, (N,).

    Args:
        embeddings: clip -> (D,); or (E, D) where clips are numbers.
        trials: whose labels are not looked at.
        mean: (D,) to subtract first, such as that of the training clips.

    Raises:
        InputError: a clip without an embedding.
    """
    units, pairs = trial_units(embeddings, trials, mean)
    return np.array([units[enrol] @ units[test] for enrol, test in pairs])


def score_trials(
    embeddings: Embeddings, trials: Trials, cohort: np.ndarray | None, *, center: bool, top: int
) -> np.ndarray:
    """The scores of trials, (N,): `cosine_scores`, perhaps normalised by `s_norm`.

    Args:
        embeddings: clip -> (D,); or (E, D) where clips are numbers.
        trials: whose labels are not looked at.
        cohort: (K, D), each training speaker's mean embedding; None if neither option below is used.
        center: subtract the cohort's mean first.
        top: number of cohort scores for `s_norm`; 0 for plain cosines.
    """
    if not (center or top):
        return cosine_scores(embeddings, trials)
    if cohort is None:
        raise ValueError("center and top take a cohort")
    mean = cohort.mean(axis=0) if center else None
    scores = cosine_scores(embeddings, trials, mean=mean)
    return s_norm(scores, embeddings, trials, cohort, mean=mean, top=top) if top else scores


def s_norm(
    scores: np.ndarray,
    embeddings: Embeddings,
    trials: Trials,
    cohort: np.ndarray,
    *,
    mean: np.ndarray | None = None,
    top: int = 300,
) -> np.ndarray:
    """Adaptive symmetric normalisation of scores by each clip's scores with other speakers.

    The mean of (score - m) / s over the trial's two clips, where m and s are mean and standard deviation of a clip's
    `top` highest scores with the cohort (Matejka et al., 2017, "Analysis of Score Normalization in Multilingual Speaker
    Recognition"; 300 as in WeSpeaker's VoxCeleb recipe).

    Args:
        scores: (N,) from `cosine_scores` with the same mean.
        embeddings: clip -> (D,); or (E, D) where clips are numbers.
        trials: whose labels are not looked at.
        cohort: (K, D), such as each training speaker's mean embedding.
        mean: (D,) to subtract first.
        top: number of cohort scores; all, if the cohort is smaller.

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


def trial_records(named: Sequence[NamedTrial], scores: Scores) -> list[dict[str, Any]]:
    """The prediction of each trial: `enrol`, `test`, `score`, and the `label` if there is one."""
    return [
        {"enrol": enrol, "test": test, "score": float(score)} | ({} if label is None else {"label": label})
        for (label, enrol, test), score in zip(named, scores, strict=True)
    ]


def write_scores(path: str | os.PathLike, trials: Trials, scores: Scores) -> None:
    """Write one line `<score> <enrolment clip> <test clip>` per trial, in VoxSRC's format, scores from 0 to 1.

    Cosines are mapped by (x + 1) / 2, and larger scores, as from `s_norm`, are divided by the largest first; white
    space in a name becomes an underscore.
    """
    values = np.asarray(scores, dtype=float)
    largest = np.abs(values).max(initial=1)
    mapped = ((values / (largest if largest > 1 + 1e-6 else 1) + 1) / 2).clip(0, 1)  # rounding may put a cosine above 1
    pairs = [(one_word(str(enrol)), one_word(str(test))) for _, enrol, test in trials]
    lines = [f"{score:.8f} {enrol} {test}\n" for score, (enrol, test) in zip(mapped, pairs, strict=True)]
    Path(path).write_text("".join(lines), "utf-8")


def speaker_means(speakers: Sequence[str], embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """The mean embedding of each speaker, (K, D) in the order of their names.

    Args:
        speakers: of each clip.
        embeddings: (E, D), of the same clips.
    """
    names, owners = np.unique(speakers, return_inverse=True)
    stacked = np.stack(embeddings)
    return np.stack([stacked[owners == speaker].mean(axis=0) for speaker in range(len(names))])


def write_cohort(folder: str | os.PathLike, means: np.ndarray) -> None:
    """Write `cohort.safetensors` beside a model: the mean embeddings of its training speakers, (K, D)."""
    write_weights({"embeddings": torch.from_numpy(means)}, Path(folder) / COHORT)


def read_cohort(source: str | os.PathLike, width: int) -> np.ndarray:
    """The cohort beside a model, (K, D).

    Args:
        source: folder or hub repository of the model.
        width: of its embeddings.

    Raises:
        InputError: there is none, or it has another width.
    """
    path = fetch_file(source, COHORT)
    if path is None:
        raise InputError(f"{source}: no {COHORT}, whose training speakers center and s_norm need; training writes it")
    means = read_weights_file(path).get("embeddings")
    if means is None or means.ndim != 2 or means.shape[1] != width:
        raise InputError(f"{path}: should hold embeddings of shape (speakers, {width})")
    return means.numpy()


def to_units(embeddings: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    """Embeddings (..., D) minus the mean, scaled to length 1; zeros stay zeros."""
    centred = np.asarray(embeddings) - (0 if mean is None else mean)
    return centred / np.linalg.norm(centred, axis=-1, keepdims=True).clip(min=1e-12)


def trial_units(
    embeddings: Embeddings, trials: Trials, mean: np.ndarray | None
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The embeddings of the trials' clips, (E, D), scaled to length 1, and each trial's two rows of them."""
    rows: dict[Any, int] = {}
    for _, *clips in trials:
        for clip in clips:
            rows.setdefault(clip, len(rows))
    try:
        units = to_units(np.stack([embeddings[clip] for clip in rows]), mean)
    except (KeyError, IndexError) as error:
        raise InputError(f"a trial names a clip that has no embedding ({error})") from error
    return units, [(rows[enrol], rows[test]) for _, enrol, test in trials]
