"""Transcripts for CTC: the vocabulary of a run, and which transcripts cannot be used."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from d2v.config import Job
from d2v.data.audio import clip_rows
from d2v.data.rows import Rows, Split
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from d2v.pretrained import fetch_file
from d2v.processors.audio import AudioFeatureExtractor, CTCTokenizer


def ctc_tokenizer(job: Job, splits: Mapping[str, Split]) -> CTCTokenizer:
    """The tokenizer of the run's model, or in training one of the characters of train where the model has none.

    Raises:
        InputError: the model has no vocabulary, and is not trained.
    """
    data, model = job.config.data, job.config.model
    if model and fetch_file(model, "vocab.json"):
        return CTCTokenizer.from_pretrained(model)
    if not job.training:
        raise InputError(f"{model}: no vocab.json, so it cannot write yet; --mode train teaches it")
    texts = (text for text in splits["train"].column(data.text_column) if isinstance(text, str))
    return CTCTokenizer.from_texts(texts, case=data.case, remove=data.remove)


def speech_rows(
    job: Job,
    splits: Mapping[str, Split],
    extractor: AudioFeatureExtractor,
    tokenizer: CTCTokenizer,
    settings: Data2VecAudioConfig,
) -> dict[str, Rows]:
    """The clips of each split that can be used, with their transcripts, normalised, as references.

    Args:
        job: whose data have a `text_column`.
        splits: from `d2v.data.load.load`.
        extractor, tokenizer: of the model.
        settings: the model's configuration, which says how many frames a clip has.
    """
    column, rate = job.config.data.text_column, extractor.sampling_rate
    texts: dict[str, list[Any]] = {}
    for name, split in splits.items() if job.labelled else ():
        # What is no text stays, to be named as a problem.
        texts[name] = [tokenizer.normalize(text) if isinstance(text, str) else text for text in split.column(column)]
    return clip_rows(
        job,
        splits,
        rate,
        settings.shortest_clip,
        texts,
        learn=lambda text, seconds: transcript_problem(text, tokenizer, settings.frames(int(seconds * rate))),
        score=lambda text, seconds: text_problem(text),
    )


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
