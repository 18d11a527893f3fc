"""The benchmark of speed runs, refuses to time models that differ, and its batch is like LibriSpeech's."""

import json

import numpy as np
import pytest
import torch

from benchmarks import scale, speed

TINY = ["asr_ctc", "--size", "tiny", "--rounds", "1", "--lengths", "1.5,0.5"]


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(speed, "peak_memory_of", lambda name, precision, argv: 1000 + speed.IMPLEMENTATIONS.index(name))
    speed.main(TINY)
    header, losses, _, *lines, _ = capsys.readouterr().out.splitlines()
    assert torch.__version__ in header and "[1.5, 0.5] s" in header and "trained" in header
    losses = dict(part.split() for part in losses.partition(": ")[2].split(", "))
    assert list(losses) == list(speed.IMPLEMENTATIONS)
    assert float(losses[speed.OURS]) == pytest.approx(float(losses[speed.SDPA]), rel=1e-4)

    rows = [line.split() for line in lines]
    combinations = [
        (p, m, name) for p in ("fp32", "bf16") for m in ("train", "inference") for name in speed.IMPLEMENTATIONS
    ]
    assert [(precision, mode, name) for _, mode, precision, name, *_ in rows] == combinations
    for _, mode, _, name, seconds, clips, ratio, memory in rows:
        assert float(seconds) > 0 and float(ratio) > 0
        assert float(clips) == pytest.approx(2 / float(seconds), rel=1e-2)
        assert memory == (str(1000 + speed.IMPLEMENTATIONS.index(name)) if mode == "train" else "-")
        assert name != speed.SDPA or float(ratio) == 1


def test_fresh_process_measures_memory():
    # PyTorch alone is more than 100 MiB, and the tiny models are nothing beside it
    assert 100 < speed.peak_memory_of("ours", "fp32", TINY) < 5000


def test_ratio_is_paired(monkeypatch, capsys):
    """Twice as fast in every round, although the machine is slower in some: the ratio is exactly 2."""
    rounds = [{speed.EAGER: 4 * t, speed.SDPA: 2 * t, speed.OURS: t} for t in (1.0, 10.0, 3.0)]
    monkeypatch.setattr(speed, "time_rounds", lambda *args: rounds)
    speed.main([*TINY, "--no-memory", "--precision", "fp32"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " train " in line]
    assert [row[4:7] for row in rows] == [["12", "0.1667", "0.50"], ["6", "0.3333", "1.00"], ["3", "0.6667", "2.00"]]


def test_models_that_differ_are_not_timed(monkeypatch, capsys):
    build = speed.asr_ctc

    def different(implementation, args):
        model, *batches = build(implementation, args)
        if implementation == speed.OURS:
            model.lm_head.bias.data[0] += 1e-2
        return model, *batches

    monkeypatch.setattr(speed, "asr_ctc", different)
    with pytest.raises(SystemExit, match="losses differ"):
        speed.main([*TINY, "--no-memory"])
    assert " train " not in capsys.readouterr().out


def test_freezing_leaves_the_front_end_alone_in_all():
    args = speed.parse([*TINY, "--freeze-feature-encoder"])
    for name in speed.IMPLEMENTATIONS:
        model, batch, single = speed.asr_ctc(name, args)
        trained = {key for key, weight in model.named_parameters() if weight.requires_grad}
        assert trained and not any("feature_extractor" in key for key in trained)
        assert len(batch["labels"]) == 2 and bool(single["attention_mask"].all())
        assert batch["attention_mask"].sum(1).tolist() == [24_000, 8_000]


def test_lengths_are_like_librispeech():
    lengths = np.array(speed.librispeech_lengths(1000))
    assert lengths.min() >= 1.5 and lengths.max() == 16
    assert lengths.mean() == pytest.approx(12.5, abs=0.1) and np.median(lengths) == pytest.approx(13.8, abs=0.1)


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
