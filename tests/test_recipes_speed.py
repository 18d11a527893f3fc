"""The benchmark of whole recipes: both ways train on the same files and say the same figures."""

import time

import datasets
import numpy as np
import PIL.Image
import pytest

from benchmarks import recipes_speed as benchmark
from benchmarks.recipe import load_recipe
from d2v.cli import parse
from tests.tiny import STILL_AUDIO, TINY_AUDIO, TINY_TEXT, TINY_VISION, sentences, speech

ARCH = [f"--arch.{key}={value}" for key, value in TINY_TEXT.items()]
OPTIONS = ["--data.vocab_size=270", "--data.batch_size=4", "--run.tracker=null", "--run.precision=fp32", *ARCH]


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "set").mkdir()
    for split, count in (("train", 24), ("validation", 8), ("test", 8)):
        rows = {"text": sentences(count, count), "label": [f"class {i % 2}" for i in range(count)]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / f"set/{split}.parquet")
    return tmp_path


def config_of(name, folder, options):
    paths = [f"--data.path={folder / 'set'}", f"--run.out={folder / 'run'}"]
    return parse(load_recipe(name).Config, [*options, *paths])


@pytest.mark.parametrize("who", ["ours", "plain"])
def test_a_text_recipe_is_measured(texts, who):
    meter, config = benchmark.Meter(time.time()), config_of("text_classification", texts, OPTIONS)
    if who == "ours":
        benchmark.ours("text_classification", config, meter, 3)
        assert len(meter.done) == 3 == len(meter.waited)
    else:
        benchmark.plain("text_classification", config, meter, 10)
        assert meter.examples == [4, 4, 4]
    figures = meter.figures()
    assert list(figures) == list(benchmark.FIGURES) and all(value >= 0 for value in figures.values())
    assert figures["waiting for data"] < 1 and figures["seconds to the first update"] < time.time() - meter.begun


def test_figures_by_hand():
    """Four examples in each of three updates, done 5, 7 and 9 s after the start; a second of the last four waited."""
    meter = benchmark.Meter(100.0, [105.0, 107.0, 109.0], [4, 4, 4], [3.0, 0.5, 0.5])
    assert list(meter.figures().values()) == [12 / 9, 2.0, 0.25, 5.0]


@pytest.mark.slow
def test_the_plain_loop_of_speech(tmp_path):
    speech(tmp_path / "set", train=8)
    options = [f"--arch.{key}={value}".replace(" ", "") for key, value in (TINY_AUDIO | STILL_AUDIO).items()]
    options.append("--arch.mask_feature_prob=0")  # its spans are wider than this model
    meter = benchmark.Meter(time.time())
    benchmark.plain("asr_ctc", config_of("asr_ctc", tmp_path, [*options, "--data.batch_size=4"]), meter, 8)
    assert meter.examples == [4, 4]


@pytest.mark.slow
def test_the_plain_loop_of_images(tmp_path):
    (tmp_path / "set").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), np.uint8)
    rows = {"image": [PIL.Image.fromarray(image) for image in pixels], "label": [0, 1] * 4}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set/train.parquet")
    options = [f"--arch.{key}={value}".replace(" ", "") for key, value in TINY_VISION.items()]
    meter = benchmark.Meter(time.time())
    config = config_of("image_classification", tmp_path, [*options, "--data.batch_size=4"])
    benchmark.plain("image_classification", config, meter, 8)
    assert meter.examples == [4, 4]


@pytest.mark.slow
def test_both_as_processes(texts, capsys):
    options = ["--updates", "2", "--rounds", "1", "--out", str(texts / "found.json"), f"--data.path={texts / 'set'}"]
    benchmark.main(["text_classification", *options, *OPTIONS])
    table = capsys.readouterr().out
    assert all(figure in table for figure in benchmark.FIGURES) and (texts / "found.json").is_file()
