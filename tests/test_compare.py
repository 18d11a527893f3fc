"""Two runs over the same rows: paired intervals, what differs, and one line for what cannot be compared."""

import json

import numpy as np
import pytest

from d2v.compare import compare, main
from d2v.metrics import statistics as s
from d2v.metrics.intervals import save_statistics

NAMES = ["a", "b"]


def write_run(folder, statistics, ids, predictions, results, clusters=None, **options):
    folder.mkdir()
    save_statistics(folder / "statistics.npz", statistics, ids, clusters or ids)
    (folder / "results.json").write_text(json.dumps(results))
    lines = [json.dumps({"id": name} | row) + "\n" for name, row in zip(ids, predictions, strict=True)]
    (folder / "predictions.jsonl").write_text("".join(lines))
    (folder / "config.yaml").write_text(json.dumps({"optim": options, "run": {"out": str(folder)}}))
    entries = [{"step": step, "loss": 1 / step, "eval_accuracy": step / 9} for step in range(1, 5)]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Three runs over forty rows and more, the second a tenth better than the first."""
    random = np.random.default_rng(0)
    reference = random.integers(0, 2, 44)
    made = []
    for name, share, rows in (("first", 0.6, range(40)), ("second", 0.9, range(43, 2, -1)), ("copy", 0.6, range(40))):
        right = np.random.default_rng(1).random(44) < share
        predicted = np.where(right, reference, 1 - reference)
        rows = np.array(rows)
        pairs = [NAMES[i] for i in reference[rows]], [NAMES[i] for i in predicted[rows]]
        results = {"accuracy": float(right[rows].mean())}
        statistics = s.class_statistics(*pairs, NAMES)
        predictions = [{"label": label} for label in pairs[1]]
        made.append(write_run(tmp_path / name, statistics, [f"r{i}" for i in rows], predictions, results, lr=share))
    return made


def test_two_runs(runs, capsys, tmp_path):
    first, second, _ = runs
    found = compare(first, second)
    assert found["rows"]["matched"] == 37 and (found["rows"]["only_first"], found["rows"]["only_second"]) == (3, 4)
    assert list(found["metrics"]) == ["accuracy"] and found["options"] == {"optim.lr": [0.6, 0.9]}
    (low, high), difference = found["metrics"]["accuracy"]["interval"], found["metrics"]["accuracy"]["difference"]
    assert 0 < low < difference < high and found["metrics"]["accuracy"]["second_is_better"] > 0.99
    assert all(row["first"]["label"] != row["second"]["label"] for row in found["rows"]["most"])
    assert 5 < len(found["rows"]["most"]) <= 10

    main([str(first), str(second), "--picture", str(tmp_path / "curves.png")])
    text = capsys.readouterr().out
    assert "37 rows in both; 3 only in the first, left out; 4 only in the second, left out" in text
    assert "optim.lr: 0.6 -> 0.9" in text and (tmp_path / "curves.png").stat().st_size > 1000


def test_a_run_and_itself_differ_by_exactly_nothing(runs):
    first, _, copy = runs
    found = compare(first, copy)
    each = found["metrics"]["accuracy"]
    assert (each["difference"], each["interval"], each["second_is_better"]) == (0.0, [0.0, 0.0], 0.0)
    assert found["rows"]["most"] == []


def test_json(runs, capsys, tmp_path):
    main([*map(str, runs), "--json", "--picture", str(tmp_path / "c.png")])
    assert [each["second"] for each in json.loads(capsys.readouterr().out)] == [str(run) for run in runs[1:]]


def test_what_cannot_be_compared(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as error:
        main([str(runs[0]), str(tmp_path / "empty")])
    assert error.value.code == 2 and "empty: no results.json" in capsys.readouterr().err
    statistics = s.mean_statistics(accuracy=[1.0] * 12)
    other = write_run(tmp_path / "other", statistics, [f"x{i}" for i in range(12)], [{}] * 12, {"accuracy": 1.0})
    with pytest.raises(SystemExit):
        main([str(runs[0]), str(other)])
    assert "no row has the same id" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(runs[0])])
    assert "name two runs or more" in capsys.readouterr().err
