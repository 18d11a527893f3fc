"""Labels: classes of any type as names and numbers, and what a model's scores say."""

import json
import math
from decimal import Decimal

import datasets
import numpy as np
import pytest
import torch

from d2v.data.class_names import as_list, check_classes, distinct
from d2v.data.labels import LabelData, Labels, match_classes, read_labels
from d2v.data.load import choose_splits
from d2v.data.rows import Split
from d2v.errors import InputError
from tests.helpers import make_job, make_split


def read(values, other=None, feature=None, mode="train", model=None, **options):
    """Labels, and those of each split, of columns of labels."""
    return read_job(values, other, feature, mode, model, **options)[1]


def read_job(values, other=None, feature=None, mode="train", model=None, **options):
    """The job too, whose facts say what was matched."""
    splits = {}
    for name, column in (("train", values), ("validation", other)) if mode == "train" else (("test", values),):
        if column is not None:
            table = datasets.Dataset.from_dict({"label": column})
            table = table.cast_column("label", feature) if feature else table
            splits[name] = Split(name, table, np.arange(len(table)), ((name, len(table)),))
    job = make_job(LabelData(**options), mode=mode, model=model)
    return job, read_labels(job, splits)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("['EU', 'rejects']", ["EU", "rejects"]),
        ("['EU' 'rejects'\n \"don't\"]", ["EU", "rejects", "don't"]),
        ("['B-ORG']", ["B-ORG"]),
        ("[1 2 3]", [1, 2, 3]),
        ("[1. 0. 1.]", [1.0, 0.0, 1.0]),
        ("['a' 'b' ... 'z']", "['a' 'b' ... 'z']"),
        ("[1 2 ... 9]", "[1 2 ... 9]"),
        ("[laughs softly]", "[laughs softly]"),
    ],
)
def test_lists_as_text(text, expected):
    assert as_list(text, None) == expected


def test_classes_are_those_that_occur_in_train_in_order():
    labels, references = read(["b", "a", "b"], ["a"])
    assert (labels.names, references) == (["a", "b"], {"train": ["b", "a", "b"], "validation": ["a"]})
    labels, references = read([10, 2, 10], [2])
    assert (labels.names, references["train"]) == (["2", "10"], ["10", "2", "10"])
    labels, references = read([[1, 0], [], [2]], problem_type="multi_label")
    assert (labels.names, references["train"]) == (["0", "1", "2"], [["1", "0"], [], ["2"]])


def test_names_that_look_the_same_are_one_class():
    composed, apart = "caf\u00e9", "cafe\u0301"
    job, (labels, references) = read_job([composed, apart, "tea", "tea\u200b", "tea "])
    assert labels.names == [composed, "tea"] and references["train"] == [composed] * 2 + ["tea"] * 3
    (fact,) = job.facts
    line = r"train: 2 labels of label, accents composed and unseen signs dropped: 'cafe\u0301'"
    assert fact["line"].startswith(line)
    assert match_classes("name", ["tea\u200b", "x"], ["tea"]) == {"tea": 0}


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (["0", "0.0", "1"], "'0' and '0.0'"),
        (["Yes", "no", "yes", "YES"], "'YES' and 'Yes' and 'yes'"),
        (["9007199254740993", "9007199254740992"], None),  # one as floats
        (["a", "b"], None),
    ],
)
def test_classes_that_may_be_meant_to_be_one_are_noted(values, shown):
    job, _ = read_job(values)
    lines = [fact["line"] for fact in job.facts if fact["fact"] == "labels alike"]
    said = "train: label has classes that differ in case, or in how a number is written, alone:"
    assert lines == ([f"{said} {shown}"] if shown else [])


def test_classes_that_the_column_lists():
    feature = datasets.ClassLabel(names=["positive", "negative", "other"])
    labels, references = read([1, 0, 2, -1], feature=feature)
    assert labels.names == ["positive", "negative", "other"]
    assert references["train"] == ["negative", "positive", "other", None]
    assert labels.problem(None) is not None and labels.problem("positive") is None


@pytest.mark.parametrize("values", [["a", "a"], ["only"], [None, None]])
def test_fewer_than_two_classes_are_refused(values):
    with pytest.raises(InputError, match=r"train: label has \d classes.*; should have two or more"):
        read(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([b"a", b"b"], r"train: label is b'a'; should be text or whole numbers$"),
        ([{"x": 1}, {"x": 2}], r"label is {'x': 1}; should be text or whole numbers$"),
        ([0.5, 1.5], r"label is 0.5; should be .* \(data.problem_type regression predicts values\)$"),
        ([Decimal("0.5"), Decimal("1.5")], r"label is Decimal\('0.5'\); .* \(data.problem_type regression"),
    ],
)
def test_what_cannot_be_a_label_is_shown(values, message):
    with pytest.raises(InputError, match=message):
        read(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["0.37", "2", "-1.25"], r"label has numbers such as 2?.*; --data.problem_type regression predicts values"),
        (["['a', 'b']", "[]", "['b']"], r"label has lists such as \[\]; --data.problem_type multi_label"),
    ],
)
def test_classes_that_look_like_something_else(values, message):
    """As a CSV has them; whoever gives the type of the problem gets it."""
    with pytest.raises(InputError, match=message):
        read(values)
    assert len(read(values, problem_type="single_label")[0].names) == 3
    assert read(["1.0", "2.0", "3"])[0].names == ["1.0", "2.0", "3"]


def test_decimals_of_databases_are_numbers():
    assert read([Decimal("1.00"), Decimal("2.00")], [Decimal("1.00")])[0].names == ["1", "2"]
    values = read([Decimal("1.50"), Decimal("2.00")], [Decimal("1.00")], problem_type="regression")[1]
    assert values["train"] == [1.5, 2.0]


def test_text_beside_numbers_is_refused():
    class Mixed:  # no table has such a column, but a reader of JSON once made one
        name = "train"
        index = [0, 1]

        class table(dict):
            features = {"label": None}

            def __getitem__(self, name):
                return ["a", 1]

        table = table()

    with pytest.raises(InputError, match="train: label has text and numbers; should be one of the two"):
        read_labels(make_job(LabelData()), {"train": Mixed()})


def checkpoint(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_checkpoint_says_what_it_predicts(tmp_path):
    names = {"1": "dog", "0": "cat", "3": "eel", "2": "ant"}
    model = checkpoint(tmp_path, id2label=names)
    labels, references = read(["dog", "eel", "cow"], mode="evaluate", model=model)
    assert (labels.names, labels.problem_type) == (["cat", "dog", "ant", "eel"], "single_label")
    assert references == {"test": ["dog", "eel", "cow"]} and "'cow' is not one of" in labels.problem("cow")
    labels, references = read([2, 0, 7], mode="evaluate", model=model, match="number")
    assert references == {"test": ["ant", "cat", "7"]}
    assert labels.problem("7") == "label '7' is not one of the classes 0, 1, 2, 3 (see data.match)"
    assert labels.problem("ant") is None
    four = ["n1", "n2", "n3", "n4"]
    assert read(four[::-1], mode="evaluate", model=model, match="order")[1] == {"test": labels.names[::-1]}
    with pytest.raises(InputError, match="data.match order: the data have 2 classes, the model has 4"):
        read(four[:2], mode="evaluate", model=model, match="order")
    assert read(four, mode="predict", model=model) == (Labels(labels.names, "single_label"), {})
    model = checkpoint(tmp_path, id2label=names, problem_type="multi_label_classification")
    assert read([["dog"], []], mode="evaluate", model=model)[0].problem_type == "multi_label"


def test_classes_whose_names_are_numbers(tmp_path):
    """As config.json has them where the classes of a table are numbers."""
    model = checkpoint(tmp_path, id2label={"0": 3, "1": 1})
    labels, references = read([1, 3, 3], mode="evaluate", model=model)
    assert (labels.names, references) == (["3", "1"], {"test": ["1", "3", "3"]})
    assert labels.encode(["1", "3"]).tolist() == [1, 0]
    assert read([1, 3, 2], model=model)[0].names == ["1", "2", "3"]
    with pytest.raises(InputError, match="config.json: id2label should map numbers to names, not .'yes': 0"):
        read(["a"], mode="evaluate", model=checkpoint(tmp_path, id2label={"yes": 0}))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"num_labels": 3}, "single_label"),
        ({"num_labels": 1}, "regression"),
        ({}, "single_label"),
        ({"problem_type": "regression", "num_labels": 1}, "regression"),
        ({"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"}, "multi_label"),
    ],
)
def test_the_problem_of_older_checkpoints_is_told_by_their_outputs(tmp_path, config, kind):
    assert read([1.0], mode="predict", model=checkpoint(tmp_path, **config))[0].problem_type == kind


def test_one_label():
    labels = Labels(["a", "b", "c"], "single_label", "kind")
    assert labels.encode(["c", "a"]).tolist() == [2, 0] and labels.head["id2label"] == {0: "a", 1: "b", 2: "c"}
    assert labels.head["problem_type"] == "single_label_classification"
    scores = labels.scores(torch.tensor([[0.0, 2.0, 1.0]])).tolist()[0]
    assert sum(scores) == pytest.approx(1)
    assert labels.decode([0.1, 0.7, 0.2]) == {"label": "b", "scores": {"a": 0.1, "b": 0.7, "c": 0.2}}
    assert list(labels.decode([0.1, 0.7, 0.2], most=2)["scores"]) == ["b", "c"]
    assert labels.problem(["a"]) == "kind is ['a']; should be a single label"
    assert labels.problem("d") == "kind 'd' is not one of the classes a, b, c (see data.match)"


def test_several_labels():
    labels = Labels(["a", "b"], "multi_label")
    assert labels.encode([["b", "a"], []]).tolist() == [[1, 1], [0, 0]]
    assert labels.scores(torch.zeros(1, 2)).tolist() == [[0.5, 0.5]]
    assert labels.decode([0.9, 0.4])["labels"] == ["a"]
    assert labels.problem([]) is None and labels.problem("a").startswith(
        "label is 'a'; should be a list of labels (data.label"
    )
    assert labels.problem(["a", "x"]) == "label 'x' is not one of the classes a, b (see data.match)"


def test_a_value():
    labels, references = read([1, 2.5, None], problem_type="regression")
    assert labels.head == {"num_labels": 1, "problem_type": "regression"} and references["train"][1] == 2.5
    assert labels.encode([1, 2.5]).tolist() == [1.0, 2.5] and labels.decode([0.25]) == {"value": 0.25}
    assert (
        labels.problem(None)
        == "label is None; should be a number"
        == labels.problem(float("nan")).replace("nan", "None")
    )
    assert labels.scores(torch.tensor([[3.0]])).tolist() == [[3.0]]


def test_names_that_come_twice_are_told_apart():
    assert distinct(["crane", "dog", "crane"]) == ["crane (0)", "dog", "crane (2)"]
    assert check_classes(["a", "b"], "label") == ["a", "b"]
    assert match_classes("number", ["x", "y"], []) == {"0": 0, "1": 1}


# What users bring: labels as tables have them. A class name is the text as written.
VALUES = {
    "words that mean nothing elsewhere": (["None", "N/A", "null"], ["N/A", "None", "null"]),
    "signs as text": (["-1", "0", "1"], ["-1", "0", "1"]),
    "signs as numbers": ([-1, 0, 1], ["-1", "0", "1"]),
    "truth as text": (["True", "False"], ["False", "True"]),
    "truth": ([True, False], ["False", "True"]),
    "fractions as text": (["1.0", "0.0"], ["0.0", "1.0"]),
    "whole numbers that pandas made floats": ([1.0, 0.0, None, 10.0], ["0", "1", "10"]),
    "blanks around": (["dog ", "dog", "cat"], ["cat", "dog"]),
    "an empty cell": (["a", "", "b"], ["a", "b"]),
    "numbers with zeros": (["007", "7"], ["007", "7"]),
}


@pytest.mark.parametrize("case", VALUES)
def test_labels_of_tables(case):
    values, classes = VALUES[case]
    labels, references = read(values)
    assert labels.names == classes and set(references["train"]) - {None} == set(classes)
    problems = [labels.problem(label) for label in references["train"]]
    empty = "label is empty or says that there is no label"
    assert problems == [empty if value in ("", None) else None for value in values]


def test_a_negative_class_is_said():
    (fact,) = read_job([-1, 0, 1])[0].facts
    assert fact["line"] == "train: label -1 is a class like the others"
    assert read_job([0, 1])[0].facts == []


SEVERAL = {
    "vectors": ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], {}, ["0", "1", "2"], [["0", "2"], [], ["1"]]),
    "vectors of two": ([[1, 0], [0, 1], [1, 1]], {}, ["0", "1"], [["0"], ["1"], ["0", "1"]]),
    "vectors of floats": ([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], {}, ["0", "1", "2"], [["0"], ["1", "2"]]),
    "vectors of truth": ([[True, False, False]], {}, ["0", "1", "2"], [["0"]]),
    "vectors in a cell": (["[1, 0, 1]", "[0, 1, 0]"], {}, ["0", "1", "2"], [["0", "2"], ["1"]]),
    "numbers": ([[0, 2], [1], []], {}, ["0", "1", "2"], [["0", "2"], ["1"], []]),
    "one number each": ([[0], [1]], {}, ["0", "1"], [["0"], ["1"]]),
    "a list in a cell": (["['b', 'a']", "[]", '["c"]'], {}, ["a", "b", "c"], [["b", "a"], [], ["c"]]),
    "vectors in a text": (["1,0,1", "0,1,0"], {"label_separator": ","}, ["0", "1", "2"], [["0", "2"], ["1"]]),
    "a separator": (["b; a", "", "a"], {"label_separator": ";"}, ["a", "b"], [["b", "a"], [], ["a"]]),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_several_labels_as_data_have_them(case):
    values, options, classes, expected = SEVERAL[case]
    labels, references = read(values, problem_type="multi_label", **options)
    assert labels.names == classes and references["train"] == expected
    assert not any(map(labels.problem, references["train"]))


@pytest.mark.parametrize("options", [{}, {"label_separator": ","}], ids=["lists", "texts"])
def test_a_row_without_a_vector_changes_no_other(options):
    rows = [[1, 0, 1], None, [], [0, 1, 0]]
    values = [None if row is None else ",".join(map(str, row)) for row in rows] if options else rows
    labels, references = read(values, problem_type="multi_label", bad_rows="skip", **options)
    assert labels.names == ["0", "1", "2"] and references["train"] == [["0", "2"], None, None, ["1"]]
    assert labels.problem(None) == "label is None; should be a list of labels (data.label_separator splits a text)"


def test_a_column_for_each_class():
    data = LabelData(label_columns=["toxic", "rude"], problem_type="multi_label")
    split = make_split(toxic=[0, 1, 1, None], rude=["1", "0", "1", "0"])
    labels, references = read_labels(make_job(data), {"train": split})
    assert labels.names == ["toxic", "rude"] and data.targets == {"label": None}
    assert references["train"] == [["rude"], ["toxic"], ["toxic", "rude"], None]
    assert labels.problem(None).startswith("toxic, rude is None; should be a list of labels")
    split = make_split(toxic=["1 ", "0.5", "2"], rude=[0, 1, 0])  # blanks behind commas; a share of raters
    labels, references = read_labels(make_job(data), {"train": split})
    assert references["train"] == [["toxic"], "'0.5' in column toxic", "'2' in column toxic"]
    assert 'in column toxic"; should be a list' in labels.problem(references["train"][1])
    split = make_split(toxic=[0, 1, 1, None], rude=["1", "0", "1", "0"])
    for test in ({"text": ["a"]}, {"text": ["a"], "toxic": [-1], "rude": [-1]}):  # as competitions have it
        source = {"train": split.table, "validation": split.table, "test": make_split(**test).table}
        job = make_job(data)
        assert set(choose_splits(job, source, {}, data.targets)) == {"train", "validation"}
        assert "test: has no labels" in job.facts[0]["line"]
    with pytest.raises(InputError, match=r"train: no column 'mild' \(data.label_columns\); there are toxic"):
        read_labels(make_job(LabelData(label_columns=["mild"], problem_type="multi_label")), {"train": split})


def test_values_of_text():
    labels, references = read(["1.5", " 2 ", "much", "", "True"], problem_type="regression")
    assert references["train"][:3] == [1.5, 2.0, "much"]
    assert [labels.problem(value) is None for value in references["train"]] == [True, True, False, False, False]


def test_classes_are_those_of_the_whole_file():
    """Whatever was held out or sampled: a class that fell into the other share is one all the same."""
    split = make_split(label=["a", "b", "c", "c"])
    job = make_job(LabelData())
    labels, references = read_labels(job, {"train": split.select([2, 3])})
    assert labels.names == ["a", "b", "c"] and references == {"train": ["c", "c"]}
    assert [fact["line"] for fact in job.facts] == ["train: 2 of 3 classes of label have no row: a, b"]


MATCHES = {
    "another order": (["negative", "positive"], ["positive", "negative"], {}),
    "another case": (["Negative", "POSITIVE"], ["negative", "positive"], {"Negative": "negative"}),
    "numbers of LABEL_0": (["0", "1"], ["LABEL_0", "LABEL_1"], {"0": "LABEL_0"}),
    "LABEL_0 of numbers": (["LABEL_0", "LABEL_1"], ["0", "1"], {"LABEL_1": "1"}),
    "numbers otherwise written": (["1.0", "0.0"], ["0", "1"], {"1.0": "1", "0.0": "0"}),
    "accents otherwise written": (
        ["caf\u00e9", "tea"],
        ["cafe\u0301", "tea"],
        {"caf\u00e9": "cafe\u0301", "tea": "tea"},
    ),
    "a subset": (["dog"], ["cat", "dog"], {}),
}


@pytest.mark.parametrize("case", MATCHES)
def test_labels_are_matched_by_name_and_it_is_said(case, tmp_path):
    values, names, others = MATCHES[case]
    model = checkpoint(tmp_path, id2label=dict(enumerate(names)))
    job, (labels, references) = read_job(values, mode="evaluate", model=model)
    assert references["test"] == [others.get(value, value) if others else value for value in values] or others
    assert not any(map(labels.problem, references["test"])) and labels.names == names
    said = [fact["classes"] for fact in job.facts]
    assert not others if not said else all(said[0][value] == other for value, other in others.items())
    assert bool(said) == bool(others)


def test_a_case_that_tells_classes_apart_is_not_ignored():
    assert match_classes("name", ["us", "US"], ["us", "Us"]) == {"us": 0, "US": 1}
    assert match_classes("name", ["us", "them"], ["us", "US"]) == {"us": 0, "them": 1}


def test_numbers_do_not_meet_names_in_silence(tmp_path):
    model = checkpoint(tmp_path, id2label={"0": "negative", "1": "positive"})
    labels, references = read([0, 1], mode="evaluate", model=model)
    assert "'0' is not one of the classes negative, positive (see data.match)" in labels.problem(references["test"][0])
    job, (_, references) = read_job([1, 0], mode="evaluate", model=model, match="number")
    assert references["test"] == ["positive", "negative"]
    assert job.facts[0]["line"] == "label: of the model's classes, 0 is negative, 1 is positive"
    feature = datasets.ClassLabel(names=["no", "yes"])  # numbers too, with names of their own
    assert read([1, 0], feature=feature, mode="evaluate", model=model, match="order")[1] == references


def test_vectors_are_a_models_classes_by_number(tmp_path):
    model = checkpoint(tmp_path, id2label={"0": "x", "1": "y"}, problem_type="multi_label_classification")
    assert read([[1, 0], [1, 1]], mode="evaluate", model=model)[1] == {"test": [["x"], ["x", "y"]]}
    with pytest.raises(InputError, match="label: 3 numbers in a row, the model has 2 classes; should be as many"):
        read([[1, 0, 0], [1, 1, 0]], mode="evaluate", model=model)


def test_training_goes_on_with_the_models_order(tmp_path):
    """Where the names are the same; else those of the data, by the model's names where it knows them."""
    model = checkpoint(tmp_path, id2label={"0": "positive", "1": "Negative"})
    assert read(["negative", "positive"], model=model)[0].names == ["positive", "Negative"]
    assert read(["negative", "positive"], model=model)[1]["train"] == ["Negative", "positive"]
    assert read(["mixed", "positive"], model=model)[0].names == ["mixed", "positive"]
    assert read([1, 0], model=model, match="number")[0].names == ["positive", "Negative"]
    assert read(["good", "poor"], model=model, match="order")[0].names == ["positive", "Negative"]
    assert read(["good", "poor", "so"], model=model, match="order")[0].names == ["good", "poor", "so"]
    model = checkpoint(tmp_path, num_labels=2)  # names that say nothing
    assert read(["good", "poor"], model=model)[0].names == ["good", "poor"]


def test_classes_are_weighted():
    values = ["a"] * 6 + ["b"] * 3 + ["c"]
    weights = read(values, class_weights="balanced")[0].weights
    assert weights == pytest.approx([10 / 18, 10 / 9, 10 / 3])  # n / (classes * count), as scikit-learn has it
    assert sum(weight * count for weight, count in zip(weights, (6, 3, 1), strict=True)) == pytest.approx(10)
    assert read(values)[0].loss_options == {"weight": None, "label_smoothing": 0.0}
    labels = read(values, class_weights={"c": 5.0}, label_smoothing=0.1)[0]
    assert labels.weights == [1.0, 1.0, 5.0] and labels.loss_options["label_smoothing"] == 0.1
    with pytest.raises(InputError, match="data.class_weights: 'd' is none of a, b, c"):
        read(values, class_weights={"d": 5.0})
    for wrong in ({"a": -1.0}, {"a": math.nan}, {"a": math.inf}, dict.fromkeys("abc", 0.0)):
        with pytest.raises(InputError, match=r"data.class_weights .*: weights should be 0 or more, and one above 0"):
            read(values, class_weights=wrong)
    several = read([["a"], ["a", "b"], [], []], problem_type="multi_label", class_weights="balanced")[0]
    assert several.weights == [1.0, 3.0]  # as many zeros as ones
    for option in ({"class_weights": "balanced"}, {"label_smoothing": 0.1}):
        with pytest.raises(InputError, match="are for classes, not for regression"):
            LabelData(problem_type="regression", **option)
    for option, value in (("label_smoothing", 1.0), ("label_smoothing", -0.1), ("threshold", 2), ("threshold", -0.5)):
        with pytest.raises(InputError, match=f"data.{option} should be at least 0 and below 1, not {value:g}"):
            LabelData(**{option: value})


def test_the_positive_class_is_named():
    labels = read(["yes", "no"], positive_class="no")[0]
    assert labels.positive_last == ["yes", "no"] and labels.notes(["f1"]) == {"positive_class": "no"}
    assert read(["yes", "no"])[0].notes(["f1"]) == {"positive_class": "yes"} and labels.notes(["accuracy"]) is None
    with pytest.raises(InputError, match="data.positive_class 'maybe' is none of no, yes"):
        read(["yes", "no"], positive_class="maybe")


def test_thresholds_of_several_labels(tmp_path):
    values, options = [["a"], ["b"]], {"problem_type": "multi_label"}
    assert read(values, threshold=0.3, **options)[0].decode([0.35, 0.1])["labels"] == ["a"]
    assert read(values, **options)[0].decode([0.35, 0.1])["labels"] == []
    names = {"0": "a", "1": "b"}
    model = checkpoint(tmp_path, id2label=names, problem_type="multi_label_classification")
    with pytest.raises(InputError, match="data.threshold best: .* has no thresholds.json"):
        read(values, mode="predict", model=model, threshold="best")
    (tmp_path / "thresholds.json").write_text('{"a": 0.9, "b": 0.05}')
    for mode in ("evaluate", "predict"):
        assert read(values, mode=mode, model=model)[0].decode([0.35, 0.1])["labels"] == ["b"]
    assert read(values, mode="predict", model=model, threshold=0.2)[0].decode([0.35, 0.1])["labels"] == ["a"]

    job, (labels, _) = read_job(values, mode="predict", model=model, threshold=0.5)
    assert labels.limits() == [0.5, 0.5] and job.facts == []  # a given one wins
    (fact,) = read_job(values, mode="predict", model=model)[0].facts
    assert fact["fact"] == "thresholds" and "thresholds.json (data.threshold)" in fact["line"]
    for threshold in ("best", 0.7):
        with pytest.raises(InputError, match=f"data.threshold {threshold} is for multi_label; here is single_label"):
            read(["a", "b"], threshold=threshold)


def test_a_given_type_of_problem_is_the_models_where_that_says_none(tmp_path):
    silent = checkpoint(tmp_path, num_labels=3)
    for given in ("single_label", "multi_label"):
        assert read([1], mode="predict", model=silent, problem_type=given)[0].problem_type == given
    with pytest.raises(InputError, match="data.problem_type regression: .* is a model of 3 outputs$"):
        read([1], mode="predict", model=silent, problem_type="regression")
    speaking = checkpoint(tmp_path, num_labels=3, problem_type="multi_label_classification")
    assert read([1], mode="predict", model=speaking, problem_type="multi_label")[0].problem_type == "multi_label"
    with pytest.raises(InputError, match="single_label: .* 3 outputs whose config says multi_label_classification"):
        read([1], mode="predict", model=speaking, problem_type="single_label")


def test_scores_are_whole_until_they_are_written():
    """Metrics of scores that differ in the seventh decimal have an order of their own."""
    scores = Labels(["a", "b"], "multi_label").decode([0.12345678, 0.12345679])["scores"]
    assert scores == {"a": 0.12345678, "b": 0.12345679}


def test_lists_in_lists_are_no_labels():
    labels, references = read([[["Books", "SF"], ["Toys"]], [["Toys"]]], problem_type="multi_label")
    said = labels.problem(references["train"][0])
    assert said == "label has ['Books', 'SF'] among the labels; should be text or a whole number"


@pytest.mark.parametrize("options", [{"label_columns": ["a", "b"]}, {"label_separator": ";"}])
@pytest.mark.parametrize("kind", [None, "regression"])
def test_options_of_several_labels_are_for_those_alone(options, kind):
    (name,) = options
    with pytest.raises(InputError, match=f"data.{name} is for data.problem_type multi_label, not for"):
        read([1, 2], problem_type=kind, **options)


def test_two_rows_of_numbers_are_no_zeros_and_ones_if_those_of_train_are_not():
    _, references = read([[0, 1], [4], [2, 3]], [[0, 1], [0, 1]], problem_type="multi_label")
    assert references["validation"] == [["0", "1"], ["0", "1"]]
