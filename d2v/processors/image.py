"""Image files to batches of pixels, and masks to labels; of PyTorch only where its tensors are asked for.

Shapes: B batch, H and W height and width in pixels.
"""

import io
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from d2v.errors import InputError
from d2v.hub import fetch_file, naming, of_lfs, read_json, write_json
from d2v.models.configuration import check_types

ImageSource = str | os.PathLike | bytes | dict[str, Any] | Image.Image
# Of Pillow's formats those in use; others are rare, and to read EPS, which is a program, it would run Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
# What Hugging Face has called its BEiT processor over the years.
KINDS = ("BeitImageProcessor", "BeitImageProcessorFast", "BeitFeatureExtractor")
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
IGNORED = 255  # the label that Hugging Face's losses leave out (`semantic_loss_ignore_index`), and so do ours


def load_image(source: ImageSource, channels: int = 3) -> Image.Image:
    """Decode an image file to 8 bits: RGB, or as many channels as a model takes.

    Args:
        source: a path, the bytes of a file, the `{"bytes", "path"}` of `datasets.Image(decode=False)`, or an image.
        channels: 3 for RGB, 1 for grey; other numbers are the file's own channels, such as 4 of RGBA.

    Returns:
        The image, turned upright by its EXIF data, which leave their `orientation` in its `info`. Transparency is
        dropped, as is usual in this field: the colours that it hides become visible. 16-bit pixels keep their upper 8
        bits; grey ones that are all below 256 are taken to be of 8 bits, and below 4096 of 12, which leaves the number
        as `bits` in `info`. Of an animation the first picture counts. A file that is missing, not an image, damaged,
        cut off, suspiciously large, or of other channels is an InputError.
    """
    name, image = _open(source)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 255; of 16-bit colour it takes `>> 8` too
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() >= 2**16:
            raise InputError(f"{name}: grey values from {grey.min()} to {grey.max()}; must be of 8 or 16 bits")
        bits = 8 if grey.max() < 2**8 else 12 if grey.max() < 2**12 else 16  # X-rays of 12 bits are stored in 16
        info = image.info | ({"bits": bits} if bits < 16 else {})
        image = Image.fromarray((grey >> (bits - 8)).astype(np.uint8))
        image.info = info
    elif image.mode == "F":
        raise InputError(f"{name}: has floating-point pixels; must be of 8 or 16 bits")
    if channels in (1, 3):
        image.info.pop("transparency", None)  # else Pillow warns that it drops it
        return image.convert("RGB" if channels == 3 else "L")
    if image.mode == "P":
        image = image.convert("RGBA")
    bands = image.getbands()
    if len(bands) != channels:
        raise InputError(
            f"{name}: has {len(bands)} channels, {''.join(bands)}; the model takes {channels} (num_channels)"
        )
    return image


def load_mask(source: ImageSource | np.ndarray) -> np.ndarray:
    """Decode a file of class numbers, one a pixel: grey of 8 or 16 bits, or a palette, whose colours do not matter.

    Grey may be written as red, green and blue that are equal.

    Args:
        source: as for `load_image`, or an array, which is only checked.

    Returns:
        (H, W) int64. Colours, alpha, fractions and JPEG are an InputError, and so is all that is in `load_image`.
    """
    name, mask = ("mask", source) if isinstance(source, np.ndarray) else _open(source)
    if "JPEG" in (getattr(mask, "format", None), getattr(source, "format", None)):
        raise InputError(f"{name}: is a JPEG, whose compression changes class numbers; a label map is written as PNG")
    if isinstance(mask, Image.Image) and mask.mode in ("RGB", "RGBA"):
        red, *others = mask.split()
        opaque = len(others) == 2 or others.pop().getextrema() == (255, 255)
        mask = red if opaque and all(band.tobytes() == red.tobytes() for band in others) else mask
    if isinstance(mask, Image.Image) and mask.mode == "P":
        check_palette(mask, name)
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise InputError(
            f"{name}: pixels of shape {mask.shape} and type {mask.dtype}; a mask is (height, width) class numbers, "
            "written as a grey or palette PNG"
        )
    return mask.astype(np.int64)


def check_palette(mask: Image.Image, name: str) -> None:
    """Raise InputError for a palette of nothing but greys that are not its numbers: a grey file, made smaller.

    Which of the two are the classes cannot be told, but for black and white, which show a class and its background.
    """
    colours = np.array(mask.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    used = np.unique(np.asarray(mask))
    used = used[(used > 0) & (used < len(colours))]
    greys = colours[used, 0]
    if len(used) > 1 and (colours == colours[:, :1]).all() and (greys != used).any():
        raise InputError(
            f"{name}: a palette of greys other than its numbers, such as {greys[-1]} for number {used[-1]}; should be "
            "grey with the numbers of classes, or a palette of colours"
        )


def reduce_labels(mask: np.ndarray) -> np.ndarray:
    """Make class 0, "other" in ADE20K, the ignored label and class 1 the first; what is ignored stays so. (H, W)."""
    if (largest := mask.max(initial=0)) > IGNORED:
        raise InputError(f"a mask has label {largest}; with do_reduce_labels labels are 0 to {IGNORED}")
    return np.where((mask == 0) | (mask == IGNORED), IGNORED, mask - 1)


def turn(mask: np.ndarray, orientation: int) -> np.ndarray:
    """A mask, (H, W), turned as EXIF data of this orientation turn an image."""
    image = Image.fromarray(mask.astype(np.int32))
    image.getexif()[ORIENTATION] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image).astype(mask.dtype)


def orientation_of(source: ImageSource | np.ndarray) -> int:
    """The orientation by the EXIF data of an image that can be opened; 1 is upright."""
    return 1 if isinstance(source, np.ndarray) else _open(source)[1].info.get("orientation", 1)


def _open(source: ImageSource) -> tuple[str, Image.Image]:
    """The name for messages and a copy of the image, upright, in the file's own mode."""
    name, image = ("image", source.copy()) if isinstance(source, Image.Image) else _decode(source)
    with suppress(Exception):  # damaged EXIF data turn nothing; the pixels are as good as without
        orientation = image.getexif().get(ORIENTATION, 1)
        ImageOps.exif_transpose(image, in_place=True)
        if orientation in range(2, 9):
            image.info["orientation"] = orientation
    return name, image


def _decode(source: str | os.PathLike | bytes | dict[str, Any]) -> tuple[str, Image.Image]:
    """The name for messages and the image as it is in the file."""
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
    else:
        data, path = (source, None) if isinstance(source, bytes) else (None, source)
    name = "<bytes>" if path is None else f"{path!s:.200}"
    try:
        there = data is not None or (isinstance(path, str | os.PathLike) and Path(path).is_file())
    except (OSError, ValueError):  # too long for a path, or with a null character
        there = False
    if not there:
        raise InputError(f"{name}: no such file; an image is a file's path or its bytes")
    try:
        data = Path(path or "").read_bytes() if data is None else data
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InputError(f"{name}: not readable as an image, use {known}{of_lfs(data or b'')}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: its header claims too many pixels to be opened safely ({error})") from error
    except Exception as error:  # nearly anything can come of a damaged file
        raise InputError(f"{name}: damaged or cut-off image ({error})") from error
    return name, image


def _as_size(name: str, value: Any, *keys: set[str]) -> dict[str, int]:
    """A size in its present form; older files have a number, for a square, or a pair of height and width."""
    if isinstance(value, int):
        value = (value, value)
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    numbers = value.values() if isinstance(value, dict) and set(value) in keys else [0]
    if any(type(n) is not int or n < 1 for n in numbers):
        wanted = ", or ".join(" and ".join(sorted(names)) for names in keys)
        raise InputError(f"preprocessor_config.json: {name} is {value!r}; must be {wanted}, in whole pixels")
    return dict(value)


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    """One array of several, which must be equally large."""
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) != 1:
        raise InputError(
            f"images of a batch must have one size, these have {shapes[:3] or 'none'}; a size of height and width, "
            "or do_center_crop, makes them equal"
        )
    return np.stack(arrays)


@dataclass
class ImageProcessor:
    """Images to a batch; the fields are those of Hugging Face's `BeitImageProcessor`, which is data2vec's too.

    Its Pillow backend gives the same pixels to the last bit; its torchvision backend resizes with other rounding.
    The defaults are the released checkpoints': resized to a square whatever the proportions, nothing cropped.

    Attributes:
        do_resize: resize images to `size`, with the filter `resample`; masks by the nearest pixel.
        size: in pixels, of "height" and "width"; or of the "shortest_edge", which keeps the proportions.
        resample: Pillow's number of the filter; 3 is bicubic.
        do_center_crop: cut the middle out, or pad what is smaller, with black and the ignored label.
        crop_size: "height" and "width" in pixels.
        do_rescale: multiply the values, 0 to 255, by `rescale_factor`.
        rescale_factor: 1 / 255 makes them 0 to 1.
        do_normalize: subtract `image_mean`, then divide by `image_std`.
        image_mean, image_std: of each channel, such as red, green and blue, after rescaling.
        do_reduce_labels: `reduce_labels` on masks.
        ignore_label: further label of masks that is ignored, besides 255; d2v's own, as is the next.
        label_values: what masks have for each class, value -> class; other values are an error. By default classes.
    """

    do_resize: bool = True
    size: dict[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    resample: int = 3
    do_center_crop: bool = False
    crop_size: dict[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    image_std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    do_reduce_labels: bool = False
    ignore_label: int | None = None
    label_values: dict[str, int] | None = None

    def __post_init__(self):
        self.size = _as_size("size", self.size, {"height", "width"}, {"shortest_edge"})
        self.crop_size = _as_size("crop_size", self.crop_size, {"height", "width"})
        if self.resample not in list(Image.Resampling):
            raise InputError(
                f"preprocessor_config.json: resample is {self.resample!r}; 3, for one, is bicubic in Pillow"
            )
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            value = [value] * 3 if isinstance(value, int | float) else list(value)
            numbers = all(isinstance(n, int | float) for n in value)
            if not value or not numbers or (name == "image_std" and min(value) <= 0):
                raise InputError(f"preprocessor_config.json: {name} is {value}; must be numbers, of std above 0")
            setattr(self, name, value)
        if len(self.image_mean) != len(self.image_std):
            sizes = f"{len(self.image_mean)} and {len(self.image_std)}"
            raise InputError(
                f"preprocessor_config.json: image_mean and image_std are of {sizes} channels; must be of as many"
            )
        with naming("preprocessor_config.json"):
            check_types(self)

    @property
    def channels(self) -> int:
        """How many channels images have."""
        return len(self.image_mean)

    def __call__(
        self,
        images: Sequence[ImageSource],
        segmentation_maps: list[ImageSource | np.ndarray] | None = None,
        return_tensors: str = "pt",
    ) -> dict[str, Any]:
        """Resize, crop, rescale and normalise each image; resize and crop each mask with its image.

        Args:
            images: B images, as `load_image` takes them.
            segmentation_maps: a mask an image, as `load_mask` takes them, each of its image's size.
            return_tensors: "pt" for tensors of PyTorch, "np" for arrays, which Keras takes on every backend.

        Returns:
            `pixel_values` (B, channels, H, W) float32; with masks also `labels` (B, H, W) int64.
        """
        if return_tensors not in ("pt", "np"):
            raise InputError(f'return_tensors is {return_tensors!r}; must be "pt", or "np" for arrays, as Keras takes')
        decoded = [load_image(image, self.channels) for image in images]
        batch = {"pixel_values": _stack([self._pixels(image) for image in decoded])}
        if segmentation_maps is not None:
            labels = []
            for i, (source, image) in enumerate(zip(segmentation_maps, decoded, strict=True)):
                mask = load_mask(source)
                if mask.shape != (image.height, image.width):
                    raise InputError(f"mask {i} has shape {mask.shape}; its image has {(image.height, image.width)}")
                labels.append(self._labels(mask))
            batch["labels"] = _stack(labels)
        if return_tensors == "np":
            return batch
        import torch

        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _pixels(self, image: Image.Image) -> np.ndarray:
        if image.mode == "RGB":
            bands = self._fit(image, self.resample, 0).transpose(2, 0, 1)  # (3, H, W) uint8
        else:  # one by one, since Pillow would weigh colours by the fourth band
            bands = np.stack([self._fit(band, self.resample, 0) for band in image.split()])
        # A pixel has one of 256 values, so they are computed once and looked up; rounded on the way where Hugging Face
        # rounds, to be equal to the last bit.
        values = np.arange(256) * (self.rescale_factor if self.do_rescale else 1)
        values = np.tile(values.astype(np.float32), (self.channels, 1))  # (channels, 256)
        if self.do_normalize:
            mean, std = (np.array(value, np.float32)[:, None] for value in (self.image_mean, self.image_std))
            values = (values - mean) / std
        return np.stack([row[band] for row, band in zip(values, bands, strict=True)])

    def _labels(self, mask: np.ndarray) -> np.ndarray:
        if self.do_reduce_labels:
            mask = reduce_labels(mask)
        image = Image.fromarray(mask.astype(np.int32))
        # Hugging Face resizes masks with the images' filter, which on the border of two classes writes the numbers
        # between them, and pads with class 0.
        return self._fit(image, Image.Resampling.NEAREST, IGNORED).astype(np.int64)

    def _fit(self, image: Image.Image, resample: int, padding: int) -> np.ndarray:
        """Resize and crop an image or mask of any mode."""
        if self.do_resize:
            if edge := self.size.get("shortest_edge"):
                width, height = (int(edge * n / min(image.size)) for n in image.size)
            else:
                width, height = self.size["width"], self.size["height"]
            image = image.resize((width, height), resample)
        if self.do_center_crop:
            width, height = self.crop_size["width"], self.crop_size["height"]
            cropped = Image.new(image.mode, (width, height), padding)
            cropped.paste(image, (-((image.width - width) // 2), -((image.height - height) // 2)))
            image = cropped
        return np.asarray(image)

    @classmethod
    def for_model(cls, source: str | Path | None) -> "ImageProcessor":
        """That of a checkpoint to train or to use, or data2vec's for a new model."""
        return cls.from_pretrained(source) if source else cls()

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "ImageProcessor":
        """From `processor_config.json` or `preprocessor_config.json` of a folder or hub repository."""
        entries = None
        if path := fetch_file(source, "processor_config.json"):
            entries = read_json(path).get("image_processor")
        if entries is None:
            if not (path := fetch_file(source, "preprocessor_config.json")):
                raise InputError(
                    f"{source}: no preprocessor_config.json, nor processor_config.json with image_processor"
                )
            entries = read_json(path)
        kind = entries.get("image_processor_type") or entries.get("feature_extractor_type", "BeitImageProcessor")
        if kind not in KINDS:
            raise InputError(f"{path}: image_processor_type is {kind!r}; must be 'BeitImageProcessor'")
        if "reduce_labels" in entries:  # the older name
            entries = {"do_reduce_labels": entries["reduce_labels"]} | entries
        with naming(source):
            return cls(**{f.name: entries[f.name] for f in fields(cls) if entries.get(f.name) is not None})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        own = {"ignore_label", "label_values"}  # not in Hugging Face's, and so only written where they say something
        kept = {key: value for key, value in asdict(self).items() if key not in own or value is not None}
        entries = {"image_processor_type": "BeitImageProcessor"} | kept
        write_json(Path(folder) / "preprocessor_config.json", entries)
