"""Label maps from files, classes' names, and augmentation of image and label map together."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from d2v.data.segmentation import (
    SegmentationData,
    augment,
    class_names,
    crop,
    file_names,
    normalise,
    pad,
    random_crop,
    read_example,
    read_mask,
    read_pairs,
    segmentation_head,
    segmentation_processor,
    segmentation_rows,
    to_pixels,
    to_tensor,
)
from d2v.demo.images import SCENE_CLASSES, png, scenes
from d2v.errors import InputError
from d2v.processors.image import ImageProcessor
from tests.helpers import make_job, make_split

LABELS = np.array([[0, 1, 2], [2, 11, 255]], np.uint8)


def mask(labels=LABELS, size=(3, 2), classes=3, **options):
    value = labels if isinstance(labels, bytes) else png(Image.fromarray(labels))
    return read_mask(value, "train, row 3", size, SegmentationData(**options), classes).tolist()


def test_labels_by_hand():
    assert mask(ignore_label=11) == [[0, 1, 2], [2, 255, 255]]
    assert mask(ignore_label=11, reduce_labels=True) == [
        [255, 0, 1],
        [1, 255, 255],
    ]  # 255 counts for nothing either way
    assert mask(LABELS.astype(np.uint16), ignore_label=11) == [[0, 1, 2], [2, 255, 255]]
    assert mask(np.array([[300, 2]], np.uint16), (2, 1), ignore_label=300) == [[255, 2]]
    palette = Image.fromarray(LABELS).convert("P")
    palette.putdata(LABELS.ravel().tolist())
    palette.putpalette([200, 10, 30] * 256)
    assert mask(png(palette), ignore_label=11) == [[0, 1, 2], [2, 255, 255]]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS, {}, r"label 11 is not one of the 3 classes, 0 to 2, or 255 where nothing counts"),
        (LABELS, {"reduce_labels": True, "classes": 2}, r"label 11 is not one of the 2 classes, 1 to 2"),
        (LABELS.T.copy(), {}, r"the label map has \(2, 3\) pixels, its image \(3, 2\); should be the same"),
        (np.zeros((2, 3, 3), np.uint8), {}, r"a mask is \(height, width\) class numbers"),
        (np.array([[0, 1, 300], [0, 0, 0]], np.uint16), {"reduce_labels": True}, "a mask has label 300"),
        (png(Image.fromarray(LABELS))[:-30], {}, "damaged or cut-off"),
        (b"no image", {}, "not readable as an image"),
    ],
)
def test_a_bad_label_map_is_named(labels, options, message):
    with pytest.raises(InputError, match=r"^train, row 3: .*" + message):
        mask(labels, **options)


def test_names_of_classes(tmp_path):
    def names(arch=None, **options):
        return class_names(SegmentationData(path=str(tmp_path), **options), arch or {})

    with pytest.raises(InputError, match="no names of classes: .*id2label.json"):
        names()
    assert names({"num_labels": 3}) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "sky", "1": "tree", "2": "void"}), "utf-8")
    assert names() == ["sky", "tree", "void"] and names(ignore_label=2) == ["sky", "tree"]
    assert names(names=["a", "b"]) == ["a", "b"]
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "sky", "5": "tree"}), "utf-8")
    with pytest.raises(InputError, match="should name the classes from 0 on without a gap, not 0, 5"):
        names()
    for wrong in (["a"], ["a", "a"], [str(i) for i in range(256)]):
        with pytest.raises(InputError, match="should be 2 to 255, each with its own"):
            names(names=wrong)


def test_a_folder_of_pairs(tmp_path):
    for part, ending in (("images", "jpg"), ("annotations", "png")):
        for split in ("training", "validation"):
            folder = tmp_path / part / split
            folder.mkdir(parents=True)
            Image.new("L", (4, 4)).save(folder / f"a.{ending}")
    splits = read_pairs(SegmentationData(path=str(tmp_path)))
    assert list(splits) == ["training", "validation"]
    assert splits["training"][0]["annotation"] == str(tmp_path / "annotations/training/a.png")
    (tmp_path / "annotations/validation/a.png").unlink()
    with pytest.raises(InputError, match=r"validation/a.png: no such file; each image needs its label map"):
        read_pairs(SegmentationData(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (2.0, 0.5)}, "data.scale should be two factors"),
        ({"crop": (0, 8)}, "data.crop should be a height and a width"),
        ({"window": 64}, "data.window and data.stride go together"),
        ({"window": 64, "stride": 65}, "the stride no longer than the window"),
        ({"size": 0}, "data.size should be at least 1"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        SegmentationData(**options)


def picture(height=40, width=60):
    """Red is the row, green the column; the label is the quarter."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack((rows, columns, rows * 0)).to(torch.uint8)
    return image, ((rows >= height // 2) * 2 + (columns >= width // 2)).to(torch.uint8)


def test_image_and_mask_stay_together():
    image, labels = picture()
    data = SegmentationData(crop=(24, 24), scale=(1.0, 1.0), photometric=False)
    seen = set()
    for row in range(20):
        part, quarters = augment(image, labels, data, (0, 0, row))
        assert part.shape == (3, 24, 24) and quarters.shape == (24, 24)
        assert torch.equal(quarters, ((part[0] >= 20) * 2 + (part[1] >= 30)).to(torch.uint8))
        seen.add((int(part[0, 0, 0]), bool(part[1, 0, 0] > part[1, 0, 1])))
    assert len(seen) > 10 and {mirrored for _, mirrored in seen} == {False, True}


def test_augmentation_is_a_function_of_the_seed():
    image, labels = picture()
    data = SegmentationData(crop=(24, 30), scale=(0.4, 1.0))
    first, again, other = (augment(image, labels, data, seed) for seed in ((0, 1, 2), (0, 1, 2), (0, 2, 2)))
    assert all(map(torch.equal, first, again)) and not torch.equal(first[0], other[0])
    sizes = {augment(image, labels, data, (0, 0, row))[0].shape[1:] for row in range(20)}
    assert max(sizes) == (24, 30) and len(sizes) > 1  # what is smaller is padded by the recipe


def test_a_crop_is_not_of_one_class():
    labels = torch.zeros(100, 100, dtype=torch.uint8)
    labels[:, 80:] = 1
    torch.manual_seed(0)
    shares = [float((crop(labels[None], labels, (20, 20), 0.75)[1] == 0).float().mean()) for _ in range(50)]
    torch.manual_seed(0)
    plain = [float((crop(labels[None], labels, (20, 20), 1.1)[1] == 0).float().mean()) for _ in range(50)]
    assert np.mean(np.array(shares) < 0.75) > 0.7 > 0.4 > np.mean(np.array(plain) < 0.75)


def test_pad_size_and_files():
    assert pad(torch.ones(1, 2, 1), (3, 2), 255).tolist() == [[[1, 255], [1, 255], [255, 255]]]
    assert to_tensor(Image.new("RGB", (30, 20)), 10).shape == (3, 10, 15)
    assert to_tensor(Image.new("RGB", (1, 1)), None).shape == (3, 1, 1)
    assert file_names(["a/x.jpg", "b/y.v2"]) == ["x", "y.v2"]
    assert file_names(["a/x.jpg", "b/x.png"]) == ["000000_x", "000001_x"]


def test_scenes():
    made = scenes(_sizes=(6, 2, 3))
    assert {split: len(rows) for split, rows in made.items()} == {"train": 6, "validation": 2, "test": 3}
    labels = [np.asarray(Image.open(io.BytesIO(row["annotation"]["bytes"]))) for row in made["train"]]
    assert all(each.shape == (64, 64) and 0.5 < (each == 0).mean() <= 1 for each in labels)
    assert np.unique(labels).max() < len(SCENE_CLASSES) and len(np.unique(labels)) > 5
    image = np.asarray(Image.open(io.BytesIO(made["train"][0]["image"]["bytes"])))
    assert image[labels[0] > 0].mean() > image[labels[0] == 0].mean() + 30  # digits are bright
    assert scenes(_sizes=(6, 2, 3))["test"].to_list() == made["test"].to_list()


def pairs(name="train", **options):
    """Two rows of image and label map, and their data; the second of the label maps is of another size."""
    images = [{"bytes": png(Image.new("RGB", (30, 20), (90, 120, 150))), "path": f"{i}.png"} for i in range(2)]
    labels = (np.arange(600).reshape(20, 30) // 300).astype(np.uint8)
    masks = [{"bytes": png(Image.fromarray(each)), "path": None} for each in (labels, labels[:9])]
    return make_split(name, image=images, annotation=masks), SegmentationData(crop=(24, 24), **options)


def test_what_is_scored_is_decoded_once_before():
    for name in ("train", "test"):
        split, data = pairs(name)
        if name == "test":
            with pytest.raises(InputError, match=r"^test, row 1: the label map has \(30, 9\) pixels"):
                segmentation_rows(make_job(data), split, 2)
        rows = segmentation_rows(make_job(data), split.select([0]) if name == "test" else split, 2)
        assert rows.ids[0] == "0.png" and rows[0]["where"] == f"{name}, row 0" and rows.lengths[0] == 1
    assert len(segmentation_rows(make_job(data, mode="predict"), split, 2)) == 2  # label maps are not looked at


def test_an_example_is_an_image_and_perhaps_a_label_map():
    split, data = pairs()
    rows = segmentation_rows(make_job(data), split, 2)
    image, labels = read_example(rows[0], data, 2)
    assert image.size == (30, 20) and labels.shape == (20, 30) and labels.sum() == 300
    assert read_example(rows[1], data, None)[1] is None
    with pytest.raises(InputError, match="train, row 1: the label map has"):
        read_example(rows[1], data, 2)


def test_pixels_are_normalised_by_channel():
    split, data = pairs(size=10)
    processor = ImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.2, 0.1])
    image, _ = read_example(segmentation_rows(make_job(data), split, 2)[0], data, 2)
    pixels = to_pixels(image, data, processor)
    expected = [(90 / 255 - 0.5) / 0.5, (120 / 255 - 0.4) / 0.2, (150 / 255 - 0.3) / 0.1]
    assert pixels.shape == (3, 10, 15) and pixels[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(pixels, normalise(to_tensor(image, 10), processor))


def test_a_random_crop_is_padded_by_the_mean_and_the_ignored_label():
    split, data = pairs(scale=(0.5, 0.5), photometric=False, flip=False)  # 15 x 10 pixels of 24 x 24
    row = segmentation_rows(make_job(data), split, 2)[0] | {"seed": (0, 0, 0)}
    pixels, labels = random_crop(row, data, ImageProcessor(), 2)
    assert pixels.shape == (3, 24, 24) and labels.shape == (24, 24) and labels.dtype == torch.int64
    assert (labels[10:] == 255).all() and (labels[:, 15:] == 255).all() and labels[:10, :15].max() == 1
    assert (pixels[:, 10:] == 0).all() and (pixels[:, :, 15:] == 0).all() and (pixels[:, :10, :15] != 0).all()
    assert all(map(torch.equal, random_crop(row, data, ImageProcessor(), 2), (pixels, labels)))


def test_the_head_has_the_classes_of_the_data_or_the_demo(tmp_path):
    job = make_job(SegmentationData(names=["sky", "sea"]))
    ignored = {"semantic_loss_ignore_index": 255}
    assert segmentation_head(job, ["a", "b", "c"]) == {"id2label": {0: "a", 1: "b", 2: "c"}} | ignored
    job.config.data.path = str(tmp_path)
    assert segmentation_head(job, ["a", "b", "c"]) == {"id2label": {0: "sky", 1: "sea"}} | ignored


def test_the_processor_makes_images_of_the_crops(tmp_path):
    ImageProcessor(image_mean=[0.1, 0.2, 0.3], do_reduce_labels=True).save_pretrained(tmp_path)
    processor = segmentation_processor(make_job(SegmentationData(crop=(24, 32)), model=str(tmp_path)), (4, 4))
    assert processor.size == {"height": 24, "width": 32} and not processor.do_center_crop
    assert tuple(processor.image_mean) == (0.1, 0.2, 0.3) and not processor.do_reduce_labels
    assert segmentation_processor(make_job(SegmentationData(reduce_labels=True)), (16, 16)).do_reduce_labels
    for height, width in ((24, 30), (4, 24)):
        data = SegmentationData(crop=(height, width))
        message = rf"data.crop \[{height}, {width}\] should be whole patches of \[4, 4\], two or more a side"
        with pytest.raises(InputError, match=message):
            segmentation_processor(make_job(data), (4, 4))
        segmentation_processor(make_job(data, mode="predict"), (4, 4))
