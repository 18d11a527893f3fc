"""SQuAD's exact match and F1: worked by hand, the official script's own results, torchmetrics, and the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.errors import InputError
from d2v.metrics.question_answering import normalize, overlap, question_answering_metrics, squad, squad_v2

WORDS = ["the", "An", "cat", "Cat!", "dog", "1,000", "1000", "—", "-", "état", "x.y", "the."]
text = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
some_text = text.map(lambda words: f"w {words}")  # a word at least is left of it
SEEDED = settings(derandomize=True, deadline=None, max_examples=100)


def test_what_does_not_count():
    assert normalize(" The  Cat's, a\tHAT! ") == "cats hat"
    assert normalize("an—x a-b") == "—x ab"  # a dash that is not ASCII stays, but parts words
    assert normalize("the.") == normalize("") == ""


def test_by_hand():
    # right; one word of two and of three: F1 2 * 1 / 5; the better of two references: 2 * 2 / 5
    found = squad([["Paris"], ["red house"], ["x", "tall old tree"]], ["the paris.", "big red car", "old tree"])
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx((1 + 2 / 5 + 4 / 5) / 3)
    # a word counts as often as both have it
    assert squad([["b b c"]], ["b b b"])["f1"] == pytest.approx(2 * 2 / 6)


def test_without_words():
    """evaluate-v1.1.py gives no F1 where no word is shared, not even of two texts without words; 2.0 does."""
    assert squad([["the"]], ["a"]) == {"exact_match": 1.0, "f1": 0.0}
    assert squad_v2([["the"]], ["a"], [0.0], 0.5)["f1"] == 1.0


def test_as_torchmetrics():
    """Of texts with words; of those without it has another opinion than evaluate-v1.1.py."""
    from torchmetrics.functional.text import squad as theirs

    random = np.random.default_rng(0)
    rows = [[f"w {' '.join(random.choice(WORDS, random.integers(5)))}" for _ in range(3)] for _ in range(40)]
    target = [{"id": str(i), "answers": {"text": row[1:], "answer_start": [0, 0]}} for i, row in enumerate(rows)]
    expected = theirs([{"id": str(i), "prediction_text": row[0]} for i, row in enumerate(rows)], target)
    found = {key: 100 * value for key, value in squad([row[1:] for row in rows], [row[0] for row in rows]).items()}
    assert found == pytest.approx({key: float(value) for key, value in expected.items()}, abs=1e-3)


REFERENCES = [["the Normans", "Normans"], ["10th century"], [], [], ["France."], ["a"]]
ANSWERS = ["Normans", "the 10th and 11th", "Rollo", "in 911", "Spain", "the"]
NO_ANSWER = [0.1, 0.2, 0.7, 0.4, 0.9, 0.6]
OFFICIAL = {"exact_match": 1 / 3, "f1": 0.4, "has_ans_exact_match": 0.25, "has_ans_f1": 0.35}
OFFICIAL |= {"no_ans_exact_match": 0.5, "no_ans_f1": 0.5, "best_f1": 0.5666666666666667, "best_f1_thresh": 0.2}


def test_the_official_results():
    """What evaluate-v2.0.py says of these, with --na-prob-file and --na-prob-thresh 0.5, divided by 100."""
    assert squad_v2(REFERENCES, ANSWERS, NO_ANSWER, 0.5) == pytest.approx(OFFICIAL)


@given(
    st.lists(st.tuples(st.lists(text, max_size=2), text, st.integers(0, 9)), min_size=1, max_size=8), st.integers(0, 9)
)
@SEEDED
def test_by_definition(rows, threshold):
    references, answers, scores = zip(*rows, strict=True)
    found = squad_v2(references, answers, scores, threshold)
    withheld = ["" if score > threshold else answer for answer, score in zip(answers, scores, strict=True)]
    silent = squad_v2(references, withheld, [0.0] * len(rows), 0.5)
    # An answer withheld is no answer, unless words count for nothing.
    if all(normalize(answer) for answer in answers) and all(normalize(t) for texts in references for t in texts):
        assert found["f1"] == pytest.approx(silent["f1"]) and found["exact_match"] == pytest.approx(
            silent["exact_match"]
        )
    known = np.array([bool(texts) for texts in references])
    for prefix, side in ("has_ans", known), ("no_ans", ~known):
        assert (f"{prefix}_f1" in found) == side.any()
    parts = [found.get(f"{prefix}_f1", 0) * side.sum() for prefix, side in (("has_ans", known), ("no_ans", ~known))]
    assert found["f1"] == pytest.approx(sum(parts) / len(rows))
    assert found["best_f1"] >= (~known).mean()


@given(st.data())
@SEEDED
def test_the_best_threshold_is_best(data):
    count = data.draw(st.integers(1, 7))
    references = data.draw(st.lists(st.lists(some_text, max_size=2), min_size=count, max_size=count))
    answers = data.draw(st.lists(some_text, min_size=count, max_size=count))
    scores = [score / 10 for score in data.draw(st.permutations(range(1, count + 1)))]
    by_threshold = {t: squad_v2(references, answers, scores, t)["f1"] for t in (0.0, *scores)}
    found = squad_v2(references, answers, scores, 0.5)
    assert found["best_f1"] == pytest.approx(max(by_threshold.values()))
    assert by_threshold[found["best_f1_thresh"]] == pytest.approx(found["best_f1"])


def test_what_cannot_be_scored():
    with pytest.raises(InputError, match="question 1 has no answer; SQuAD 2.0 scores"):
        squad([["a b"], []], ["b", "b"])
    with pytest.raises(InputError, match="no question to score"):
        squad([], [])
    with pytest.raises(InputError, match="no question to score"):
        squad_v2([], [], [], 0.5)


def test_a_threshold_asks_for_the_metrics_of_2_0():
    references = [["one"], []]
    rows = [{"answer": "", "best": "one", "no_answer": 0.7}, {"answer": "two", "best": "two", "no_answer": 0.2}]
    assert question_answering_metrics(references, rows, 0.5) == squad_v2(references, ["one", "two"], [0.7, 0.2], 0.5)
    assert question_answering_metrics([["one"], ["two"]], rows, None) == squad([["one"], ["two"]], ["", "two"])


def test_a_character_is_a_word_where_there_are_no_spaces():
    assert overlap("\u5317\u4eac\u5e02", "\u5317\u4eac") == pytest.approx(2 * 2 / 5)  # it was 0: two words
    assert overlap("in \u5317\u4eac", "\u5317\u4eac in") == 1
    assert overlap("new york", "york city") == pytest.approx(1 / 2)
