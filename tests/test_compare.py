"""Two runs over the same rows: paired intervals, what differs, and one line for what cannot be compared."""

import json

import numpy as np
import pytest

from d2v.compare import compare, difference, main
from d2v.errors import InputError
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


def test_rows_of_one_id_are_matched_in_order(tmp_path, capsys):
    """As of two tables that were joined: a run does not differ from its own copy."""
    pairs = ["a"] * 20, ["a"] * 10 + ["b"] * 10
    made = [
        write_run(
            tmp_path / name, s.class_statistics(*pairs, NAMES), list("0123456789") * 2, [{}] * 20, {"accuracy": 0.5}
        )
        for name in ("run", "copy")
    ]
    found = compare(*made)
    assert found["rows"]["matched"] == 20 and found["metrics"]["accuracy"]["difference"] == 0
    with pytest.raises(SystemExit):
        main([str(made[0]), str(made[0])])
    assert "a run is named twice" in capsys.readouterr().err


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


def test_without_replications_there_is_no_interval(runs, capsys, tmp_path):
    args = [str(runs[0]), str(runs[1]), "--picture", str(tmp_path / "c.png"), "--replications"]
    main([*args, "0"])
    assert "none: --replications 0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*args, "-5"])
    assert capsys.readouterr().err == "error: --replications should be at least 0, not -5\n"


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("predictions.jsonl", None, "predictions.jsonl: no such file"),
        ("predictions.jsonl", lambda content: content[:-9], "line 40: should be a JSON object"),
        ("predictions.jsonl", lambda content: b'{"label": "a"}\n', "a row has no id, nor enrol and test"),
        ("predictions.jsonl", lambda content: content[:9] + b"\xc3", "predictions.jsonl: not UTF-8"),
        ("statistics.npz", lambda content: content[:-99], "statistics.npz: damaged, or not a run's statistics"),
        ("results.json", lambda content: content[:-1], "results.json: not a readable JSON file"),
        ("config.yaml", lambda content: b"{", "config.yaml: not readable YAML"),
        ("config.yaml", lambda content: b"- a", "config.yaml: should have options by name, not ['a']"),
    ],
)
def test_a_run_that_was_cut_short(runs, capsys, file, spoil, message):
    path = runs[2] / file
    path.write_bytes(spoil(path.read_bytes())) if spoil else path.unlink()
    with pytest.raises(SystemExit) as error:
        main([str(runs[0]), str(runs[2])])
    said = capsys.readouterr().err
    assert error.value.code == 2 and message in said and said.count("\n") == 1


def test_runs_of_two_kinds_or_of_other_classes(tmp_path):
    ids, rows = [f"r{i}" for i in range(12)], [{}] * 12
    scored = {
        "wer": {"sums": {"wer": np.ones((12, 2))}},
        "loss": s.mean_statistics(loss=np.ones(12)),
        "classes": s.class_statistics(["a"] * 12, ["b"] * 12, NAMES),
        "three": {"overlaps": {"counts": np.ones((12, 3, 3))}},
        "four": {"overlaps": {"counts": np.ones((12, 3, 4))}},
    }
    made = {name: write_run(tmp_path / name, each, ids, rows, {}) for name, each in scored.items()}
    for one, two, message in (
        ("wer", "classes", "runs of different kinds; one is scored by wer, the other by classes"),
        ("wer", "loss", "one is scored by wer, the other by loss"),
        ("three", "four", "are scored on other classes, 3 and 4 of them"),
    ):
        with pytest.raises(InputError, match=message):
            compare(made[one], made[two])


def test_rows_with_other_numbers_of_words(tmp_path):
    """As of sentences, of which a model with fewer positions reads fewer words."""
    ids, made = [f"r{i}" for i in range(12)], []
    for words in (3, 2):
        statistics = s.class_statistics([["a"] * words] * 12, [["a"] * words] * 11 + [["b"] * words], NAMES)
        made.append(write_run(tmp_path / str(words), statistics, ids, [{}] * 12, {"accuracy": 11 / 12}))
    found = compare(*made)
    assert found["metrics"]["accuracy"]["difference"] == 0 and len(found["rows"]["most"]) == 10


def test_trials_of_runs_with_other_clips(tmp_path):
    """One run lacks the first speaker, so that its numbers of speakers are others: nothing differs all the same."""
    random, made = np.random.default_rng(0), []
    clips = [(f"s{i:02}", j) for i in range(14) for j in range(3)]
    pairs = [(clips[a], clips[b]) for a in range(len(clips)) for b in range(a)]
    noise = {pair: random.normal() + (pair[0][0] == pair[1][0]) for pair in pairs}
    for least in (0, 1):
        used = [clip for clip in clips if clip[0] >= f"s{least:02}"]
        trials = [pair for pair in pairs if all(clip in used for clip in pair)]
        numbers = [(int(a[0] == b[0]), used.index(a), used.index(b)) for a, b in trials]
        scores = [noise[pair] for pair in trials]
        statistics = s.trial_statistics(numbers, scores, [speaker for speaker, _ in used])
        rows, names = [{"enrol": str(a), "test": str(b)} for a, b in trials], [f"{a} {b}" for a, b in trials]
        made.append(write_run(tmp_path / str(least), statistics, names, rows, {"eer": 0.1}))
    for found in (compare(*made), compare(*reversed(made))):
        each = found["metrics"]["eer"]
        assert (each["difference"], each["interval"], each["second_is_better"]) == (0.0, [0.0, 0.0], 0.0)
    assert found["rows"]["matched"] == 39 * 38 / 2


def test_a_picture_that_cannot_be_drawn(runs, capsys, tmp_path):
    main([str(runs[0]), str(runs[1]), "--json", "--picture", str(runs[0] / "results.json" / "c.png")])
    said = capsys.readouterr()
    assert json.loads(said.out) and said.err.startswith("the curves could not be drawn") and said.err.count("\n") == 1


def test_rows_are_shown_by_what_differs():
    words = [{"word": "a", "start": 0.0, "end": 1.0}]
    first = {"id": "x", "text": "a", "words": words, "reference": "b"}
    lines = difference({"id": "x", "first": first, "second": first | {"text": "b", "words": []}})
    assert lines == ['  x {"reference": "b"}', '    {"text": "a"}', '    {"text": "b", "words": []}']
    row = {"id": "x", "first": {"id": "x", "words": words}, "second": {"id": "x", "words": []}}
    assert difference(row) == ["  x", f"    {json.dumps({'words': words})}", '    {"words": []}']


def test_rows_of_one_number_that_are_others(tmp_path, capsys):
    """As where data without ids have lost a row between two runs: pairs of other rows have no paired interval."""
    words = [f"word {i}" for i in range(21)]

    def write(name, first, **changes):
        rows = [{"text": word, "reference": changes.get(word, word).title()} for word in words[first : first + 20]]
        sums = {"sums": {"wer": np.tile([0.0, 2.0], (20, 1))}}
        return write_run(tmp_path / name, sums, list(map(str, range(20))), rows, {"wer": 0.0})

    one, other = write("one", 0), write("other", 1)
    with pytest.raises(InputError, match="20 of 20 rows of one id have other references, the first is '0'"):
        compare(one, other)
    changed = write("changed", 0, **{"word 3": "ward 3"})
    assert compare(one, changed)["rows"]["other_references"] == 1
    main([str(one), str(changed), "--picture", str(tmp_path / "a.png")])
    assert "20 rows in both; 1 of them have another reference in the second" in capsys.readouterr().out
