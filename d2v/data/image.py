"""Images of a data set: reading them, their size, and the seed of each in training."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from d2v.config import Data, Job
from d2v.data.facts import Decoded
from d2v.data.labels import Labels
from d2v.data.rows import Rows, Split, check_rows, decode_rows
from d2v.data.streams import rows_of
from d2v.errors import InputError
from d2v.hub import read_json_value
from d2v.processors.image import ImageProcessor, ImageSource, load_image


@dataclass
class ImageData(Data):
    """Data with images.

    Attributes:
        image_column: column of the images, as `datasets` stores them, or of their paths.
        crop_ratio: share of the shorter side that the centre crop of evaluation has, 0.875 in BEiT; 0 resizes the whole
            image to the model's size. By default as the model's processor does it, and 0 for a new model.
    """

    modality: ClassVar[str] = "vision"
    unit: ClassVar[str] = "images"

    image_column: str = "image"
    crop_ratio: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.crop_ratio is not None and not 0 <= self.crop_ratio <= 1:
            raise InputError(f"data.crop_ratio should be 0 to 1, such as 0.875, not {self.crop_ratio:g}")


def read_image(value: ImageSource, where: str, channels: int = 3) -> Image.Image:
    """Decode an image as `load_image` does, to 8-bit RGB, upright, transparency dropped.

    Args:
        value: a path, the bytes of a file, the `{"bytes", "path"}` of `datasets.Image(decode=False)`, or an image.
        where: what to call it in messages, such as "train, row 3".
        channels: how many the model takes.
    """
    try:
        return load_image(value, channels)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def load_images(
    rows: list[dict[str, Any]], data: ImageData, channels: int
) -> tuple[list[dict[str, Any]], list[Image.Image], list[Decoded]]:
    """Decode the images of a batch, of so many channels; see `d2v.data.rows.decode_rows`."""
    decode = partial(load_row, column=data.image_column, channels=channels)
    rows, images, decoded = decode_rows(rows, decode, data.bad_rows)
    return rows, images, decoded + taken_bits(rows, images)


def taken_bits(rows: list[dict[str, Any]], images: list[Image.Image]) -> list[Decoded]:
    """For `decoded` of a batch: the images that were taken to be of fewer bits than they are stored in."""
    taken = [(row["where"], image.info.get("bits")) for row, image in zip(rows, images, strict=True)]
    fact = "16-bit grey taken to have {} bits, as its values do"
    return [(where.rpartition(", row ")[0], fact.format(bits), where) for where, bits in taken if bits]


def load_row(row: dict[str, Any], column: str, channels: int) -> Image.Image:
    """The image of a row."""
    return load_image(row[column], channels)


@contextmanager
def seeded(seed: tuple[int, ...]) -> Iterator[None]:
    """Within, torch's random numbers are those of a row's `seed`, see `d2v.data.loaders`; then as they were.

    The transforms of torchvision use torch's generator of the CPU. `torch.manual_seed` would reset a GPU's too.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def picture_rows(job: Job, split: Split) -> Any:
    """The rows of a split of images, without labels or with label maps, which are decoded as they come up."""
    return rows_of(split, lambda part: Rows(part, part.ids(job.config.data.image_column), [1] * len(part)))


def image_rows(job: Job, split: Split, labels: Labels, references: Any) -> Any:
    """The rows of a split of images whose labels can be used.

    Args:
        job: whose data have the options of `ImageData`.
        split: from `d2v.data.load.load`.
        labels: what the model predicts.
        references: of each row; None in prediction; of a stream a function that returns those of a block.

    Raises:
        InputError: a label is none of the model's, unless `data.bad_rows` skips such rows.
    """
    if split.stream is not None:
        return rows_of(split, lambda part: image_rows(job, part, labels, references(part)))
    good = check_rows(job, split, [labels.problem(reference) for reference in references or ()] or [None] * len(split))
    kept, ids = split.select(good), split.ids(job.config.data.image_column)
    return Rows(
        split=kept,
        ids=[ids[i] for i in good],
        lengths=[1] * len(good),
        references=None if references is None else [references[i] for i in good],
    )


def fit_processor(
    processor: ImageProcessor, size: tuple[int, int], crop_ratio: float | None, channels: int = 3
) -> ImageProcessor:
    """The processor that makes images of the model's size and channels.

    Args:
        processor: a checkpoint's, or the default.
        size: height and width in pixels.
        crop_ratio: see `ImageData`.
        channels: that the model takes.

    Raises:
        InputError: the processor is of other channels, each with values of its own.
    """
    if processor.channels != channels:
        if len(set(processor.image_mean)) > 1 or len(set(processor.image_std)) > 1:
            raise InputError(
                f"preprocessor_config.json: image_mean and image_std are of {processor.channels} channels, "
                f"the model takes {channels} (num_channels); should be of as many"
            )
        mean, std = processor.image_mean[:1] * channels, processor.image_std[:1] * channels
        processor = replace(processor, image_mean=mean, image_std=std)
    shape = dict(zip(("height", "width"), size, strict=True))
    if crop_ratio is None and shape == (processor.crop_size if processor.do_center_crop else processor.size):
        return processor
    if crop_ratio is None and processor.do_center_crop:  # the model's own, of other sizes too
        edge = processor.size.get("shortest_edge") or min(processor.size.values())
        crop_ratio = min(min(processor.crop_size.values()) / edge, 1.0)
    if not crop_ratio:
        return replace(processor, size=shape, do_center_crop=False)
    around = {"shortest_edge": round(min(size) / crop_ratio)}
    return replace(processor, size=around, do_center_crop=True, crop_size=shape)


def read_real(path: str, images: Sequence[str], labels: Labels) -> list[list[int]]:
    """The classes that people saw in images of ImageNet's validation, from ReaL's `real.json`; some are empty.

    Args:
        path: of the file, a list of lists of class numbers. The first is of `ILSVRC2012_val_00000001.JPEG`, and so on.
        images: names of their files; where these do not say the number, they have to be all, in order.
        labels: what the model predicts.

    Raises:
        InputError: no such file, not such lists, images that it does not have, or no single labels.
    """
    classes = len(labels.names)
    if labels.problem_type != "single_label":
        raise InputError(f"data.real is for data.problem_type single_label, not for {labels.problem_type}")
    seen = read_json_value(path)
    valid = isinstance(seen, list) and all(
        isinstance(row, list) and all(type(n) is int and 0 <= n < classes for n in row) for row in seen
    )
    if not valid:
        raise InputError(f"{path}: should be a list of lists of class numbers below {classes}, as in ReaL's real.json")
    found = [re.search(r"_val_(\d{8})", image) for image in images]
    numbers = [int(match[1]) - 1 for match in found if match]
    rows = numbers if all(found) else list(range(len(images)))
    if max(rows, default=-1) >= len(seen) or (not all(found) and len(images) != len(seen)):
        raise InputError(f"{path}: has labels of {len(seen)} images, not of these {len(images)}, such as {images[0]}")
    return [seen[row] for row in rows]
