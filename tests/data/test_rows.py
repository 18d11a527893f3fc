"""Rows: their names, their columns, and that nothing is copied for them."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from d2v.config import Data
from d2v.data.labels import LabelData, read_labels
from d2v.data.load import choose_splits, read
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.rows import Rows, Split, check_rows
from d2v.data.windows import window_rows
from d2v.errors import InputError
from d2v.metrics.intervals import resample
from tests.helpers import make_job, make_split


def test_rows_go_by_what_they_have():
    assert make_split(id=["a", "b"], idx=[3, 4]).ids() == ["a", "b"]
    assert make_split(idx=[3, 4]).ids() == ["3", "4"]
    assert make_split(text=["a", "b"]).ids() == ["0", "1"]
    assert make_split(id=["a", None]).ids() == ["a", "1"]
    assert make_split(id=["a", " ", ""]).ids() == ["a", "1", "2"]  # blank cells of CSV
    named = make_split(audio=["0.wav", "0.wav"], file=["yes/0.wav", "no/0.wav"])
    assert named.ids("audio") == ["yes/0.wav", "no/0.wav"]
    assert make_split(audio=["0.wav", "1.wav"], file=["yes/0.wav", "no/1.wav"]).ids("audio") == ["0.wav", "1.wav"]
    assert make_split(text=["a", "b", "c"]).select([2, 1]).ids() == ["2", "1"]

    files = [{"bytes": b"x", "path": "a/b.wav"}, {"bytes": b"x", "path": None}]
    assert make_split(sound=files, idx=[3, 4]).ids("sound") == ["a/b.wav", "1"]
    assert make_split(sound=["a.wav", "b.wav"]).ids("sound") == ["a.wav", "b.wav"]
    assert make_split(sound=files, id=[7, 8]).ids("sound") == ["7", "8"]
    assert make_split(sound=[{"bytes": b"x"}, {"bytes": b"y"}]).ids("sound") == ["0", "1"]
    assert make_split(sound=[b"x", b"y"]).ids("sound") == ["0", "1"]


def test_predictions_may_be_missing():
    rows = Rows(make_split(text=["a", "b", "c"]), ["x", "y", "z"], [1, 1, 1], references=[0, 1, 2])
    predictions = [(0, {"label": 5}), (2, {"label": 6})]
    assert rows.compare(predictions) == ([0, 2], [{"label": 5}, {"label": 6}])
    assert rows.records(predictions) == [
        {"id": "x", "label": 5, "reference": 0},
        {"id": "z", "label": 6, "reference": 2},
    ]
    unlabelled = Rows(rows.split, rows.ids, rows.lengths)
    assert unlabelled.records(predictions)[1] == {"id": "z", "label": 6}
    assert rows[1] == {"text": "b", "where": "train, row 1", "reference": 1}


def test_bad_rows_are_counted_and_the_first_is_named(capsys):
    split = make_split(text=list("abcd")).select([3, 2, 1])
    refuse, skip = make_job(), make_job(Data(bad_rows="skip"))
    assert check_rows(refuse, split, [None] * 3).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"^train, row 2: is bad; 2 such rows of 3 \(--data.bad_rows skip leaves such"):
        check_rows(refuse, split, [None, "is bad", "is worse"])
    assert check_rows(skip, split, [None, "is bad", "is worse"]).tolist() == [0]
    line = "train: 2 of 3 rows left out; the first is train, row 2: is bad"
    assert capsys.readouterr().out == line + "\n"
    (fact,) = json.loads((skip.out / "data.json").read_text())["facts"]
    assert fact["line"] == line and (fact["rows"], fact["of"], fact["split"]) == (2, 3, "train")
    with pytest.raises(InputError, match="3 of 3 rows left out"):
        check_rows(skip, split, ["a", "b", "c"])


def of_numbers(rows):
    return {"size": len(rows)}


def test_a_run_writes_no_cache_beside_the_sources_own(tmp_path, monkeypatch):
    """Loading, choosing classes, holding out a share, sampling and loaders: of 20,000 rows, nothing is copied."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    columns = {
        "text": [f"text {i}" for i in range(20_000)],
        "label": [i % 7 for i in range(20_000)],
        "audio": [{"bytes": bytes(100), "path": f"{i}.wav"} for i in range(20_000)],
    }
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "set/train.parquet")
    data = LabelData(path=str(tmp_path / "set"), max_train_samples=15_000)
    source = read(data)
    assert len(source["train"]) == 20_000
    before = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "cache").rglob("*")}
    assert before
    job = make_job(data)
    splits = choose_splits(job, source, {"text": "text", "audio": "audio"})
    labels, references = read_labels(job, splits)
    assert labels.names == [str(i) for i in range(7)]
    for name, split in splits.items():
        assert len(split) == len(references[name]) == {"train": 15_000, "validation": 2_000}[name]
        rows = Rows(split, split.ids("audio"), [1] * len(split), references[name])
        loader = train_loader if name == "train" else eval_loader
        next(iter(loader(job, rows, of_numbers)))
        assert rows[5]["text"] == columns["text"][split.number(5)] and rows.ids[5] == f"{split.number(5)}.wav"
    assert {path: path.stat().st_mtime_ns for path in Path(tmp_path / "cache").rglob("*")} == before


def test_columns_of_joined_tables():
    tables = [datasets.Dataset.from_dict({"audio": [{"path": name, "bytes": b"x"}]}) for name in "ab"]
    joined = datasets.concatenate_datasets(tables)
    split = Split("train", joined, np.array([1, 0]), (("first", 1), ("second", 1)))
    assert split.files("audio") == ["b", "a"] and split.where(0) == "second, row 0"
    assert isinstance(Data().max_size, type(None))


def test_groups_of_windows_are_those_of_their_rows():
    split = replace(make_split(text=list("abc"), speaker=["x", "y", "z"]), group="speaker")
    rows = window_rows(split, [{"ids": [1], "source": source} for source in (2, 0, 0)])
    assert [row["group"] for row in rows.records([(i, {}) for i in range(3)])] == ["z", "x", "x"]
    running = Rows(split, ["0", "1"], [1, 1], items=[{"first": 0}, {"first": 1}])  # windows of all of a text
    assert running.records([(0, {})]) == [{"id": "0"}]


def test_a_row_without_a_group_says_none_and_is_a_cluster_of_its_own():
    split = replace(make_split(text=list("abc"), speaker=["x", None, ""]), group="speaker")
    records = Rows(split, list("abc"), [1] * 3).records([(i, {}) for i in range(3)])
    assert records == [{"id": "a", "group": "x"}, {"id": "b"}, {"id": "c"}]
    side = {"sums": {"wer": np.array([[1.0, 2.0]] * 20)}}
    for none in (None, ""):
        assert resample([side], ["s1"] * 10 + [none] * 10, 2, 0)[0] == 11


@pytest.mark.parametrize("sounds", [[[0.5, 0.25]] * 3, [b"RIFF"] * 3, [{"array": [0.5], "sampling_rate": 8000}] * 3])
def test_samples_and_bytes_are_not_read_to_be_compared(sounds, monkeypatch):
    split = make_split(audio=sounds)
    monkeypatch.setattr(Split, "column", lambda *_: pytest.fail("they are read"))
    assert split.groups("audio") == [None] * 3


def test_groups_stand_in_the_records():
    split = replace(make_split(text=list("abc"), speaker=["x", "y", "x"]), group="speaker").select([2, 1])
    rows = Rows(split, ["2", "1"], [1, 1])
    assert rows.records([(1, {"label": 5})]) == [{"id": "1", "group": "y", "label": 5}]
