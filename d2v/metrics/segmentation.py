"""Intersection over union and accuracy of label maps, with pixels added up over the whole data set.

Shapes: H and W height and width in pixels, C classes.
"""

import csv
import math
from pathlib import Path

import torch
from torch import Tensor

from d2v.config import Job
from d2v.data.facts import note, shorten
from d2v.errors import InputError
from d2v.processors.image import IGNORED


def pixel_counts(prediction: Tensor, reference: Tensor, classes: int) -> Tensor:
    """Number of pixels of each class in one image: rightly predicted, predicted, in the reference. (3, C)

    Images' counts are added up before a ratio is taken: ratios of single images would weight pixels unequally.

    Args:
        prediction: (H, W) class numbers.
        reference: (H, W) the same, `IGNORED` at the ignored label.
        classes: C.

    Raises:
        InputError: the two differ in size.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    if prediction.shape != reference.shape:
        shapes = (" x ".join(map(str, side.shape)) for side in (prediction, reference))
        raise InputError("a label map of {} pixels for a reference of {}; should be of one size".format(*shapes))
    counts = multiclass_confusion_matrix(
        prediction, reference.to(prediction.device).long(), classes, ignore_index=IGNORED, validate_args=False
    )  # (C, C): reference down, prediction across
    return torch.stack((counts.diagonal(), counts.sum(0), counts.sum(1)))


def class_metrics(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Each class's IoU and accuracy, (C,) and (C,), NaN where undefined.

    Args:
        counts: (3, C), `pixel_counts` added up.
    """
    right, predicted, referred = counts.double()
    return right / (predicted + referred - right), right / referred


def segmentation_metrics(counts: Tensor, *, absent: float = math.nan) -> dict[str, float]:
    """`mean_iou`, `mean_accuracy` and `overall_accuracy`.

    Args:
        counts: (3, C), `pixel_counts` added up.
        absent: IoU of a class that is neither predicted nor in the reference. By default such a class is left out of
            the mean, as in mmsegmentation; for SceneParsing, the benchmark of ADE20K, it is 0.

    Raises:
        InputError: all pixels are ignored.
    """
    if not counts[2].any():
        raise InputError("not one pixel to score; all are ignored")
    iou, accuracy = class_metrics(counts)
    return {
        "mean_iou": float(iou.nan_to_num(absent).nanmean()),
        "mean_accuracy": float(accuracy.nanmean()),
        "overall_accuracy": float(counts[0].sum().double() / counts[2].sum()),
    }


def note_pixels(job: Job, split: str, counts: Tensor, pixels: int, names: list[str]) -> None:
    """Note the share of a split's pixels that are ignored, and the classes without pixels.

    Args:
        job: from `d2v.training.job.start`.
        split: its name.
        counts: (3, C), `pixel_counts` added up.
        pixels: of all label maps.
        names: of the classes.
    """
    share = 1 - float(counts[2].sum()) / pixels
    if share:
        note(
            job, "ignored pixels", f"{split}: {share:.1%} of the pixels are ignored", split=split, share=round(share, 6)
        )
    if absent := [name for name, count in zip(names, counts[2].tolist(), strict=True) if not count]:
        shown = shorten(absent)
        line = f"{split}: {len(absent)} of {len(names)} classes have no pixel: {shown}"
        note(job, "classes absent", line, split=split, classes=absent)


def write_class_table(counts: Tensor, names: list[str], path: Path) -> None:
    """Write a CSV with each class's IoU, accuracy and share of the pixels; undefined metrics are empty."""
    iou, accuracy = (["" if math.isnan(x) else f"{x:.4f}" for x in metric.tolist()] for metric in class_metrics(counts))
    shares = [f"{x:.4f}" for x in (counts[2].double() / counts[2].sum()).tolist()]
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("class", "iou", "accuracy", "share"))
        rows.writerows(zip(names, iou, accuracy, shares, strict=True))
