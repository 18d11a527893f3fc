"""`recipes/image_classification.py` from end to end on tiny data."""

import csv
import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from d2v.errors import InputError
from tests.processors.test_image import png_of_size
from tests.recipes.common import (
    evaluates_to_the_same,
    goes_on_exactly,
    logs_its_loss,
    predictions,
    repeats_exactly,
    runner,
)
from tests.tiny import TINY_VISION

run = runner("image_classification")
ARCH = [f"--arch.{key}={value}" for key, value in (TINY_VISION | {"image_size": 16, "num_hidden_layers": 2}).items()]
ARCH = [word for word in ARCH if "out_indices" not in word and "auxiliary" not in word]
SMALL = [*ARCH, "--data.batch_size=4", "--optim.lr=2e-3", "--run.log_every=1"]
SPLITS = {"train": 16, "validation": 4, "test": 5}
STILL = {"crop": "[1,1]", "flip": 0, "rand_augment": 0, "erasing": 0, "mixup": 0, "cutmix": 0, "smoothing": 0}
STILL = [f"--augment.{key}={value}" for key, value in STILL.items()]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(i: int) -> bytes:
    """Dark or bright noise, of 12 to 24 pixels."""
    pixels = np.random.default_rng(i).integers(0, 100, (12 + i % 13, 20 - i % 5, 3)) + 150 * (i % 2)
    return encoded(Image.fromarray(pixels.astype(np.uint8)))


def write(folder, image=picture, label=lambda i: ("dark", "bright")[i % 2], **changes):
    """Parquet files with `image` and `label`."""
    folder.mkdir(parents=True)
    for split, count in (SPLITS | changes).items():
        images = [{"bytes": image(i), "path": f"{split}{i}.png"} for i in range(count)]
        table = datasets.Dataset.from_dict({"image": images, "label": [label(i) for i in range(count)]})
        table.cast_column("image", datasets.Image()).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "two")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    args = [*SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=6", "--run.eval_every=3"]
    return out, run(*args, "--data.crop_ratio=0.8", pictures=True)


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    left = {"results.json", "predictions.jsonl", "predictions.csv", "confusion.png", "curves.png", "best"}
    assert left <= {path.name for path in out.iterdir()}
    assert (results["split"], results["examples"]) == ("test", 5) and "accuracy_top5" not in results
    rows = predictions(out)
    assert [row["reference"] for row in rows] == ["dark", "bright", "dark", "bright", "dark"]
    assert [row["id"] for row in rows] == [f"test{i}.png" for i in range(5)]
    assert results["accuracy"] == np.mean([row["label"] == row["reference"] for row in rows])
    with (out / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["filename", "top1", "top2", "p1", "p2"]
    assert [(line["filename"], line["top1"]) for line in lines] == [(row["id"], row["label"]) for row in rows]
    assert all(float(line["p1"]) >= float(line["p2"]) for line in lines)


def test_two_runs_that_differ_in_their_folder_alone_differ_in_no_weight(trained, data, tmp_path):
    args = [*SMALL, f"--data.path={data}", "--run.max_steps=6", "--run.eval_every=3", "--data.crop_ratio=0.8"]
    repeats_exactly(run, trained[0], args, tmp_path / "again")


def test_evaluate_repeats_the_figure_and_so_the_crop(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [f"--data.path={data}"], tmp_path)


def shares(folder, *args) -> np.ndarray:
    """The share of "bright" of each test image."""
    run("--mode=evaluate", *args, f"--run.out={folder}")
    return np.array([row["scores"]["bright"] for row in predictions(folder)])


def test_crop_and_flip_at_test_time(trained, data, tmp_path):
    args = [f"--model={trained[0] / 'best'}", f"--data.path={data}"]
    middle = shares(tmp_path / "a", *args)
    args.append("--data.crop_ratio=0")
    usual = shares(tmp_path / "b", *args)
    assert np.abs(usual - middle).max() > 1e-4
    write(tmp_path / "mirrored", image=lambda i: encoded(Image.open(io.BytesIO(picture(i))).transpose(0)))
    mirrored = shares(tmp_path / "c", *args, f"--data.path={tmp_path / 'mirrored'}")
    both = shares(tmp_path / "d", *args, "--data.test_flip=true")
    assert both == pytest.approx((usual + mirrored) / 2, abs=2e-6)


def test_predict_needs_no_labels(trained, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / f"photos/{i}.png").write_bytes(picture(i))
    args = [f"--model={trained[0] / 'best'}", f"--data.path={tmp_path / 'photos'}", f"--run.out={tmp_path / 'out'}"]
    run("--mode=predict", *args)
    rows = predictions(tmp_path / "out")
    assert [row["id"].rpartition("/")[2] for row in rows] == ["0.png", "1.png", "2.png"]
    assert set(rows[0]) == {"id", "label", "scores"}


def test_best_opens_in_transformers(trained, data):
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(trained[0] / "best").eval()
    processor = transformers.BeitImageProcessor.from_pretrained(trained[0] / "best")
    inputs = processor(Image.open(io.BytesIO(picture(0))), return_tensors="pt")
    found = model(**inputs).logits.softmax(-1)[0]
    expected = predictions(trained[0])[0]["scores"]
    assert [expected[model.config.id2label[i]] for i in range(2)] == pytest.approx(found.tolist(), abs=2e-3)


AVERAGED = ["--optim.ema=0.5", "--arch.drop_path_rate=0.3"]
WORKERS = pytest.param([*AVERAGED, "--data.workers=2"], marks=pytest.mark.slow)


def test_a_model_of_several_classes_predicts_with_the_defaults(tmp_path):
    """MixUp and CutMix, which are on by default, are for training alone."""
    several = write(tmp_path / "data", label=lambda i: [["dark"], ["bright", "big"], ["dark", "big"]][i % 3])
    options = [*SMALL, "--data.problem_type=multi_label", "--run.max_steps=2", f"--data.path={several}"]
    with pytest.raises(InputError, match="augment.mixup and augment.cutmix mix single labels"):
        run(*options, f"--run.out={tmp_path / 'refused'}")
    run(*options, *STILL, f"--run.out={tmp_path / 'run'}")
    model = [f"--model={tmp_path / 'run/best'}", f"--data.path={several}"]
    run("--mode=predict", *model, f"--run.out={tmp_path / 'predicted'}")
    run("--mode=evaluate", *model, f"--run.out={tmp_path / 'evaluated'}")
    assert predictions(tmp_path / "predicted")[0]["scores"] == predictions(tmp_path / "evaluated")[0]["scores"]


@pytest.mark.parametrize("options", [[], AVERAGED, WORKERS])
def test_a_stopped_run_goes_on_exactly(options, data, tmp_path):
    goes_on_exactly(run, [*SMALL, f"--data.path={data}", *options], tmp_path)


def test_it_learns_dark_from_bright_without_weight_decay(data, tmp_path):
    options = ["--run.max_steps=40", "--run.eval_every=20", "--optim.weight_decay=0", "--optim.layer_decay=0.9"]
    assert run(*SMALL, *STILL, *options, f"--data.path={data}", f"--run.out={tmp_path}")["accuracy"] == 1


def test_the_kept_model_is_the_average(data, tmp_path):
    """Of the weights after 1, 2 and 3 updates, the decay rising from 2/11 to 0.25: 1/22, 9/44 and 3/4."""
    weights = {}
    for steps in (1, 2, 3):
        out = tmp_path / str(steps)
        options = [f"--run.max_steps={steps}", "--run.eval_every=1", "--optim.schedule=constant", "--optim.warmup=0"]
        run(*SMALL, *options, f"--data.path={data}", f"--run.out={out}", "--optim.ema=0.25")
        weights[steps] = load_file(next(out.glob(f"checkpoints/step-*{steps}/model.safetensors")))
    (average,) = [load_file(path) for path in out.glob("checkpoints/step-*3/average.safetensors")]
    for name, value in weights[3].items():
        expected = weights[1][name] / 22 + weights[2][name] * 9 / 44 + value * 3 / 4
        torch.testing.assert_close(average[f"module.{name}"], expected)
    scored = json.loads((out / "results.json").read_text())
    assert scored["examples"] == 5


def test_best_holds_the_average_and_not_the_last_weights(data, tmp_path):
    options = ["--run.max_steps=2", "--run.eval_every=2", "--optim.warmup=0", "--optim.ema=0.5"]
    run(*SMALL, *options, f"--data.path={data}", f"--run.out={tmp_path}")
    best = load_file(tmp_path / "best/model.safetensors")["classifier.weight"]
    average = load_file(next(tmp_path.glob("checkpoints/*/average.safetensors")))
    last = load_file(next(tmp_path.glob("checkpoints/*/model.safetensors")))["classifier.weight"]
    assert torch.equal(best, average["module.classifier.weight"]) and not torch.equal(best, last)


def test_a_linear_probe_learns_the_head_alone(trained, data, tmp_path):
    options = ["--freeze=encoder", "--run.max_steps=2", f"--data.path={data}", f"--run.out={tmp_path}"]
    assert run(f"--model={trained[0] / 'best'}", *options)["freeze"] == "encoder"
    before, after = (load_file(out / "best/model.safetensors") for out in (trained[0], tmp_path))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_adapters_are_kept_merged_and_apart(trained, data, tmp_path):
    options = ["--lora.rank=2", "--run.max_steps=2", f"--data.path={data}", f"--run.out={tmp_path}"]
    run(f"--model={trained[0] / 'best'}", *options)
    assert (tmp_path / "best/adapter/adapter_model.safetensors").is_file()
    before, after = (load_file(out / "best/model.safetensors") for out in (trained[0], tmp_path))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    changed = ("query.weight", "value.weight", "classifier.weight", "classifier.bias", "pooler.layernorm.weight")
    assert moved and all(name.endswith((*changed, "pooler.layernorm.bias")) for name in moved)


# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A model of twelve classes."""
    folder = tmp_path_factory.mktemp("many")
    data = write(folder / "data", label=lambda i: i % 12, train=24, validation=12, test=12)
    results = run(*SMALL, f"--data.path={data}", f"--run.out={folder / 'out'}", "--run.max_steps=2")
    assert 0 <= results["accuracy"] <= results["accuracy_top5"] <= 1
    return folder / "out/best"


def test_folders_of_class_numbers(many, tmp_path):
    """As ImageNetV2's: 10 comes after 9, not after 1."""
    for i in range(12):
        (tmp_path / f"v2/{i}").mkdir(parents=True)
        (tmp_path / f"v2/{i}/x.png").write_bytes(picture(i))
    args = ["--mode=evaluate", f"--model={many}", f"--data.path={tmp_path / 'v2'}", f"--run.out={tmp_path / 'out'}"]
    run(*args, "--data.match=number")
    numbers = [(row["id"].split("/")[-2], row["reference"]) for row in predictions(tmp_path / "out")]
    assert len(numbers) == 12 and all(folder == reference for folder, reference in numbers)


def test_folders_in_the_order_of_the_classes(trained, tmp_path):
    """As ImageNet's, whose names are WordNet's."""
    for i, name in enumerate(("n001", "n002")):
        (tmp_path / f"data/{name}").mkdir(parents=True)
        (tmp_path / f"data/{name}/x.png").write_bytes(picture(i))
    args = ["--mode=evaluate", f"--model={trained[0] / 'best'}", f"--data.path={tmp_path / 'data'}"]
    with pytest.raises(InputError, match="label 'n001' is not one of the classes bright, dark"):
        run(*args, f"--run.out={tmp_path / 'a'}")
    run(*args, f"--run.out={tmp_path / 'b'}", "--data.match=order")
    assert [row["reference"] for row in predictions(tmp_path / "b")] == ["bright", "dark"]
    with pytest.raises(InputError, match="label 'n001' is not one of the classes 0, 1"):
        run(*args, f"--run.out={tmp_path / 'c'}", "--data.match=number")


def test_real_labels(trained, data, tmp_path):
    """Three images count, of which one has both classes and so is right in any case."""
    (tmp_path / "real.json").write_text("[[0], [], [1, 0], [], [0]]")
    args = ["--mode=evaluate", f"--model={trained[0] / 'best'}", f"--data.path={data}", f"--run.out={tmp_path / 'out'}"]
    results = run(*args, f"--data.real={tmp_path / 'real.json'}")
    named = [row["label"] for row in predictions(tmp_path / "out")]
    assert results["accuracy_real"] == pytest.approx((1 + (named[0] == "bright") + (named[4] == "bright")) / 3)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


def odd(i: int) -> bytes:
    """Images of every kind: CMYK, palette, 16 bits, transparent, a single pixel, turned."""
    image, exif = Image.open(io.BytesIO(picture(i))), Image.Exif()
    exif[0x0112] = 6
    return [
        lambda: encoded(image.convert("CMYK"), "JPEG"),
        lambda: encoded(image.convert("P")),
        lambda: encoded(image.convert("L").convert("I;16")),
        lambda: encoded(image.convert("RGBA")),
        lambda: encoded(image.resize((1, 1))),
        lambda: encoded(image, "JPEG", exif=exif),
    ][i % 6]()


def test_images_of_every_kind(tmp_path):
    data = write(tmp_path / "data", image=odd, train=12)
    results = run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=3")
    assert results["examples"] == 5


BAD = {
    "cut off": ({"image": lambda i: picture(i)[:-60] if i == 3 else picture(i)}, "row 3: .*damaged or cut-off image"),
    "no image": ({"image": lambda i: b"text" if i == 3 else picture(i)}, "row 3: .*not readable as an image"),
    "bomb": ({"image": lambda i: png_of_size(50_000, 50_000)}, "claims too many pixels to be opened safely"),
    "no label": (
        {"label": lambda i: None if i == 3 else i % 2},
        "train, row 3: label is empty or says that there is no label",
    ),
    "fraction": ({"label": lambda i: i / 2}, "train, row 1: label is 0.5; should be text or a whole number"),
    "one class": ({"label": lambda i: "a"}, "train: label has 1 classes: a; should have two or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, tmp_path):
    content, message = BAD[case]
    data = write(tmp_path / "data", **content)
    with pytest.raises(InputError, match=message):
        run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=4")


def test_a_label_outside_the_listed_classes(tmp_path):
    data = write(tmp_path / "data")
    names = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])})
    for split in SPLITS:
        table = datasets.Dataset.from_parquet(str(data / f"{split}.parquet"))
        numbers = [7 if i == 2 else i % 2 for i in range(len(table))]
        table = table.remove_columns("label").add_column("label", numbers)
        table.info.features = names
        table._info.features = names
        table.to_parquet(data / f"{split}.parquet")
    with pytest.raises(InputError, match="row 2: label '7' is not one of the classes dark, bright"):
        run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")
