"""The benchmark of speed runs for all heads, refuses to time models that differ, and its batches are like real data."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import flat, heads, scale, speed
from tests.helpers import RECIPES

TINY = ["--size", "tiny", "--rounds", "1"]
QUICK = [*TINY, "--no-memory", "--precision", "fp32", "--batches", "equal", "--dropout", "off"]


@pytest.mark.parametrize("task", heads.HEADS)
def test_every_head(task):
    """All implementations agree, and are timed in training and inference; the share of the limit is that of ours."""
    args = speed.parse([task, *QUICK])
    rows = list(speed.measure(task, args, {}))
    assert [(row["mode"], row["implementation"]) for row in rows] == [
        (mode, name) for mode in ("train", "inference") for name in speed.IMPLEMENTATIONS
    ]
    for row in rows:
        (batch,) = heads.batches_of(task, "tiny", "equal")
        assert row["items/s"] == pytest.approx(len(next(iter(batch.values()))) / row["s/step"])
        assert row["x sdpa"] == 1 if row["implementation"] == speed.SDPA else row["x sdpa"] > 0
        assert ("of limit" in row) == (row["implementation"] == speed.OURS)


def test_the_heads_are_the_recipes():
    assert sorted(heads.HEADS) == sorted(RECIPES)


def test_table_and_files(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(speed, "step_memory_of", lambda task, name, precision, argv: 10.0 + len(name))
    speed.main(["text_classification", *TINY, "--batches", "equal", "--out", str(tmp_path / "speed")])
    header, _, *lines, _, _ = capsys.readouterr().out.splitlines()
    assert torch.__version__ in header and speed.environment()["cpu"] in header
    combinations = [
        (dropout, precision, mode, name)
        for dropout in ("off", "on")
        for precision in ("fp32", "bf16")
        for mode in (("train", "inference") if dropout == "off" else ("train",))
        for name in speed.IMPLEMENTATIONS
    ]
    found = json.loads((tmp_path / "speed.json").read_text("utf-8"))
    keys = ("dropout", "precision", "mode", "implementation")
    assert [tuple(row[key] for key in keys) for row in found["rows"]] == combinations
    assert [tuple(line.split()[2:6]) for line in lines] == combinations
    assert found["machine"]["instructions"] == speed.environment()["instructions"]
    assert "CoLA" in found["lengths"]["text_classification"]
    for row in found["rows"]:
        assert row.get("MB") == (10 + len(row["implementation"]) if row["mode"] == "train" else None)
    assert (tmp_path / "speed.png").stat().st_size > 1000


@pytest.mark.slow
def test_fresh_process_measures_the_memory_of_a_step():
    """Gradients and activations of a tiny model; the interpreter and PyTorch, more than 100 MB, do not count."""
    argv = ["text_classification", *QUICK]
    assert 0 <= speed.step_memory_of("text_classification", "ours", "fp32", argv) < 60


def test_work_is_that_of_real_positions():
    """Rows of 3 and 5 tokens take as many operations as 8 do in products, whatever they are padded to."""
    args = speed.parse(["token_classification", *QUICK])
    model = speed.build("token_classification", args, False)[2].train()
    step = speed.train_step("token_classification", "fp32", None)
    batch = partial(heads.batch_of, "token_classification", "tiny", rng=np.random.default_rng(0))
    operations, positions = speed.work(step, model, [batch(lengths=[3, 5])])
    assert positions == 8
    width, hidden, layers, classes = 48, 64, 4, 17
    products = layers * (4 * width**2 + 2 * width * hidden) + width * classes
    attention = layers * 2 * width * (3**2 + 5**2) * 2
    # three times a forward pass: it, and the gradients of input and weight
    assert operations == pytest.approx(3 * (2 * products * 8 + attention), rel=0.1)


def test_ratio_is_paired(monkeypatch):
    """Twice as fast in every round, although the machine is slower in some: the ratio is exactly 2."""
    times = [{speed.EAGER: 4 * t, speed.SDPA: 2 * t, speed.OURS: t, speed.PRODUCTS: 100 / t} for t in (1.0, 10.0, 3.0)]
    monkeypatch.setattr(speed, "rounds", lambda *args: [50, *times])
    args = speed.parse(["text_classification", *QUICK])
    rows = [row for row in speed.measure("text_classification", args, {}) if row["mode"] == "train"]
    assert [(row["s/step"], row["x sdpa"], row.get("of limit")) for row in rows] == [
        (12, 0.5, None),
        (6, 1, None),
        (3, 2, 0.5),
    ]


def test_models_that_differ_are_not_timed(monkeypatch):
    models = heads.models

    def different(*args):
        *theirs, ours = models(*args)
        ours.classifier.out_proj.bias.data[0] += 1e-2
        return [*theirs, ours]

    monkeypatch.setattr(heads, "models", different)
    args = speed.parse(["text_classification", *QUICK])
    with pytest.raises(SystemExit, match="losses differ"):
        next(speed.measure("text_classification", args, {}))


def test_freezing_leaves_the_front_end_alone_in_all():
    for model in heads.models("asr_ctc", "tiny", False, freeze=True):
        trained = {key for key, weight in model.named_parameters() if weight.requires_grad}
        assert trained and not any("feature_extractor" in key for key in trained)


def test_dropout_is_the_recipes():
    """Speech's drops inside the feed-forward alone; text's and images' are the models' defaults."""
    on, off = (heads.configuration("asr_ctc", "base", dropout) for dropout in (True, False))
    assert on["activation_dropout"] == 0.1 and on["hidden_dropout"] == 0 == off["activation_dropout"]
    assert on["layerdrop"] == 0 == on["mask_time_prob"]
    assert "hidden_dropout_prob" not in heads.configuration("text_classification", "base", True)
    assert heads.configuration("text_classification", "base", False)["hidden_dropout_prob"] == 0


def test_batches_are_like_the_data():
    shares = (np.arange(1000) + 0.5) / 1000
    speech = np.array(heads.LIBRISPEECH.at(shares))
    assert speech.min() >= 1.5 and speech.max() == 16
    assert speech.mean() == pytest.approx(12.5, abs=0.1) and np.median(speech) == pytest.approx(13.8, abs=0.1)

    def filled(how):
        return np.mean([batch["attention_mask"].float().mean() for batch in batches(how)])

    batches = partial(heads.batches_of, "text_classification", "base")
    assert filled("random") < 0.3 < 0.9 < filled("grouped") < filled("equal") == 1
    (batch,) = heads.batches_of("asr_ctc", "base", "random", lengths=[1.5, 0.5])
    assert batch["attention_mask"].sum(1).tolist() == [24_000, 8_000]


@pytest.mark.parametrize(
    "options", (["--lengths", "10,x"], ["--lengths", "10,0"], ["--rounds", "0"], ["--threads", "-1"])
)
def test_wrong_options_are_named(options, capsys):
    with pytest.raises(SystemExit) as error:
        speed.parse(["asr_ctc", *options])
    assert error.value.code == 2 and options[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_scale(tmp_path, capsys):
    """Of 12,000 rows, more than are computed again: a second start writes nothing to the cache."""
    scale.main(["--rows", "12000", "--kinds", "sounds", "--out", str(tmp_path / "scale")])
    cold, second = json.loads((tmp_path / "scale.json").read_text("utf-8"))
    assert (cold["start"], second["start"], cold["rows"]) == ("cold", "second", 12_000)
    assert cold["cache, bytes a row"] == second["cache, bytes a row"] < scale.BARS["cache, bytes a row"]
    assert 0 < second["of these, imports"] < second["seconds to the first update"]
    assert (tmp_path / "scale.png").is_file() and "| sounds | 12,000 | second |" in capsys.readouterr().out


def test_time_a_token(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flat, "ROWS", (1, 4))
    monkeypatch.setattr(flat, "TOKENS", (16, 128))
    threads = str(torch.get_num_threads())
    flat.main(f"--layers 1 --width 64 --rounds 1 --updates 3 --threads {threads} --out {tmp_path / 'flat'}".split())
    found = json.loads((tmp_path / "flat.json").read_text())
    assert [(each["rows"], each["tokens"]) for each in found["times"]] == [(1, 128), (4, 128), (4, 16)]
    one, four, short = (each["operations"] / each["rows"] / each["tokens"] for each in found["times"])
    assert one == four and four - short == pytest.approx(4 * 64 * (128 - 16), rel=0.05)  # attention's two products
    assert found["times"][1]["of_operations"] == 1
    assert [update for update, _ in found["memory"]] == [1, 2, 3] and (tmp_path / "flat.png").exists()
    assert "ms a token" in capsys.readouterr().out
