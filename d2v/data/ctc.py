"""Transcripts for CTC: the vocabulary of a run, and which transcripts cannot be used."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import eq
from typing import Any, Literal

import numpy as np

from d2v.config import Job
from d2v.data.audio import AudioData, clip_rows
from d2v.data.facts import note
from d2v.data.rows import Rows, Split
from d2v.data.streams import rows_of
from d2v.errors import InputError
from d2v.hub import fetch_file
from d2v.models.audio import Data2VecAudioConfig
from d2v.processors.audio import AudioFeatureExtractor
from d2v.processors.ctc import CTCTokenizer

RARE = 10
"""A character that occurs less often in train's transcripts is hardly learnt."""


@dataclass
class TranscriptData(AudioData):
    """Data with sound and transcripts; without a path the embedded demo.

    Attributes:
        text_column: column of the transcripts.
        vocabulary: characters of the output: the model's if it has any; the model's and further ones in train's
            transcripts (extend); or only those in train's transcripts (train).
        case: case of the vocabulary and the references; by default the model's, or unchanged.
        remove: characters to delete from transcripts; by default those that the model was trained without.
        replace: texts to replace in transcripts, such as '{"--": " "}'; by default as the model was trained.
        form: Unicode's normalisation form of transcripts; NFKC also replaces ligatures, raised letters and full-width
            signs by plain ones. By default the model's, or NFC.
        ignore_references: transcripts that are ignored, such as ignore_time_segment_in_scoring; their rows are left
            out and counted.
    """

    text_column: str = "text"
    vocabulary: Literal["model", "extend", "train"] = "model"
    case: Literal["keep", "lower", "upper"] | None = None
    remove: str | None = None
    replace: dict[str, str] | None = None
    form: Literal["NFC", "NFKC"] | None = None
    ignore_references: list[str] = field(default_factory=list)


def ctc_tokenizer(job: Job, splits: Mapping[str, Split]) -> CTCTokenizer:
    """The tokenizer of the run's model, changed as the options say, or in training a new one of train's characters.

    Raises:
        InputError: the model has no vocabulary, and there is no training.
    """
    data, model = job.config.data, job.config.model
    given = {name: getattr(data, name) for name in ("case", "remove", "replace", "form")}
    options = {name: value for name, value in given.items() if value is not None}
    known = bool(model and fetch_file(model, "vocab.json"))
    if known and (data.vocabulary == "model" or not job.training):
        return replace(CTCTokenizer.from_pretrained(model), **options)
    if not job.training:
        raise InputError(f"{model}: no vocab.json, so it cannot write yet; --mode train teaches it")
    column = splits["train"].column(data.text_column)
    texts = [text for text in column if isinstance(text, str) and text.strip() not in data.ignore_references]
    if known and data.vocabulary == "extend":
        tokenizer = replace(CTCTokenizer.from_pretrained(model), **options)
        more = sorted(set().union(*map(tokenizer.unknown, texts)))
        if more:
            line = f"vocabulary: the model's {len(tokenizer)} tokens and {len(more)} of train: {' '.join(more)}"
            note(job, "vocabulary", line, added=more)
        return replace(tokenizer, vocab=tokenizer.vocab | {c: i for i, c in enumerate(more, len(tokenizer))})
    tokenizer = CTCTokenizer.from_texts(texts, **options)
    note_vocabulary(job, tokenizer, texts)
    return tokenizer


def note_vocabulary(job: Job, tokenizer: CTCTokenizer, texts: Iterable[str]) -> None:
    """Note the number of characters in a new vocabulary, and the rare ones."""
    counts = Counter(chain.from_iterable(map(tokenizer.normalize, texts)))
    counts.pop(" ", None)
    rare = sorted(character for character, count in counts.items() if count < RARE)
    line = f"vocabulary: {len(counts)} characters of train's transcripts"
    if rare:
        line += f", of which {len(rare)} are there fewer than {RARE} times: {' '.join(rare)}"
        line += " (data.case, data.remove, data.replace and data.form change it)"
    note(job, "vocabulary", line, characters=len(counts), rare=rare)


def count_references(job: Job, split: Split) -> Split:
    """The rows whose transcripts are not ignored; empty transcripts are noted."""
    data = job.config.data
    texts = [text.strip() if isinstance(text, str) else text for text in split.column(data.text_column)]
    ignored = np.array([text in data.ignore_references if isinstance(text, str) else False for text in texts], bool)
    if ignored.any():
        line = f"{split.name}: {ignored.sum()} of {len(split)} rows left out, whose transcripts do not count"
        note(job, "ignored references", line, split=split.name, rows=int(ignored.sum()), of=len(split))
    spoken = [text for text in texts if isinstance(text, str) and len(text) >= 10]
    if split.name != "train" and spoken and sum(len(text.split()) > 1 for text in spoken) < len(spoken) / 10:
        line = f"{split.name}: transcripts have no spaces, so a word error is one of the whole line; --run.metric cer"
        note(job, "no spaces", f"{line} chooses by characters", split=split.name)
    empty = texts.count("")
    if empty and split.name != "train":  # train refuses empty ones
        line = f"{split.name}: {empty} of {len(split)} transcripts are empty: every word recognised there is an error"
        note(job, "empty transcripts", line, split=split.name, rows=empty, of=len(split))
    return split.select(np.flatnonzero(~ignored))


def speech_rows(
    job: Job,
    splits: Mapping[str, Split],
    extractor: AudioFeatureExtractor,
    tokenizer: CTCTokenizer,
    settings: Data2VecAudioConfig,
) -> dict[str, Rows]:
    """The usable clips of each split, with their normalised transcripts as references.

    Args:
        job: its data have the options of `TranscriptData`.
        splits: from `d2v.data.load.load`.
        extractor, tokenizer: of the model.
        settings: the model's configuration, which decides the number of frames of a clip.
    """
    if any(split.stream is not None for split in splits.values()):

        def of(part: Split) -> Rows:
            return speech_rows(job, {part.name: part}, extractor, tokenizer, settings)[part.name]

        return {name: rows_of(split, of) for name, split in splits.items()}
    column, rate = job.config.data.text_column, extractor.sampling_rate
    texts: dict[str, list[Any]] = {}
    splits = {name: count_references(job, split) for name, split in splits.items()} if job.labelled else splits
    for name, split in splits.items() if job.labelled else ():
        mark = tokenizer.word_delimiter_token
        if marked := sum(mark in text for text in split.column(column) if isinstance(text, str)):
            line = f"{name}: {marked} of {len(split)} transcripts have a {mark!r}, which is read as a space"
            note(job, "delimiters", line, split=name, rows=marked, of=len(split))
        # Values that are no text are kept, to be reported as a problem.
        texts[name] = [tokenizer.normalize(text) if isinstance(text, str) else text for text in split.column(column)]
    return clip_rows(
        job,
        splits,
        rate,
        settings.shortest_clip,
        texts,
        problem=lambda text, seconds: transcript_problem(text, tokenizer, settings.frames(round(seconds * rate))),
        eval_problem=lambda text, seconds: text_problem(text),
    )


def speech_records(job: Job, rows: Rows, predictions: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Predictions as they are written, see `Rows.records`, with `seconds` and the original `transcript`."""
    records = rows.records(predictions)
    records = [it | {"seconds": round(rows.lengths[row], 3)} for it, (row, _) in zip(records, predictions, strict=True)]
    if not job.labelled:
        return records
    texts = rows.split.column(job.config.data.text_column)
    return [record | {"transcript": texts[row]} for record, (row, _) in zip(records, predictions, strict=True)]


def text_problem(text: Any) -> str | None:
    """Why a transcript cannot be scored against, or None."""
    return None if isinstance(text, str) else f"a transcript should be text, not {text!r}"


def transcript_problem(text: Any, tokenizer: CTCTokenizer, frames: int) -> str | None:
    """Why CTC cannot learn from a normalised transcript of a clip with `frames` frames, or None."""
    if reason := text_problem(text):
        return reason
    labels = tokenizer.labels(text)
    if tokenizer.unk_token_id in labels and (unknown := tokenizer.unknown(text)):
        options = "data.case, data.remove, data.replace and data.vocabulary"
        return f"characters {''.join(sorted(unknown))!r} are not in the vocabulary; see {options}"
    if not labels:
        return "empty transcript"
    needed = len(labels) + sum(map(eq, labels, labels[1:]))  # a blank between equal ones
    return f"{len(labels)} labels need {needed} frames; the clip has {frames}" if needed > frames else None
