"""Combinations of options, runs that are not repeated, the choice by validation and one look at test."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from d2v.errors import InputError
from d2v.sweep import combinations, folder_of, main
from tests.helpers import ROOT

FAKE = """
import json, pathlib, sys
options = dict(each[2:].split("=", 1) for each in sys.argv[1:])
out = pathlib.Path(options["run.out"])
with open(pathlib.Path(__file__).parent / "calls", "a") as file:
    file.write(json.dumps(options) + "\\n")
if (pathlib.Path(__file__).parent / "fails").exists():
    sys.exit(2)
out.mkdir(parents=True, exist_ok=True)
rate, seed = float(options.get("optim.lr", 0)), int(options.get("run.seed", 0))
wer = 0.5 - 1000 * rate + 0.01 * seed if options.get("mode") != "evaluate" else 0.25 + 0.1 * seed
split = "test" if options.get("mode") == "evaluate" else "validation"
metric = options.get("run.metric", "wer")
about = {"cer": 0.1, "wer": wer, "metric": metric, "split": split, "intervals": {"wer": None, "cer": None}}
(out / "results.json").write_text(json.dumps(about))
log = [{"step": i, "eval_loss": each} for i, each in enumerate([2, rate, 3])]
(out / "log.jsonl").write_text("".join(json.dumps(entry) + "\\n" for entry in log))
"""


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path / "fake.py"


def calls(fake):
    return [json.loads(line) for line in (fake.parent / "calls").read_text().splitlines()]


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
    with pytest.raises(InputError, match="the sweep's own"):
        combinations(["run.seed=1,2"])


def test_folders_differ_where_values_do(tmp_path):
    grid = combinations(["optim.lr=1e-5,3e-5", "data.path=x/y,x_y"])
    assert len({folder_of(tmp_path, each, 0) for each in grid}) == len(grid)


def test_the_best_by_validation_is_tested_once(fake, tmp_path, capsys):
    args = [str(fake), "--grid", "optim.lr=1e-4,2e-4", "--seeds", "2", "--out", str(tmp_path / "out"), "--", "--x=y"]
    main(args)
    made = calls(fake)
    trained, tested = made[:4], made[4:]
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


def test_a_sweep_by_the_validation_loss_takes_the_best_model_s_and_shows_a_metric_of_test(fake, tmp_path):
    args = [str(fake), "--grid", "optim.lr=1e-1,2e-1", "--out", str(tmp_path / "out"), "--", "--run.metric=loss"]
    main(args)
    best, other = csv.DictReader((tmp_path / "out/sweep.csv").open())
    assert (best["optim.lr"], best["mean"], other["mean"]) == ("1e-1", "0.1000", "0.2000")
    assert (best["test_metric"], best["test_mean"]) == ("wer", "0.2500")


def test_a_failed_run_ends_the_sweep_and_is_tried_again(fake, tmp_path, capsys):
    args = [str(fake), "--grid", "optim.lr=1e-4,2e-4", "--out", str(tmp_path / "out")]
    (tmp_path / "fails").touch()
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2 and "a run failed" in capsys.readouterr().err and len(calls(fake)) == 1
    (tmp_path / "fails").unlink()
    main(args)
    assert len(calls(fake)) == 4


def test_bad_input(fake, tmp_path, capsys):
    for args, message in (
        (["nowhere"], "nowhere: no such recipe; looked for"),
        ([str(fake), "--seeds", "0"], "--seeds and --processes should be at least 1"),
        ([str(fake), "--", "--run.out=x"], "--run.out=x is the sweep's own"),
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
