"""The embedded demo sets: what a recipe runs on when it is given no data.

They are synthesised by the first call, in seconds, and kept. On one platform the content is a pure function of the seed
and of the installed packages. `validation` has other utterances of the training voices; `test` has voices of its own.
Sound is {bytes, path}: mono 16-bit FLAC at 16 kHz.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2v.demo.docstrings import sentences
from d2v.demo.espeak import SAMPLE_RATE, Sizes, keep, speak
from d2v.demo.text import documentation_paragraphs

if TYPE_CHECKING:
    from datasets import Dataset

SPEECH_RMS = 0.05  # of a full-scale 1; leaves room for two voices' peaks
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# The auxiliary words of Speech Commands (Warden, arXiv:1804.03209), which are `_unknown_` there too.
OTHER_WORDS = ["bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow"]
WORD_LABELS = [*NUMBER_WORDS, "_unknown_", "_silence_"]
# <accent>+<variant>; "en" is British. Of eSpeak NG's hundred variants these are among the clearest to a recogniser
# (pocketsphinx, number words), and their pitches spread from 70 Hz (announcer) over 205 (f5) to 270 (anika).
TRAIN_VOICES = [
    "en-us+f5",
    "en-us+klatt4",
    "en-gb-x-rp+f1",
    "en-gb-scotland+benjamin",
    "en-us+anika",
    "en+m6",
    "en-us+Nguyen",
    "en-us+announcer",
    "en-us-nyc+mike2",
    "en-gb-x-gbclan+sandro",
]
TEST_VOICES = ["en-us+f2", "en-us+edward"]
# Variants for the accent "en-us". Without whispers, robots and those that saturate, these are the ones whose average
# spectra and pitches are farthest apart; many others are nearly copies of them.
TRAIN_SPEAKERS = [
    "Alicia",
    "kaukovalta",
    "Andrea",
    "travis",
    "anika",
    "ian",
    "grandma",
    "Tweaky",
    "aunty",
    "AnxiousAndy",
    "Nguyen",
    "Storm",
    "Annie",
    "Gene",
    "f1",
    "marcelo",
    "f3",
    "Michael",
    "announcer",
    "sandro",
    "f5",
    "Andy",
    "quincy",
    "Reed",
    "iven2",
    "Denis",
    "klatt2",
    "boris",
    "michel",
    "m5",
]
PITCHES = (20, 50, 80)  # of 0 to 99
TEST_SPEAKERS = ["f2", "edward", "belinda", "pablo", "shelby", "m1", "steph", "Lee"]


def number_words(
    cache_dir: str | Path | None = None, *, seed: int = 0, _sizes: Sizes = (1600, 100, 150)
) -> dict[str, "Dataset"]:
    """Spoken number words ("forty two seven"), one to four an utterance, for speech recognition.

    Args:
        cache_dir: the folder to keep it in; else the environment variable `D2V_CACHE`, else `~/.cache/d2v`.
        seed: of the texts, rates, pitches and noise.

    Returns:
        Split name -> rows with the columns `audio`, `text` (lower case) and `speaker` (the voice).

    Raises:
        InputError: the package is not installed, or the folder cannot be written.
    """
    return keep(_number_words, cache_dir, seed, _sizes)


def spoken_words(
    cache_dir: str | Path | None = None, *, seed: int = 0, _sizes: Sizes = (1200, 120, 240)
) -> dict[str, "Dataset"]:
    """Single words for keyword spotting with the twelve classes of SUPERB's, its commands replaced by numbers.

    Arguments and errors are those of `number_words`.

    Returns:
        Split name -> rows with the columns `audio`, `label` (a number word, `_unknown_` for another word, `_silence_`
        for noise alone; as many of each) and `speaker` (the voice; None in silence).
    """
    return keep(_spoken_words, cache_dir, seed, _sizes)


def conversations(
    cache_dir: str | Path | None = None, *, seed: int = 0, _sizes: Sizes = (250, 30, 50)
) -> dict[str, "Dataset"]:
    """Two voices that take turns of one to four number words, most turns overlapping the one before, for diarization.

    Arguments and errors are those of `number_words`.

    Returns:
        Split name -> rows with the columns `id`, `audio` (4 to 6 s), `turns` ({speaker_slot, start, end} in order, in
        seconds) and `speakers` (the variant in each slot; slot 0 speaks first).
    """
    return keep(_conversations, cache_dir, seed, _sizes)


def voices(
    cache_dir: str | Path | None = None, *, seed: int = 0, _sizes: Sizes = (1260, 270, 192)
) -> dict[str, "Dataset"]:
    """Many voices that say random words, for speaker verification: variants of eSpeak's, each at three pitches.

    Arguments and errors are those of `number_words`.

    Returns:
        Split name -> rows with the columns `audio` and `speaker` (the variant and its pitch).
    """
    return keep(_voices, cache_dir, seed, _sizes)


def narration(
    cache_dir: str | Path | None = None, *, seed: int = 0, _sizes: Sizes = (2400, 60)
) -> dict[str, "Dataset"]:
    """Sentences of Python's documentation and rows of five to eight words, without labels, for pretraining.

    The voices are those that the other sets train on, at any pitch; in a fifth of the clips a second one falls in. No
    text is one of the other sets', whose utterances have at most four words. Arguments and errors are those of
    `number_words`.

    Returns:
        "train" and "validation" -> rows with the columns `audio` (2 to 12 s) and `speaker` (the first voice).
    """
    return keep(_narration, cache_dir, seed, _sizes)


def _number_words(split: str, size: int, rng: np.random.Generator) -> Iterator[dict]:
    names = TEST_VOICES if split == "test" else TRAIN_VOICES
    for i in range(size):
        voice = names[i % len(names)]
        text = _words(NUMBER_WORDS, 1, 4, rng)
        yield {"audio": _recorded(_say(text, voice, rng), rng), "text": text, "speaker": voice}


def _spoken_words(split: str, size: int, rng: np.random.Generator) -> Iterator[dict]:
    names = TEST_VOICES if split == "test" else TRAIN_VOICES
    for i in range(size):
        voice, label = names[i % len(names)], WORD_LABELS[i // len(names) % len(WORD_LABELS)]
        if label == "_silence_":
            clip = _noise(rng)
        else:
            word = rng.choice(OTHER_WORDS) if label == "_unknown_" else label
            clip = _recorded(_say(word, voice, rng), rng)
        yield {"audio": clip, "label": label, "speaker": None if label == "_silence_" else voice}


def _conversations(split: str, size: int, rng: np.random.Generator) -> Iterator[dict]:
    names = TEST_SPEAKERS if split == "test" else TRAIN_SPEAKERS
    for i in range(size):
        speakers = rng.choice(names, 2, replace=False).tolist()
        clip, turns = _conversation(speakers, rng)
        yield {"id": f"{split}-{i:04d}", "audio": clip, "turns": turns, "speakers": speakers}


def _voices(split: str, size: int, rng: np.random.Generator) -> Iterator[dict]:
    names = TEST_SPEAKERS if split == "test" else TRAIN_SPEAKERS
    for i in range(size):
        voice, pitch = names[i % len(names)], PITCHES[i // len(names) % len(PITCHES)]
        text = _words(NUMBER_WORDS + OTHER_WORDS, 2, 4, rng)
        clip = _recorded(_say(text, f"en-us+{voice}", rng, pitch, spread=5), rng)
        yield {"audio": clip, "speaker": f"{voice} {pitch}"}


def _narration(split: str, size: int, rng: np.random.Generator) -> Iterator[dict]:
    names = [*TRAIN_VOICES, *(f"en-us+{name}" for name in TRAIN_SPEAKERS)]
    prose = [text for paragraph in documentation_paragraphs() for text in sentences(paragraph)]
    prose = [text for text in prose if 6 <= len(text.split()) <= 16 and re.fullmatch(r"[\w ,.'-]+", text)]
    for i in range(size):
        first, second = names[i % len(names)], str(rng.choice(names))
        clip = _narrated(first, prose, rng)
        if rng.random() < 0.2:
            other, start = _narrated(second, prose, rng), int(rng.integers(len(clip)))
            other = other[: len(clip) - start] * 10 ** (rng.uniform(-10, 0) / 20)  # up to 10 dB softer
            clip = clip + np.pad(other, (start, len(clip) - start - len(other)))
        yield {"audio": _recorded(clip, rng), "speaker": first}


def _narrated(voice: str, prose: list[str], rng: np.random.Generator) -> np.ndarray:
    """A sentence, or as often a row of words, at any rate and pitch, (S,), at most 12 s."""
    text = str(rng.choice(prose)) if rng.random() < 0.5 else _words(NUMBER_WORDS + OTHER_WORDS, 5, 8, rng)
    clip = _say(text, voice, rng, spread=35)[: 12 * SAMPLE_RATE]
    return SPEECH_RMS * clip / clip.std()


def _words(words: list[str], least: int, most: int, rng: np.random.Generator) -> str:
    """Random words, `least` to `most` of them."""
    return " ".join(rng.choice(words, rng.integers(least, most + 1)))


def _say(text: str, voice: str, rng: np.random.Generator, pitch: int = 50, spread: int = 15) -> np.ndarray:
    """Says a text, (S,), at a random rate and at most `spread` from a pitch, of which 50 is the voice's own."""
    rate, off = int(rng.integers(120, 171)), int(rng.integers(-spread, spread + 1))
    return speak(text, voice, rate=rate, pitch=pitch + off)


def _recorded(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An utterance with 50 to 200 ms before and after it, and noise 20 to 40 dB below it all through."""
    noise_rms = np.sqrt(np.mean(clip**2)) * 10 ** -rng.uniform(1, 2)
    clip = np.pad(clip, rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 5, 2))
    return clip + noise_rms * rng.standard_normal(len(clip))


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Noise alone, half a second to a second, from hiss to rumble, as loud as under an utterance."""
    white = rng.standard_normal(rng.integers(SAMPLE_RATE // 2, SAMPLE_RATE))
    noise = np.convolve(white, rng.uniform(0, 0.95) ** np.arange(64), "same")
    return SPEECH_RMS * 10 ** -rng.uniform(1, 2) * noise / noise.std()


def _conversation(speakers: list[str], rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """Two voices in turns: the sound, and who speaks from when to when in seconds."""
    length = int(rng.uniform(4, 6) * SAMPLE_RATE)
    # A speaker's own, from the first turn to the last: one low, one high, which a few minutes' training can tell apart.
    pitches = (rng.permutation([PITCHES[0], PITCHES[-1]]) + rng.integers(-5, 6, 2)).tolist()
    levels = SPEECH_RMS * 10 ** (rng.uniform(-3, 3, 2) / 20)  # +- 3 dB
    clip = SPEECH_RMS * 10 ** -rng.uniform(1, 2) * rng.standard_normal(length)
    turns: list[dict] = []
    ends, start = [0, 0], int(rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 3))
    while start < length - SAMPLE_RATE // 2:
        slot = len(turns) % 2
        text = _words(NUMBER_WORDS, 1, 4, rng)
        said = _trimmed(speak(text, f"en-us+{speakers[slot]}", rate=int(rng.integers(120, 171)), pitch=pitches[slot]))
        ends[slot] = min(start + len(said), length)  # the recording stops in the middle of a word
        clip[start : ends[slot]] += levels[slot] * (said / said.std())[: ends[slot] - start]
        turns.append({"speaker_slot": slot, "start": start / SAMPLE_RATE, "end": ends[slot] / SAMPLE_RATE})
        # The other falls in, or else pauses first; but a speaker ends one turn before the next.
        gap = rng.uniform(0.2, 0.7) * SAMPLE_RATE if rng.random() < 0.3 else -rng.uniform(0.1, 0.5) * len(said)
        start = max(ends[slot] + int(gap), ends[1 - slot] + SAMPLE_RATE // 20)
    return clip, turns


def _trimmed(clip: np.ndarray) -> np.ndarray:
    """An utterance without the silence at its ends."""
    loud = np.flatnonzero(np.abs(clip) > 0.02 * np.abs(clip).max())
    return clip[loud[0] : loud[-1] + 1]
