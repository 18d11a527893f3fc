"""Answers of a window and of all windows of a text: against all spans, and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.windows import window_rows
from d2v.decode.question_answering import answer, best_spans, join_windows, write_answers
from d2v.hub import read_json
from tests.helpers import make_split


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_the_best_spans_of_all(length, longest, count, seed):
    generator = torch.Generator().manual_seed(seed)
    starts, ends = torch.randn(2, 2, length, generator=generator)
    mask = torch.rand(2, length, generator=generator) < 0.7
    for row, spans in enumerate(best_spans(starts, ends, mask, count, longest)):
        every = [
            (float(starts[row, i] + ends[row, j]), i, j)
            for i in range(length)
            for j in range(i, min(i + longest, length))
            if mask[row, i] and mask[row, j]
        ]
        expected = sorted(every, reverse=True)[:count]
        assert [span[1:] for span in spans] == [span[1:] for span in expected]
        assert [span[0] for span in spans] == pytest.approx([span[0] for span in expected])


def test_logits_that_are_no_numbers_give_some_answer():
    """A model that diverged answers wrongly; its evaluation goes on."""
    logits = torch.full((2, 4), math.nan)
    logits[1, 2] = math.inf
    mask = torch.tensor([[False, True, True, True]] * 2)
    for spans in best_spans(logits, logits, mask, 3, 2):
        assert len(spans) == 3 and all(math.isfinite(score) for score, *_ in spans)
        found = answer(CONTEXT, [(window(1, (0, 3), (4, 7), (8, 13)), (0.0, spans))], 3, 0.5)
        assert {"answer", "best", "no_answer"} <= set(found)


def window(first: int, *offsets: tuple[int, int]) -> dict:
    return {"first": first, "offsets": np.array(offsets)}


CONTEXT = "one two three"
WINDOWS = [  # the same three words in two windows: one two, two three
    (window(3, (0, 3), (4, 7)), (1.0, [(5.0, 3, 3), (4.0, 4, 4)])),
    (window(3, (4, 7), (8, 13)), (3.0, [(4.5, 3, 3), (2.0, 3, 4)])),
]


def test_the_answer_of_all_windows():
    found = answer(CONTEXT, WINDOWS, 20, None)
    assert (found["answer"], found["start"], found["end"]) == ("one", 0, 3) and set(found) == {
        "answer",
        "start",
        "end",
        "nbest",
    }
    assert [row["text"] for row in found["nbest"]] == ["one", "two", "two three"]  # "two" once, with its higher score
    odds = [math.exp(score) for score in (5.0, 4.5, 2.0)]
    assert [row["probability"] for row in found["nbest"]] == pytest.approx([x / sum(odds) for x in odds])
    assert len(answer(CONTEXT, WINDOWS, 2, None)["nbest"]) == 2


def test_no_answer_is_the_least_of_the_windows():
    found = answer(CONTEXT, WINDOWS, 20, 0.5)
    assert found["no_answer"] == pytest.approx(1 / (1 + math.exp(5.0 - 1.0)))
    assert found["answer"] == found["best"] == "one"
    assert [row["text"] for row in found["nbest"]] == ["one", "two", "two three", ""]
    withheld = answer(CONTEXT, WINDOWS, 20, 0.01)
    assert (withheld["answer"], withheld["best"]) == ("", "one") and withheld["no_answer"] == found["no_answer"]


def test_windows_of_a_question_are_answered_together():
    windows = [
        window | {"source": source, "question": f"{source}?", "context": CONTEXT, "ids": [0]}
        for source, (window, _) in zip((0, 0, 1), [*WINDOWS, WINDOWS[1]], strict=True)
    ]
    rows = window_rows(make_split(id=["a", "b"]), windows)
    spans = [spans for _, spans in [*WINDOWS, WINDOWS[1]]]
    joined = join_windows(rows, list(enumerate(spans)), 20, None)
    assert joined == [
        (0, {"question": "0?"} | answer(CONTEXT, WINDOWS, 20, None)),
        (2, {"question": "1?"} | answer(CONTEXT, WINDOWS[1:], 20, None)),
    ]


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_files_of_answers(threshold, tmp_path):
    found = answer(CONTEXT, WINDOWS, 20, threshold)
    write_answers(tmp_path, [{"id": "a"} | found, {"id": "b"} | found])
    files = {"predictions": "answer", "nbest_predictions": "nbest"} | ({"na_prob": "no_answer"} if threshold else {})
    assert {path.stem for path in tmp_path.iterdir()} == set(files)
    for name, key in files.items():
        assert read_json(tmp_path / f"{name}.json") == {"a": found[key], "b": found[key]}
