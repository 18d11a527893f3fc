"""Each row's contribution to a task's metrics, as the `Statistics` of `d2v.metrics.intervals`."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from d2v.data.diarization import segments_to_frames
from d2v.data.labels import Labels
from d2v.metrics.classification import above_half, likeliest
from d2v.metrics.diarization import Recordings, error_seconds, name_speakers
from d2v.metrics.intervals import Statistics
from d2v.metrics.question_answering import question_answering_metrics
from d2v.metrics.token_classification import as_iobes, scored_words, strict_scheme


def transcript_statistics(references: Sequence[str], predictions: Sequence[Mapping[str, str]]) -> Statistics:
    """Statistics for word and character error rates, with those of `text_lm`: each transcript's errors and length."""
    import jiwer

    sums = {}
    for key, ending in (("text", ""), ("text_lm", "_lm")):
        if not predictions or key not in predictions[0]:
            continue
        texts = [row[key] for row in predictions]
        for name, process in (("wer", jiwer.process_words), ("cer", jiwer.process_characters)):
            rows = []
            for reference, text in zip(references, texts, strict=True):
                if reference.strip():
                    counts = process(reference, text)
                    errors = counts.substitutions + counts.deletions + counts.insertions
                    rows.append((errors, counts.hits + counts.substitutions + counts.deletions))
                else:  # an empty reference: all recognised words are insertions
                    rows.append((len(text.split()) if name == "wer" else len(text), 0))
            sums[name + ending] = np.array(rows, dtype=float)
    return {"sums": sums}


def class_statistics(references: Sequence[Any], predictions: Sequence[Any], names: Sequence[Any]) -> Statistics:
    """Statistics for accuracy, macro F1 and Matthews correlation: each row's class, or each word's for lists."""
    if references and isinstance(references[0], list):
        rows = {"row": np.repeat(np.arange(len(references)), [len(each) for each in references])}
        references, predictions = (list(chain.from_iterable(side)) for side in (references, predictions))
    else:
        rows = {}
    numbers = {name: i for i, name in enumerate(names)}
    sides = {"reference": references, "prediction": predictions}
    return {"classes": {key: np.array([numbers[name] for name in side]) for key, side in sides.items()} | rows}


def mean_statistics(**scores: Sequence[float]) -> Statistics:
    """Statistics for plain means: each row's score."""
    return {
        "sums": {name: np.stack((np.asarray(row, float), np.ones(len(row))), axis=1) for name, row in scores.items()}
    }


def loss_statistics(
    predictions: Sequence[tuple[int, Mapping[str, float]]], *, characters: int | None = None
) -> Statistics:
    """Statistics for `loss`, `perplexity`, `loss_per_character` and `accuracy`.

    Args:
        predictions: each window's `loss`, summed over its `tokens`, and, if known, `correct`.
        characters: number of characters in the whole text.
    """
    total, count = (np.array([row[key] for _, row in predictions], float) for key in ("loss", "tokens"))
    sums = {"loss": (total, count), "perplexity": (total, count)}
    if characters is not None:  # a window's number is unknown: as many per token as in the whole text
        sums["loss_per_character"] = (total, count * characters / count.sum())
    if predictions and "correct" in predictions[0][1]:
        sums["accuracy"] = (np.array([row["correct"] for _, row in predictions], float), count)
    return {"sums": {name: np.stack(pair, axis=1) for name, pair in sums.items()}}


def choice_statistics(references: Sequence[int], predictions: Sequence[Mapping[str, Any]]) -> Statistics:
    """Statistics for the accuracy of choices: whether each row's choice is right."""
    return mean_statistics(accuracy=[row["choice"] == each for each, row in zip(references, predictions, strict=True)])


def pixel_statistics(predictions: Sequence[tuple[int, Any]]) -> Statistics:
    """Statistics for `segmentation_metrics`: each image's `pixel_counts`, the first item of its prediction."""
    return {"overlaps": {"counts": np.stack([np.asarray(counts) for _, (counts, *_) in predictions])}}


def word_statistics(
    references: Sequence[Sequence[str | None]],
    predictions: Sequence[Mapping[str, Any]],
    names: Iterable[str],
    *,
    chunks: bool,
) -> Statistics:
    """Statistics for `token_classification_metrics`, by sentence."""
    references, labels = scored_words(references, [row["labels"] for row in predictions])
    return chunk_statistics(references, labels) if chunks else class_statistics(references, labels, list(names))


def chunk_statistics(references: Sequence[list[str]], predictions: Sequence[list[str]]) -> Statistics:
    """Statistics for `chunk_metrics`: each sentence's number of chunks, predicted, in the reference and in both."""
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import Entities

    references, predictions = ([list(map(as_iobes, labels)) for labels in side] for side in (references, predictions))
    scheme = strict_scheme(references, predictions)
    chunks: dict[str, list[tuple[int, int, int]]] = {"": [], "_strict": []}
    words = []
    for reference, prediction in zip(references, predictions, strict=True):
        sides: dict[str, list[set[Any]]] = {"": [set(get_entities(side)) for side in (reference, prediction)]}
        sides["_strict"] = sides[""]
        if scheme:
            found = (Entities([side], scheme).entities[0] for side in (reference, prediction))
            sides["_strict"] = [{each.to_tuple()[1:] for each in side} for side in found]
        for ending, (referred, predicted) in sides.items():
            chunks[ending].append((len(referred & predicted), len(predicted), len(referred)))
        words.append((sum(a == b for a, b in zip(reference, prediction, strict=True)), len(reference)))
    both, predicted, referred = np.array(chunks[""], float).T
    strict, strictly_predicted, strictly_referred = np.array(chunks["_strict"], float).T
    pairs = {
        "precision": (both, predicted),
        "recall": (both, referred),
        "f1": (2 * both, predicted + referred),
        "f1_strict": (2 * strict, strictly_predicted + strictly_referred),
    }
    return {
        "sums": {name: np.stack(pair, axis=1) for name, pair in pairs.items()} | {"accuracy": np.array(words, float)}
    }


def question_statistics(
    references: Sequence[Sequence[str]], predictions: Sequence[dict[str, Any]], threshold: float | None
) -> Statistics:
    """Statistics for SQuAD's means: each question's scores; arguments as for `question_answering_metrics`."""
    rows = [
        question_answering_metrics([reference], [prediction], threshold)
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    names = [name for name in dict.fromkeys(chain.from_iterable(rows)) if not name.startswith("best_")]
    sums = {name: [(row[name], 1.0) if name in row else (0.0, 0.0) for row in rows] for name in names}
    return {"sums": {name: np.array(pairs) for name, pairs in sums.items()}}


def diarization_statistics(
    references: Recordings, hypotheses: Recordings, frames: Mapping[str, Sequence], hop: float, *, free_names: bool
) -> Statistics:
    """Statistics for `diarization_metrics`, by recording: seconds, and frames for `frame_f1`.

    Args:
        references, hypotheses: recording -> its segments.
        frames: recording -> a sequence as long as the number of scored frames.
        hop, free_names: as for `diarization_metrics`.
    """
    sums: dict[str, list[tuple[float, float]]] = {}
    for name, count in ((name, len(each)) for name, each in frames.items()):
        both = {name: references[name]}, {name: hypotheses.get(name, [])}
        errors = {"der": 0.0, "miss": 0.0, "false_alarm": 0.0, "confusion": 0.0}
        for collar, names in ((0.0, errors), (0.25, {"der_collar_025": 0.0})) if free_names else ():
            parts, total = error_seconds(*both, collar=collar)
            for each in names:
                seconds = sum(parts.values()) if each.startswith("der") else parts[each]
                sums.setdefault(each, []).append((seconds, total))
        named = name_speakers(*both) if free_names else both[1]
        speakers = sorted({speaker for side in (references[name], named[name]) for *_, speaker in side})
        reference, predicted = (
            segments_to_frames(side[name], speakers, count, hop).astype(bool) for side in (both[0], named)
        )
        active = float(reference.sum() + predicted.sum())
        sums.setdefault("frame_f1", []).append((2.0 * float((reference & predicted).sum()), active))
    return {"sums": {name: np.array(pairs, float) for name, pairs in sums.items()}}


def trial_statistics(
    trials: Sequence[tuple[int | None, int, int]], scores: Sequence[float] | np.ndarray, speakers: Sequence[Any] | None
) -> Statistics:
    """Statistics for verification trials, clustered by speaker, since trials share speakers, or by clip if unknown.

    Args:
        trials: label and both clips of each.
        scores: of the trials.
        speakers: of each clip.
    """
    labels, first, second = np.array(trials).T
    clips = np.arange(max(first.max(), second.max()) + 1) if speakers is None else np.array(list(map(str, speakers)))
    clusters, numbers = np.unique(clips, return_inverse=True)
    arrays = {"label": labels, "score": np.asarray(scores, float), "first": numbers[first], "second": numbers[second]}
    return {"trials": arrays | {"clusters": clusters}}


def label_statistics(
    names: Sequence[str], labels: Labels, references: Sequence[Any], predictions: Sequence[dict[str, Any]]
) -> Statistics:
    """Statistics for `label_metrics`, with the same arguments; those of `accuracy_top5` come from ranked classes."""
    kind = labels.problem_type
    if kind == "multi_label":
        reference = labels.encode(references).numpy()
        return {"rankings": {"reference": reference, "scores": above_half(labels, predictions)}}
    if kind == "regression":
        values = np.array([row["value"] for row in predictions], float)
        return {"values": {"reference": np.asarray(references, float), "prediction": values}}
    statistics = class_statistics(references, [row["label"] for row in predictions], labels.positive_last)
    if "accuracy_top5" in names:
        hits = [name in likeliest(row) for name, row in zip(references, predictions, strict=True)]
        statistics |= mean_statistics(accuracy_top5=hits)
    return statistics
