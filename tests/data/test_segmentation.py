"""Label maps from files, classes' names, and augmentation of image and label map together."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2v.data.image import picture_rows
from d2v.data.pairs import read_pairs
from d2v.data.segmentation import (
    SegmentationData,
    augment,
    class_names,
    crop,
    file_names,
    load_examples,
    normalise,
    pad,
    random_crop,
    random_crops,
    read_example,
    read_mask,
    segmentation_head,
    segmentation_processor,
    to_pixels,
    to_tensor,
)
from d2v.demo.images import SCENE_CLASSES, png, scenes
from d2v.errors import InputError
from d2v.models.vision import Data2VecVisionConfig
from d2v.processors.image import ImageProcessor
from tests.helpers import make_job, make_split
from tests.tiny import TINY_VISION

LABELS = np.array([[0, 1, 2], [2, 11, 255]], np.uint8)


def mask(labels=LABELS, size=(3, 2), classes=3, **options):
    value = labels if isinstance(labels, bytes) else png(Image.fromarray(labels))
    processor = ImageProcessor(do_reduce_labels=options.pop("reduce_labels", False), **options)
    return read_mask(value, Image.new("RGB", size), processor, classes)[0].tolist()


def test_labels_by_hand():
    assert mask(ignore_label=11) == [[0, 1, 2], [2, 255, 255]]
    assert mask(ignore_label=11, reduce_labels=True) == [
        [255, 0, 1],
        [1, 255, 255],
    ]  # 255 counts for nothing either way
    assert mask(LABELS.astype(np.uint16), ignore_label=11) == [[0, 1, 2], [2, 255, 255]]
    assert mask(np.array([[300, 2]], np.uint16), (2, 1), ignore_label=300) == [[255, 2]]
    for grey in (Image.fromarray(LABELS).convert("RGB"), Image.fromarray(LABELS).convert("RGBA")):
        assert mask(png(grey), ignore_label=11) == [[0, 1, 2], [2, 255, 255]]
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
        (np.arange(18, dtype=np.uint8).reshape(2, 3, 3), {}, r"a mask is \(height, width\) class numbers"),
        (np.array([[0, 1, 300], [0, 0, 0]], np.uint16), {"reduce_labels": True}, "a mask has label 300"),
        (png(Image.fromarray(LABELS))[:-30], {}, "damaged or cut-off"),
        (b"no image", {}, "not readable as an image"),
    ],
)
def test_a_bad_label_map_is_named(labels, options, message):
    with pytest.raises(InputError, match=message):
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
    splits = read_pairs(SegmentationData(path=str(tmp_path)))
    assert len(splits["training"]) == 1 and splits["validation"].column_names == ["image"]


@pytest.mark.parametrize(
    ("images", "maps", "expected"),
    [
        ("eye1 eye1_L", "eye1 eye1_L", "eye1 eye1_L"),
        ("eye1 eye1_L", "eye1_mask eye1_L_mask", "eye1_mask eye1_L_mask"),
        ("a b", "a a_mask b", "a b"),
        ("a_leftImg8bit", "a_gtFine_labelIds a_gtFine_labelTrainIds", "a_gtFine_labelTrainIds"),
        ("a", "a_L a_mask", "a.png: has two label maps, masks/a_L.png and masks/a_mask.png"),
        ("eye1 eye1_L", "eye1_L", "eye1.png: has no label map in masks; 1 of 2"),
    ],
)
def test_label_maps_of_names_that_are_alike(images, maps, expected, tmp_path):
    for part, names in (("images", images), ("masks", maps)):
        (tmp_path / part).mkdir()
        for name in names.split():
            Image.new("L", (4, 4)).save(tmp_path / part / f"{name}.png")
    try:
        source = read_pairs(SegmentationData(path=str(tmp_path)))
        found = " ".join(Path(name).stem for name in source["train"]["annotation"])
    except InputError as error:
        assert expected in str(error)
        return
    assert found == expected
    left = len(maps.split()) - len(expected.split())
    assert [values["files"] for _, _, values in source.remarks] == [left] * bool(left)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (2.0, 0.5)}, "data.scale should be two factors"),
        ({"crop": (0, 8)}, "data.crop should be a height and a width"),
        ({"window": 64}, "data.window and data.stride go together"),
        ({"window": 64, "stride": 65}, "the stride no longer than the window"),
        ({"size": 0}, "data.size should be at least 1"),
        ({"values": {0: 0, 1: 1, -1: None}}, "data.values should have values of 0 or more"),
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


def test_rows_are_decoded_as_they_come_up(monkeypatch):
    """No pass decodes only to check; what cannot be used is named, or left out and counted."""
    for name in ("train", "test"):
        split, data = pairs(name)
        with monkeypatch.context() as context:
            context.setattr("d2v.data.segmentation.load_image", None)
            rows = picture_rows(make_job(data), split)
        assert rows.ids == ["0.png", "1.png"] and rows[0]["where"] == f"{name}, row 0" and rows.lengths == [1, 1]
        with pytest.raises(InputError, match=rf"^{name}, row 1: the label map has \(30, 9\) pixels.*bad_rows skip"):
            load_examples([rows[0], rows[1]], data, ImageProcessor(), 2)
        data.bad_rows = "skip"
        kept, images, masks, decoded = load_examples([rows[0], rows[1]], data, ImageProcessor(), 2)
        assert [row["where"] for row in kept] == [f"{name}, row 0"] and len(images) == len(masks) == 1
        assert [where.partition(": ")[0] for *_, where in decoded] == [f"{name}, row 1"]
        assert (
            len(load_examples([rows[0], rows[1]], data, ImageProcessor(), None)[0]) == 2
        )  # label maps are not looked at


def test_an_example_is_an_image_and_perhaps_a_label_map():
    split, data = pairs()
    rows = picture_rows(make_job(data), split)
    image, labels, remarks = read_example(rows[0], data, ImageProcessor(), 2)
    assert image.size == (30, 20) and labels.shape == (20, 30) and labels.sum() == 300 and not remarks
    assert read_example(rows[1], data, ImageProcessor(), None)[1] is None


def turned_photo(size, orientation):
    """A photo of this size before EXIF data of this orientation turn it."""
    image, file = Image.new("RGB", size), io.BytesIO()
    image.getexif()[0x0112] = orientation
    image.save(file, "JPEG", exif=image.getexif())
    return file.getvalue()


def test_label_maps_of_photos_that_are_turned():
    """Tools draw label maps on the pixels as they are stored; photos are shown upright."""
    drawn = np.zeros((20, 30), np.uint8)
    drawn[:, 25:] = 1  # the right edge, which is the bottom once the photo is turned a quarter to the right
    row = {"image": turned_photo((30, 20), 6), "annotation": png(Image.fromarray(drawn)), "where": "train, row 5"}
    _, (image,), (labels,), decoded = load_examples([row], SegmentationData(), ImageProcessor(), 2)
    assert image.size == (20, 30) and labels.shape == (30, 20) and labels[25:].all() and labels[:25].sum() == 0
    assert decoded == [("train", "label map turned with its photo", "train, row 5: EXIF orientation 6")]
    upright = row | {"annotation": png(Image.fromarray(np.rot90(drawn, -1)))}
    assert load_examples([upright], SegmentationData(), ImageProcessor(), 2)[3] == [
        ("train", "photo turned by EXIF data, its label map is not", "train, row 5: orientation 6")
    ]
    for orientation in (1, 3):
        row = {
            "image": turned_photo((30, 20), orientation),
            "annotation": png(Image.fromarray(drawn)),
            "where": "a, row 0",
        }
        *_, (labels,), decoded = load_examples([row], SegmentationData(), ImageProcessor(), 2)
        assert np.array_equal(labels, drawn)
        assert [fact for _, fact, _ in decoded] == ["photo turned by EXIF data, its label map is not"] * (
            orientation > 1
        )


def test_masks_of_0_and_255_are_said():
    both = np.array([[0, 255], [0, 0]], np.uint8)
    image = Image.new("RGB", (2, 2))

    def remarks(values, **fields):
        return read_mask(png(Image.fromarray(values)), image, ImageProcessor(**fields), 2)

    labels, ((fact, detail),) = remarks(both)
    assert (
        labels.tolist() == both.tolist() and fact == "label map of 0 and 255 alone" and "data.values '{0: 0, " in detail
    )
    assert remarks(both * 0 + 255)[1][0][0] == "label map without a pixel that counts"
    labels, said = remarks(both, label_values={"0": 0, "255": 1})
    assert labels.tolist() == [[0, 1], [0, 0]] and not said
    labels, said = remarks(both, label_values={"0": 1, "255": 255})
    assert labels.tolist() == [[1, 255], [1, 1]] and not said
    with pytest.raises(InputError, match="value 7 stands for no class of the model; these do: 0, 255"):
        remarks(both.clip(max=7), label_values={"0": 0, "255": 1})


def processor_of(tmp_path=None, mode="train", names=("sky", "sea"), **options):
    data = SegmentationData(crop=(32, 32), **options)
    job = make_job(data, mode=mode, model=str(tmp_path) if tmp_path else None)
    settings = Data2VecVisionConfig(**TINY_VISION, id2label=dict(enumerate(names)))
    return segmentation_processor(job, settings), [fact["line"] for fact in job.facts]


def test_values_name_classes():
    for given in ({0: 0, 128: 1, 7: None}, {0: "sky", 128: "sea", 7: 255}):
        processor, said = processor_of(values=given)
        assert processor.label_values == {"0": 0, "128": 1, "7": 255} and not said
    with pytest.raises(InputError, match="data.values: 'see' is no class; there are sky, sea, or 0 to 1"):
        processor_of(values={0: "see"})
    with pytest.raises(InputError, match="data.values says all; data.reduce_labels and"):
        SegmentationData(values={0: 1}, ignore_label=3)


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        ({"reduce_labels": True}, "label 0 is ignored"),
        ({"ignore_label": 11}, "label 11 is ignored"),
        ({"values": {0: 0, 255: 1}}, "the values are"),
    ],
)
def test_label_maps_mean_in_evaluation_what_they_meant_in_training(trained, words, tmp_path):
    learnt, _ = processor_of(**trained)
    learnt.save_pretrained(tmp_path)
    for mode in ("evaluate", "train"):
        processor, said = processor_of(tmp_path, mode)
        assert processor == learnt and len(said) == 1 and words in said[0]
    assert not processor_of(tmp_path, "predict")[1]
    processor, said = processor_of(tmp_path, "evaluate", reduce_labels=False, ignore_label=3)  # what is given counts
    assert (processor.do_reduce_labels, processor.ignore_label, processor.label_values, said) == (False, 3, None, [])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (1, "RGB"), (4, "RGBA")])
def test_images_of_other_channels(channels, mode):
    processor = ImageProcessor(image_mean=[0.5] * channels, image_std=[0.5] * channels)
    row = {"image": png(Image.new(mode, (30, 20))), "where": "train, row 0"}
    data = SegmentationData(crop=(24, 24), size=16)
    *_, (image,), _, _ = load_examples([row], data, processor, None)
    assert to_pixels(image, data, processor).shape == (channels, 16, 24)
    crops = random_crops([image], [torch.zeros(20, 30, dtype=torch.uint8)], [(0, 0, 0)], data, processor)
    assert crops["pixel_values"].shape == (1, channels, 24, 24) and crops["labels"].shape == (1, 24, 24)


def test_pixels_are_normalised_by_channel():
    split, data = pairs(size=10)
    processor = ImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.2, 0.1])
    image, *_ = read_example(picture_rows(make_job(data), split)[0], data, processor, 2)
    pixels = to_pixels(image, data, processor)
    expected = [(90 / 255 - 0.5) / 0.5, (120 / 255 - 0.4) / 0.2, (150 / 255 - 0.3) / 0.1]
    assert pixels.shape == (3, 10, 15) and pixels[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(pixels, normalise(to_tensor(image, 10), processor))


@pytest.mark.parametrize("options", [{"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False}])
def test_pixels_are_scaled_as_the_processor_says(options):
    processor, (image, _) = ImageProcessor(do_resize=False, do_center_crop=False, **options), picture()
    found = normalise(image, processor)
    expected = processor([Image.fromarray(image.permute(1, 2, 0).numpy())])["pixel_values"][0]
    torch.testing.assert_close(found, expected)


def test_a_random_crop_is_padded_by_the_mean_and_the_ignored_label():
    split, data = pairs(scale=(0.5, 0.5), photometric=False, flip=False)  # 15 x 10 pixels of 24 x 24
    image, mask, _ = read_example(picture_rows(make_job(data), split)[0], data, ImageProcessor(), 2)
    pixels, labels = random_crop(image, mask, (0, 0, 0), data, ImageProcessor())
    assert pixels.shape == (3, 24, 24) and labels.shape == (24, 24) and labels.dtype == torch.int64
    assert (labels[10:] == 255).all() and (labels[:, 15:] == 255).all() and labels[:10, :15].max() == 1
    assert (pixels[:, 10:] == 0).all() and (pixels[:, :, 15:] == 0).all() and (pixels[:, :10, :15] != 0).all()
    assert all(map(torch.equal, random_crop(image, mask, (0, 0, 0), data, ImageProcessor()), (pixels, labels)))


def test_the_head_has_the_classes_of_the_data_or_the_demo(tmp_path):
    job = make_job(SegmentationData(names=["sky", "sea"]))
    ignored = {"semantic_loss_ignore_index": 255}
    assert segmentation_head(job, ["a", "b", "c"]) == {"id2label": {0: "a", 1: "b", 2: "c"}} | ignored
    job.config.data.path = str(tmp_path)
    assert segmentation_head(job, ["a", "b", "c"]) == {"id2label": {0: "sky", 1: "sea"}} | ignored


def test_the_processor_makes_images_of_the_crops(tmp_path):
    ImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    settings = Data2VecVisionConfig(**TINY_VISION | {"patch_size": 4})
    processor = segmentation_processor(make_job(SegmentationData(crop=(24, 32)), model=str(tmp_path)), settings)
    assert processor.size == {"height": 24, "width": 32} and not processor.do_center_crop
    assert tuple(processor.image_mean) == (0.1, 0.2, 0.3) and not processor.do_reduce_labels
    for height, width in ((24, 30), (4, 24)):
        data = SegmentationData(crop=(height, width))
        message = rf"data.crop \[{height}, {width}\] should be whole patches of \[4, 4\], two or more a side"
        with pytest.raises(InputError, match=message):
            segmentation_processor(make_job(data), settings)
        segmentation_processor(make_job(data, mode="predict"), settings)
