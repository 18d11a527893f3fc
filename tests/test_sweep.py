"""Combinations of options, runs that are not repeated, the choice by validation and one look at test."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from d2v.errors import InputError
from d2v.metrics.intervals import intervals, save_statistics
from d2v.sweep import combinations, folder_of, main
from tests.helpers import ROOT

FAKE = """
import json, os, pathlib, sys
options = dict(each[2:].split("=", 1) for each in sys.argv[1:])
out, here, mode = pathlib.Path(options["run.out"]), pathlib.Path(__file__).parent, options.get("mode", "train")
with open(here / "calls", "a") as file:
    file.write(json.dumps(options | {"mode": mode, "device": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\\n")
if (here / f"{mode}_fails").exists():
    sys.exit(2)
if mode == "prepare":
    (out / "prepare").mkdir(parents=True)
    of = json.loads((here / "of").read_text())
    found = {name: {"rows": 9, "of": parts} for name, parts in of.items()}
    facts = [{"fact": "other", "splits": ["train"]}, {"fact": "splits", "splits": found}]
    (out / "prepare/data.json").write_text(json.dumps({"facts": facts}))
    named = options.get("data.test_split", "test")
    data = {"fold": options.get("data.fold"), "test_split": None if named == "null" else named}
    (out / "prepare/config.yaml").write_text(json.dumps({"data": data}))
    sys.exit()
out.mkdir(parents=True, exist_ok=True)
rate, seed = float(options.get("optim.lr", 0)), int(options.get("run.seed", 0))
wer = 0.5 - 1000 * rate + 0.01 * seed if mode != "evaluate" else 0.25 + 0.1 * seed
if (here / f"{mode}_undefined").exists() and seed == 0 and (mode == "evaluate" or rate == 2e-4):
    wer = None
split = "test" if mode == "evaluate" else "validation"
if (here / "statistics.npz").exists():
    (out / "statistics.npz").write_bytes((here / "statistics.npz").read_bytes())
metric = options.get("run.metric", "wer")
about = {"cer": 0.1, "wer": wer, "metric": metric, "split": split, "intervals": {"wer": None, "cer": None}}
(out / "results.json").write_text(json.dumps(about))
log = [{"step": i, "eval_loss": each} for i, each in enumerate([2, rate, 3])]
(out / "log.jsonl").write_text("".join(json.dumps(entry) + "\\n" for entry in log))
"""


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "of").write_text(json.dumps({name: [name] for name in ("train", "validation", "test")}))
    return tmp_path / "fake.py"


def calls(fake, *modes):
    made = [json.loads(line) for line in (fake.parent / "calls").read_text().splitlines()]
    return [each for each in made if not modes or each["mode"] in modes]


def refused(capsys, args, message):
    with pytest.raises(SystemExit) as error:
        main(list(map(str, args)))
    said = capsys.readouterr().err
    assert error.value.code == 2 and message in said and said.count("\n") == 1


def test_combinations():
    assert combinations([]) == [()]
    assert combinations(["a=1,2", "--b.c=[x,y],z"]) == [
        (("a", first), ("b.c", second)) for first in "12" for second in ("[x,y]", "z")
    ]
    for grid in ("a", "=1", "a=", "a=1,,2"):
        with pytest.raises(InputError, match="such as optim.lr=1e-5,3e-5"):
            combinations([grid])
    with pytest.raises(InputError, match="a comes twice"):
        combinations(["a=1", "a=2"])
    for grid in ("run.seed=1,2", "run.max_minutes=1,2"):
        with pytest.raises(InputError, match="the sweep's own"):
            combinations([grid])
    with pytest.raises(InputError, match="compared by one metric"):
        combinations(["run.metric=wer,cer"])


def test_folders_differ_where_values_do(tmp_path):
    grid = combinations(["optim.lr=1e-5,3e-5", "data.path=x/y,x_y"])
    assert len({folder_of(tmp_path, each, 0) for each in grid}) == len(grid)


def test_the_best_by_validation_is_tested_once(fake, tmp_path, capsys):
    args = [str(fake), "--grid", "optim.lr=1e-4,2e-4", "--seeds", "2", "--out", str(tmp_path / "out"), "--", "--x=y"]
    main(args)
    made = calls(fake)
    trained, tested = made[:4], calls(fake, "evaluate")
    assert [each["mode"] for each in made] == ["train"] * 4 + ["prepare"] + ["evaluate"] * 2
    assert [each["run.seed"] for each in trained] == ["0", "1"] * 2
    assert all((each["data.test_split"], each["run.resume"], each["x"]) == ("null", "true", "y") for each in trained)
    assert len(tested) == 2 and all(each["mode"] == "evaluate" and "data.test_split" not in each for each in tested)
    assert all("optim.lr=2e-4" in each["model"] for each in tested)
    rows = list(csv.DictReader((tmp_path / "out/sweep.csv").open()))
    assert [row["optim.lr"] for row in rows] == ["2e-4", "1e-4"]
    assert (rows[0]["mean"], rows[0]["min"], rows[0]["max"]) == ("0.3050", "0.3000", "0.3100")
    assert (rows[0]["test_mean"], rows[1]["test_mean"]) == ("0.3000", "")
    assert capsys.readouterr().out.endswith((tmp_path / "out/sweep.md").read_text())
    main(args)  # nothing is repeated
    assert calls(fake) == made


def test_means_have_intervals(fake, tmp_path):
    errors, words = np.arange(40) % 3, np.full(40, 4)
    ids = list(map(str, range(40)))
    statistics = {"sums": {"wer": np.stack([errors, words], axis=1)}}
    save_statistics(tmp_path / "statistics.npz", statistics, ids, ids)
    main([str(fake), "--seeds", "2", "--out", str(tmp_path / "out")])
    (row,) = csv.DictReader((tmp_path / "out/sweep.csv").open())
    low, high = intervals(statistics, ids)["wer"]
    assert (row["low"], row["high"]) == (row["test_low"], row["test_high"]) == (f"{low:.4f}", f"{high:.4f}")


def test_a_sweep_by_the_validation_loss_takes_the_best_model_s_and_shows_a_metric_of_test(fake, tmp_path):
    args = [str(fake), "--grid", "optim.lr=1e-1,2e-1", "--out", str(tmp_path / "out"), "--", "--run.metric=loss"]
    main(args)
    best, other = csv.DictReader((tmp_path / "out/sweep.csv").open())
    assert (best["optim.lr"], best["mean"], other["mean"]) == ("1e-1", "0.1000", "0.2000")
    assert (best["test_metric"], best["test_mean"]) == ("wer", "0.2500")


def test_a_failed_run_ends_the_sweep_and_is_tried_again(fake, tmp_path, capsys):
    args = [str(fake), "--grid", "optim.lr=1e-4,2e-4", "--out", str(tmp_path / "out")]
    (tmp_path / "train_fails").touch()
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2 and "a run failed" in capsys.readouterr().err and len(calls(fake)) == 1
    (tmp_path / "train_fails").unlink()
    main(args)
    assert len(calls(fake, "train")) == 3


@pytest.mark.parametrize(
    ("of", "options", "why"),
    [
        ({"test": None}, [], "the data have no split test with labels"),
        ({"validation": ["test"]}, [], "test is trained or validated on too"),
        ({}, ["--data.test_split=null"], "data.test_split is null"),
        ({"test": ["train"], "validation": ["train"]}, ["--data.fold=1/5"], None),
        ({"validation": ["dev"], "test": ["dev"]}, ["--data.test_split=dev"], None),
    ],
)
def test_a_test_is_not_what_was_trained_on(fake, tmp_path, capsys, of, options, why):
    splits = {name: [name] for name in ("train", "validation", "test")} | of
    (tmp_path / "of").write_text(json.dumps({name: parts for name, parts in splits.items() if parts}))
    main([str(fake), "--grid", "optim.lr=1e-4,2e-4", "--out", str(tmp_path / "out"), "--", *options])
    best, _ = csv.DictReader((tmp_path / "out/sweep.csv").open())
    assert best["mean"] == "0.3000" and best.get("test_mean") == (None if why else "0.2500")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no figures of test")]
    assert len(said) == (why is not None) and all(why in line for line in said)
    assert len(calls(fake, "evaluate")) == (why is None)


def test_the_table_is_there_before_the_test(fake, tmp_path):
    (tmp_path / "evaluate_fails").touch()
    with pytest.raises(SystemExit):
        main([str(fake), "--out", str(tmp_path / "out")])
    assert "0.5000" in (tmp_path / "out/sweep.md").read_text()


def test_a_folder_takes_one_recipe_and_its_options(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([str(fake), "--grid", "optim.lr=1e-4", "--", "--x=a b"])
    main([str(fake), "--grid", "optim.lr=1e-4,2e-4", "--seeds", "2", "--", "--x=a b"])  # more of the same
    out = tmp_path / "runs/sweep/fake"
    assert len(calls(fake, "train")) == 4 and (out / "sweep.md").is_file()
    message = "holds a sweep of fake '--x=a b'; another --out begins a new one"
    refused(capsys, [fake, "--", "--x=c"], f"runs/sweep/fake: {message}")
    (tmp_path / "other.py").write_text(FAKE)
    refused(capsys, [tmp_path / "other.py", "--out", out, "--", "--x=a b"], message)
    (out / "sweep.json").unlink()
    refused(capsys, [fake, "--out", out], "nothing says what made it")
    assert len(calls(fake, "train")) == 4


def test_a_file_of_options_that_was_edited_is_refused(fake, tmp_path, capsys):
    file, other, out = tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "out"
    file.write_text("optim: {lr: 1e-4, clip: 1}\nmode: train\n")
    args = [str(fake), "--out", str(out), "--", f"--config={file}"]
    main(args)
    file.write_text("# The same.\noptim:\n  lr: 1e-4\n  clip: 1\nmode: train\n")
    main(args)
    for text, said in (
        ("optim: {lr: 1e-3, clip: 1}\nmode: train", "optim.lr 1e-3, and said 1e-4 "),
        ("optim: {lr: 1e-4}\nmode: train", "optim.clip its default, and said 1 "),
    ):
        file.write_text(text)
        refused(capsys, args, f"{file}: says {said}when the sweep in {out} began; another --out begins a new one")
    other.write_text("optim: {lr: 2e-4}")  # files may be what differs, and more of them may come
    main([*args[:2], str(tmp_path / "grid"), "--grid", f"config={file}"])
    main([*args[:2], str(tmp_path / "grid"), "--grid", f"config={file},{other}"])
    other.write_text("optim: {lr: 3e-4}")
    refused(capsys, [*args[:2], tmp_path / "grid", "--grid", f"config={other}"], "says optim.lr 3e-4, and said 2e-4 ")
    refused(capsys, [*args, "--config", "nowhere.yaml"], "--config nowhere.yaml: cannot be read")
    assert len(calls(fake, "train")) == 3


def test_options_that_nothing_was_learnt_with_lock_no_folder(fake, tmp_path, capsys):
    args = [str(fake), "--out", str(tmp_path / "out"), "--"]
    (tmp_path / "train_fails").touch()
    refused(capsys, [*args, "--optmi.lr=1"], "a run failed")
    (tmp_path / "train_fails").unlink()
    main([*args, "--optim.lr=1e-4"])
    refused(capsys, [*args, "--optim.lr=2e-4"], "holds a sweep of fake --optim.lr=1e-4")


def test_runs_get_the_devices_that_the_sweep_has(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for visible, ids in (("5,GPU-7", {"5", "GPU-7"}), (None, {"0", "1"})):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        (tmp_path / "calls").unlink(missing_ok=True)
        args = [str(fake), "--grid", "optim.lr=1e-4,2e-4", "--out", str(tmp_path / str(visible)), "--processes"]
        main([*args, "2"])
        assert {each["device"] for each in calls(fake, "train")} == ids
    refused(capsys, [*args, "3"], "--processes 3: each run takes a GPU, and there are 2: 0, 1")


def test_what_is_undefined_is_not_chosen(fake, tmp_path, capsys):
    args = [str(fake), "--grid", "optim.lr=1e-4,2e-4", "--seeds", "2"]
    (tmp_path / "train_undefined").touch()
    (tmp_path / "evaluate_undefined").touch()
    main([*args, "--out", str(tmp_path / "out")])
    best, other = csv.DictReader((tmp_path / "out/sweep.csv").open())
    assert (best["optim.lr"], best["mean"], other["mean"]) == ("1e-4", "0.4050", "")
    assert (best["test_metric"], best["test_mean"]) == ("cer", "0.1000")  # wer is undefined of a seed
    assert "wer is undefined on validation, so it is not chosen" in capsys.readouterr().out
    main([*args[:2], "optim.lr=2e-4", "--out", str(tmp_path / "none")])
    assert len((tmp_path / "none/sweep.csv").read_text().splitlines()) == 2


def test_a_metric_that_no_run_has(fake, tmp_path, capsys):
    (tmp_path / "fake.py").write_text(FAKE.replace("eval_loss", "loss"))
    refused(capsys, [fake, "--out", tmp_path / "out", "--", "--run.metric=loss"], "has the loss of validation")


def test_bad_input(fake, tmp_path, capsys):
    for args, message in (
        (["nowhere"], "nowhere: no such recipe; looked for"),
        ([str(fake), "--seeds", "0"], "--seeds and --processes should be at least 1"),
        ([str(fake), "--", "--run.out=x"], "--run.out is the sweep's own: --out says where"),
        ([str(fake), "--", "--run.max_minutes", "5"], "--run.max_minutes is the sweep's own: a run that stops early"),
        ([str(fake), "--", "--run.push=me/model"], "--run.push is the sweep's own: every run would be pushed"),
        (["pretrain_text"], "pretrain_text.py: pretraining has no metric that combinations are chosen by"),
    ):
        with pytest.raises(SystemExit) as error:
            main([*args[:1], "--out", str(tmp_path / "out"), *args[1:]])
        assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_sweep_ends_with_the_same_table(tmp_path):
    """Two rates and two seeds over the text demo, killed in the middle and started again, and left alone."""
    options = ["--data.max_train_samples=64", "--data.max_validation_samples=40", "--data.max_test_samples=40"]
    options += ["--run.epochs=2", "--data.vocab_size=300", "--arch.num_hidden_layers=1"]
    grid = ["text_classification", "--grid", "optim.lr=1e-4,1e-3", "--seeds", "2"]

    def command(out):
        return [sys.executable, "-m", "d2v.sweep", *grid, "--out", str(tmp_path / out), "--", *options]

    killed = subprocess.Popen(command("killed"), cwd=ROOT)
    while not list((tmp_path / "killed").glob("*/seed-1/log.jsonl")):
        time.sleep(0.1)
        assert killed.poll() is None
    killed.send_signal(signal.SIGTERM)
    assert killed.wait(120) == 130
    for out in ("killed", "whole"):
        subprocess.run(command(out), check=True, cwd=ROOT, env=os.environ)
    tables = [(tmp_path / out / "sweep.csv").read_text() for out in ("killed", "whole")]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 3
    assert len(list(tmp_path.glob("whole/*/seed-*/test/results.json"))) == 2


@pytest.mark.slow
def test_a_single_file_has_no_test(tmp_path):
    """Rows of one file are trained and validated on, and evaluation would take them all for the test."""
    rows = [f"the {name} film number {i},{label}" for i in range(30) for name, label in (("good", 1), ("bad", 0))]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    options = [f"--data.path={tmp_path / 'reviews.csv'}", "--run.epochs=1", "--arch.num_hidden_layers=1"]
    options += ["--data.vocab_size=300"]
    command = [sys.executable, "-m", "d2v.sweep", "text_classification", "--out", str(tmp_path / "out"), "--", *options]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert "no figures of test: the data have no split test" in done.stdout
    assert "test" not in (tmp_path / "out/sweep.csv").read_text()
