"""Clips: how long they are, and which cannot be used."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from d2v.config import Data
from d2v.errors import InputError
from d2v.processors.audio import CTCTokenizer, audio_seconds, load_audio

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class AudioData(Data):
    """Data with sound.

    Attributes:
        audio_column: sound, as `datasets` stores it, or paths.
        batch_seconds: most seconds in a batch, padding counted.
        max_seconds: the longest clip of train.
        bad_rows: refuse, or skip and count, rows that cannot be used.
    """

    audio_column: str = "audio"
    batch_seconds: float = 100.0
    max_seconds: float = 30.0
    bad_rows: Literal["refuse", "skip"] = "refuse"


def check_splits(
    splits: dict[str, "Dataset"],
    data: AudioData,
    shortest: float,
    *,
    learn: Callable[[dict[str, Any], float], str | None],
    score: Callable[[dict[str, Any], float], str | None],
) -> dict[str, tuple["Dataset", list[float]]]:
    """The good rows of each split with their seconds, see `check_clips`; what is scored is decoded once before.

    Args:
        splits: from `d2v.data.load.load`.
        data: the longest clip of train, and what to do with bad rows.
        shortest: seconds.
        learn, score: say what is wrong with a row of train, or of another split, and its seconds; or None.
    """
    check = partial(check_clips, audio_column=data.audio_column, shortest=shortest, bad_rows=data.bad_rows)
    return {
        name: check(split, name, longest=data.max_seconds, problem=learn)
        if name == "train"
        else check(split, name, problem=score, decode=True)
        for name, split in splits.items()
    }


def random_crop(clip: np.ndarray, samples: int, draw: tuple[int, ...]) -> np.ndarray:
    """A part of a clip, (samples,), where `crop_start` puts it; a shorter clip as it is."""
    first = crop_start(len(clip), samples, draw)
    return clip[first : first + samples]


def crop_start(length: int, samples: int, draw: tuple[int, ...]) -> int:
    """The first of `samples` samples of a clip, where the numbers in `draw` put it; 0 for a shorter clip."""
    return int(np.random.default_rng(draw).integers(max(length - samples, 0) + 1))


def random_speed(clip: np.ndarray, most: float, draw: tuple[int, ...]) -> np.ndarray:
    """A clip played up to `most` faster or slower, a share such as 0.1, as the numbers in `draw` say; pitch goes along.

    Speed perturbation (Ko et al., 2015), with speeds drawn from a range instead of three.
    """
    import soxr

    return soxr.resample(clip, 1 + np.random.default_rng((*draw, 1)).uniform(-most, most), 1.0)


def check_clips(
    split: "Dataset",
    name: str,
    audio_column: str,
    *,
    shortest: float,
    longest: float = float("inf"),
    problem: Callable[[dict[str, Any], float], str | None] = lambda row, seconds: None,
    bad_rows: Literal["refuse", "skip"],
    decode: bool = False,
) -> tuple["Dataset", list[float]]:
    """Look at every row once.

    Args:
        split: rows with a column of sound.
        name: of the split, for messages.
        audio_column: the column's name.
        shortest, longest: seconds that a clip may have.
        problem: `problem(row, seconds)` says what else is wrong with a row, or None.
        bad_rows: "refuse" the split at its first bad row, or "skip" such rows and say how many.
        decode: decode the sound too, which finds all damage; else the header alone is read, which is quick, and
            `load_clips` finds the rest.

    Returns:
        The good rows and their clips' durations in seconds.

    Raises:
        InputError: a bad row while refusing, or no good one; the message names split and row.
    """

    def check(row: dict[str, Any]) -> tuple[float, str | None]:
        try:
            seconds = audio_seconds(row[audio_column])
            if decode:
                load_audio(row[audio_column])
        except InputError as error:
            return 0.0, str(error)
        if not shortest <= seconds <= longest:
            return seconds, f"{seconds:.3f} s of sound; a clip has {shortest:.3f} to {longest:g} s"
        return seconds, problem(row, seconds)

    checked = []
    for i, row in enumerate(split):
        checked.append(check(row))
        if bad_rows == "refuse" and (reason := checked[-1][1]):
            raise InputError(f"{name}, row {i}: {reason} (--data.bad_rows skip leaves such rows out)")
    good = [i for i, (_, reason) in enumerate(checked) if reason is None]
    if len(good) < len(checked):
        first = next(i for i, (_, reason) in enumerate(checked) if reason)
        left_out = (
            f"{len(checked) - len(good)} of {len(checked)} rows left out; the first is row {first}: {checked[first][1]}"
        )
        if not good:
            raise InputError(f"{name}: {left_out}")
        print(f"{name}: {left_out}")
    return split.select(good), [checked[i][0] for i in good]


def load_clips(
    rows: list[dict[str, Any]], audio_column: str, rate: int, bad_rows: Literal["refuse", "skip"]
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Decode the sound of a batch; a damaged clip is an InputError that names its row, or left out with a warning."""
    good, clips = [], []
    for row in rows:
        try:
            clips.append(load_audio(row[audio_column], rate))
            good.append(row)
        except InputError as error:
            message = f"{row.get('id', 'a row')}: {error}"
            if bad_rows == "refuse":
                raise InputError(f"{message} (--data.bad_rows skip leaves such rows out)") from error
            warnings.warn(f"left out {message}", stacklevel=2)
    if not good:
        raise InputError(f"not one clip of a batch can be decoded; the last is {message}")
    return good, clips


def text_problem(text: Any) -> str | None:
    """Why a transcript cannot be scored against, or None."""
    return None if isinstance(text, str) else f"a transcript should be text, not {text!r}"


def transcript_problem(text: Any, tokenizer: CTCTokenizer, frames: int) -> str | None:
    """Why CTC cannot learn from a transcript of so many frames, or None."""
    if reason := text_problem(text):
        return reason
    if unknown := tokenizer.unknown(text):
        return f"characters {''.join(sorted(unknown))!r} are not in the vocabulary; see data.case and data.remove"
    labels = tokenizer.encode(text)
    if not labels:
        return "empty transcript"
    needed = len(labels) + sum(a == b for a, b in pairwise(labels))  # a blank between equal ones
    return f"{len(labels)} labels need {needed} frames; the clip has {frames}" if needed > frames else None
