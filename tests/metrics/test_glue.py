"""Figures of text classification: golden values, degenerate cases, and hand-worked definitions."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.errors import InputError
from d2v.metrics.glue import FIGURES, choose_figures, rates

ONE, SEVERAL, VALUE = "single_label_classification", "multi_label_classification", "regression"
SEEDED = settings(derandomize=True, deadline=None, max_examples=50)


def one(name, references, predictions, classes=("0", "1")):
    return rates([name], ONE, list(references), list(predictions), list(classes))[name]


def test_golden_values():
    """Those of Hugging Face's metric `glue`."""
    values = rates(["pearson", "spearmanr"], VALUE, [0, 2, 5], [0.1, 2, 3])
    assert values == {"pearson": pytest.approx(0.957596, abs=1e-6), "spearmanr": pytest.approx(1.0)}
    figures = rates(["accuracy", "f1"], ONE, ["0", "1", "1"], ["0", "0", "0"], ["0", "1"])
    assert figures == {"accuracy": pytest.approx(1 / 3), "f1": 0.0}
    assert one("matthews_correlation", "0110", "0000") == 0.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@SEEDED
def test_two_classes_by_definition(pairs):
    references, predictions = (["ab"[value] for value in side] for side in zip(*pairs, strict=True))
    both, only, missed = pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False))
    neither = pairs.count((False, False))
    assert one("accuracy", references, predictions, "ab") == pytest.approx((both + neither) / len(pairs))
    expected = 2 * both / (2 * both + only + missed) if both else 0.0
    assert one("f1", references, predictions, "ab") == pytest.approx(expected)
    scale = math.sqrt((both + only) * (both + missed) * (neither + only) * (neither + missed))
    expected = (both * neither - only * missed) / scale if scale else 0.0
    assert one("matthews_correlation", references, predictions, "ab") == pytest.approx(expected)


def test_f1_is_of_the_second_class_whatever_its_name():
    assert one("f1", ["yes", "no", "no"], ["yes", "yes", "no"], ["yes", "no"]) == pytest.approx(2 / 3)
    assert one("f1", ["yes", "no", "no"], ["yes", "no", "no"], ["no", "yes"]) == 1.0
    with pytest.raises(InputError, match="f1 is that of one of two classes, and there are 3"):
        one("f1", "abc", "abc", "abc")


def test_three_classes():
    """GLUE scores its diagnostic set by the Matthews correlation of three classes."""
    names = ["entailment", "neutral", "contradiction"]
    references, predictions = [names[i] for i in (0, 1, 2, 0)], [names[i] for i in (0, 1, 1, 0)]
    # Gorodkin (2004): (c s - sum p t) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)), c right of s
    expected = (3 * 4 - (2 * 2 + 2 * 1 + 0 * 1)) / math.sqrt((16 - 8) * (16 - 6))
    assert one("matthews_correlation", references, predictions, names) == pytest.approx(expected)
    assert one("macro_f1", references, predictions, names) == pytest.approx((1 + 2 / 3 + 0) / 3)


@given(st.lists(st.floats(0, 5, width=32), min_size=3, max_size=20), st.floats(0.1, 3), st.floats(-5, 5))
@SEEDED
def test_correlations_know_no_scale(values, factor, shift):
    references = list(range(len(values)))
    spread = np.ptp(values) > 1e-3
    moved = [factor * value + shift for value in values]
    before, after = (rates(["pearson"], VALUE, references, side)["pearson"] for side in (values, moved))
    assert -1 <= before <= 1 and (after == pytest.approx(before, abs=1e-5) or not spread)


def test_equal_predictions_are_no_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rates(["pearson", "spearmanr"], VALUE, [1.0, 2.0, 3.0], [2.5] * 3) == {"pearson": 0, "spearmanr": 0}
    with pytest.raises(InputError, match="two or more examples, of different values"):
        rates(["pearson"], VALUE, [2.0, 2.0], [1.0, 2.0])


def test_several_labels():
    references = np.array([[1, 0], [1, 1], [0, 0]])
    scores = [[0.9, 0.6], [0.4, 0.7], [0.2, 0.1]]  # 2 right, 1 too many, 1 missed
    figures = rates(["map", "micro_f1"], SEVERAL, references, scores)
    assert figures == {"map": 1.0, "micro_f1": pytest.approx(4 / 6)}


def test_figures_are_chosen_by_name():
    assert choose_figures([], ONE) == ["accuracy", "macro_f1"]
    assert choose_figures([], VALUE) == ["pearson", "spearmanr"]
    assert choose_figures(["f1"], ONE) == ["f1"]
    for kind, names in FIGURES.items():
        assert choose_figures(list(names), kind) == list(names)
    with pytest.raises(InputError, match="data.metrics: pearson is no figure of single_label_classification; there"):
        choose_figures(["accuracy", "pearson"], ONE)
    with pytest.raises(InputError, match="no example to score"):
        rates(["accuracy"], ONE, [], [])
