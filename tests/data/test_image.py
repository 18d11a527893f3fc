"""Images of a data set: reading, size, seeds, and the files that go with ImageNet."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from d2v.config import Data
from d2v.data.augment import Augment, augmenter
from d2v.data.image import ImageData, fit_processor, image_rows, load_images, read_image, read_real, seeded
from d2v.data.labels import Labels
from d2v.data.load import read
from d2v.data.segmentation import SegmentationData, load_examples
from d2v.demo.images import digits, png
from d2v.errors import InputError
from d2v.processors.image import ImageProcessor
from tests.helpers import make_job, make_split


def test_what_cannot_be_read_is_named_by_split_and_row():
    """`tests/processors/test_image.py` has what else images can be."""
    with pytest.raises(InputError, match=r"^train, row 3: <bytes>: damaged or cut-off image"):
        read_image({"bytes": png(Image.new("RGB", (64, 64)))[:-40], "path": None}, "train, row 3")
    with pytest.raises(InputError, match=r"^test, row 0: x.png: no such file"):
        read_image("x.png", "test, row 0")


def test_rows_that_cannot_be_used_are_named_or_left_out():
    good, cut = png(Image.new("RGB", (8, 8))), png(Image.new("RGB", (64, 64)))[:-40]
    rows = [{"image": image, "where": f"test, row {i}"} for i, image in enumerate((good, cut, "x.png"))]
    with pytest.raises(InputError, match="^test, row 1: <bytes>: damaged or cut-off image .*bad_rows skip leaves"):
        load_images(rows, ImageData(), 3)
    kept, images, decoded = load_images(rows, ImageData(bad_rows="skip"), 3)
    assert kept == rows[:1] and [image.size for image in images] == [(8, 8)]
    assert [where.partition(": ")[0] for *_, where in decoded] == ["test, row 1", "test, row 2"]

    labels, split = Labels(["a", "b"], "single_label"), make_split("test", image=["0.png", "1.png", "2.png"])
    with pytest.raises(InputError, match=r"^test, row 1: .*c.*\(--data.bad_rows skip leaves such rows out"):
        image_rows(make_job(ImageData()), split, labels, ["a", "c", "b"])
    rows = image_rows(make_job(ImageData(bad_rows="skip")), split, labels, ["a", "c", "b"])
    assert rows.ids == ["0.png", "2.png"] and rows.references == ["a", "b"]


def test_bits_that_were_guessed_are_said():
    row = {"image": png(Image.fromarray(np.full((2, 2), 300, np.uint16))), "where": "train, row 3"}
    fact = ("train", "16-bit grey taken to have 12 bits, as its values do", "train, row 3")
    assert load_images([row], ImageData(), 1)[2] == [fact]
    assert load_examples([row], SegmentationData(), ImageProcessor(), None)[3] == [fact]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "P", "I;16", "1"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_as_many_channels_as_the_model_takes(mode, channels):
    values = np.arange(12 * 10, dtype=np.uint16).reshape(12, 10)
    image = Image.fromarray(values * 256) if mode == "I;16" else Image.fromarray(values.astype(np.uint8)).convert(mode)
    row = {"image": image, "where": "train, row 0"}
    processor = fit_processor(ImageProcessor(), (8, 6), None, channels)
    if channels in (1, 3) or channels == (4 if mode == "P" else len(image.getbands())):
        _, (loaded,), _ = load_images([row], ImageData(), channels)
        pixels = processor([loaded])["pixel_values"]
        assert pixels.shape == (1, channels, 8, 6) and pixels.abs().max() <= 1
        if mode in ("L", "RGB", "I;16"):  # all channels are the same grey
            grey = processor([Image.fromarray(values.astype(np.uint8)).convert("RGB")] if channels == 3 else [loaded])
            assert torch.equal(pixels, grey["pixel_values"])
        augment = Augment() if channels in (1, 3) else Augment(rand_augment=0)
        assert augmenter(augment, processor, (8, 6))(loaded, (0, 0, 0)).shape == (channels, 8, 6)
    else:
        with pytest.raises(InputError, match=rf"^train, row 0: image: has .* channels, .* the model takes {channels}"):
            load_images([row], ImageData(), channels)


def test_channels_of_a_processor():
    grey = fit_processor(ImageProcessor(), (4, 4), None, 1)
    assert (grey.image_mean, grey.image_std) == ([0.5], [0.5])
    with pytest.raises(InputError, match="image_mean and image_std are of 3 channels, the model takes 1"):
        fit_processor(ImageProcessor(image_mean=[0.1, 0.2, 0.3]), (4, 4), None, 1)
    with pytest.raises(InputError, match="image_mean and image_std are of 3 and 1 channels"):
        ImageProcessor(image_std=[0.5])
    with pytest.raises(InputError, match="for 1 or 3 channels; for 4 they should be 0"):
        augmenter(Augment(), fit_processor(ImageProcessor(), (4, 4), None, 4), (4, 4))


def test_random_numbers_are_a_function_of_the_seed_and_leave_no_trace():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    values = {}
    for seed in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1)):
        with seeded(seed):
            values.setdefault(seed, []).append(torch.rand(2).tolist())
    assert values[0, 0, 1][0] == values[0, 0, 1][1] and len({str(found[0]) for found in values.values()}) == 3
    assert torch.equal(torch.rand(3), expected)


def test_crop_ratio():
    given = ImageProcessor(image_mean=[0.1, 0.2, 0.3])
    assert fit_processor(given, (224, 224), None) is given
    middle = fit_processor(given, (224, 224), 0.875)
    assert (middle.size, middle.do_center_crop) == ({"shortest_edge": 256}, True)  # as BEiT's 224 / 256
    assert (middle.crop_size, middle.image_mean) == ({"height": 224, "width": 224}, given.image_mean)
    assert fit_processor(middle, (224, 224), None) is middle  # an evaluation sees what the training's saw
    larger = fit_processor(middle, (384, 384), None)
    assert (larger.size, larger.do_center_crop) == ({"shortest_edge": 439}, True)  # the same middle at another size
    whole = fit_processor(middle, (224, 224), 0)
    assert (whole.size, whole.do_center_crop) == ({"height": 224, "width": 224}, False)
    assert fit_processor(given, (32, 48), None).size == {"height": 32, "width": 48}  # a model of another size
    with pytest.raises(InputError, match=r"data.crop_ratio should be 0 to 1, such as 0.875, not 2"):
        ImageData(crop_ratio=2.0)


def test_the_middle_by_hand():
    """A wide image's shorter side becomes 8, of which the middle 4 are kept."""
    image = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8)[None] * 10, 8, axis=0)).convert("RGB")
    processor = fit_processor(ImageProcessor(do_rescale=False, do_normalize=False), (4, 4), 0.5)
    found = processor([image])["pixel_values"]
    assert found.shape == (1, 3, 4, 4) and found[0, 0, 0].tolist() == [60, 70, 80, 90]


def test_folders_archives_and_tables_of_images(tmp_path):
    """Nothing is decoded."""
    import tarfile

    pixel = png(Image.new("RGB", (1, 1)))
    for name in ("a", "b"):
        (tmp_path / "folders/train" / name).mkdir(parents=True)
        (tmp_path / "folders/train" / name / "x.png").write_bytes(pixel)
    split = read(Data(path=str(tmp_path / "folders")))["train"]
    assert split.features["label"].names == ["a", "b"] and split[1]["image"].endswith("b/x.png")

    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives/train-0.tar", "w") as archive:
        for name, content in (("0.png", pixel), ("0.cls", b"7")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    (row,) = read(Data(path=str(tmp_path / "archives")))["train"]
    assert row["cls"] == 7 and read_image(row["png"], "row 0").size == (1, 1)


def test_digits():
    splits = digits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 1283, "test": 257, "validation": 257}
    assert all(set(split["label"]) == set(range(10)) for split in splits.values())
    seen = [row["image"]["bytes"] for split in splits.values() for row in split]
    assert read_image(seen[0], "a").size == (32, 32) and len(set(seen)) == len(seen)


def real(tmp_path, content):
    path = tmp_path / "real.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_real_labels_go_by_the_number_in_the_name_or_else_by_order(tmp_path):
    path = real(tmp_path, [[0], [], [1, 2]])
    names = ["val/n1/ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000001_n01440764.JPEG"]
    labels = Labels(["a", "b", "c"], "single_label")
    assert read_real(path, names, labels) == [[1, 2], [0]]
    assert read_real(path, ["a", "b", "c"], labels) == [[0], [], [1, 2]]


@pytest.mark.parametrize(
    ("content", "images", "message"),
    [
        ({"a": 1}, ["a"], "should be a list of lists of class numbers below 3"),
        ([[3]], ["a"], "should be a list of lists of class numbers below 3"),
        ([[0]], ["a", "b"], "has labels of 1 images, not of these 2, such as a"),
        ([[0]], ["ILSVRC2012_val_00000002.JPEG"], "has labels of 1 images, not of these 1"),
    ],
)
def test_real_labels_that_do_not_fit(tmp_path, content, images, message):
    labels = Labels(["a", "b", "c"], "single_label")
    with pytest.raises(InputError, match=rf"real.json: {message}"):
        read_real(real(tmp_path, content), images, labels)
    with pytest.raises(InputError, match="nowhere.json: not a readable JSON file"):
        read_real(str(tmp_path / "nowhere.json"), images, labels)


def test_real_labels_are_of_single_labels(tmp_path):
    with pytest.raises(InputError, match="data.real is for data.problem_type single_label, not for multi_label"):
        read_real(real(tmp_path, [[0], [1]]), ["a", "b"], Labels(["a", "b"], "multi_label"))
