"""`--mode prepare` brings what training begins with, which then asks for nothing."""

import shutil
import sys

import datasets
import pytest
from PIL import Image

from d2v.demo.images import png
from d2v.errors import InputError, Prepared
from tests.fake_hub import fake_hub  # noqa: F401 (a fixture)
from tests.helpers import tiny_listener, tiny_reader, tiny_viewer
from tests.recipes.common import runner
from tests.tiny import flac, sentences, tones

TINY = ["--run.max_steps=1", "--run.precision=fp32", "--data.batch_size=4"]


def images(count):
    return [{"bytes": png(Image.new("RGB", (24, 24), (9 * i, 0, 0))), "path": None} for i in range(count)]


def sounds(count):
    return [{"bytes": flac(tones("ab"[i % 2] * 2)), "path": None} for i in range(count)]


MODALITIES = {
    "text_classification": (tiny_reader, "text", lambda count: sentences(count, 0)),
    "audio_classification": (tiny_listener, "audio", sounds),
    "image_classification": (tiny_viewer, "image", images),
    "pretrain_text": (tiny_reader, "text", lambda count: sentences(count, 0)),
}
SLOW = pytest.mark.slow
PARAMS = ["text_classification", *(pytest.param(name, marks=SLOW) for name in list(MODALITIES)[1:])]


def make_hub(hub, recipe):
    """A model and a data set of three splits, of the recipe's modality."""
    model, column, rows = MODALITIES[recipe]
    model(hub.root / "someone/model")
    folder = hub.root / "datasets/someone/set/data"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        table = {column: rows(8), "label": ["no", "yes"] * 4, "of": [split] * 8}
        datasets.Dataset.from_dict(table).to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("recipe", PARAMS)
def test_prepared_it_trains_without_a_network(recipe, fake_hub, tmp_path, monkeypatch):  # noqa: F811
    make_hub(fake_hub, recipe)
    run = runner(recipe)
    args = ["--data.path=someone/set", "--model=someone/model", f"--run.out={tmp_path / 'run'}", *TINY]
    args += ["--teacher.layers=2"] if "pretrain" in recipe else []
    monkeypatch.setattr(sys, "argv", [f"recipes/{recipe}.py", "--mode", "prepare", *args])
    with pytest.raises(Prepared, match="prepared: .* to train on and the model someone/model; with HF_HUB") as done:
        run("--mode=prepare", *args)
    assert f"recipes/{recipe}.py --data.path=someone/set" in str(done.value) and "prepare " not in str(done.value)
    assert {file.rpartition("/")[2] for file in fake_hub.files} >= {"model.safetensors", "config.json"}
    assert sum(file.endswith(".parquet") for file in fake_hub.files) == 3
    assert not (tmp_path / "run/best").exists() and not (tmp_path / "run/config.yaml").exists()

    fake_hub.go_offline(monkeypatch)
    results = run(*args)
    assert fake_hub.requests == 0 and results["split"] == ("validation" if "pretrain" in recipe else "test")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(InputError, match="someone/set: neither a folder .* hub cannot be reached; --mode prepare"):
        run(*args, f"--run.out={tmp_path / 'other'}")
