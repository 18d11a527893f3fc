"""Augmentation of images by torchvision, seeded by each row.

Shapes: B batch, C classes, H and W height and width in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from d2v.config import at_least
from d2v.data.image import seeded
from d2v.data.labels import Labels
from d2v.errors import InputError
from d2v.processors.image import ImageProcessor


@dataclass
class Augment:
    """Augmentation of the images of train; 0 leaves a step out.

    The defaults are BEiT's (`run_class_finetuning.py`), for mixup and cutmix data2vec's (`beit/README.md` there).

    Attributes:
        crop: smallest and largest share of an image that a random crop has; it is resized to the model's size.
        flip: share of the images that are mirrored.
        rand_augment: magnitude of RandAugment's two operations, 1 to 10; 0 leaves it out. Each is applied to half of
            the images, as in timm; they are torchvision's, without inversion and with a constant magnitude.
        color_jitter: maximum change of brightness, contrast and saturation. timm, and so BEiT, uses it only without
            RandAugment.
        erasing: share of the images that have a rectangle replaced by noise.
        mixup: alpha of MixUp, such as 0.8; 0 leaves it out.
        cutmix: alpha of CutMix; 0 leaves it out; with both, each batch has one of them.
        smoothing: label smoothing of single labels, unless data.label_smoothing is above 0.
    """

    crop: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    rand_augment: int = 9
    color_jitter: float = 0.0
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self):
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise InputError(f"augment.crop should be two shares, the smaller first and above 0, not {self.crop}")
        at_least(
            0, "augment", self, ("flip", "rand_augment", "color_jitter", "erasing", "mixup", "cutmix", "smoothing")
        )
        for name, largest in (("flip", 1), ("rand_augment", 10), ("erasing", 1), ("smoothing", 1)):
            if (value := getattr(self, name)) > largest:
                raise InputError(f"augment.{name} should be at most {largest}, not {value:g}")


def augmenter(
    augment: Augment, processor: ImageProcessor, size: tuple[int, int]
) -> Callable[[Image.Image, tuple[int, ...]], Tensor]:
    """A function of an image and its seed: (channels, H, W) float32, augmented, normalised as the processor does it.

    Args:
        augment: the options.
        processor: rescales and normalises; the random crop replaces its resizing.
        size: height and width in pixels.

    Raises:
        InputError: colours are to be changed in images that are neither grey nor RGB.
    """
    from torchvision.transforms import v2

    if processor.channels not in (1, 3) and (augment.rand_augment or augment.color_jitter):
        raise InputError(
            f"augment.rand_augment and color_jitter are for 1 or 3 channels; for {processor.channels} they should be 0"
        )
    plain = replace(processor, do_resize=False, do_center_crop=False)
    steps = [
        v2.RandomResizedCrop(size, augment.crop, interpolation=processor.resample),
        v2.RandomHorizontalFlip(augment.flip),
    ]
    if augment.rand_augment:
        fill = [128] * processor.channels
        # Bin m of 11 is m / 10 of an operation's range, as in timm; grey fills the corners after a rotation.
        operation = v2.RandAugment(1, augment.rand_augment, 11, v2.InterpolationMode.BILINEAR, fill=fill)
        steps += [v2.RandomApply([operation], 0.5)] * 2  # timm's probability (rand_augment_transform), as in BEiT
    if augment.color_jitter:
        steps.append(v2.ColorJitter(*[augment.color_jitter] * 3))
    erase = v2.RandomErasing(augment.erasing, scale=(0.02, 1 / 3), value="random")  # timm's sizes
    return partial(augment_image, before=v2.Compose(steps), plain=plain, after=erase)


def augment_image(
    image: Image.Image, seed: tuple[int, ...], *, before: Callable, plain: ImageProcessor, after: Callable
) -> Tensor:
    """An image as (channels, H, W), augmented before and after the processor, seeded."""
    several = image.mode not in ("L", "RGB")  # Pillow would weight colours by the fourth channel
    with seeded(seed):
        if several:
            changed = before(torch.from_numpy(np.array(image)).permute(2, 0, 1))
            image = Image.fromarray(changed.permute(1, 2, 0).numpy())
        else:
            image = before(image)
        return after(plain([image])["pixel_values"][0])


def mixer(augment: Augment, labels: Labels) -> Callable[[Tensor, Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]:
    """A function of a batch's pixels (B, 3, H, W), labels (B,) and seed: mixed pixels and labels (B, C).

    Without MixUp and CutMix both stay as they are. Only rows that a process computes at once are mixed.

    Raises:
        InputError: there is something to mix, but rows do not have one class each.
    """
    from torchvision.transforms import v2

    kinds = ((v2.MixUp, augment.mixup), (v2.CutMix, augment.cutmix))
    mixes = [kind(alpha=alpha, num_classes=len(labels.names)) for kind, alpha in kinds if alpha]
    if mixes and labels.problem_type != "single_label":
        raise InputError(
            f"augment.mixup and augment.cutmix mix single labels; they should be 0 in {labels.problem_type}"
        )
    return partial(mix_images, mix=v2.RandomChoice(mixes) if mixes else None)


def mix_images(pixels: Tensor, labels: Tensor, seed: tuple[int, ...], *, mix: Callable | None) -> tuple[Tensor, Tensor]:
    """The mixed pixels and labels of a batch, seeded by one of its rows."""
    if mix is None:
        return pixels, labels
    with seeded((*seed, 1)):  # not the numbers that the row of this seed was augmented with
        return mix(pixels, labels)
