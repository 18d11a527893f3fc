"""What a run leaves and says: results, predictions, curves, model card, log."""

import csv
import json
import math
import pickle
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from benchmarks.recipe import RECIPES, load_recipe
from d2v.cli import parse
from d2v.config import Data, Job
from d2v.data.labels import Labels
from d2v.metrics.classification import score_table
from d2v.metrics.intervals import load_statistics
from d2v.metrics.statistics import mean_statistics
from d2v.training import log, report
from tests.helpers import make_job, tiny_reader

RESULTS = {"wer": 0.125, "cer": 0.0625, "split": "test", "examples": 8, "seconds": 2.0, "examples_per_second": 4.0}


class FakeAccelerator:
    """Notes what trackers are told."""

    def __init__(self, main=True):
        self.is_main_process, self.logged = main, []
        self.trackers = [SimpleNamespace(name="some", log=self.log, finish=lambda: None)]

    def log(self, values, step):
        self.logged.append((step, values))


def new_log(path, step=0, total=10, main=True, evaluated=None):
    return log.Log(path, step, evaluated or step, total, "audio s", FakeAccelerator(main))


def end(out, mode, metrics, main=True, rows=7, data=None, draw=None):
    predictions = [{"id": i, "text": "größer"} for i in range(rows)]
    job = make_job(data or Data(path="some/data"), mode=mode, rank=int(not main), out=str(out))
    names = {"metric": "wer", "task": "automatic-speech-recognition", "demo": "number words"}
    return report.finish(job, metrics, predictions, split="test", seconds=2.0, draw=draw, **names)


def test_the_end_of_an_evaluation(tmp_path, capsys):
    results = end(tmp_path, "evaluate", {"wer": np.float32(0.5)})
    memory = results["peak_memory_mb"]
    plain = {"wer": 0.5, "metric": "wer", "split": "test", "examples": 7, "seconds": 2.0, "examples_per_second": 3.5}
    assert results == plain | {"peak_memory_mb": memory} == json.loads((tmp_path / "results.json").read_text())
    lines = (tmp_path / "predictions.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 7 and json.loads(lines[6]) == {"id": 6, "text": "größer"} and "größer" in lines[0]
    assert capsys.readouterr().out == report.summary(tmp_path, results, ["wer"]) + "\n"
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "predictions.jsonl"}


def test_intervals_are_over_rows_or_their_groups(tmp_path, capsys):
    right = np.random.default_rng(0).random(60) < 0.8
    accuracy, names = float(right.mean()), {"metric": "accuracy", "task": "text-classification", "demo": "words"}
    widths = []
    for group in ({}, {"group": "one"}, None):
        rows = [{"id": i} | ({"group": i // 4} if group is None else group) for i in range(60)]
        job = make_job(mode="evaluate", out=str(tmp_path))
        statistics = mean_statistics(accuracy=right)
        results = report.finish(job, {"accuracy": accuracy}, rows, statistics, split="test", seconds=1.0, **names)
        low, high = results["intervals"]["accuracy"] or (0.0, 0.0)
        widths.append(high - low)
        shown = f"{accuracy:.4f} ({low:.4f} to {high:.4f})" if high else f"{accuracy:.4f}"
        assert re.search(rf"^accuracy +{re.escape(shown)}$", capsys.readouterr().out, re.MULTILINE)
    assert widths[0] == pytest.approx(2 * 1.96 * (accuracy * (1 - accuracy) / 60) ** 0.5, rel=0.15)
    assert widths[1] == 0.0 and widths[2] != widths[0]
    assert load_statistics(tmp_path / "statistics.npz")[2] == [str(i // 4) for i in range(60)]


def test_an_undefined_metric_is_null(tmp_path, capsys):
    (tmp_path / "best").mkdir()
    results = end(tmp_path, "train", {"wer": 0.5, "der": float("nan")})
    assert results["der"] is None and results["wer"] == 0.5
    assert json.loads((tmp_path / "results.json").read_text())["der"] is None
    card = (tmp_path / "best/README.md").read_text()
    assert "wer 0.5000" in card and "nan" not in card and "None" not in card
    assert re.search(r"^der +undefined$", capsys.readouterr().out, re.MULTILINE)


def test_the_end_of_training_and_of_the_other_processes(tmp_path, capsys):
    (tmp_path / "best").mkdir()
    assert end(tmp_path, "train", {"wer": 0.5}, main=False)["wer"] == 0.5
    assert not list((tmp_path / "best").iterdir()) and len(list(tmp_path.iterdir())) == 1
    assert not capsys.readouterr().out
    results = end(tmp_path, "train", {"wer": 0.5})
    assert results["freeze"] == "nothing" and (tmp_path / "curves.png").exists()
    assert "wer 0.5000" in (tmp_path / "best/README.md").read_text()


@pytest.mark.skipif(not Path("/proc/self/status").exists() or torch.cuda.is_available(), reason="Linux's own count")
def test_peak_memory_is_in_megabytes():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    assert report.peak_memory_mb() == pytest.approx(int(line.split()[1]) / 1024, rel=0.02)


def test_curves(tmp_path, monkeypatch):
    from matplotlib import axes

    drawn = {}

    def plot(axis, *points, **options):
        drawn.setdefault(axis, []).append([list(map(float, values)) for values in points])

    lines = [{"step": 5, "loss": 2.0, "lr": 0.1}, {"step": 10, "loss": 1.0}]
    lines += [{"step": 10, "eval_wer": 0.5, "eval_loss": 1.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.plot_curves(tmp_path, "wer")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(axes.Axes, "plot", plot)
    report.plot_curves(tmp_path, "wer")
    assert {axis.get_title(): lines for axis, lines in drawn.items()} == {
        "loss": [[[5.0, 10.0], [2.0, 1.0]], [[10.0], [1.5]]],
        "wer on validation": [[[10.0], [0.5]]],
    }
    (tmp_path / "log.jsonl").unlink()
    report.plot_curves(tmp_path, "wer")  # a run of no updates


def test_curves_of_a_metric_below_zero_are_inside(tmp_path, monkeypatch):
    from matplotlib import figure

    seen = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: seen.extend(x.get_ylim() for x in self.axes))
    lines = [{"step": i, "loss": 1.0, "eval_r2": -0.25 + 0.01 * i} for i in range(3)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.plot_curves(tmp_path, "r2")
    loss, metric = seen
    assert loss[0] == 0 and metric[0] <= -0.25 < -0.23 <= metric[1]


def card_of(tmp_path, data=None, model=None):
    """The card of a run, and its text."""
    from huggingface_hub import ModelCard

    job = make_job(data, model=model, out=str(tmp_path / "my_run"))
    (job.out / "best").mkdir(parents=True)
    (job.out / "checkpoints/step-00000004").mkdir(parents=True)
    (job.out / "checkpoints/step-00000004/run.json").write_text('{"rows": 120}')
    task = "automatic-speech-recognition"
    report.write_model_card(job, task=task, demo="number words", results=RESULTS | {"x": None}, metrics=["wer", "x"])
    text = (job.out / "best/README.md").read_text("utf-8")
    return ModelCard(text), text


def test_model_card_is_read_by_the_hub(tmp_path):
    card, text = card_of(tmp_path, Data(path="openslr/librispeech_asr@main", name="clean"), "facebook/base@refs/pr/1")
    assert card.data.model_name == "my_run" and card.data.pipeline_tag == "automatic-speech-recognition"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("wer", 0.125, "test")
    assert (card.data.base_model, card.data.datasets) == ("facebook/base", ["openslr/librispeech_asr"])
    (model,) = yaml.safe_load(text.split("---")[1])["model-index"]
    assert model["results"][0]["task"] == {"type": "automatic-speech-recognition"}
    assert "`recipes/test.py`" in card.text and "(8 examples): wer 0.1250." in card.text
    assert "trained on 120 rows of " in card.text


def test_a_card_has_the_name_of_the_data_and_not_the_path_on_its_authors_disk(tmp_path):
    (tmp_path / "home/me/birds").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    licence = "license: other\nlicense_name: corpus-terms\nlicense_link: https://example.org/terms\n"
    (tmp_path / "base/README.md").write_text(f"---\n{licence}---\n# Base")
    card, text = card_of(tmp_path, Data(path=str(tmp_path / "home/me/birds")), str(tmp_path / "base"))
    assert str(tmp_path) not in text and "home" not in text
    assert card.data.eval_results[0].dataset_type == "birds" and "rows of birds" in card.text
    assert (card.data.license, card.data.license_name) == ("other", "corpus-terms") and card.data.base_model is None
    assert licence in text
    assert card_of(tmp_path / "demo")[0].data.eval_results[0].dataset_name == "number words"


def test_the_snippet_of_a_card_runs(tmp_path, monkeypatch):
    from d2v.models.text import Data2VecTextModel

    _, text = card_of(tmp_path)
    tiny_reader(tmp_path / "my_run/best")
    monkeypatch.chdir(tmp_path / "my_run")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    exec(snippet, found := {})
    assert isinstance(found["model"], Data2VecTextModel)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("no font"), OSError("full"), None])
def test_results_are_written_before_pictures_are_drawn(tmp_path, capsys, error):
    seen = []

    def draw():
        seen.append({path.name for path in tmp_path.iterdir()})
        (tmp_path / "confusion.png").touch()
        if error:
            raise error

    end(tmp_path, "evaluate", {"wer": 0.5}, draw=draw)
    assert seen == [{"results.json", "predictions.jsonl"}]
    said = capsys.readouterr().out
    assert ("a picture could not be drawn" in said) == bool(error) and "confusion.png" in said
    end(tmp_path, "evaluate", {"wer": 0.5}, main=False, draw=draw)
    assert len(seen) == 1


def test_scores_are_rounded_where_they_are_written_alone():
    row = {"id": "a", "label": "x", "scores": {"x": 0.12345678901}}
    assert report.rounded(row) == row | {"scores": {"x": 0.123457}} and row["scores"]["x"] == 0.12345678901


def test_of_many_classes_the_likeliest_are_listed(tmp_path):
    labels = Labels([f"c{i}" for i in range(30)], "multi_label")
    predictions = [{"id": str(row)} | labels.decode([((i * 7 + row) % 30) / 30 for i in range(30)]) for row in range(3)]
    ranked = sorted(predictions[1]["scores"], key=lambda name: -predictions[1]["scores"][name])
    for listed, expected in ((10, ranked[:10]), (0, labels.names), (40, labels.names)):
        written = json.loads(json.dumps(report.rounded(predictions[1], listed)))
        assert list(written["scores"]) == expected
    assert score_table(predictions).shape == (3, 30) and dict(predictions[0]["scores"])["c1"] == 7 / 30
    assert len(pickle.dumps(predictions)) < 3 * (30 * 8 + 30 * 8 + 300)  # names are there once


def test_the_submission_is_part_of_a_prediction(tmp_path, capsys):
    (tmp_path / "sample.csv").write_text("id,answer\n6,?\n0,?\n")
    end(tmp_path, "predict", {}, data=Data(submission=str(tmp_path / "sample.csv")))
    assert (tmp_path / "submission.csv").read_text("utf-8") == "id,answer\n6,größer\n0,größer\n"
    assert (
        "submission.csv  submission; answer is text; 5 predictions have no row in the sample" in capsys.readouterr().out
    )


def test_summary_names_what_is_there(tmp_path):
    (tmp_path / "results.json").touch()
    (tmp_path / "best").mkdir()
    lines = report.summary(tmp_path, RESULTS, ["wer", "cer"]).splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        ["wer", "0.1250"],
        ["cer", "0.0625"],
        ["examples", "8 (test), 4.0 a second"],
        [str(tmp_path / "results.json"), "metrics"],
        [str(tmp_path / "best"), "best model"],
    ]
    assert lines[0].index("0.1250") == lines[2].index("8 (test)") == lines[3].index("metrics")


# ---------------------------------------------------------------------------------------------------------------------
# The log
# ---------------------------------------------------------------------------------------------------------------------


def test_a_line_is_the_average_since_the_last(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    said = new_log(tmp_path / "log.jsonl")
    said.add(loss=6.0, items=2, size=30.0, waited=1.0)
    said.add(loss=3.0, items=1, size=10.0, waited=0.0)
    clock.now += 4.0
    said.say(2, lr=0.5)
    said.add(loss=1.0, items=4, size=6.0, waited=0.0)
    clock.now += 2.0
    said.say(3, lr=0.25)
    said.say_evaluation(3, {"wer": 0.5}, best="0.5 at 3")
    said.close()
    entries = log.read_log(tmp_path / "log.jsonl")
    # 9 of loss over 3 items; 40 s of sound in 4 s, one of which was spent on waiting.
    assert entries == [
        {"step": 2, "loss": 3.0, "audio_s_per_second": 10.0, "lr": 0.5, "waiting_for_data": 0.25},
        {"step": 3, "loss": 0.25, "audio_s_per_second": 3.0, "lr": 0.25, "waiting_for_data": 0.0},
        {"step": 3, "eval_wer": 0.5},
    ]
    assert said.accelerator.logged == [(entry.pop("step"), entry) for entry in entries]


def test_resuming_drops_what_came_after(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    assert [entry["step"] for entry in log.read_log(path)] == [1, 2, 3]
    new_log(path, step=2).write(3, {"loss": 1.0})
    assert log.read_log(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]
    assert log.read_log(tmp_path / "none.jsonl") == []


def test_resuming_drops_an_evaluation_that_is_repeated(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [{"step": 2, "eval_wer": 0.5}, {"step": 4, "loss": 1.0}, {"step": 4, "eval_wer": 0.25}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    new_log(path, step=4, evaluated=2)
    assert log.read_log(path) == lines[:2]


def test_a_log_is_json_where_a_value_is_not_finite(tmp_path):
    said = new_log(tmp_path / "log.jsonl")
    said.write(1, {"loss": 0.5, "norm": math.inf})
    said.say_evaluation(1, {"der": math.nan, "frame_f1": 0.0}, best="none")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines == ['{"step": 1, "loss": 0.5, "norm": null}', '{"step": 1, "eval_der": null, "eval_frame_f1": 0.0}']
    assert log.read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 1, "eval_frame_f1": 0.0}]
    new_log(tmp_path / "log.jsonl", step=1)  # goes on
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines


def test_only_the_main_process_writes(tmp_path, capsys):
    said = new_log(tmp_path / "log.jsonl", main=False)
    said.add(1.0, 1, 1.0, 0.0)
    said.say(1, lr=0.1)
    said.say_evaluation(1, {"wer": 0.5}, best="")
    said.close()
    assert not (tmp_path / "log.jsonl").exists() and len(said.accelerator.logged) == 2
    printed = capsys.readouterr()
    assert not printed.out and not printed.err


def test_an_evaluation_is_seen_without_a_terminal(tmp_path, capsys):
    new_log(tmp_path / "log.jsonl").say_evaluation(40, {"wer": 0.5, "cer": 0.25}, best="wer 0.4000 at 20")
    assert "update 40: wer 0.5000, cer 0.2500 (best so far: wer 0.4000 at 20)" in capsys.readouterr().out


@pytest.mark.parametrize("items", [0, 5])
def test_updates_without_items_have_no_loss(tmp_path, items):
    """Those that were skipped are none of 0."""
    said = new_log(tmp_path / "log.jsonl")
    said.add(0.0, items, 1.0, 0.0)
    said.say(1, lr=0.1)
    assert log.read_log(tmp_path / "log.jsonl")[0].get("loss") == (0.0 if items else None)


def test_a_demo_says_what_it_reaches_from_random_weights(tmp_path):
    def said(*args):
        config = parse(load_recipe("asr_ctc").Config, list(args), demo=RECIPES / "configs/asr_ctc/demo.yaml")
        return report.from_scratch(Job(config, None, "asr_ctc"))

    with (RECIPES / "results.csv").open(encoding="utf-8", newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if (row["recipe"], row["config"]) == ("asr_ctc", "demo")]
    error = float(row["scratch"]) / 100
    assert said() == {"from scratch": f"wer {error:.4f} (--model none)"} and error > 0
    assert said("--model", "none") == said("--data.path", str(tmp_path), "--model", "small") == {}
    assert said("--mode", "evaluate") == said("--run.max_steps", "700") == said("--optim.lr", "1e-3") == {}
    assert said("--run.out", str(tmp_path), "--data.workers", "2") == said()


def test_every_demo_with_a_figure_from_random_weights_says_it():
    with (RECIPES / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["config"] == "demo" and row["scratch"]]
    assert rows
    for name in (row["recipe"] for row in rows):
        config = parse(load_recipe(name).Config, [], demo=RECIPES / f"configs/{name}/demo.yaml")
        assert report.from_scratch(Job(config, None, name))


def test_a_file_of_ranked_classes_has_five_and_names_that_differ(tmp_path):
    scores = {name: i / 10 for i, name in enumerate("abcdefg")}
    for ids, names in ((["x/1.jpg", "y/2.jpg"], ["1.jpg", "2.jpg"]), (["x/1.jpg", "y/1.jpg"], ["x/1.jpg", "y/1.jpg"])):
        report.write_ranked_csv(tmp_path / "p.csv", [{"id": name, "scores": scores} for name in ids])
        header, *rows = csv.reader((tmp_path / "p.csv").open())
        assert header == ["filename", *(f"top{i}" for i in range(1, 6)), *(f"p{i}" for i in range(1, 6))]
        assert [row[0] for row in rows] == names and rows[0][1:] == [*"gfedc", "0.6", "0.5", "0.4", "0.3", "0.2"]
    report.write_ranked_csv(
        tmp_path / "p.csv", [{"id": "1", "scores": {"a": 0.25, "b": 0.75}}]
    )  # all, in order of class
    assert (tmp_path / "p.csv").read_text() == "filename,top1,top2,p1,p2\n1,b,a,0.75,0.25\n"
