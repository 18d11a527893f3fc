"""Questions about texts: the best spans of each window, and the answer from all windows of a text.

An answer is a part of the text, from one character to before another.
Shapes: B windows, T tokens.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.data.question_answering import Span
from d2v.data.rows import Rows
from d2v.data.windows import group_windows
from d2v.hub import write_json

LARGE = 1e30
"""More than any logit, but twice as much is still finite in fp32."""


def best_spans(
    start_logits: Tensor, end_logits: Tensor, text_mask: Tensor, count: int, longest: int
) -> list[list[tuple]]:
    """The most probable answers in each window, among all spans, not only those between the most probable ends.

    Args:
        start_logits, end_logits: (B, T).
        text_mask: (B, T) bool, True at tokens of the text, see `text_tokens`.
        count: maximum number of answers.
        longest: maximum number of tokens of an answer.

    Returns:
        For each window its answers, best first: the sum of their logits, and their first and last token.
    """
    # NaN counts as the lowest logit: a model that diverged answers wrongly, but its run continues.
    numbers = (logits.float().nan_to_num(-LARGE, LARGE, -LARGE) for logits in (start_logits, end_logits))
    starts, ends = (each.masked_fill(~text_mask, -math.inf) for each in numbers)
    ends = F.pad(ends, (0, longest - 1), value=-math.inf).unfold(1, longest, 1)  # (B, T, longest)
    scores = (starts[..., None] + ends).flatten(1)
    scores, places = scores.topk(min(count, scores.shape[1]))  # (B, count)
    return [
        [
            (score, place // longest, place // longest + place % longest)
            for score, place in zip(*row, strict=True)
            if score > -math.inf
        ]
        for row in zip(scores.tolist(), places.tolist(), strict=True)
    ]


def join_windows(
    rows: Rows, predictions: Sequence[tuple[int, tuple[float, list]]], count: int, threshold: float | None
) -> list[tuple[int, dict[str, Any]]]:
    """Each `question` and its `answer`, from the windows of its text; numbered by the first window.

    Args:
        rows: windows, from `d2v.data.question_answering.question_rows`.
        predictions: of each window, as `answer` takes them.
        count, threshold: as in `answer`.
    """
    return [
        (number, {"question": windows[0][0]["question"]} | answer(windows[0][0]["context"], windows, count, threshold))
        for number, windows in group_windows(rows, predictions)
    ]


def answer(
    context: str, windows: Sequence[tuple[dict[str, Any], tuple[float, list]]], count: int, threshold: float | None
) -> dict[str, Any]:
    """The answer to a question, chosen among the spans of all windows of its text.

    Args:
        context: the text.
        windows: from `question_windows`, each with the sum of its no-answer logits, and with its answers, from
            `best_spans`.
        count: number of answers to list.
        threshold: probability of no answer above which none is given; None if there always is an answer.

    Returns:
        `answer`, `start` and `end`, its first character and the one after its last, and `nbest`, texts with their
        probability within the list. With a threshold also `no_answer`, the probability of no answer against the best
        answer, and `best`, the best answer, which is always given, whereas `answer` may be "".
    """
    scores: dict[Span, float] = {}
    for window, (_, spans) in windows:
        for score, *tokens in spans:
            first, last = (window["offsets"][token - window["first"]] for token in tokens)
            span = int(first[0]), int(last[1])
            scores[span] = max(score, scores.get(span, -math.inf))
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)[:count]
    listed = [(context[start:end], scores[start, end]) for start, end in ranked]
    start, end = ranked[0]
    best, none = listed[0][0], {}
    if threshold is not None:
        # As in BERT's run_squad.py: there is no answer if there is none in any window.
        null = min(score for _, (score, _) in windows)
        probability = float(torch.tensor(null - scores[ranked[0]], dtype=torch.float64).sigmoid())
        none = {"no_answer": probability, "best": best, "answer": "" if probability > threshold else best}
        listed = sorted([*listed, ("", null)], key=lambda item: -item[1])
    chances = torch.tensor([score for _, score in listed], dtype=torch.float64).softmax(0).tolist()
    nbest = [{"text": text, "probability": chance} for (text, _), chance in zip(listed, chances, strict=True)]
    return {"answer": best, "start": start, "end": end} | none | {"nbest": nbest}


def write_answers(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write `predictions.json`, `nbest_predictions.json` and, with a threshold, `na_prob.json` for SQuAD's scripts.

    Args:
        folder: to write into.
        records: of questions, each with an `id` and the result of `answer`.
    """
    files = {"predictions": "answer", "nbest_predictions": "nbest", "na_prob": "no_answer"}
    for name, key in files.items():
        if key in records[0]:
            write_json(folder / f"{name}.json", {record["id"]: record[key] for record in records})
