"""Metrics of labelled words: golden pairs of lenient and strict, conlleval's rules by definition, parts of speech."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.errors import InputError
from d2v.metrics.statistics import chunk_statistics
from d2v.metrics.token_classification import are_chunks, chunk_metrics, token_classification_metrics

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def test_lenient_and_strict():
    """seqeval's own numbers: an I- after O begins a chunk in conlleval, and none in IOB2."""
    found = chunk_metrics([["O", "B-PER", "I-PER"]], [["O", "I-PER", "I-PER"]])
    assert found == {"precision": 1, "recall": 1, "f1": 1, "f1_strict": 0, "accuracy": pytest.approx(2 / 3)}


def test_an_inside_of_another_type_begins_a_chunk():
    found = chunk_metrics([["B-PER", "B-LOC"]], [["B-PER", "I-LOC"]])
    assert (found["f1"], found["f1_strict"]) == (1, pytest.approx(2 / 3))


@pytest.mark.parametrize("predictions", [["I-PER", "O", "I-LOC", "B-LOC"], ["B-PER", "O", "B-LOC", "B-LOC"]])
def test_chunks_of_iob1_may_begin_inside(predictions):
    """In CoNLL-2003 as published B- only parts neighbours of a type; predictions of either scheme are chunks there."""
    found = chunk_metrics([["I-PER", "O", "I-LOC", "B-LOC"]], [predictions])
    assert found["f1_strict"] == found["f1"] == 1
    sums = chunk_statistics([["I-PER", "O", "I-LOC", "B-LOC"]], [predictions])["sums"]["f1_strict"]
    assert sums.tolist() == [[6, 6]]
    strict = [["B-PER", "I-PER", "O"]] * 9
    assert chunk_metrics([*strict, ["I-PER", "O"]], [["I-PER", "I-PER", "O"]] * 9 + [["O", "O"]])["f1_strict"] == 0


def test_by_hand():
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "B-LOC"]]
    predictions = [["B-PER", "I-PER", "O", "O"], ["B-LOC", "I-LOC", "B-LOC"]]
    # chunks: 4 there; 3 found, of which a person and the last place are right
    found = chunk_metrics(references, predictions)
    assert found["precision"] == pytest.approx(2 / 3) and found["f1_strict"] == found["f1"]
    assert found["recall"] == pytest.approx(2 / 4) and found["f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["accuracy"] == pytest.approx(4 / 7)  # O counts


def chunks(labels: list[str]) -> set[tuple]:
    """conlleval's chunks of B- and I-: a new one begins with B-, or with I- where the type changes."""
    found, start = set(), 0
    for i in range(len(labels) + 1):
        label, before = [(labels[j] if 0 <= j < len(labels) else "O") for j in (i, i - 1)]
        goes_on = label[0] == "I" and before != "O" and before[2:] == label[2:]
        if before != "O" and not goes_on:
            found.add((start, i, before[2:]))
        if label != "O" and not goes_on:
            start = i
    return found


@given(st.lists(st.lists(st.tuples(*[st.sampled_from(TAGS)] * 2), min_size=1, max_size=8), min_size=1, max_size=4))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_by_definition(rows):
    references, predictions = ([[pair[i] for pair in row] for row in rows] for i in (0, 1))
    sides = [{(i, *chunk) for i, row in enumerate(side) for chunk in chunks(row)} for side in (references, predictions)]
    right, found = len(sides[0] & sides[1]), chunk_metrics(references, predictions)
    assert found["precision"] == pytest.approx(right / len(sides[1]) if sides[1] else 0)
    assert found["recall"] == pytest.approx(right / len(sides[0]) if sides[0] else 0)
    assert found["f1"] == pytest.approx(2 * right / max(len(sides[0]) + len(sides[1]), 1))
    assert found["accuracy"] == pytest.approx(
        sum(a == b for row in rows for a, b in row) / sum(len(row) for row in rows)
    )


def test_single_and_end_tags():
    """B- without its end is a chunk to the lenient, and none in IOBES."""
    found = chunk_metrics([["S-PER", "B-LOC", "E-LOC"]], [["S-PER", "B-LOC", "E-LOC"]])
    assert found["f1"] == found["f1_strict"] == 1
    assert chunk_metrics([["S-PER", "B-LOC", "E-LOC"]], [["S-PER", "B-LOC", "O"]])["f1_strict"] == pytest.approx(2 / 3)


def test_what_chunks_are():
    assert are_chunks(TAGS) and are_chunks(["O", "S-A", "E-1"])
    assert not are_chunks(["NOUN", "O"]) and not are_chunks(["B-A", "I-A"]) and not are_chunks(["O"])
    assert are_chunks(["O", "B", "I"]) and are_chunks(["O", "B-A", "I-A", "L-A", "U-A"]) and are_chunks(["O", "B_A"])
    assert not are_chunks(["O", "PRON"]) and not are_chunks(["O", "O"])


@pytest.mark.parametrize(
    "letters",
    [{}, {"E": "L", "S": "U"}, {"I": "M", "S": "W"}, {"-": "_"}, {"-PER": ""}],
)
def test_other_letters_are_the_same_spans(letters):
    """BILOU, BMEW, an underscore, or no types at all: spans as IOBES has them."""
    rows = [["B-PER", "I-PER", "E-PER", "O", "S-PER"], ["O", "B-PER", "E-PER", "S-PER"]]
    guesses = [["B-PER", "E-PER", "O", "O", "S-PER"], ["S-PER", "B-PER", "E-PER", "O"]]

    def written(side):
        for letter, other in letters.items():
            side = [[label.replace(letter, other, 1) for label in row] for row in side]
        return side

    assert chunk_metrics(written(rows), written(guesses)) == chunk_metrics(rows, guesses)
    assert chunk_metrics(rows, guesses)["f1"] == pytest.approx(2 * 2 / (4 + 4))


def test_words_without_a_label_do_not_count():
    found = token_classification_metrics([["X", None, "Y"], [None]], [["X", "X", "X"], ["Y"]], chunks=False)
    assert found == token_classification_metrics([["X", "Y"]], [["X", "X"]], chunks=False)
    found = token_classification_metrics([["B-A", "I-A", None]], [["B-A", "I-A", "B-A"]], chunks=True)
    assert found["f1"] == found["accuracy"] == 1


def test_parts_of_speech():
    found = token_classification_metrics([["X", "Y"], ["X"]], [["X", "X"], ["X"]], chunks=False)
    assert found == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx((4 / 5 + 0) / 2)}
    assert "f1_strict" in token_classification_metrics([["O"]], [["O"]], chunks=True)


@pytest.mark.parametrize("chunks", [True, False])
def test_no_words(chunks):
    with pytest.raises(InputError, match="no (word|example) to score"):
        token_classification_metrics([], [], chunks=chunks)
