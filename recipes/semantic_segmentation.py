"""Semantic segmentation: `Data2VecVisionForSemanticSegmentation`, mean IoU, mean accuracy and overall accuracy.

    accelerate launch recipes/semantic_segmentation.py
    accelerate launch recipes/semantic_segmentation.py \
        --config recipes/configs/semantic_segmentation/ade20k_512.yaml --data.path ADEChallengeData2016
    accelerate launch recipes/semantic_segmentation.py \
        --config recipes/configs/semantic_segmentation/ade20k_512.yaml --data.path ADEChallengeData2016 \
        --data.test_split validation --mode evaluate --model runs/ade/best --scales "[0.75, 1.0, 1.25]" --flip true
    accelerate launch recipes/semantic_segmentation.py --mode predict --model runs/ade/best --data.path photos

Data are a hub id, parquet files, or a folder with `images/<split>/x.jpg` and `annotations/<split>/x.png`. Without a
data option it learns to find handwritten digits in scenes, in a few minutes on a CPU.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from d2v.config import Optim, Run, check_mode, run
from d2v.data.image import fit_processor, read_image
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.segmentation import (
    SegmentationData,
    augment,
    check_rows,
    class_names,
    file_names,
    pad,
    read_mask,
    read_pairs,
    to_tensor,
)
from d2v.decode.segmentation import draw_overlays, label_map
from d2v.demo.images import SCENE_CLASSES, scenes
from d2v.errors import InputError
from d2v.metrics.segmentation import pixel_counts, segmentation_metrics, write_class_table
from d2v.models.vision import Data2VecVisionConfig, sides
from d2v.models.vision_heads import Data2VecVisionForSemanticSegmentation, segmentation_loss
from d2v.processors.image import IGNORED, ImageProcessor
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish


@dataclass
class Config:
    """Semantic segmentation.

    Attributes:
        mode: train and score, score a model, or write down what a model sees.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecVisionConfig` that are to differ, such as `--arch.out_indices "[5, 7, 9, 13]"`.
        scales: factors that an image is resized by in evaluation; the probabilities are averaged.
        flip: evaluate the mirrored image too, likewise.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False
    data: SegmentationData = field(default_factory=SegmentationData)
    optim: Optim = field(default_factory=lambda: Optim(betas=(0.9, 0.999), weight_decay=0.05, clip=0.0))
    run: Run = field(default_factory=lambda: Run(out="runs/semantic_segmentation"))

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"scales should be factors above 0, such as [0.75, 1.0, 1.25], not {self.scales}")


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    columns = {"image": data.image_column} | ({"mask": data.mask_column} if labelled else {})
    splits = load(config, scenes, columns, accelerator, read_pairs)

    # Model
    changes = {}
    if training:
        classes = class_names(data, config.arch) if data.path else SCENE_CLASSES
        changes = config.arch | {"id2label": dict(enumerate(classes)), "semantic_loss_ignore_index": IGNORED}
    if config.model:
        model = Data2VecVisionForSemanticSegmentation.from_pretrained(config.model, **changes)
    else:
        model = Data2VecVisionForSemanticSegmentation(Data2VecVisionConfig.from_dict({}, **changes))
    processor = ImageProcessor.from_pretrained(config.model) if config.model else ImageProcessor()
    processor = fit_processor(processor, data.crop, crop_ratio=0)
    processor.do_reduce_labels = data.reduce_labels
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    settings, names = model.config, list(model.config.id2label.values())
    patch = sides(settings.patch_size)
    if training and any(side % least or side < 2 * least for side, least in zip(data.crop, patch, strict=True)):
        raise InputError(f"data.crop {list(data.crop)} should be whole patches of {list(patch)}, two or more a side")

    # Rows
    splits = {role: check_rows(split, role, data, len(names) if labelled else None) for role, split in splits.items()}

    def read(row: dict) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        image, mask = read_image(row[data.image_column], row["where"]), None
        if labelled:
            mask = read_mask(row[data.mask_column], row["where"], image.size, data, len(names))
        return to_tensor(image, data.size), (image.height, image.width), mask

    def normalise(pixels: Tensor) -> Tensor:
        return (pixels / 255 - mean) / std

    def collate_crops(rows: list[dict]) -> dict[str, Any]:
        images, labels = [], []
        for row in rows if len(rows) > 1 else rows * 2:  # BatchNorm takes two; the same one twice changes nothing else
            image, _, mask = read(row)
            image, mask = augment(image, mask, data, row["draw"])
            images.append(pad(normalise(image), data.crop, 0))
            labels.append(pad(mask, data.crop, IGNORED))
        return {"pixel_values": torch.stack(images), "labels": torch.stack(labels).long(), "size": len(rows)}

    def collate(rows: list[dict]) -> dict[str, Any]:
        images, sizes, masks = zip(*map(read, rows), strict=True)
        return {"images": [normalise(image) for image in images], "sizes": sizes, "labels": masks, "size": len(rows)}

    # What is learnt, and how it is judged
    def loss_fn(model, batch):
        found = model(batch["pixel_values"])
        return segmentation_loss(found.logits, found.auxiliary_logits, batch["labels"], settings)

    views = {"window": data.window, "stride": data.stride, "scales": config.scales, "flip": config.flip}

    def look(model, role: str, files: list[Path] | None = None) -> list[Tensor]:
        def count(model, batch) -> list[Tensor]:
            counts = []
            for row, image, size, mask in zip(
                *(batch[key] for key in ("rows", "images", "sizes", "labels")), strict=True
            ):
                found = label_map(model, image, size, **views)  # (H, W)
                if files:
                    Image.fromarray(found.cpu().numpy()).save(files[row])
                counts.append(pixel_counts(found, mask, len(names)).cpu() if labelled else torch.zeros(3, len(names)))
            return counts

        batches = eval_loader(splits[role], [1] * len(splits[role]), collate, data, data.batch_size, accelerator)
        return predict(model, batches, count, accelerator)

    def save(folder: Path) -> None:
        for part in (model, processor):
            part.save_pretrained(folder)

    if training:
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        options = (collate_crops, data, data.batch_size, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(splits["train"], [1] * len(splits["train"]), *options, draws=True),
            loss_fn,
            lambda model: segmentation_metrics(sum(look(model, "validation"))),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric="mean_iou",
            higher_is_better=True,
            unit="images",
        )
        model = Data2VecVisionForSemanticSegmentation.from_pretrained(out / "best", verbose=False)

    # The end: what the best model sees in images that chose nothing
    role, begun = "test" if "test" in splits else "validation", time.perf_counter()
    split, pictures = splits[role], row_names(splits[role], data.image_column)
    (out / "masks").mkdir(exist_ok=True)
    files = [out / "masks" / f"{name}.png" for name in file_names(pictures)]
    counts = sum(look(model, role, files))
    seconds = time.perf_counter() - begun
    if accelerator.is_main_process:
        shown = []
        for row, file in zip(split.select(range(min(6, len(split)))), files, strict=False):
            image, mask = read_image(row[data.image_column], row["where"]), read(row)[2]
            shown.append((np.asarray(image), mask if mask is None else mask.numpy(), np.asarray(Image.open(file))))
        draw_overlays(shown, names, out / "overlays.png")
        if labelled:
            write_class_table(counts, names, out / "classes.csv")
    return finish(
        out,
        segmentation_metrics(counts) if labelled else {},
        [{"id": name, "mask": f"masks/{file.name}"} for name, file in zip(pictures, files, strict=True)],
        split=role,
        seconds=seconds,
        trained="mean_iou" if training else None,
        recipe="semantic_segmentation",
        task="image-segmentation",
        data=data.path or "scenes of handwritten digits",
        accelerator=accelerator,
        notes={"scales": config.scales, "flip": config.flip, "window": data.window} if labelled else None,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/semantic_segmentation/demo.yaml")
