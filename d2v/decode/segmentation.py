"""From an image to a class for each of its pixels: whole or in windows, at several scales, mirrored.

Shapes: B batch, C classes, H and W height and width in pixels.
"""

import os
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from d2v.models.configuration import sides
from d2v.models.vision import VisionPreTrainedModel
from d2v.processors.image import IGNORED

Picture = np.ndarray | Tensor | Image.Image


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, H, W) at another size."""
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, size, mode="bilinear")


def whole_patches(model: VisionPreTrainedModel, maps: Tensor, value: float = 0) -> Tensor:
    """Images or label maps (..., H, W), padded to whole patches, at least two per side; 0 is the mean colour."""
    pairs = zip(maps.shape[-2:], sides(model.config.patch_size), strict=True)
    padding = [max(2 * patch, -(-side // patch) * patch) - side for side, patch in pairs]
    return F.pad(maps, (0, padding[1], 0, padding[0]), value=value)


def whole_logits(model: VisionPreTrainedModel, images: Tensor) -> Tensor:
    """Logits (B, C, H, W) of images (B, 3, H, W) of any size."""
    height, width = images.shape[2:]
    padded = whole_patches(model, images)
    return resize(model(padded).logits.float(), padded.shape[2:])[:, :, :height, :width]


def tiles(size: Sequence[int], window: int, stride: int) -> list[tuple[slice, slice]]:
    """The rows and columns of the windows over an image of this height and width, see `window_logits`."""

    def parts(length: int) -> list[slice]:
        last = max(length - window, 0)
        return [slice(min(start, last), min(start, last) + window) for start in range(0, last + stride, stride)]

    return [(rows, columns) for rows in parts(size[0]) for columns in parts(size[1])]


def window_logits(model: VisionPreTrainedModel, images: Tensor, window: int, stride: int) -> Tensor:
    """Logits (B, C, H, W), averaged over all windows that contain a pixel.

    Args:
        model: for segmentation.
        images: (B, 3, H, W).
        window: its side in pixels; a shorter side of the image is taken whole.
        stride: pixels from one window to the next; the last window is moved back to end where the image ends.
    """
    total: Tensor | int = 0  # the first logits give the number of classes
    count = images.new_zeros(images.shape[2:])
    for rows, columns in tiles(images.shape[2:], window, stride):
        logits = whole_logits(model, images[:, :, rows, columns])
        total = logits.new_zeros(*logits.shape[:2], *images.shape[2:]) if isinstance(total, int) else total
        total[:, :, rows, columns] += logits
        count[rows, columns] += 1
    return total / count


def label_map(
    model: VisionPreTrainedModel,
    image: Tensor,
    size: tuple[int, int],
    *,
    window: int | None = None,
    stride: int | None = None,
    scales: list[float] | tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """The most likely class of each pixel, (H, W) uint8.

    Logits are interpolated to the wanted size before a class is chosen. With several scales, or mirrored, the
    probabilities are averaged, as in mmsegmentation.

    Args:
        model: for segmentation.
        image: (3, h, w), normalised.
        size: (H, W), the image's own.
        window, stride: as for `window_logits`; without them one window is the whole image.
        scales: factors that the image is resized by.
        flip: average with the mirrored image.
    """
    scores = image.new_zeros(())
    for scale, mirrored in product(scales, (False, True) if flip else (False,)):
        scaled = [max(1, round(scale * side)) for side in image.shape[1:]]
        x = image[None] if scale == 1 else F.interpolate(image[None], scaled, mode="bilinear", antialias=True)
        x = x.flip(3) if mirrored else x
        logits = window_logits(model, x, window, stride) if window and stride else whole_logits(model, x)
        logits = resize(logits.flip(3) if mirrored else logits, size)
        scores = scores + logits.softmax(dim=1)
    return scores[0].argmax(0).to(torch.uint8)


def images_loss(
    model: VisionPreTrainedModel,
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    window: int | None = None,
    stride: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The training loss for images of any size: of each whole image, or of the windows of `label_map`.

    Args:
        model: for segmentation.
        images: (3, h, w) each, normalised.
        labels: (H, W) each, class numbers, `IGNORED` at ignored pixels; of its image's proportions.
        window, stride: as for `window_logits`.

    Returns:
        Sum over pixels and their number, without ignored ones; pixels in several windows count in each.
    """
    total, items = images[0].new_zeros(()), torch.zeros((), dtype=torch.int64, device=images[0].device)
    for image, label in zip(images, labels, strict=True):
        size = image.shape[1:]
        label = F.interpolate(label[None, None].to(image.device).float(), size, mode="nearest")[0].long()  # (1, h, w)
        for rows, columns in tiles(size, window, stride) if window and stride else [(slice(None), slice(None))]:
            part = whole_patches(model, label[:, rows, columns], IGNORED)
            part[part == IGNORED] = model.config.semantic_loss_ignore_index
            if count := (part != model.config.semantic_loss_ignore_index).sum():
                loss = model(whole_patches(model, image[None, :, rows, columns]), labels=part).loss
                total, items = total + loss.float() * count, items + count
    return total, items


def draw_overlays(
    rows: Iterable[tuple[Picture, Picture | None, Picture]], names: list[str], path: str | os.PathLike
) -> None:
    """Draw images beside themselves with label maps laid over: the reference, if there is one, and the prediction.

    Args:
        rows: (H, W, 3) image, (H, W) reference or None, (H, W) prediction.
        names: all C classes; the first thirty that occur are in the legend.
        path: of the picture.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    arrays = [
        (
            np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image),
            None if reference is None else np.asarray(reference),
            np.asarray(prediction),
        )
        for image, reference, prediction in rows
    ]
    colours = colormaps["tab20"](np.arange(len(names)) % 20)[:, :3] * 255  # (C, 3)

    def over(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        counts = labels != IGNORED
        mixed = image.astype(float)
        mixed[counts] = 0.35 * mixed[counts] + 0.65 * colours[labels[counts]]
        return mixed.astype(np.uint8)

    columns = 2 if arrays[0][1] is None else 3
    figure = Figure(figsize=(3.2 * columns + 1.5, 2.5 * len(arrays)), layout="constrained")
    axes = figure.subplots(len(arrays), columns, squeeze=False)
    for line, (image, reference, prediction) in zip(axes, arrays, strict=True):
        maps = {"image": None, "reference": reference, "prediction": prediction}
        shown = [(title, labels) for title, labels in maps.items() if labels is not None or title == "image"]
        for axis, (title, labels) in zip(line, shown, strict=True):
            axis.imshow(image if labels is None else over(image, labels))
            axis.set_axis_off()
            if axis in axes[0]:
                axis.set_title(title, fontsize=9)
    occurring = np.unique(
        np.concatenate([labels.ravel() for _, *maps in arrays for labels in maps if labels is not None])
    )
    patches = [Patch(color=colours[i] / 255, label=names[i]) for i in occurring[occurring != IGNORED][:30]]
    figure.legend(handles=patches, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=100)
