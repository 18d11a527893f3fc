"""SQuAD's exact match and F1, as its two official scripts compute them, but as fractions.

In writing systems without spaces, such as Chinese and Thai, F1 compares characters, as in MLQA for Chinese. SQuAD's
scripts split there at spaces all the same, so their F1 is lower.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from d2v.data.text import WITHOUT_SPACES
from d2v.errors import InputError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)  # only ASCII, as in the official scripts


def question_answering_metrics(
    references: Sequence[Sequence[str]], predictions: Sequence[dict[str, Any]], threshold: float | None
) -> dict[str, float]:
    """The metrics of SQuAD 1.1, or with a threshold of SQuAD 2.0.

    Args:
        references: the right answers to each question.
        predictions: from `d2v.decode.question_answering.answer`.
        threshold: as for `answer`.
    """
    if threshold is None:
        return squad(references, [row["answer"] for row in predictions])
    answers, no_answer = ([row[key] for row in predictions] for key in ("best", "no_answer"))
    return squad_v2(references, answers, no_answer, threshold)


def squad(references: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, float]:
    """`exact_match` and `f1` as in evaluate-v1.1.py: each question's best over its references, averaged.

    Args:
        references: the right answers to each question, one or more.
        answers: one per question.

    Raises:
        InputError: no question, or one without a right answer.
    """
    for i, texts in enumerate(references):
        if not texts:
            raise InputError(f"question {i} has no answer; SQuAD 2.0 scores such questions (data.unanswerable)")
    scores = [
        (max(exact(answer, text) for text in texts), max(overlap(answer, text) for text in texts))
        for texts, answer in zip(references, answers, strict=True)
    ]
    return averages(scores)


def squad_v2(
    references: Sequence[Sequence[str]], answers: Sequence[str], no_answer: Sequence[float], threshold: float
) -> dict[str, float]:
    """`exact_match` and `f1` as in evaluate-v2.0.py, where a question may have no answer.

    `has_ans_*` and `no_ans_*` are those of the questions with and without an answer. `best_f1` is the F1 that the best
    threshold, `best_f1_thresh`, would have reached; on a test set it must not be used to choose the threshold.

    Args:
        references: the right answers to each question, empty if it cannot be answered.
        answers: one per question, whatever the probability of no answer; "" for none at all.
        no_answer: the probability that a question has no answer, or any score that rises with it.
        threshold: an answer is given unless `no_answer` is above it.
    """
    scores = []
    for texts, answer in zip(references, answers, strict=True):
        texts = [text for text in texts if normalize(text)] or [""]
        f1 = max(overlap(answer, text, empty=True) for text in texts)
        scores.append((max(exact(answer, text) for text in texts), f1))
    answerable = [bool(texts) for texts in references]
    given = [
        (float(not has), float(not has)) if probability > threshold else score
        for score, probability, has in zip(scores, no_answer, answerable, strict=True)
    ]
    metrics = averages(given)
    for prefix, side in ("has_ans", True), ("no_ans", False):
        if part := [score for score, has in zip(given, answerable, strict=True) if has == side]:
            metrics |= {f"{prefix}_{key}": value for key, value in averages(part).items()}

    # Start without any answer, then add answers one by one, the surest first.
    total = best = float(answerable.count(False))
    best_threshold = 0.0
    for i in sorted(range(len(scores)), key=lambda i: no_answer[i]):
        total += scores[i][1] if answerable[i] else -bool(answers[i])
        if total > best:
            best, best_threshold = total, no_answer[i]
    return metrics | {"best_f1": best / len(scores), "best_f1_thresh": float(best_threshold)}


def averages(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Means of exact matches and F1s."""
    if not scores:
        raise InputError("no question to score; a mean needs at least one")
    return {
        key: sum(values) / len(scores)
        for key, values in zip(("exact_match", "f1"), zip(*scores, strict=True), strict=True)
    }


def exact(answer: str, reference: str) -> float:
    """1 if they are equal up to case, punctuation, articles and white space, else 0."""
    return float(normalize(answer) == normalize(reference))


def overlap(answer: str, reference: str, *, empty: bool = False) -> float:
    """F1 of their common words; with `empty` two texts without words are equal (2.0), else not (1.1)."""
    words, wanted = split_words(normalize(answer)), split_words(normalize(reference))
    if empty and not (words and wanted):
        return float(words == wanted)
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted)) if shared else 0.0


def split_words(text: str) -> list[str]:
    """The words of a text, or its characters in writing systems without spaces, as in MLQA's script for Chinese."""
    return WITHOUT_SPACES.sub(r" \g<0> ", text).split()


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())
