"""Metrics of classification: golden values, degenerate cases, by hand or by definition; the picture by its parts."""

import csv
import json
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image
from matplotlib.figure import Figure

from d2v.data.labels import LabelData, Labels
from d2v.data.rows import Rows
from d2v.errors import InputError
from d2v.metrics import higher_is_better
from d2v.metrics.classification import (
    METRICS,
    accuracy_and_f1,
    choose_metrics,
    choose_thresholds,
    classification_metrics,
    known_metrics,
    label_metrics,
    mean_average_precision,
    micro_f1,
    plot_confusion,
    ranked_accuracy,
    real_accuracy,
    report_classes,
)
from tests.helpers import make_job, make_split

SINGLE, MULTI, REGRESSION = "single_label", "multi_label", "regression"
SEEDED = settings(derandomize=True, deadline=None, max_examples=50)


def test_by_hand():
    # class 0: 2 of 3 found, 2 of 2 right, F1 0.8; class 1: 1 of 1, 1 of 2, F1 2/3; class 2: predicted never, F1 0.
    found = accuracy_and_f1([0, 0, 0, 1, 2], [0, 0, 1, 1, 0])
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["macro_f1"] == pytest.approx((2 * 2 / (3 + 3) + 2 / 3 + 0) / 3)
    assert accuracy_and_f1([4, 7], [4, 7]) == {"accuracy": 1.0, "macro_f1": 1.0}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_by_definition(pairs):
    references, predictions = zip(*pairs, strict=True)
    f1 = []
    for c in set(references) | set(predictions):
        hits = sum(r == p == c for r, p in pairs)
        f1.append(2 * hits / (references.count(c) + predictions.count(c)))
    found = accuracy_and_f1(references, predictions)
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["accuracy"] == pytest.approx(np.mean([r == p for r, p in pairs]))


def average_precision(reference, score):
    """The mean over positives of the precision among all that score as high."""
    return np.mean([reference[score >= score[i]].mean() for i in np.flatnonzero(reference)])


@given(st.integers(0, 2**32 - 1))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_average_precision(seed):
    generator = np.random.default_rng(seed)
    references = generator.integers(0, 2, (12, 4))
    scores = generator.integers(0, 6, (12, 4)) / 5  # with ties
    references[0], references[:, 3] = 1, 0  # the last class has no positive
    expected = np.mean([average_precision(references[:, c], scores[:, c]) for c in range(3)])
    assert mean_average_precision(references, scores)["map"] == pytest.approx(expected)


def test_what_cannot_be_scored():
    with pytest.raises(InputError, match="no example to score"):
        accuracy_and_f1([], [])
    assert math.isnan(mean_average_precision(np.zeros((3, 2)), np.zeros((3, 2)))["map"])


def single(name, references, predictions, classes=("0", "1")):
    return classification_metrics([name], SINGLE, list(references), list(predictions), list(classes))[name]


def test_golden_values():
    """Those of Hugging Face's metric `glue`."""
    values = classification_metrics(["pearson", "spearmanr"], REGRESSION, [0, 2, 5], [0.1, 2, 3])
    assert values == {"pearson": pytest.approx(0.957596, abs=1e-6), "spearmanr": pytest.approx(1.0)}
    metrics = classification_metrics(["accuracy", "f1"], SINGLE, ["0", "1", "1"], ["0", "0", "0"], ["0", "1"])
    assert metrics == {"accuracy": pytest.approx(1 / 3), "f1": 0.0}
    assert single("matthews_correlation", "0110", "0000") == 0.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
@SEEDED
def test_two_classes_by_definition(pairs):
    references, predictions = (["ab"[value] for value in side] for side in zip(*pairs, strict=True))
    both, only, missed = pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False))
    neither = pairs.count((False, False))
    assert single("accuracy", references, predictions, "ab") == pytest.approx((both + neither) / len(pairs))
    expected = 2 * both / (2 * both + only + missed) if both else 0.0
    assert single("f1", references, predictions, "ab") == pytest.approx(expected)
    scale = math.sqrt((both + only) * (both + missed) * (neither + only) * (neither + missed))
    expected = (both * neither - only * missed) / scale if scale else 0.0
    assert single("matthews_correlation", references, predictions, "ab") == pytest.approx(expected)


def test_f1_is_of_the_second_class_whatever_its_name():
    assert single("f1", ["yes", "no", "no"], ["yes", "yes", "no"], ["yes", "no"]) == pytest.approx(2 / 3)
    assert single("f1", ["yes", "no", "no"], ["yes", "no", "no"], ["no", "yes"]) == 1.0
    with pytest.raises(InputError, match="f1 is that of one of two classes, and there are 3"):
        single("f1", "abc", "abc", "abc")
    with pytest.raises(InputError, match="f1 is that of one of two classes, and there are 3"):  # before training
        choose_metrics(["f1"], Labels(["a", "b", "c"], SINGLE))
    assert choose_metrics(["f1"], Labels(["a", "b"], SINGLE)) == ["f1"]


def test_three_classes():
    """GLUE scores its diagnostic set by the Matthews correlation of three classes."""
    names = ["entailment", "neutral", "contradiction"]
    references, predictions = [names[i] for i in (0, 1, 2, 0)], [names[i] for i in (0, 1, 1, 0)]
    # Gorodkin (2004): (c s - sum p t) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)), c right of s
    expected = (3 * 4 - (2 * 2 + 2 * 1 + 0 * 1)) / math.sqrt((16 - 8) * (16 - 6))
    assert single("matthews_correlation", references, predictions, names) == pytest.approx(expected)
    assert single("macro_f1", references, predictions, names) == pytest.approx((1 + 2 / 3 + 0) / 3)


@given(st.lists(st.floats(0, 5, width=32), min_size=3, max_size=20), st.floats(0.1, 3), st.floats(-5, 5))
@SEEDED
def test_correlations_know_no_scale(values, factor, shift):
    references = list(range(len(values)))
    spread = np.ptp(values) > 1e-3
    moved = [factor * value + shift for value in values]
    before, after = (
        classification_metrics(["pearson"], REGRESSION, references, side)["pearson"] for side in (values, moved)
    )
    assert -1 <= before <= 1 and (after == pytest.approx(before, abs=1e-5) or not spread)


def test_equal_predictions_are_no_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = classification_metrics(["pearson", "spearmanr"], REGRESSION, [1.0, 2.0, 3.0], [2.5] * 3)
        assert metrics == {"pearson": 0, "spearmanr": 0}
    undefined = classification_metrics(["pearson", "r2", "mae"], REGRESSION, [2.0, 2.0], [1.0, 2.0])
    assert math.isnan(undefined["pearson"]) and math.isnan(undefined["r2"]) and undefined["mae"] == 0.5


@pytest.mark.parametrize(
    ("names", "labels", "validation", "message"),
    [
        ([], Labels(["LABEL_0"], REGRESSION), [2.0, 2.0], "pearson needs two or more examples of different values"),
        (["r2", "mae"], Labels(["LABEL_0"], REGRESSION), [2.0], "r2 needs two or more examples of different values"),
        ([], Labels(["a", "b"], MULTI), [[], []], "map needs a label in validation"),
    ],
)
def test_a_metric_that_cannot_choose_is_refused_before_training(names, labels, validation, message):
    with pytest.raises(InputError, match=message):
        choose_metrics(names, labels, {"train": [], "validation": validation, "test": [1.0, 2.0]})
    assert choose_metrics(names, labels, {"train": [], "test": validation})  # which it is not chosen by
    assert choose_metrics(names, labels, {"validation": validation})


def test_multi_label():
    references = np.array([[1, 0], [1, 1], [0, 0]])
    scores = [[0.9, 0.6], [0.4, 0.7], [0.2, 0.1]]  # 2 right, 1 too many, 1 missed
    metrics = classification_metrics(["map", "micro_f1"], MULTI, references, scores)
    assert metrics == {"map": 1.0, "micro_f1": pytest.approx(4 / 6)}


def test_metrics_are_chosen_by_name():
    assert known_metrics([], SINGLE) == ["accuracy", "macro_f1"]
    assert known_metrics([], REGRESSION) == ["pearson", "spearmanr"]
    assert known_metrics(["f1"], SINGLE) == ["f1"]
    for problem_type, names in METRICS.items():
        assert known_metrics(list(names), problem_type) == list(names)
    with pytest.raises(InputError, match="data.metrics: pearson is no metric of single_label; there"):
        known_metrics(["accuracy", "pearson"], SINGLE)
    with pytest.raises(InputError, match="accuracy_top5 is of five classes or more; there are 3"):
        choose_metrics(["accuracy_top5"], Labels(["a", "b", "c"], SINGLE))
    with pytest.raises(InputError, match="no example to score"):
        classification_metrics(["accuracy"], SINGLE, [], [])


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: saved.append(figure) or save(figure, *args))
    return saved


def test_the_picture(tmp_path, figures):
    long = "a name of more than 24 letters"
    references, predictions = ["yes", "yes", "yes", "yes", long], ["yes", "yes", "yes", "no", "yes"]
    plot_confusion(references, predictions, ["yes", "no", long], tmp_path / "c.png")
    (axis,) = figures[0].axes
    shares = axis.images[0].get_array()
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0, 0, 0], [1, 0, 0]])
    # (column, row): number; pairs that do not occur are left blank
    numbers = {text.get_position(): text.get_text() for text in axis.texts}
    assert numbers == {(0, 0): "3", (1, 0): "1", (0, 2): "1"}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["yes", "no", "a name of more than 24 …"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "reference")
    assert image.imread(tmp_path / "c.png").shape[0] > 200


def test_no_picture_of_very_many_classes(tmp_path, figures):
    """Of 600 it took 4.8 GB and 47 s."""
    names = [f"class {i}" for i in range(201)]
    plot_confusion(names, names, names, tmp_path / "c.png")
    assert not figures and not list(tmp_path.iterdir())


def test_many_classes_fit(tmp_path, figures):
    names = [f"class {i}" for i in range(100)]
    plot_confusion(names, names, names, tmp_path / "c.png")
    axis = figures[0].axes[0]
    assert not axis.texts
    boxes = [label.get_window_extent() for label in axis.get_yticklabels()]
    assert all(above.ymin >= below.ymax for above, below in pairwise(boxes))


def test_ranked_accuracy_is_scikit_learns():
    from sklearn.metrics import top_k_accuracy_score

    random = np.random.default_rng(0)
    scores, labels = random.normal(size=(60, 8)), random.integers(0, 8, 60)
    ranked = [[str(i) for i in row] for row in np.argsort(-scores, axis=1)[:, :5]]
    found = ranked_accuracy([str(label) for label in labels], ranked)
    classes = {"labels": range(8)}
    assert found["accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1, **classes))
    assert found["accuracy_top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, **classes))
    assert ranked_accuracy(["a", "b"], [["a", "b"], ["a", "b"]]) == {"accuracy": 0.5}
    with pytest.raises(InputError, match="no example to score"):
        ranked_accuracy([], [])


def test_real_accuracy_by_hand():
    """The second image has no label and does not count; any of several labels is right."""
    assert real_accuracy([[1], [], [2, 3], [0]], [1, 1, 3, 2]) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="no image has a ReaL label"):
        real_accuracy([[], []], [0, 1])


def test_errors_of_values():
    names = ["rmse", "mae", "r2"]
    found = classification_metrics(names, "regression", [1.0, 2.0, 6.0], [1.0, 4.0, 5.0])
    assert found == {
        "rmse": pytest.approx((5 / 3) ** 0.5),
        "mae": pytest.approx(1.0),
        "r2": pytest.approx(1 - 5 / 14),  # 14 is the sum of squares around the mean, 3
    }
    assert classification_metrics(["r2"], "regression", [1.0, 3.0], [2.0, 2.0])["r2"] == 0
    assert not any(map(higher_is_better, names[:2])) and higher_is_better("r2")


def test_f1_is_that_of_the_class_that_is_named():
    rows, truth = [{"label": name} for name in ("no", "no", "yes")], ["no", "yes", "yes"]
    plain = Labels(["no", "yes"], "single_label")
    assert label_metrics(["f1"], plain, truth, rows)["f1"] == pytest.approx(2 * 1 / (2 + 1))  # of "yes"
    truth = ["no", "no", "yes"]
    truth[1], rows[2] = "yes", {"label": "no"}
    named = Labels(["no", "yes"], "single_label", positive="no")
    assert label_metrics(["f1"], named, truth, rows)["f1"] == pytest.approx(2 * 1 / (1 + 3))
    assert label_metrics(["f1"], plain, truth, rows)["f1"] == 0


def test_five_are_ranked_by_their_scores():
    names = list("abcdef")
    rows = [{"label": "f", "scores": dict(zip(names, (0.0, 0.1, 0.2, 0.1, 0.1, 0.5), strict=True))}]
    labels = Labels(names, "single_label")
    assert label_metrics(["accuracy", "accuracy_top5"], labels, ["c"], rows) == {"accuracy": 0, "accuracy_top5": 1}
    assert label_metrics(["accuracy_top5"], labels, ["a"], rows) == {"accuracy_top5": 0}
    assert known_metrics([], "single_label", top5=True) == ["accuracy", "accuracy_top5"]
    assert known_metrics([], "multi_label", top5=True) == ["map", "micro_f1"]


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_a_class(tmp_path):
    labels = Labels(["a", "b, c", "d"], "single_label")
    rows = [{"label": name} for name in ("a", "a", "b, c", "a")]
    report_classes(tmp_path, labels, ["a", "b, c", "b, c", "a"], rows)
    first, second, third = read_csv(tmp_path / "classes.csv")
    assert first == {
        "class": "a",
        "precision": "0.666667",
        "recall": "1.0",
        "f1": "0.8",
        "references": "2",
        "predictions": "3",
    }
    assert (second["class"], second["precision"], second["recall"]) == ("b, c", "1.0", "0.5")
    assert (third["f1"], third["references"], third["predictions"]) == ("0.0", "0", "0")
    assert (tmp_path / "confusion.png").exists()


def test_a_line_a_class_of_several_labels(tmp_path):
    labels = Labels(["a", "b"], "multi_label")
    report_classes(tmp_path, labels, [["a"], ["a", "b"], []], [{"labels": ["a"]}, {"labels": ["a"]}, {"labels": ["b"]}])
    first, second = read_csv(tmp_path / "classes.csv")
    assert (first["f1"], second["f1"], second["references"], second["predictions"]) == ("1.0", "0.0", "1", "1")
    report_classes(tmp_path, Labels(["toxic"], "multi_label"), [["toxic"], [], []], [{"labels": []}] * 3)
    (only,) = read_csv(tmp_path / "classes.csv")  # the class, and not its absence
    assert (only["f1"], only["references"], only["predictions"]) == ("0.0", "1", "0")
    assert micro_f1(np.array([[1], [0], [0]]), np.array([[0.1], [0.2], [0.1]]), ["toxic"]) == 0
    report_classes(tmp_path / "none", Labels(["LABEL_0"], "regression"), [1.0], [{"value": 1.0}])
    assert not (tmp_path / "none").exists() and not (tmp_path / "confusion.png").exists()


def test_thresholds_are_the_best_on_validation(tmp_path):
    """By hand: class a is best above 0.3, b has no example, c is best where both are predicted."""
    labels = Labels(["a", "b", "c"], "multi_label")
    scores = [(0.9, 0.6, 0.2), (0.4, 0.1, 0.2), (0.2, 0.1, 0.1)]
    predictions = [(i, {"scores": dict(zip("abc", row, strict=True))}) for i, row in enumerate(scores)]
    references = [["a", "c"], ["a"], []]
    split = make_split("validation", x=[0, 1, 2])
    rows = Rows(split, list("012"), [1, 1, 1], references)
    job = make_job(LabelData(problem_type="multi_label", threshold="best"), out=str(tmp_path))
    (tmp_path / "best").mkdir()
    chosen = choose_thresholds(job, labels, rows, lambda: predictions)
    assert chosen.limits() == pytest.approx([0.3, 0.5, 0.15])
    assert json.loads((tmp_path / "best/thresholds.json").read_text()) == pytest.approx({"a": 0.3, "b": 0.5, "c": 0.15})
    found = [{**row, "labels": []} for _, row in predictions]
    assert label_metrics(["micro_f1"], chosen, references, found)["micro_f1"] == pytest.approx(2 * 3 / (3 + 5))
    plain = make_job(LabelData(problem_type="multi_label"), out=str(tmp_path))
    assert choose_thresholds(plain, labels, rows, lambda: 1 / 0) is labels
