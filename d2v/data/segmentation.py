"""Images with a class for each pixel: reading them, and augmenting both together.

Shapes: H and W height and width in pixels.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d2v.config import Data, Job, at_least
from d2v.data.image import fit_processor, read_image, seeded
from d2v.data.load import read
from d2v.data.rows import Rows, Split
from d2v.errors import InputError
from d2v.pretrained import read_json
from d2v.processors.image import IGNORED, ImageProcessor, ImageSource, load_mask, reduce_labels

if TYPE_CHECKING:
    from datasets import Dataset

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


@dataclass
class SegmentationData(Data):
    """The data; without a path the embedded demo.

    Attributes:
        image_column: column of the images, as `datasets` stores them, or of their paths.
        mask_column: column of the label maps, images or paths; grey or with a palette, each of its image's size.
        names: names of the classes, in order; by default those of id2label.json beside the data, whose numbers begin at
            0, with reduce_labels too; it may have the ignored label.
        ignore_label: label of pixels that are neither trained on nor scored; 255 is ignored too.
        reduce_labels: ignore label 0 and make 1 the first class, as in ADE20K.
        size: length of the shorter side that images are first resized to, in pixels; by default they keep their size.
        scale: smallest and largest random factor that training images are resized by.
        crop: height and width of the random crops of training, in pixels; smaller images are padded.
        cat_max_ratio: largest share of a crop that one class should have; after ten tries any crop is taken.
        flip: mirror half of the training images.
        photometric: distort brightness, contrast, saturation and hue in training.
        window: side of the windows that slide over an image in evaluation, in pixels; by default one window is
            the whole image.
        stride: pixels from one window to the next.
    """

    unit: ClassVar[str] = "images"

    image_column: str = "image"
    mask_column: str = "annotation"
    names: list[str] | None = None
    ignore_label: int = IGNORED
    reduce_labels: bool = False
    size: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    crop: tuple[int, int] = (512, 512)
    cat_max_ratio: float = 0.75
    flip: bool = True
    photometric: bool = True
    window: int | None = None
    stride: int | None = None

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "data", self, ("size", "window", "stride"))
        if min(self.crop) < 1:
            raise InputError(f"data.crop should be a height and a width of 1 or more, not {list(self.crop)}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"data.scale should be two factors, the smaller one first, not {list(self.scale)}")
        if (self.window is None) != (self.stride is None) or (self.window or 0) < (self.stride or 0):
            raise InputError("data.window and data.stride go together, the stride no longer than the window")


def read_pairs(data: SegmentationData) -> dict[str, "Dataset"]:
    """All splits of a source; a folder with `images/<split>/x.jpg` and `annotations/<split>/x.png` is read here.

    That is how ADE20K comes. Anything else is read by `d2v.data.load.read`.

    Raises:
        InputError: an image has no label map, or as in `read`.
    """
    import datasets

    images, masks = (Path(data.path or "", name) for name in ("images", "annotations"))
    if not (images.is_dir() and masks.is_dir()):
        return read(data)
    splits = {}
    for folder in sorted(path for path in images.iterdir() if path.is_dir()):
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
        pairs = [(file, masks / file.relative_to(images).with_suffix(".png")) for file in files]
        if lacking := [mask for _, mask in pairs if not mask.is_file()]:
            raise InputError(f"{lacking[0]}: no such file; each image needs its label map")
        columns = {
            data.image_column: [str(image) for image, _ in pairs],
            data.mask_column: [str(mask) for _, mask in pairs],
        }
        splits[folder.name] = datasets.Dataset.from_dict(columns)
    if not splits:
        raise InputError(f"{images}: no folder; should have one for each split, such as training")
    return splits


def class_names(data: SegmentationData, arch: dict[str, Any]) -> list[str]:
    """The classes in order: `data.names`, or id2label.json beside the data, or `arch.num_labels` without names.

    Raises:
        InputError: there is none of them, the file's numbers have gaps, or there are too few or too many classes.
    """
    file = Path(data.path or "") / "id2label.json"
    names = data.names
    if names is None and file.is_file():
        named = {i: name for i, name in read_json(file).items() if i != str(data.ignore_label)}
        if set(named) != {str(i) for i in range(len(named))}:
            raise InputError(f"{file}: should name the classes from 0 on without a gap, not {', '.join(named)}")
        names = [named[str(i)] for i in range(len(named))]
    elif names is None and "num_labels" in arch:
        names = [f"LABEL_{i}" for i in range(arch["num_labels"])]
    elif names is None:
        raise InputError(
            f"no names of classes: {file} (as {{'0': 'sky', ...}}), data.names or arch.num_labels is needed"
        )
    if not 2 <= len(set(names)) == len(names) <= IGNORED:
        raise InputError(f"{len(names)} classes, {len(set(names))} names; should be 2 to {IGNORED}, each with its own")
    return names


def segmentation_head(job: Job, demo: list[str]) -> dict[str, Any]:
    """The fields of a model's configuration that give it a head for the classes: those of `class_names`, or the demo's.

    Args:
        job: whose data have the options of `SegmentationData`.
        demo: names of the demo's classes.
    """
    data: SegmentationData = job.config.data
    names = class_names(data, job.config.arch) if data.path else demo
    return {"id2label": dict(enumerate(names)), "semantic_loss_ignore_index": IGNORED}


def read_mask(value: ImageSource, where: str, size: tuple[int, int], data: SegmentationData, classes: int) -> Tensor:
    """Decode a label map, (H, W) uint8: class numbers, `IGNORED` where nothing counts.

    Args:
        value: as `load_mask` takes it.
        where: what to call it in messages, such as "train, row 3".
        size: width and height of its image.
        data: which labels count for nothing.
        classes: how many there are.

    Raises:
        InputError: it cannot be read, has another size than its image, or a label that is no class.
    """
    try:
        mask = load_mask(value)
        labels = reduce_labels(mask) if data.reduce_labels else mask
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if mask.shape != size[::-1]:
        raise InputError(f"{where}: the label map has {mask.shape[::-1]} pixels, its image {size}; should be the same")
    ignored = (labels == IGNORED) | (mask == data.ignore_label)
    if (wrong := mask[~ignored & ((labels < 0) | (labels >= classes))]).size:
        first = int(data.reduce_labels)
        valid = f"{first} to {first + classes - 1}, or {data.ignore_label} where nothing counts"
        raise InputError(f"{where}: label {wrong[0]} is not one of the {classes} classes, {valid} (data.ignore_label)")
    return torch.from_numpy(np.where(ignored, IGNORED, labels).astype(np.uint8))


def segmentation_rows(job: Job, split: Split, classes: int) -> Rows:
    """The rows of a split; what is scored is decoded once before, train only as it comes up.

    Args:
        job: whose data have the options of `SegmentationData`.
        split: from `d2v.data.load.load`.
        classes: how many there are.
    """
    data: SegmentationData = job.config.data
    columns = [data.image_column, *([data.mask_column] if job.labelled else [])]
    for i, row in enumerate(split.iterate(columns) if split.name != "train" else ()):
        image = read_image(row[data.image_column], split.where(i))
        if job.labelled:
            read_mask(row[data.mask_column], split.where(i), image.size, data, classes)
    return Rows(split, split.ids(data.image_column), [1] * len(split))


def segmentation_processor(job: Job, patch: tuple[int, int]) -> ImageProcessor:
    """The processor of the run's model, or a new one, that makes images of the size of the crops.

    Args:
        job: whose data have the options of `SegmentationData`.
        patch: height and width of the model's patches in pixels.

    Raises:
        InputError: in training, the crops are not whole patches.
    """
    data: SegmentationData = job.config.data
    sizes = zip(data.crop, patch, strict=True)
    if job.training and any(side % least or side < 2 * least for side, least in sizes):
        raise InputError(f"data.crop {list(data.crop)} should be whole patches of {list(patch)}, two or more a side")
    source = job.config.model
    processor = ImageProcessor.from_pretrained(source) if source else ImageProcessor()
    return replace(fit_processor(processor, data.crop, crop_ratio=0), do_reduce_labels=data.reduce_labels)


def file_names(pictures: list[str]) -> list[str]:
    """Names for files of each picture's own: the picture's without folder and ending, numbered where two are equal."""
    stems = [Path(name).stem if Path(name).suffix.lower() in PICTURES else Path(name).name for name in pictures]
    return stems if len(set(stems)) == len(stems) else [f"{i:06d}_{stem}" for i, stem in enumerate(stems)]


def to_tensor(image: Image.Image, size: int | None) -> Tensor:
    """(3, H, W) uint8, the shorter side resized to `size` if there is one."""
    from torchvision.transforms.v2 import functional

    pixels = functional.pil_to_tensor(image)
    return pixels if size is None else functional.resize(pixels, [size])


def read_example(row: dict[str, Any], data: SegmentationData, classes: int | None) -> tuple[Image.Image, Tensor | None]:
    """The image of a row, and its label map as `read_mask` makes it.

    Args:
        row: of `segmentation_rows`.
        data: the columns, and which labels are ignored.
        classes: how many there are; None for rows without label maps.
    """
    image = read_image(row[data.image_column], row["where"])
    if classes is None:
        return image, None
    return image, read_mask(row[data.mask_column], row["where"], image.size, data, classes)


def random_crop(
    row: dict[str, Any], data: SegmentationData, processor: ImageProcessor, classes: int
) -> tuple[Tensor, Tensor]:
    """What a model is trained on of a row: pixels (3, H, W), normalised, and labels (H, W) int64, `data.crop` large.

    Args:
        row: of `segmentation_rows`, with its `seed`.
        data: augmentation, and what `read_mask` takes.
        processor: its mean and deviation.
        classes: how many there are.
    """
    image = read_image(row[data.image_column], row["where"])
    mask = read_mask(row[data.mask_column], row["where"], image.size, data, classes)
    pixels, labels = augment(to_tensor(image, data.size), mask, data, row["seed"])
    return pad(normalise(pixels, processor), data.crop, 0), pad(labels, data.crop, IGNORED).long()


def normalise(pixels: Tensor, processor: ImageProcessor) -> Tensor:
    """(3, H, W) uint8 as a model takes it, by the mean and deviation of each channel."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (pixels / 255 - mean) / std


def to_pixels(image: Image.Image, data: SegmentationData, processor: ImageProcessor) -> Tensor:
    """An image as a model takes it in evaluation, (3, H, W): its shorter side `data.size`, normalised."""
    return normalise(to_tensor(image, data.size), processor)


def augment(image: Tensor, mask: Tensor, data: SegmentationData, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What training sees of an image: resized, cropped, mirrored, distorted, as mmsegmentation does for UPerNet.

    Args:
        image: (3, H, W) uint8, as `to_tensor` makes it.
        mask: (h, w) uint8 class numbers, of the image's proportions.
        data: how much of each.
        seed: of what is random, see `d2v.data.loaders`.

    Returns:
        Image and mask, `data.crop` large or smaller.
    """
    from torchvision.transforms import v2
    from torchvision.tv_tensors import Image, Mask

    with seeded(seed):
        factor = float(torch.empty(()).uniform_(*data.scale))
        size = [max(1, round(factor * side)) for side in image.shape[1:]]
        image, mask = v2.functional.resize(Image(image), size), v2.functional.resize(Mask(mask), size)
        image, mask = crop(image, mask, data.crop, data.cat_max_ratio)
        if data.flip:
            image, mask = v2.RandomHorizontalFlip()(image, mask)
        if data.photometric:
            # mmsegmentation's ranges: 32 of 255, 0.5, 0.5, 18 of 180. RandomPhotometricDistort would swap colours too.
            for change in ({"brightness": 32 / 255}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 0.1}):
                image = v2.RandomApply([v2.ColorJitter(**change)])(image)
    return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def crop(image: Tensor, mask: Tensor, size: tuple[int, int], cat_max_ratio: float) -> tuple[Tensor, Tensor]:
    """A random part of both, of up to ten the first in which no class has this share of the pixels."""
    from torchvision.transforms.v2 import functional

    height, width = (min(pair) for pair in zip(size, mask.shape, strict=True))
    for _ in range(10):
        top, left = (int(torch.randint(room + 1, ())) for room in (mask.shape[0] - height, mask.shape[1] - width))
        part = functional.crop(mask, top, left, height, width)
        counts = torch.bincount(part.flatten(), minlength=IGNORED + 1)[:IGNORED]
        if counts.max() < cat_max_ratio * counts.sum():
            break
    return functional.crop(image, top, left, height, width), part


def pad(x: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """(..., H, W), filled up to `size` at the right and the bottom."""
    return torch.nn.functional.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]), value=value)
