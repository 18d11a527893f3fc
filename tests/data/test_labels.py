"""Labels: classes of any type as names and numbers, and what a model's scores say."""

import json

import datasets
import numpy as np
import pytest
import torch

from d2v.data.labels import LabelData, Labels, check_classes, distinct, match_classes, read_labels
from d2v.data.rows import Split
from d2v.errors import InputError
from tests.helpers import make_job, make_split


def read(values, other=None, feature=None, mode="train", model=None, **options):
    """Labels, and those of each split, of columns of labels."""
    splits = {}
    for name, column in (("train", values), ("validation", other)) if mode == "train" else (("test", values),):
        if column is not None:
            table = datasets.Dataset.from_dict({"label": column})
            table = table.cast_column("label", feature) if feature else table
            splits[name] = Split(name, table, np.arange(len(table)), ((name, len(table)),))
    return read_labels(make_job(LabelData(**options), mode=mode, model=model), splits)


def test_classes_are_those_that_occur_in_train_in_order():
    labels, references = read(["b", "a", "b"], ["a"])
    assert (labels.names, references) == (["a", "b"], {"train": ["b", "a", "b"], "validation": ["a"]})
    labels, references = read([10, 2, 10], [2])
    assert (labels.names, references["train"]) == (["2", "10"], ["10", "2", "10"])
    labels, references = read([[1, 0], [], [2]], problem_type="multi_label")
    assert (labels.names, references["train"]) == (["0", "1", "2"], [["1", "0"], [], ["2"]])


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


def test_text_beside_numbers_is_refused():
    class Mixed:  # no table has such a column, but a reader of JSON once made one
        name = "train"
        table = make_split(label=["a"]).table

        def column(self, name):
            return ["a", 1]

    with pytest.raises(InputError, match="train: label has text and numbers; should be one of the two"):
        read_labels(make_job(LabelData()), {"train": Mixed()})


def checkpoint(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_checkpoint_says_what_it_predicts(tmp_path):
    names = {"1": "dog", "0": "cat", "10": "eel", "2": "ant"}
    model = checkpoint(tmp_path, id2label=names)
    labels, references = read(["dog", "eel", "cow"], mode="evaluate", model=model)
    assert (labels.names, labels.problem_type) == (["cat", "dog", "ant", "eel"], "single_label")
    assert references == {"test": ["dog", "eel", "cow"]} and "'cow' is not one of" in labels.problem("cow")
    labels, references = read([2, 0, 7], mode="evaluate", model=model, match="number")
    assert references == {"test": ["ant", "cat", "7"]}
    assert labels.problem("7") == "label '7' is not one of the classes 0, 1, 2, 3" and labels.problem("ant") is None
    four = ["n1", "n2", "n3", "n4"]
    assert read(four[::-1], mode="evaluate", model=model, match="order")[1] == {"test": labels.names[::-1]}
    with pytest.raises(InputError, match="data.match order: the data have 2 classes, the model has 4"):
        read(four[:2], mode="evaluate", model=model, match="order")
    assert read(four, mode="predict", model=model) == (Labels(labels.names, "single_label"), {})
    model = checkpoint(tmp_path, id2label=names, problem_type="multi_label_classification")
    assert read([["dog"], []], mode="evaluate", model=model)[0].problem_type == "multi_label"


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
    assert labels.problem("d") == "kind 'd' is not one of the classes a, b, c"


def test_several_labels():
    labels = Labels(["a", "b"], "multi_label")
    assert labels.encode([["b", "a"], []]).tolist() == [[1, 1], [0, 0]]
    assert labels.scores(torch.zeros(1, 2)).tolist() == [[0.5, 0.5]]
    assert labels.decode([0.9, 0.4])["labels"] == ["a"]
    assert labels.problem([]) is None and labels.problem("a") == "label is 'a'; should be a list of labels"
    assert labels.problem(["a", "x"]) == "label 'x' is not one of the classes a, b"


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
