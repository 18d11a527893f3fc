"""Image files, masks and the image processor; batches, files and maps against transformers."""

import contextlib
import dataclasses
import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from d2v.errors import InputError
from d2v.processors.image import (
    ImageProcessor,
    load_image,
    load_mask,
    reduce_labels,
)

transformers = pytest.importorskip("transformers")

SEEDED = settings(derandomize=True, deadline=None, max_examples=50)
SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))
ORIENTATION = 274  # EXIF's tag


def noise(height=20, width=30, channels=3, seed=0, top=256, dtype=np.uint8):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def encoded(image, kind="PNG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width, height):
    """A PNG whose header claims a size that its single byte of data does not have."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------------------------------
# Image files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_image, load_mask])
def test_every_source_gives_the_pixels_that_were_written(tmp_path, load):
    pixels = noise(channels=3 if load is load_image else 0)
    image = Image.fromarray(pixels)
    data = encoded(image)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    sources = [image, Image.open(path), path, str(path), data, {"bytes": data, "path": None}]
    for source in [*sources, {"bytes": None, "path": str(path)}, {"bytes": data, "path": "inside/an/archive.png"}]:
        np.testing.assert_array_equal(np.asarray(load(source)), pixels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG", "JPEG2000"])
def test_formats(kind):
    """A plain picture, since JPEG does not keep pixels and GIF keeps 256 colours."""
    image = load_image(encoded(Image.new("RGB", (5, 4), (200, 100, 50)), kind))
    assert image.mode == "RGB" and image.size == (5, 4)
    np.testing.assert_allclose(np.asarray(image), np.full((4, 5, 3), (200, 100, 50)), atol=3)


def palette(transparency=None):
    """Two rows of red and green, and its file's options."""
    image = Image.fromarray(np.array([[0, 0, 0], [1, 1, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    return image, {} if transparency is None else {"transparency": transparency}


RED_GREEN = [[[255, 0, 0]] * 3, [[0, 255, 0]] * 3]


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (*palette(), RED_GREEN),
        (*palette(transparency=0), RED_GREEN),
        (*palette(transparency=b"\x00\x80"), RED_GREEN),
        (Image.new("1", (1, 1), 1), {}, [[[255] * 3]]),
        (Image.new("L", (1, 1), 77), {}, [[[77] * 3]]),
        (Image.new("L", (1, 1), 77), {"transparency": 77}, [[[77] * 3]]),
        (Image.new("LA", (1, 1), (77, 0)), {}, [[[77] * 3]]),
        (Image.new("RGB", (1, 1), (1, 2, 3)), {"transparency": (1, 2, 3)}, [[[1, 2, 3]]]),
        (Image.new("RGBA", (1, 1), (1, 2, 3, 0)), {}, [[[1, 2, 3]]]),  # not black, not white: alpha is dropped
        (
            Image.fromarray(np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)),
            {},
            [[[v] * 3 for v in (0, 0, 1, 128, 255)]],
        ),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(image, options, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(encoded(image, **options))
    assert loaded.mode == "RGB" and np.asarray(loaded).tolist() == expected


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk(kind):
    """Cyan ink alone leaves green and blue."""
    image = load_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), kind))
    np.testing.assert_allclose(np.asarray(image), np.full((8, 8, 3), (0, 255, 255)), atol=3)


@pytest.mark.parametrize(("top", "bits"), [(255, 8), (4095, 12), (4096, None), (65535, None)])
@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, "PNG"), (np.int32, "TIFF")])
def test_sixteen_bits_with_small_values_are_not_black(top, bits, dtype, kind):
    image = load_image(encoded(Image.fromarray(np.array([[0, top // 2, top]], dtype)), kind), 1)
    shift = (bits or 16) - 8
    assert np.asarray(image).tolist() == [[0, top // 2 >> shift, top >> shift]] and image.info.get("bits") == bits


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 2**16 - 1, 600).astype(np.uint16).reshape(20, 30)
    for dtype, kind in [(np.uint16, "PNG"), (np.uint16, "TIFF"), (">u2", "TIFF"), (np.int32, "TIFF")]:
        image = Image.fromarray(ramp.astype(dtype))
        loaded = np.asarray(load_image(encoded(image, kind)))
        np.testing.assert_array_equal(loaded, np.repeat((ramp // 256)[..., None], 3, axis=2))
    for bad, message in [(2**16, "from 65536 to 65536"), (-1, "from -1 to -1")]:
        with pytest.raises(InputError, match=f"<bytes>: grey values {message}; must be of 8 or 16 bits"):
            load_image(encoded(Image.new("I", (1, 1), bad), "TIFF"))
    with pytest.raises(InputError, match="<bytes>: has floating-point pixels"):
        load_image(encoded(Image.new("F", (1, 1), 0.5), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_pictures_are_turned_upright(orientation, kind):
    """By the definition of the tag: where row 0 and column 0 of the file are in the picture."""
    pixels = noise(4, 6)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.fromarray(pixels), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels[::-1].transpose(1, 0, 2),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    for source in (data, Image.open(io.BytesIO(data))):
        once = load_image(source)
        np.testing.assert_array_equal(np.asarray(once), upright)
        np.testing.assert_array_equal(np.asarray(load_image(once)), upright)  # not turned again
    mask = encoded(Image.fromarray(pixels[..., 0]), kind, exif=exif) if kind != "WEBP" else None  # WebP has no grey
    if mask:
        np.testing.assert_array_equal(load_mask(mask), upright[..., 0])


def test_damaged_exif_turns_nothing():
    image = Image.fromarray(noise())
    data = encoded(image, exif=b"Exif\x00\x00 no such thing")
    with pytest.raises(SyntaxError):  # Pillow alone gives up
        Image.open(io.BytesIO(data)).getexif()
    np.testing.assert_array_equal(np.asarray(load_image(data)), noise())


def test_a_given_image_is_left_as_it_was():
    image, _ = palette()
    image.info["transparency"] = 0
    assert load_image(image).mode == "RGB"
    assert image.mode == "P" and image.info == {"transparency": 0}


JPEG = encoded(Image.fromarray(noise(64, 64)), "JPEG")
PNG = encoded(Image.fromarray(noise(64, 64)))


@pytest.mark.parametrize("load", [load_image, load_mask])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not readable as an image, use JPEG, PNG"),
        (b"<html>404</html>" * 50, "not readable as an image"),
        (encoded(Image.new("RGB", (4, 4)), "EPS"), "not readable as an image"),  # a program
        (JPEG[:-500], "damaged or cut-off image"),
        (JPEG[: len(JPEG) // 2], "damaged or cut-off image"),
        (PNG[:-500], "damaged or cut-off image"),
        (PNG[:500] + bytes(100) + PNG[600:], "damaged or cut-off image"),
        (encoded(Image.fromarray(noise(64, 64)), "TIFF")[:-500], "damaged or cut-off image"),
        (encoded(Image.fromarray(noise(64, 64)), "WEBP")[:-500], "damaged or cut-off image"),
        (png_of_size(50_000, 50_000), "claims too many pixels to be opened safely"),
    ],
)
def test_bad_files_are_named(tmp_path, load, data, message):
    path = tmp_path / "bad picture.jpg"
    path.write_bytes(data)
    for source, name in [
        (path, str(path)),
        (data, "<bytes>"),
        ({"bytes": data, "path": "a/b.png"}, "a/b.png"),
        ({"bytes": None, "path": str(path)}, str(path)),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(source)
        assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)


@given(cut=st.integers(0, len(JPEG) - 3), at=st.integers(0, len(PNG) - 1), flip=st.integers(1, 255))
@SEEDED
def test_damage_is_an_input_error_or_harmless(cut, at, flip):
    """Whatever Pillow raises, nothing but an InputError comes out."""
    damaged = bytearray(PNG)
    damaged[at] ^= flip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError):
            load_image(JPEG[:cut])
        with contextlib.suppress(InputError):
            assert load_image(bytes(damaged)).mode == "RGB"


def test_missing_files(tmp_path):
    for source in (tmp_path / "none.png", str(tmp_path), {"bytes": None, "path": str(tmp_path / "none.png")}):
        with pytest.raises(InputError, match="no such file") as caught:
            load_image(source)
        assert str(tmp_path) in str(caught.value)
    for source in ({"bytes": None, "path": None}, None, 7):
        with pytest.raises(InputError, match="no such file; an image is a file's path or its bytes"):
            load_image(source)


# ---------------------------------------------------------------------------------------------------------------------
# Masks
# ---------------------------------------------------------------------------------------------------------------------


def test_masks_are_numbers_not_colours():
    image, options = palette(transparency=0)
    for data in (encoded(image, **options), encoded(image, "GIF"), encoded(image, "TIFF")):
        mask = load_mask(data)
        assert mask.dtype == np.int64 and mask.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert load_mask(encoded(Image.new("1", (2, 1), 1))).tolist() == [[1, 1]]
    labels = np.array([[0, 255, 256, 40_000]])
    for kind in (np.uint16, np.int32):
        assert load_mask(encoded(Image.fromarray(labels.astype(kind)), "TIFF")).tolist() == labels.tolist()
    assert load_mask(encoded(Image.fromarray(labels.astype(np.uint16)))).tolist() == labels.tolist()
    assert load_mask(labels.astype(np.uint16)).dtype == np.int64


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_masks_in_colour_are_refused(mode):
    data = encoded(Image.new(mode, (3, 2), (1, 2, 3) if mode == "RGB" else 0), "TIFF")
    with pytest.raises(InputError, match=r"<bytes>: pixels of shape \(2, 3.*written as a grey or palette PNG"):
        load_mask(data)


def test_masks_in_jpeg_are_refused():
    data = encoded(Image.new("L", (8, 8), 1), "JPEG")
    for source in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(InputError, match=r"is a JPEG, whose .* a label map is written as PNG"):
            load_mask(source)


@pytest.mark.parametrize("mask", [np.zeros((2, 3, 1), int), np.zeros(3, int), np.zeros((2, 3))])
def test_arrays_that_are_no_masks(mask):
    with pytest.raises(InputError, match="mask: pixels of shape"):
        load_mask(mask)


def test_labels_reduced_by_hand():
    mask = np.array([[0, 1, 2], [150, 254, 255]])
    assert reduce_labels(mask).tolist() == [[255, 0, 1], [149, 253, 255]]
    assert mask.tolist() == [[0, 1, 2], [150, 254, 255]]  # the argument is not touched
    with pytest.raises(InputError, match="has label 256; with do_reduce_labels labels are 0 to 255"):
        reduce_labels(mask + 1)


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


@given(
    image_size=SIZES,
    size=SIZES | st.integers(1, 300) | st.builds(lambda n: {"shortest_edge": n}, st.integers(1, 40)),
    crop_size=SIZES | st.integers(1, 300),
    resample=st.integers(0, 5),
    flags=st.tuples(*[st.booleans()] * 4),
    mean_std=st.sampled_from([((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (0.5, 0.25), ([0.5] * 3, [0.5] * 3)]),
    rescale_factor=st.sampled_from([1 / 255, 1 / 127.5, 1]),
)
@example((1, 1), 224, 224, 3, (True,) * 4, (0.5, 0.5), 1 / 255)
@example((300, 1), {"shortest_edge": 7}, 224, 3, (True,) * 4, (0.5, 0.5), 1 / 255)
@SEEDED
def test_batches_equal_transformers(image_size, size, crop_size, resample, flags, mean_std, rescale_factor):
    """To the last bit, whatever is switched on; `size` and `crop_size` in every form that files have."""
    options = dict(zip(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), flags, strict=True))
    options |= {"size": size, "crop_size": crop_size, "resample": resample, "rescale_factor": rescale_factor}
    options |= {"image_mean": mean_std[0], "image_std": mean_std[1]}
    images = [Image.fromarray(noise(*image_size, seed=seed)) for seed in range(2)]
    theirs = transformers.BeitImageProcessorPil(**options)(images, return_tensors="pt")["pixel_values"]
    ours = ImageProcessor(**options)(images)
    assert ours.keys() == {"pixel_values"} and ours["pixel_values"].dtype == torch.float32
    assert torch.equal(ours["pixel_values"], theirs.float())  # they leave uint8 where nothing is computed


@given(
    mask_size=SIZES,
    size=SIZES,
    crop=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    flags=st.tuples(*[st.booleans()] * 3),
    top=st.sampled_from([2, 151, 256]),
)
@SEEDED
def test_labels_equal_transformers(mask_size, size, crop, flags, top):
    """With the nearest pixel there too, and a crop that needs no padding: see the two tests below."""
    do_resize, do_center_crop, do_reduce_labels = flags
    crop_size = [max(1, round(n * share)) for n, share in zip(size if do_resize else mask_size, crop, strict=True)]
    options = {"do_resize": do_resize, "do_center_crop": do_center_crop, "do_reduce_labels": do_reduce_labels}
    options |= {"size": size, "crop_size": crop_size}
    image = Image.fromarray(noise(*mask_size))
    masks = [noise(*mask_size, channels=0, seed=seed, top=top) for seed in range(2)]
    theirs = transformers.BeitImageProcessorPil(**options, resample=0)(
        [image] * 2, [m.copy() for m in masks], return_tensors="pt"
    )
    ours = ImageProcessor(**options)([image] * 2, masks)
    assert ours.keys() == {"pixel_values", "labels"} and ours["labels"].dtype == torch.int64
    assert torch.equal(ours["labels"], theirs["labels"])
    files = [encoded(Image.fromarray(mask)) for mask in masks]
    assert torch.equal(ImageProcessor(**options)([image] * 2, files)["labels"], ours["labels"])


def test_resizing_invents_no_class():
    """Between classes 1 and 9, transformers' bicubic filter writes classes that are nowhere in the mask."""
    mask = np.repeat([[1, 9]], 4, axis=0).repeat(2, axis=1).astype(np.uint8)
    image = Image.fromarray(noise(4, 4))
    theirs = transformers.BeitImageProcessorPil(size=7)([image], [mask], return_tensors="pt")["labels"]
    ours = ImageProcessor(size=7)([image], [mask])["labels"]
    assert set(theirs.unique().tolist()) > {1, 9} and set(ours.unique().tolist()) == {1, 9}


@pytest.mark.parametrize("do_reduce_labels", [False, True])
def test_padding_has_no_class(do_reduce_labels):
    """What a crop adds is black and ignored; transformers makes it class 0."""
    processor = ImageProcessor(
        do_resize=False, do_center_crop=True, crop_size=5, do_normalize=False, do_reduce_labels=do_reduce_labels
    )
    batch = processor([Image.new("RGB", (2, 7), "white")], [np.full((7, 2), 3)])
    inside = torch.zeros(5, 5, dtype=torch.bool)
    inside[:, 2:4] = True  # rows are cut, columns padded
    assert batch["labels"][0].tolist() == torch.where(inside, 2 if do_reduce_labels else 3, 255).tolist()
    assert torch.equal(batch["pixel_values"][0], inside.float().expand(3, 5, 5))


def test_labels_above_255_survive():
    """As a mask of 16 bits has them; in 8 bits they would wrap around."""
    mask = noise(30, 40, 0, top=3000, dtype=np.uint16)
    image = Image.fromarray(noise(30, 40))
    labels = ImageProcessor(size=[60, 80], do_center_crop=True, crop_size=[60, 80])([image], [mask])["labels"]
    assert torch.equal(
        labels[0], torch.from_numpy(mask.astype(np.int64)).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )


def test_a_pixel_by_hand():
    batch = ImageProcessor(size=2)([Image.new("RGB", (1, 1), (0, 51, 255))])
    expected = torch.tensor([-1.0, -0.6, 1.0])[:, None, None].expand(1, 3, 2, 2)
    assert torch.allclose(batch["pixel_values"], expected)


def test_images_in_any_form_and_mode():
    grey = Image.new("L", (3, 2), 255)
    batch = ImageProcessor(size=4)([grey, encoded(grey), {"bytes": encoded(grey.convert("RGBA")), "path": "a.png"}])
    assert torch.equal(batch["pixel_values"], torch.ones(3, 3, 4, 4))


def test_arrays_are_the_tensors_values():
    processor, images = ImageProcessor(size={"height": 5, "width": 7}), [Image.new("RGB", (9, 8), (1, 2, 3))]
    masks = [np.arange(72).reshape(8, 9)]
    tensors, arrays = (processor(images, masks, return_tensors=kind) for kind in ("pt", "np"))
    assert arrays["pixel_values"].dtype == np.float32 and arrays["labels"].dtype == np.int64
    assert all(np.array_equal(arrays[key], tensors[key].numpy()) for key in ("pixel_values", "labels"))
    with pytest.raises(InputError, match='return_tensors is \'tf\'; must be "pt", or "np" for arrays, as Keras'):
        processor(images, return_tensors="tf")


def test_batches_that_cannot_be_made():
    small, large = Image.new("RGB", (3, 2)), Image.new("RGB", (6, 2))
    for options in ({"do_resize": False}, {"size": {"shortest_edge": 2}}):
        with pytest.raises(InputError, match=r"one size, these have \[\(3, 2, 3\), \(3, 2, 6\)\]"):
            ImageProcessor(**options)([small, large])
        cropping = ImageProcessor(**options, do_center_crop=True, crop_size=2)
        assert cropping([small, large])["pixel_values"].shape == (2, 3, 2, 2)
    with pytest.raises(InputError, match="these have none"):
        ImageProcessor()([])
    with pytest.raises(InputError, match=r"mask 1 has shape \(2, 3\); its image has \(2, 6\)"):
        ImageProcessor()([small, large], [np.zeros((2, 3), int)] * 2)


# ---------------------------------------------------------------------------------------------------------------------
# The processor's files
# ---------------------------------------------------------------------------------------------------------------------

# facebook/data2vec-vision-base, as Hugging Face's conversion script wrote it: numbers for sizes, older names.
HUB = {"crop_size": 224, "do_center_crop": False, "do_normalize": True, "do_resize": True}
HUB |= {"feature_extractor_type": "BeitFeatureExtractor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
HUB |= {"reduce_labels": False, "resample": 3, "size": 224}
OTHER = {"do_resize": False, "size": {"height": 40, "width": 50}, "resample": 2, "do_center_crop": True}
OTHER |= {"crop_size": {"height": 30, "width": 20}, "rescale_factor": 0.01, "do_reduce_labels": True}
OTHER |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    "fields", [{}, OTHER, {"size": {"shortest_edge": 9}, "do_rescale": False, "do_normalize": False}]
)
def test_files_both_ways(tmp_path, fields):
    """transformers opens our file, and we either backend's; no field is lost, and the output is the same."""
    ours = ImageProcessor(**fields)
    ours.save_pretrained(tmp_path / "ours")
    assert ImageProcessor.from_pretrained(tmp_path / "ours") == ours
    image = Image.fromarray(noise(30, 30))
    for backend in ("pil", "torchvision"):
        theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours", backend=backend)
        assert type(theirs).__name__.startswith("BeitImageProcessor") and theirs.backend == backend
        assert shared(ours).items() <= json.loads(theirs.to_json_string()).items()
        theirs.save_pretrained(tmp_path / backend)
        assert ImageProcessor.from_pretrained(str(tmp_path / backend)) == ours
        if backend == "pil":
            expected = theirs([image], return_tensors="pt")["pixel_values"]
            assert torch.equal(ours([image])["pixel_values"], expected.float())


def shared(processor):
    """The fields that transformers' processor has too."""
    own = ("ignore_label", "label_values")
    return {key: value for key, value in dataclasses.asdict(processor).items() if key not in own}


def test_what_label_maps_hold_is_kept(tmp_path):
    ours = ImageProcessor(do_reduce_labels=True, ignore_label=7, label_values={"0": 0, "128": 1})
    ours.save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == ours
    transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    ImageProcessor().save_pretrained(tmp_path)
    assert not {"ignore_label", "label_values"} & json.loads((tmp_path / "preprocessor_config.json").read_text()).keys()


def test_defaults_are_transformers_and_the_hubs(tmp_path):
    theirs = json.loads(transformers.BeitImageProcessorPil().to_json_string())
    assert shared(ImageProcessor()).items() <= theirs.items()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HUB))
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor()
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = Image.fromarray(noise(300, 200))
    expected = theirs([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(ImageProcessor.from_pretrained(tmp_path)([image])["pixel_values"], expected)


def test_older_and_nested_files(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(HUB | {"reduce_labels": True, "size": [3, 4], "image_mean": None}))
    expected = ImageProcessor(do_reduce_labels=True, size={"height": 3, "width": 4})
    assert ImageProcessor.from_pretrained(tmp_path) == expected
    file.write_text(json.dumps({"image_processor_type": "BeitImageProcessorFast", "do_reduce_labels": True}))
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor(do_reduce_labels=True)
    nested = {"image_processor": {"image_processor_type": "BeitImageProcessor", "size": 7}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor(size=7)


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    with pytest.raises(InputError, match="'ViTImageProcessor'; must be 'BeitImageProcessor'"):
        ImageProcessor.from_pretrained(tmp_path)
    edge = "must be height and width, or shortest_edge, in whole pixels"
    for entries, message in [
        ({"size": {"longest_edge": 5}}, edge),
        ({"size": 0}, edge),
        ({"size": 22.4}, edge),
        ({"size": [1, 2, 3]}, edge),
        ({"crop_size": {"shortest_edge": 5}}, "crop_size is .*; must be height and width, in"),
        ({"resample": 99}, "resample is 99; 3, for one"),
        ({"resample": "bicubic"}, "resample is 'bicubic'; 3, for one, is bicubic"),
        ({"image_mean": [0.5, 0.5]}, "image_mean and image_std are of 2 and 3 channels"),
        ({"image_mean": "abc"}, "image_mean is .* numbers"),
        ({"image_std": 0}, "image_std is .* above 0"),
        ({"do_resize": "false"}, "ImageProcessor.do_resize should be bool, not 'false'"),
        ({"do_normalize": 1}, "ImageProcessor.do_normalize should be bool, not 1"),
        ({"rescale_factor": "0.0039"}, "ImageProcessor.rescale_factor should be float, not '0.0039'"),
        ({"ignore_label": "0"}, "ImageProcessor.ignore_label should be int . None, not '0'"),
        ({"label_values": [0, 1]}, "ImageProcessor.label_values should be .*, not .0, 1."),
    ]:
        file.write_text(json.dumps(entries))
        with pytest.raises(InputError, match=rf"preprocessor_config\.json: .*{message}") as caught:
            ImageProcessor.from_pretrained(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}: ")


def test_a_palette_of_greys_that_are_not_its_numbers():
    """As programs write grey files to save space: its numbers are no classes. A palette of colours has greys too."""
    mask = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    mask.putpalette([0, 0, 0, 7, 7, 7, 15, 15, 15])
    with pytest.raises(InputError, match="a palette of greys other than its numbers, such as 15 for number 2"):
        load_mask(mask)
    mask.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert load_mask(mask).tolist() == [[0, 1, 2]]
    mask.putpalette([0, 0, 0, 120, 120, 120, 230, 230, 230, 6, 51, 255])
    assert load_mask(mask).tolist() == [[0, 1, 2]]
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    assert load_mask(mask).tolist() == [[0, 1, 2]]
    mask = Image.fromarray(np.array([[0, 1, 1]], np.uint8), "P")
    mask.putpalette([0, 0, 0, 255, 255, 255])
    assert load_mask(mask).tolist() == [[0, 1, 1]]
