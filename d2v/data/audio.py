"""Clips: how long they are, and which cannot be used."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from d2v.config import Data, Job
from d2v.data.rows import Rows, Split, check_rows
from d2v.errors import InputError
from d2v.processors.audio import AudioFeatureExtractor, audio_seconds, load_audio


@dataclass
class AudioData(Data):
    """Data with sound.

    Attributes:
        audio_column: column of the sound, as `datasets` stores it, or of its paths.
        batch_seconds: maximum seconds of sound in a batch, padding counted.
        max_seconds: length of the longest clip that may be in train, in seconds.
    """

    unit: ClassVar[str] = "audio s"

    audio_column: str = "audio"
    batch_seconds: float = 100.0
    max_seconds: float = 30.0

    @property
    def max_size(self) -> float:
        """Seconds of a batch."""
        return self.batch_seconds


def clip_rows(
    job: Job,
    splits: Mapping[str, Split],
    rate: int,
    shortest: int,
    references: Mapping[str, Sequence[Any]],
    *,
    learn: Callable[[Any, float], str | None],
    score: Callable[[Any, float], str | None] = lambda reference, seconds: None,
    crop_seconds: float = math.inf,
) -> dict[str, Rows]:
    """The rows of each split that can be used, with their seconds; what is scored is decoded once before.

    Args:
        job: whose data have the options of `AudioData`.
        splits: from `d2v.data.load.load`.
        rate: samples a second.
        shortest: samples that a clip has at the least.
        references: split -> what each row is trained on or scored against; none in prediction.
        learn, score: `learn(reference, seconds)` says what is wrong with a row of train, `score` of another split.
        crop_seconds: as `clip_batch` gets it; a longer clip of train counts as so many.

    Raises:
        InputError: a bad row, unless `data.bad_rows` skips it, or no good one.
    """
    data: AudioData = job.config.data
    rows = {}
    for name, split in splits.items():
        training = name == "train"
        options = {"longest": data.max_seconds} if training else {"decode": True}
        seconds, reasons = check_clips(split, data.audio_column, shortest / rate, **options)
        targets = references.get(name)
        if targets is not None:
            problem = learn if training else score
            checked = zip(reasons, targets, seconds, strict=True)
            reasons = [reason or problem(target, length) for reason, target, length in checked]
        good = check_rows(job, split, reasons)
        most = crop_seconds if training else math.inf
        kept, ids = split.select(good), split.ids(data.audio_column)
        rows[name] = Rows(
            split=kept,
            ids=[ids[i] for i in good],
            lengths=[min(seconds[i], most) for i in good],
            references=None if targets is None else [targets[i] for i in good],
        )
    return rows


def random_crop(clip: np.ndarray, samples: int, seed: tuple[int, ...]) -> np.ndarray:
    """A part of a clip, (samples,), where `crop_start` puts it; a shorter clip as it is."""
    first = crop_start(len(clip), samples, seed)
    return clip[first : first + samples]


def augment_clip(clip: np.ndarray, seed: tuple[int, ...], *, speed: float, samples: int | None) -> np.ndarray:
    """A clip at a random speed, and of a longer one a random part of so many samples."""
    if speed:
        clip = random_speed(clip, speed, seed)
    return random_crop(clip, samples, seed) if samples else clip


def crop_start(length: int, samples: int, seed: tuple[int, ...]) -> int:
    """The first of `samples` samples of a clip, where the numbers in `seed` put it; 0 for a shorter clip."""
    return int(np.random.default_rng(seed).integers(max(length - samples, 0) + 1))


def random_speed(clip: np.ndarray, most: float, seed: tuple[int, ...]) -> np.ndarray:
    """A clip played up to `most` faster or slower, a share such as 0.1, as `seed` says; pitch changes too.

    Speed perturbation (Ko et al., 2015), with speeds from a range instead of three.
    """
    import soxr

    return soxr.resample(clip, 1 + np.random.default_rng((*seed, 1)).uniform(-most, most), 1.0)


def check_clips(
    split: Split, audio_column: str, shortest: float, longest: float = float("inf"), *, decode: bool = False
) -> tuple[list[float], list[str | None]]:
    """Look at every clip once.

    Args:
        split: rows with a column of sound.
        audio_column: the column's name.
        shortest, longest: seconds that a clip may have.
        decode: decode the sound too, which finds all damage; else the header alone is read, which is quick, and
            `load_clips` finds the rest.

    Returns:
        The clips' durations in seconds, and what is wrong with each, or None.
    """
    seconds, reasons = [], []
    for row in split.iterate([audio_column]):
        length, reason = 0.0, None
        try:
            length = audio_seconds(row[audio_column])
            if decode:
                load_audio(row[audio_column])
            if not shortest <= length <= longest:
                reason = f"{length:.3f} s of sound; a clip has {shortest:.3f} to {longest:g} s"
        except InputError as error:
            length, reason = 0.0, str(error)
        seconds.append(length)
        reasons.append(reason)
    return seconds, reasons


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
            message = f"{row['where']}: {error}"
            if bad_rows == "refuse":
                raise InputError(f"{message} (--data.bad_rows skip leaves such rows out)") from error
            warnings.warn(f"left out {message}", stacklevel=2)
    if not good:
        raise InputError(f"not one clip of a batch can be decoded; the last is {message}")
    return good, clips


def clip_batch(
    rows: list[dict[str, Any]],
    extractor: AudioFeatureExtractor,
    data: AudioData,
    change: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] | None = None,
    crop_seconds: float | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of a batch that can be decoded, and the batch.

    Args:
        rows: of a split.
        extractor: of the model.
        data: where the sound is, and what to do with damaged clips.
        change: `change(clip, seed)` augments a clip of train.
        crop_seconds: length of the random crops of longer clips of train.

    Returns:
        Rows, and `input_values` (B, S), `attention_mask` (B, S), the clips' `lengths` in samples, known on the host,
        with `crop_seconds` their `starts`, the first samples of the crops, `rows` and `size`.
    """
    rate = extractor.sampling_rate
    rows, clips = load_clips(rows, data.audio_column, rate, data.bad_rows)
    if change is not None:
        clips = [change(clip, row["seed"]) if "seed" in row else clip for clip, row in zip(clips, rows, strict=True)]
    about: dict[str, Any] = {"rows": [row["row"] for row in rows]}
    if crop_seconds is not None and "seed" in rows[0]:
        samples, pairs = round(crop_seconds * rate), list(zip(clips, rows, strict=True))
        about["starts"] = [crop_start(len(clip), samples, row["seed"]) for clip, row in pairs]
        clips = [clip[first : first + samples] for clip, first in zip(clips, about["starts"], strict=True)]
    about["lengths"] = [len(clip) for clip in clips]
    return rows, extractor(clips) | about | {"size": sum(about["lengths"]) / rate}
