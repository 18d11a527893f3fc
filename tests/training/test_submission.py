"""Submissions: a sample's columns, rows and order, filled with predictions."""

import pytest

from d2v.config import Data, Recipe, Run
from d2v.errors import InputError
from d2v.training.job import start
from d2v.training.submission import write_submission

CLASSES = [{"id": f"test/{i}.jpg", "label": "ab"[i % 2], "scores": {"a": 0.75, "b": 0.25}} for i in range(3)]

LEFT = "1 predictions have no row in the sample"


def fill(tmp_path, sample, records):
    (tmp_path / "sample.csv").write_text(sample, "utf-8")
    said = write_submission(tmp_path / "sample.csv", records, tmp_path / "out.csv")
    return (tmp_path / "out.csv").read_text("utf-8"), said


@pytest.mark.parametrize(
    ("sample", "records", "filled", "said"),
    [
        # the order of the sample, its names, ids as they are, as files' names, and without endings
        (
            "id,class\ntest/2.jpg,x\ntest/0.jpg,x\n",
            CLASSES,
            "id,class\ntest/2.jpg,a\ntest/0.jpg,a\n",
            f"class is label; {LEFT}",
        ),
        (
            "image,target\n1.jpg,0\n0.jpg,0\n2.jpg,0\n",
            CLASSES,
            "image,target\n1.jpg,b\n0.jpg,a\n2.jpg,a\n",
            "target is label",
        ),
        ("image,label\n1,0\n", CLASSES, "image,label\n1,b\n", "2 predictions have no row in the sample"),
        ("id,label\n0.jpg,\n", [{"id": "d\\0.jpg", "label": "a"}], "id,label\n0.jpg,a\n", ""),
        # a column a class, of which one may be left out
        (
            "id,b,a\n0,0,0\n",
            CLASSES[:1],
            "id,b,a\n0,0.25,0.75\n",
            "b is scores, a is scores",
        ),
        # a prediction's own names; lists; numbers; quotes, semicolons and a byte order mark
        ("\ufeffid;value\n7;0\n", [{"id": "7", "value": 1.5}], "id;value\n7;1.5\n", ""),
        ('id,"a;b;c"\n7,\n', [{"id": "7", "value": 1.5}], "id,a;b;c\n7,1.5\n", "a;b;c is value"),
        ("id,tags\n7,\n", [{"id": "7", "labels": ["dog", "rain"]}], "id,tags\n7,dog rain\n", "tags is labels"),
        ("id\ttext\n7\t\n", [{"id": "7", "text": 'a, "b"', "words": []}], 'id\ttext\n7\t"a, ""b"""\n', ""),
        ("id,words,text\n007,,\n", [{"id": "007", "text": "a", "words": [1, 2]}], "id,words,text\n007,1 2,a\n", ""),
        ("id,text\na.b,\n", [{"id": "a.b", "text": ""}, {"id": "a.c", "text": "x"}], "id,text\na.b,\n", LEFT),
        # what a masked model filled in, and what a language model made of a recording, are the answers
        (
            "id,sentence\n1,\n",
            [{"id": "1", "text": "a <mask>", "filled": "a b"}],
            "id,sentence\n1,a b\n",
            "sentence is filled",
        ),
        ("id,x\n1,\n", [{"id": "1", "text": "helo", "text_lm": "hello"}], "id,x\n1,hello\n", "x is text_lm"),
        # the number of a choice, not its text; scores of a prediction are no answer
        ("id,label\n1,\n", [{"id": "1", "choice": 2, "text": "goes home"}], "id,label\n1,2\n", "label is choice"),
        (
            "id,scores\n1,\n",
            [{"id": "1", "label": "a", "scores": {"a": 1.0}}],
            "id,scores\n1,a\n",
            "scores is label",
        ),
        # a trial is a pair of clips
        ("trial,p\na b,\n", [{"enrol": "a", "test": "b", "score": 0.5}], "trial,p\na b,0.5\n", "p is score"),
    ],
)
def test_a_sample_is_filled(tmp_path, sample, records, filled, said):
    assert fill(tmp_path, sample, records) == (filled, said)


@pytest.mark.parametrize(
    ("sample", "records", "message"),
    [
        ("id,x\n0,\n7,\n8,\n", CLASSES, r"2 of 3 ids have no prediction, the first is '7'; there are 3 predictions"),
        ("id,x\n", CLASSES, "should have a column of ids, one or more of predictions, and rows"),
        ("id\n1\n", CLASSES, "should have a column of ids"),
        ("id,x\n0,\n1,2,3\n", CLASSES, "sample.csv, line 3: should have 2 fields, as its first line has"),
        ("id,x,x\n0,,\n", CLASSES, "two of its columns have the same name; there are id, x, x"),
        ("id,x,y\n0,,\n", CLASSES, "predictions have no 'x'; there are label, a, b"),
        ("id,rle\n1,\n", [{"id": "1", "mask": "masks/1.png"}], "predictions have no 'rle'; there are mask"),
        ("id,scores,x\n0,,\n", CLASSES, "predictions have no 'scores'"),
        ("id,x\n1,\n", [{"id": "a/1.jpg", "label": "a"}, {"id": "b/1.jpg", "label": "b"}], "1 is the id of 2 predic"),
        (
            "id,x\n1,\n",
            [{"id": "1", "labels": ["New York", "Rome"]}],
            "'New York' of labels, of 1, cannot be told",
        ),
        ("id,words\n1,\n", [{"id": "1", "words": [{"word": "a"}]}], r"words of 1 is \[{'word': 'a'}\]; a column takes"),
    ],
)
def test_what_cannot_be_filled_is_named(tmp_path, sample, records, message):
    with pytest.raises(InputError, match=message):
        fill(tmp_path, sample, records)


def test_a_sample_is_looked_at_before_anything_is_predicted(tmp_path):
    def begin(mode, sample):
        start(Recipe(mode=mode, model="some", data=Data(submission=str(sample)), run=Run(str(tmp_path), tracker=None)))

    with pytest.raises(InputError, match="none.csv: not a CSV file that can be read .*see data.submission"):
        begin("predict", tmp_path / "none.csv")
    (tmp_path / "sample.csv").write_text("id,x\n1,\n")
    with pytest.raises(InputError, match="data.submission is what --mode predict fills in"):
        begin("train", tmp_path / "sample.csv")
