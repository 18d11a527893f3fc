"""Images with a class for each pixel: reading them, and augmenting both together.

Shapes: H and W height and width in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d2v.config import Data, Job, at_least
from d2v.data.class_names import Match
from d2v.data.facts import Decoded, note, shorten
from d2v.data.files import PICTURES
from d2v.data.image import fit_processor, seeded, taken_bits
from d2v.data.labels import match_classes
from d2v.data.rows import decode_rows
from d2v.errors import InputError
from d2v.hub import read_json
from d2v.models.configuration import Data2VecVisionConfig, sides
from d2v.processors.image import (
    IGNORED,
    ImageProcessor,
    ImageSource,
    load_image,
    load_mask,
    orientation_of,
    reduce_labels,
    turn,
)

Remark = tuple[str, str]
"""What is odd about a label map: the fact, and the detail."""


@dataclass
class SegmentationData(Data):
    """The data; without a path the embedded demo.

    Attributes:
        image_column: column of the images, as `datasets` stores them, or of their paths.
        mask_column: column of the label maps, images or paths; grey or with a palette, each of its image's size.
        names: names of the classes, in order; by default those of id2label.json beside the data, whose numbers begin at
            0, with reduce_labels too; it may have the ignored label.
        ignore_label: label of pixels that are neither trained on nor scored; 255 is ignored too. By default as the
            model's processor says, and none for a new model.
        reduce_labels: ignore label 0 and make 1 the first class, as in ADE20K; by default as the model's processor has
            it.
        values: class of each value in the label maps, by number or name, or null to ignore it, such as {0: sky, 255:
            sea}; by default as the model's processor says, and values are numbers of classes for a new model.
        match: how the classes of data that name them are a given model's: by name; or by number, whatever they are
            called, or order, which is the same for label maps.
        size: length of the shorter side that images are first resized to, in pixels; by default they keep their size.
        scale: smallest and largest random factor that training images are resized by.
        crop: height and width of the random crops of training, in pixels; smaller images are padded.
        cat_max_ratio: largest share of a crop that one class should have; after ten tries any crop is taken.
        flip: mirror half of the training images.
        photometric: distort brightness, contrast, saturation and hue of grey and RGB images in training.
        window: side of the windows that slide over an image in evaluation, in pixels; by default one window is
            the whole image.
        stride: pixels from one window to the next.
    """

    modality: ClassVar[str] = "vision"
    unit: ClassVar[str] = "images"

    image_column: str = "image"
    mask_column: str = "annotation"
    names: list[str] | None = None
    ignore_label: int | None = None
    reduce_labels: bool | None = None
    values: dict[int, int | str | None] | None = None
    match: Match = "name"
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
        at_least(0, "data", self, ("ignore_label",))
        if self.values and min(self.values) < 0:
            raise InputError(f"data.values should have values of 0 or more, as label maps have, not {min(self.values)}")
        if self.values and (self.reduce_labels or self.ignore_label is not None):
            raise InputError(
                "data.values says all; data.reduce_labels and data.ignore_label should not be given with it"
            )
        if min(self.crop) < 1:
            raise InputError(f"data.crop should be a height and a width of 1 or more, not {list(self.crop)}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"data.scale should be two factors, the smaller one first, not {list(self.scale)}")
        if (self.window is None) != (self.stride is None) or (self.window or 0) < (self.stride or 0):
            raise InputError("data.window and data.stride go together, the stride no longer than the window")


def class_names(data: SegmentationData, arch: dict[str, Any]) -> list[str]:
    """The classes in order: `data.names`, or id2label.json beside the data, or `arch.num_labels` without names.

    Raises:
        InputError: there is none of them, the file's numbers have gaps, or there are too few or too many classes.
    """
    names = names_beside(data)
    if names is None and "num_labels" in arch:
        names = [f"LABEL_{i}" for i in range(arch["num_labels"])]
    elif names is None:
        file = Path(data.path or "") / "id2label.json"
        raise InputError(
            f"no names of classes: {file} (as {{'0': 'sky', ...}}), data.names or arch.num_labels is needed"
        )
    if not 2 <= len(set(names)) == len(names) <= IGNORED:
        raise InputError(f"{len(names)} classes, {len(set(names))} names; should be 2 to {IGNORED}, each with its own")
    return names


def names_beside(data: SegmentationData) -> list[str] | None:
    """The classes in order as the data name them, by `data.names` or id2label.json; None where they do not."""
    file = Path(data.path or "") / "id2label.json"
    if data.names is not None or data.path is None or not file.is_file():
        return data.names
    named = {i: name for i, name in read_json(file).items() if i not in (str(IGNORED), str(data.ignore_label))}
    if set(named) != {str(i) for i in range(len(named))}:
        zero = "; data.reduce_labels is for label maps whose 0 counts for nothing" if data.ignore_label == 0 else ""
        raise InputError(f"{file}: should name the classes from 0 on without a gap, not {', '.join(named)}{zero}")
    return [named[str(i)] for i in range(len(named))]


def segmentation_head(job: Job, demo: list[str]) -> dict[str, Any]:
    """The fields of a model's configuration that give it a head for the classes: those of `class_names`, or the demo's.

    Args:
        job: whose data have the options of `SegmentationData`; but for training a model keeps its head.
        demo: names of the demo's classes.
    """
    if not job.training:
        return {}
    data: SegmentationData = job.config.data
    names = class_names(data, job.config.arch) if data.path else demo
    return {"id2label": dict(enumerate(names)), "semantic_loss_ignore_index": IGNORED}


def read_mask(
    value: ImageSource, image: Image.Image, processor: ImageProcessor, classes: int
) -> tuple[Tensor, list[Remark]]:
    """Decode a label map, (H, W) uint8: class numbers, `IGNORED` where nothing counts; and what is odd about it.

    Args:
        value: as `load_mask` takes it.
        image: that it belongs to, from `load_image`.
        processor: says what the values mean, see `segmentation_processor`.
        classes: how many there are.

    Raises:
        InputError: it cannot be read, has another size than its image, or a label that is no class.
    """
    mask, remarks = load_mask(value), []
    turned = image.info.get("orientation", 1)
    if turned != 1 and orientation_of(value) == 1:
        if mask.shape != image.size[::-1] and mask.shape == image.size:
            mask = turn(mask, turned)
            remarks.append(("label map turned with its photo", f"EXIF orientation {turned}"))
        else:
            remarks.append(("photo turned by EXIF data, its label map is not", f"orientation {turned}"))
    if mask.shape != image.size[::-1]:
        sizes = f"{mask.shape[::-1]} pixels, its image {image.size}"
        raise InputError(f"the label map has {sizes}; should be the same")
    labels, ignored = to_classes(mask, processor, classes)
    if not processor.label_values and np.array_equal(np.unique(mask), [0, IGNORED]) and not processor.do_reduce_labels:
        advice = "255 is ignored; --data.values '{0: 0, 255: 1}' makes it a class"
        remarks.append(("label map of 0 and 255 alone", advice))
    elif ignored.all():
        remarks.append(("label map without a pixel that counts", "all are ignored"))
    return torch.from_numpy(np.where(ignored, IGNORED, labels).astype(np.uint8)), remarks


def to_classes(mask: np.ndarray, processor: ImageProcessor, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The class of each value of a label map, and where they are ignored, (H, W) both; see `read_mask`."""
    if values := processor.label_values:
        numbers = {int(value): number for value, number in values.items()}
        if unknown := sorted(set(np.unique(mask).tolist()) - numbers.keys()):
            known = ", ".join(map(str, numbers))
            raise InputError(f"value {unknown[0]} stands for no class of the model; these do: {known} (data.values)")
        table = np.full(max(numbers) + 1, IGNORED)
        table[list(numbers)] = list(numbers.values())
        labels = table[mask]
        return labels, labels == IGNORED
    labels = reduce_labels(mask) if processor.do_reduce_labels else mask
    ignored = labels == IGNORED
    if processor.ignore_label is not None:
        ignored |= mask == processor.ignore_label
    if (wrong := mask[~ignored & ((labels < 0) | (labels >= classes))]).size:
        first = int(processor.do_reduce_labels)
        nothing = IGNORED if processor.ignore_label is None else processor.ignore_label
        valid = f"{first} to {first + classes - 1}, or {nothing} where nothing counts (data.ignore_label)"
        raise InputError(
            f"label {wrong[0]} is not one of the {classes} classes, {valid}; data.values maps others to them"
        )
    return labels, ignored


def segmentation_processor(job: Job, settings: Data2VecVisionConfig) -> ImageProcessor:
    """The processor of the run's model, or a new one, that makes images of the size of the crops.

    It knows what the values of label maps mean: what the data's options say, or else what the model was trained with.

    Args:
        job: whose data have the options of `SegmentationData`.
        settings: the model's.

    Raises:
        InputError: in training, the crops are not whole patches; or `data.values` has a class that is none.
    """
    data: SegmentationData = job.config.data
    patch = sides(settings.patch_size)
    sizes = zip(data.crop, patch, strict=True)
    if job.training and any(side % least or side < 2 * least for side, least in sizes):
        raise InputError(f"data.crop {list(data.crop)} should be whole patches of {list(patch)}, two or more a side")
    source = job.config.model
    processor = ImageProcessor.for_model(source)
    processor = fit_processor(processor, data.crop, crop_ratio=0, channels=settings.num_channels)
    if data.values is not None:
        names = list(settings.id2label.values())
        given = {str(value): class_number(label, names) for value, label in data.values.items()}
        return replace(processor, do_reduce_labels=False, ignore_label=None, label_values=given)
    reduced = processor.do_reduce_labels if data.reduce_labels is None else data.reduce_labels
    ignored = processor.ignore_label if data.ignore_label is None else data.ignore_label
    values = processor.label_values if data.reduce_labels is None and data.ignore_label is None else None
    kept = {
        "label 0 is ignored and 1 is the first class (data.reduce_labels)": reduced and data.reduce_labels is None,
        f"label {ignored} is ignored (data.ignore_label)": ignored is not None and data.ignore_label is None,
        f"the values are {values} (data.values)": values is not None,
    }
    for what in (what for what, holds in kept.items() if holds and job.labelled):
        note(job, "label maps as the model's", f"label maps: {what}, as the model's processor has it")
    processor = replace(processor, do_reduce_labels=reduced, ignore_label=ignored, label_values=values)
    return processor if job.training or not job.labelled or values else by_name(job, processor, settings)


def by_name(job: Job, processor: ImageProcessor, settings: Data2VecVisionConfig) -> ImageProcessor:
    """The processor with the numbers of a given model's classes for those of data that name theirs, by `data.match`.

    Raises:
        InputError: no class of the data is one of the model's.
    """
    data: SegmentationData = job.config.data
    known, theirs = list(settings.id2label.values()), names_beside(data)
    if data.match != "name" or theirs is None or theirs == known:
        return processor
    numbers = match_classes("name", known, theirs)
    found = {name: numbers[name] for name in theirs if name in numbers}
    if not found:
        raise InputError(
            f"none of the data's classes, {shorten(theirs, 4)}, is one of the model's, {shorten(known, 4)}; "
            "--data.match number takes them as they are numbered, --data.values maps them"
        )
    first = int(processor.do_reduce_labels)
    values = {str(first + i): found[name] for i, name in enumerate(theirs) if name in found}
    ignored = {IGNORED, processor.ignore_label, 0 if first else None} - {None}
    unknown = [name for name in theirs if name not in found]
    line = f"classes: {len(found)} of {len(theirs)} are the model's, by name, under other numbers"
    line += f"; not the model's: {shorten(unknown, 4)}" if unknown else ""
    note(job, "classes by name", line, kept=len(found), of=len(theirs))
    values |= {str(value): IGNORED for value in ignored}
    return replace(processor, do_reduce_labels=False, ignore_label=None, label_values=values)


def class_number(value: int | str | None, names: list[str]) -> int:
    """The class that `data.values` has for a value, by number; `IGNORED` for none."""
    if value is None:
        return IGNORED
    if value in names:
        return names.index(str(value))
    if isinstance(value, int) and (0 <= value < len(names) or value == IGNORED):
        return value
    raise InputError(f"data.values: {value!r} is no class; there are {', '.join(names)}, or 0 to {len(names) - 1}")


def file_names(pictures: list[str]) -> list[str]:
    """Names for files of each picture's own: the picture's without folder and ending, numbered where two are equal."""
    stems = [Path(name).stem if Path(name).suffix.lower() in PICTURES else Path(name).name for name in pictures]
    return stems if len(set(stems)) == len(stems) else [f"{i:06d}_{stem}" for i, stem in enumerate(stems)]


def to_tensor(image: Image.Image, size: int | None) -> Tensor:
    """(3, H, W) uint8, the shorter side resized to `size` if there is one."""
    from torchvision.transforms.v2 import functional

    pixels = functional.pil_to_tensor(image)
    return pixels if size is None else functional.resize(pixels, [size])


def read_example(
    row: dict[str, Any], data: SegmentationData, processor: ImageProcessor, classes: int | None
) -> tuple[Image.Image, Tensor | None, list[Remark]]:
    """The image of a row, its label map as `read_mask` makes it, and what is odd about it.

    Args:
        row: of `picture_rows`.
        data: the columns.
        processor: of the model.
        classes: how many there are; None for rows without label maps.
    """
    image = load_image(row[data.image_column], processor.channels)
    if classes is None:
        return image, None, []
    return image, *read_mask(row[data.mask_column], image, processor, classes)


def load_examples(
    rows: list[dict[str, Any]], data: SegmentationData, processor: ImageProcessor, classes: int | None
) -> tuple[list[dict[str, Any]], list[Image.Image], list[Any], list[Decoded]]:
    """Decode the images and label maps of a batch: its rows, images, maps if there are any, and what was met."""
    decode = partial(read_example, data=data, processor=processor, classes=classes)
    rows, examples, decoded = decode_rows(rows, decode, data.bad_rows)
    for row, (*_, remarks) in zip(rows, examples, strict=True):
        place = row["where"].rpartition(", row ")[0]
        decoded += [(place, fact, f"{row['where']}: {detail}") for fact, detail in remarks]
    images = [image for image, *_ in examples]
    return rows, images, [mask for _, mask, _ in examples], decoded + taken_bits(rows, images)


def random_crops(
    images: Sequence[Image.Image],
    masks: Sequence[Tensor],
    seeds: Sequence[tuple[int, ...]],
    data: SegmentationData,
    processor: ImageProcessor,
) -> dict[str, Tensor]:
    """What a model is trained on of B images: `pixel_values` (B, C, H, W) and `labels` (B, H, W), of `random_crop`."""
    pairs = [random_crop(*each, data, processor) for each in zip(images, masks, seeds, strict=True)]
    pixels, labels = zip(*pairs, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.stack(labels)}


def random_crop(
    image: Image.Image, mask: Tensor, seed: tuple[int, ...], data: SegmentationData, processor: ImageProcessor
) -> tuple[Tensor, Tensor]:
    """What a model is trained on of an image: pixels (C, H, W), normalised, and labels (H, W) int64, `data.crop` large.

    Args:
        image, mask: from `load_examples`.
        seed: of the row.
        data: augmentation.
        processor: its mean and deviation.
    """
    pixels, labels = augment(to_tensor(image, data.size), mask, data, seed)
    return pad(normalise(pixels, processor), data.crop, 0), pad(labels, data.crop, IGNORED).long()


def normalise(pixels: Tensor, processor: ImageProcessor) -> Tensor:
    """(3, H, W) uint8 as a model takes it, as its processor scales them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    pixels = pixels / (1 / processor.rescale_factor) if processor.do_rescale else pixels.float()
    return (pixels - mean) / std if processor.do_normalize else pixels


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
        if data.photometric and image.shape[0] in (1, 3):
            # mmsegmentation's ranges: 32 of 255, 0.5, 0.5, 18 of 180; it adds brightness, which here is a factor, and
            # scales contrast about 0, here about the mean. RandomPhotometricDistort would swap colours too.
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
