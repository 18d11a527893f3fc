"""`recipes/semantic_segmentation.py` from end to end on tiny data."""

import csv
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from d2v.demo.images import png
from d2v.errors import InputError
from tests.helpers import tiny_viewer
from tests.recipes.common import evaluates_to_the_same, goes_on_exactly, logs_its_loss, predictions, runner
from tests.recipes.options import a_frozen_encoder_stays, adapters_open_in_transformers, collate_functions_pickle
from tests.tiny import TINY_VISION

run = runner("semantic_segmentation")
ARCH = [f"--arch.{key}={value}" for key, value in TINY_VISION.items()]
SMALL = [*ARCH, "--data.crop=[24,24]", "--data.batch_size=4", "--optim.lr=2e-3", "--run.log_every=1"]
SPLITS = {"train": 8, "validation": 3, "test": 4}
NAMES = {"0": "dark", "1": "bright", "2": "void"}


def scene(i: int) -> tuple[Image.Image, Image.Image]:
    """A bright box on a dark ground, 20 to 30 pixels; the top row counts for nothing."""
    random = np.random.default_rng(i)
    height, width = 20 + i % 11, 30 - i % 7
    labels = np.zeros((height, width), np.uint8)
    labels[4 : 8 + i % 9, 6 : 14 + i % 9] = 1
    image = (60 + 120 * labels[..., None] + random.integers(0, 40, (height, width, 3))).astype(np.uint8)
    labels[0] = 2
    return Image.fromarray(image), Image.fromarray(labels)


def write(folder, change=None, **changes):
    """Parquet files with `image` and `annotation`; `change(i, image, labels)` makes other files' bytes."""
    folder.mkdir(parents=True)
    (folder / "id2label.json").write_text(json.dumps(NAMES), "utf-8")
    picture = datasets.Image(decode=False)
    for split, count in (SPLITS | changes).items():
        rows = []
        for i in range(count):
            files = (change or (lambda i, *pair: tuple(map(png, pair))))(i, *scene(i))
            pair = [{"bytes": data, "path": f"{split}-{i}.png"} for data in files]
            rows.append(dict(zip(("image", "annotation"), pair, strict=True)))
        table = datasets.Dataset.from_list(rows, datasets.Features({"image": picture, "annotation": picture}))
        table.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("data") / "boxes")
    return [f"--data.path={folder}", "--data.ignore_label=2"]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(*SMALL, *data, f"--run.out={out}", "--run.max_steps=4", "--run.eval_every=2", pictures=True)


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    left = {"results.json", "predictions.jsonl", "classes.csv", "overlays.png", "curves.png", "masks", "best"}
    assert left <= {path.name for path in out.iterdir()}
    assert set(results) >= {"mean_iou", "mean_accuracy", "overall_accuracy"}
    assert (results["split"], results["examples"]) == ("test", 4)
    pairs = []
    for i, row in enumerate(predictions(out)):
        assert row == {"id": f"test-{i}.png", "mask": f"masks/test-{i}.png"}
        pairs.append([np.asarray(Image.open(out / row["mask"])), np.asarray(scene(i)[1])])
        assert pairs[-1][0].shape == pairs[-1][1].shape  # at the image's own size
    found, real = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    found, real = found[real != 2], real[real != 2]
    assert results["overall_accuracy"] == pytest.approx((found == real).mean())
    ious = [((found == c) & (real == c)).sum() / ((found == c) | (real == c)).sum() for c in (0, 1)]
    assert results["mean_iou"] == pytest.approx(np.mean(ious))
    with (out / "classes.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == ["dark", "bright"]
    assert [float(row["iou"]) for row in table] == pytest.approx(ious, abs=1e-4)


def test_evaluate_repeats_the_figure(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, data + SMALL[-4:-2], tmp_path)


def masks(out):
    """Predicted and true classes of all test pixels that have one."""
    pairs = []
    for i, row in enumerate(predictions(out)):
        pairs.append([np.asarray(Image.open(out / row["mask"])), np.asarray(scene(i)[1])])
        assert pairs[-1][0].shape == pairs[-1][1].shape  # at the image's own size
    found, real = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    return found[real != 2], real[real != 2]


def test_one_window_over_all_changes_nothing_and_views_are_noted(trained, data, tmp_path):
    command = ["--mode=evaluate", f"--model={trained[0] / 'best'}", *data]
    found = run(*command, "--data.window=64", "--data.stride=64", f"--run.out={tmp_path / 'a'}")
    assert found["mean_iou"] == trained[1]["mean_iou"] and found["window"] == 64
    found = run(*command, "--scales=[0.5,1.0]", "--flip=true", f"--run.out={tmp_path / 'b'}")
    assert (found["scales"], found["flip"]) == ([0.5, 1.0], True)
    classes, real = masks(tmp_path / "b")
    assert found["overall_accuracy"] == pytest.approx((classes == real).mean())


def test_predict_needs_no_labels(trained, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (1, 1), "white").save(folder / "dot.png")
    Image.new("CMYK", (37, 5)).save(folder / "wide.jpg")
    run("--mode=predict", f"--model={trained[0] / 'best'}", f"--data.path={folder}", f"--run.out={tmp_path / 'out'}")
    rows = predictions(tmp_path / "out")
    assert [row["mask"] for row in rows] == ["masks/dot.png", "masks/wide.png"]
    assert [Image.open(tmp_path / "out" / row["mask"]).size for row in rows] == [(1, 1), (37, 5)]
    assert (tmp_path / "out/overlays.png").exists() and not (tmp_path / "out/classes.csv").exists()


def test_best_opens_in_transformers(trained):
    import transformers

    model = transformers.Data2VecVisionForSemanticSegmentation.from_pretrained(trained[0] / "best")
    processor = transformers.AutoImageProcessor.from_pretrained(trained[0] / "best")
    assert model.config.id2label == {0: "dark", 1: "bright"}
    assert processor(scene(0)[0], return_tensors="pt").pixel_values.shape == (1, 3, 24, 24)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_viewer(tmp_path_factory.mktemp("base") / "model")


def test_adapters(base, data, tmp_path):
    name, x = "Data2VecVisionForSemanticSegmentation", torch.randn(1, 3, 24, 24)
    adapters_open_in_transformers(run, name, base, [*SMALL, *data], x, tmp_path)


def test_a_frozen_encoder(base, data, tmp_path):
    a_frozen_encoder_stays(run, base, [*SMALL, *data], "data2vec_vision.", tmp_path)


def test_collate_functions_pickle(data, tmp_path, monkeypatch):
    collate_functions_pickle(run, [*SMALL, *data], tmp_path, monkeypatch)


WORKERS = pytest.param(["--data.workers=1", "--optim.ema=0.5"], marks=pytest.mark.slow)


@pytest.mark.parametrize("extra", [[], WORKERS])
def test_a_stopped_run_goes_on_exactly(extra, data, tmp_path):
    goes_on_exactly(run, [*SMALL, *data, *extra], tmp_path)


def test_it_learns_bright_from_dark(data, tmp_path):
    steps = ["--run.max_steps=40", "--run.eval_every=20", "--data.scale=[1.0,1.0]", "--data.photometric=false"]
    results = run(*SMALL, *steps, *data, f"--run.out={tmp_path}", "--optim.lr=5e-3", "--arch.initializer_range=0.1")
    assert results["mean_iou"] > 0.8


def grey(i, image, labels):
    """Grey images, whose label maps are black and white; the second is cut off."""
    labels = Image.fromarray((np.asarray(labels) == 1).astype(np.uint8) * 255)
    return png(image.convert("L"))[: 40 if i == 1 else None], png(labels)


def test_grey_images_black_and_white_masks_and_a_bad_row(tmp_path, capsys):
    folder = write(tmp_path / "data", change=grey)
    (folder / "id2label.json").write_text(json.dumps({"0": "dark", "1": "bright"}), "utf-8")
    args = [*SMALL, "--arch.num_channels=1", f"--data.path={folder}", f"--run.out={tmp_path / 'out'}"]
    args += ["--run.max_steps=8", "--run.eval_every=8", "--data.bad_rows=skip", "--data.batch_size=1"]
    results = run(*args, "--data.values={0: 0, 255: bright}")
    assert results["examples"] == 3
    printed = capsys.readouterr().out
    assert "left out, cannot be decoded: 1 row test, row 1: test-1.png: " in printed
    assert "ignored" not in printed and "have no pixel" not in printed
    best = ["--mode=evaluate", f"--model={tmp_path / 'out/best'}", f"--data.path={folder}", "--data.bad_rows=skip"]
    again = run(*best, f"--run.out={tmp_path / 'again'}")  # which the model's processor knows
    assert again["mean_iou"] == results["mean_iou"]
    assert "label maps: the values are {'0': 0, '255': 1} (data.values)" in capsys.readouterr().out


def test_a_foreground_of_255_is_said(data, tmp_path, capsys):
    folder = write(tmp_path / "data", change=lambda i, image, labels: (png(image), grey(0, image, labels)[1]))
    (folder / "id2label.json").write_text(json.dumps({"0": "dark", "1": "bright"}), "utf-8")
    run(*SMALL, f"--data.path={folder}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")
    printed = capsys.readouterr().out
    assert "label map of 0 and 255 alone: 3 rows; the first is validation, row" in printed
    assert "of the pixels are ignored" in printed and "validation: 1 of 2 classes have no pixel: bright" in printed


def test_classes_under_other_numbers_are_those_of_the_model_by_name(trained, tmp_path, capsys):
    """The data call bright 0 and dark 1; void is ignored either way."""
    swap = np.array([1, 0, 2], np.uint8)
    folder = write(
        tmp_path / "data", change=lambda i, image, labels: (png(image), png(Image.fromarray(swap[np.asarray(labels)])))
    )
    (folder / "id2label.json").write_text(json.dumps({"0": "Bright", "1": "dark", "2": "void"}), "utf-8")
    best = ["--mode=evaluate", f"--model={trained[0] / 'best'}", f"--data.path={folder}", "--data.ignore_label=2"]
    results = run(*best, f"--run.out={tmp_path / 'out'}")
    assert results["mean_iou"] == trained[1]["mean_iou"] != 0
    assert "classes: 2 of 2 are the model's, by name, under other numbers" in capsys.readouterr().out
    numbered = run(*best, "--data.match=number", f"--run.out={tmp_path / 'numbered'}")
    assert numbered["mean_iou"] != results["mean_iou"]
    (folder / "id2label.json").write_text(json.dumps({"0": "cat", "1": "dark"}), "utf-8")
    with pytest.raises(InputError, match="value 0 stands for no class of the model; these do: 1, 2, 255"):
        run(*best, f"--run.out={tmp_path / 'cat'}")
    assert "not the model's: cat" in capsys.readouterr().out
    (folder / "id2label.json").write_text(json.dumps({"0": "cat", "1": "dog"}), "utf-8")
    with pytest.raises(InputError, match=r"none of the data's classes, cat, dog, is one of the model's, dark, bright;"):
        run(*best, f"--run.out={tmp_path / 'dog'}")


def test_a_batch_of_one_image(tmp_path):
    folder = write(tmp_path / "data", train=5)
    few = ["--run.epochs=1", "--data.ignore_label=2", f"--run.out={tmp_path / 'out'}"]
    assert run(*SMALL, f"--data.path={folder}", *few)["examples"] == 4


BAD = {
    "size": (lambda i, image, labels: (png(image), png(labels.resize((9, 9)))), "the label map has"),
    "label": (lambda i, image, labels: (png(image), png(labels.point(lambda x: x * 3))), "label 6 is not one of the 2"),
    "cut off": (lambda i, image, labels: (png(image)[:-40], png(labels)), "damaged or cut-off"),
    "no mask": (lambda i, image, labels: (png(image), png(image)), r"a mask is \(height, width\) class numbers"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_bad_row_is_named(case, split, tmp_path):
    change, message = BAD[case]

    def third(i, image, labels):
        return change(i, image, labels) if i == 2 else (png(image), png(labels))

    folder = write(tmp_path / "data")
    (write(tmp_path / "bad", third) / f"{split}.parquet").replace(folder / f"{split}.parquet")
    with pytest.raises(InputError, match=f"{split}, row 2: .*{message}"):
        run(*SMALL, f"--data.path={folder}", "--data.ignore_label=2", f"--run.out={tmp_path / 'out'}", "--run.epochs=1")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.mask_column=mask", r"no column 'mask' \(data.mask_column\)"),
        ("--data.crop=[24,30]", r"data.crop \[24, 30\] should be whole patches of \[4, 4\], two or more a side"),
        ("--data.names=[dark]", "1 classes, 1 names; should be 2 to 255"),
        ("--scales=[0]", "scales should be factors above 0"),
        ("--arch.out_indices=[3,5,7,11]", "out_indices should be four different ones of 1 to 5"),
    ],
)
def test_a_wrong_option_is_an_error(option, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        run(*SMALL, *data, f"--run.out={tmp_path}", "--run.max_steps=1", option)
