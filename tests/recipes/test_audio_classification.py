"""`recipes/audio_classification.py` from end to end on tiny data."""

import datasets
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from d2v.errors import InputError
from tests.recipes.common import (
    evaluates_to_the_same,
    goes_on_exactly,
    logs_its_loss,
    mean_average_precision,
    predictions,
    repeats_exactly,
    runner,
)
from tests.tiny import TINY_AUDIO, flac, tones

run = runner("audio_classification")
ARCH = [f"--arch.{key}={value}" for key, value in (TINY_AUDIO | {"classifier_proj_size": 16}).items()]
SMALL = [*ARCH, "--data.batch_size=4", "--optim.lr=2e-3", "--run.log_every=1"]
SPLITS = {"train": 16, "validation": 4, "test": 5}


def clip(i: int) -> dict:
    """Low or high tones, 0.3 to 0.6 s."""
    return {"bytes": flac(tones("ac"[i % 2] * (3 + i % 4), i)), "path": f"{i}.flac"}


def write(folder, label=lambda i: ("low", "high")[i % 2], **changes):
    """Parquet files with `audio` and `label`."""
    folder.mkdir(parents=True)
    for split, count in (SPLITS | changes).items():
        rows = {"audio": [clip(i) for i in range(count)], "label": [label(i) for i in range(count)]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "two")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(
        *SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=6", "--run.eval_every=3", pictures=True
    )


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    assert {"results.json", "predictions.jsonl", "confusion.png", "curves.png", "best"} <= {
        p.name for p in out.iterdir()
    }
    assert set(results) >= {"accuracy", "macro_f1"} and (results["split"], results["examples"]) == ("test", 5)
    rows = predictions(out)
    assert [row["reference"] for row in rows] == ["low", "high", "low", "high", "low"]
    assert all(sum(row["scores"].values()) == pytest.approx(1, abs=1e-5) for row in rows)
    assert results["accuracy"] == np.mean([row["label"] == row["reference"] for row in rows])


def test_two_runs_that_differ_in_their_folder_alone_differ_in_no_weight(trained, data, tmp_path):
    args = [*SMALL, f"--data.path={data}", "--run.max_steps=6", "--run.eval_every=3"]
    repeats_exactly(run, trained[0], args, tmp_path / "again")


def test_evaluate_repeats_the_figure(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [f"--data.path={data}"], tmp_path)


def test_predict_needs_no_labels(trained, tmp_path):
    soundfile.write(tmp_path / "x.wav", tones("aaa"), 16_000)
    run("--mode=predict", f"--model={trained[0] / 'best'}", f"--data.path={tmp_path}", f"--run.out={tmp_path / 'out'}")
    (row,) = predictions(tmp_path / "out")
    assert row["id"].endswith("x.wav") and set(row) == {"id", "label", "scores"}


def test_best_opens_in_transformers(trained):
    import transformers

    model = transformers.AutoModelForAudioClassification.from_pretrained(trained[0] / "best").eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(trained[0] / "best")
    inputs = extractor(tones("aaa", 0), sampling_rate=16_000, return_tensors="pt")
    scores = model(**inputs).logits.softmax(-1)[0]
    found = predictions(trained[0])[0]["scores"]  # of the same tones, stored in 16 bits
    assert [found[model.config.id2label[i]] for i in range(2)] == pytest.approx(scores.tolist(), abs=1e-3)


@pytest.mark.parametrize("crop", [[], ["--data.crop_seconds=0.25"]])
def test_a_stopped_run_goes_on_exactly(crop, data, tmp_path):
    goes_on_exactly(run, [*SMALL, f"--data.path={data}", *crop], tmp_path)


def test_it_learns_low_from_high(data, tmp_path):
    steps = ["--run.max_steps=60", "--run.eval_every=20", "--freeze=nothing", "--arch.layerdrop=0.0"]
    results = run(*SMALL, *steps, f"--data.path={data}", f"--run.out={tmp_path}", "--arch.mask_time_prob=0.0")
    assert results["accuracy"] == 1


def test_crops_are_of_the_asked_length(data, tmp_path, monkeypatch):
    import d2v.processors.audio

    seen, call = [], d2v.processors.audio.AudioFeatureExtractor.__call__

    def look(self, clips):
        seen.append({len(clip) for clip in clips})
        return call(self, clips)

    monkeypatch.setattr(d2v.processors.audio.AudioFeatureExtractor, "__call__", look)
    few = ["--run.max_steps=1", "--data.crop_seconds=0.2"]
    run(*SMALL, *few, f"--data.path={data}", f"--run.out={tmp_path}")
    trained = seen.index({3200})  # after the evaluation was tried; which hears everything
    assert trained > 0 and min(max(lengths) for lengths in seen[:trained] + seen[trained + 1 :]) > 3200


def test_frozen_it_learns_the_head_and_the_layer_sum(trained, data, tmp_path):
    protocol = ["--freeze=encoder", "--arch.use_weighted_layer_sum=true", "--run.max_steps=3"]
    results = run(f"--model={trained[0] / 'best'}", *protocol, f"--data.path={data}", f"--run.out={tmp_path}")
    assert results["freeze"] == "encoder"
    before, after = (load_file(out / "best/model.safetensors") for out in (trained[0], tmp_path))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if not name.startswith("data2vec_audio.")}
    assert after["layer_weights"].std() > 0


def test_several_labels(tmp_path):
    data = write(tmp_path / "data", label=lambda i: [["low"], ["high"], ["low", "high"], []][i % 4])
    args = [f"--data.path={data}", "--data.problem_type=multi_label"]
    results = run(*SMALL, *args, f"--run.out={tmp_path / 'out'}", "--run.max_steps=3")
    assert results["map"] == pytest.approx(mean_average_precision(predictions(tmp_path / "out")))
    assert "accuracy" not in results
    evaluates_to_the_same(run, tmp_path / "out", results, args, tmp_path / "again")


def test_numbers_and_listed_names(tmp_path):
    numbers = write(tmp_path / "numbers", label=lambda i: (10, 9)[i % 2])
    run(*SMALL, f"--data.path={numbers}", f"--run.out={tmp_path / 'a'}", "--run.max_steps=1")
    assert list(predictions(tmp_path / "a")[0]["scores"]) == ["9", "10"]
    names = datasets.ClassLabel(names=["quiet", "low", "high"])
    for split in SPLITS:
        path = str(write(tmp_path / split, label=lambda i: 1 + i % 2) / f"{split}.parquet")
        datasets.Dataset.from_parquet(path).cast_column("label", names).to_parquet(
            tmp_path / "numbers" / f"{split}.parquet"
        )
    run(*SMALL, f"--data.path={numbers}", f"--run.out={tmp_path / 'b'}", "--run.max_steps=1")
    assert list(predictions(tmp_path / "b")[0]["scores"]) == ["quiet", "low", "high"]
    assert predictions(tmp_path / "b")[1]["reference"] == "high"


BAD_LABELS = {
    "not in train": (
        lambda i: "mid" if i == 3 else ("low", "high")[i % 2],
        "validation, row 3: label 'mid' is not one of",
    ),
    "none": (
        lambda i: None if i == 3 else ("low", "high")[i % 2],
        "train, row 3: label is empty or says that there is no label",
    ),
    "a fraction": (lambda i: i / 2, "train, row 1: label is 0.5; should be text or a whole number"),
    "one class": (lambda i: "low", "train: label has 1 classes: low; should have two or more"),
    "lists": (lambda i: ["low", "high"][: 1 + i % 2], r"label is \['low'\]; should be a single label"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_a_bad_label_is_named(case, tmp_path):
    label, message = BAD_LABELS[case]
    data = write(tmp_path / "data", label=label)
    if case == "not in train":
        write(tmp_path / "good")
        (tmp_path / "good/train.parquet").rename(data / "train.parquet")
    with pytest.raises(InputError, match=message):
        run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")
