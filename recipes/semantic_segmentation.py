"""Semantic segmentation: `Data2VecVisionForSemanticSegmentation`, mean IoU, mean accuracy and overall accuracy.

    accelerate launch recipes/semantic_segmentation.py
    accelerate launch recipes/semantic_segmentation.py \
        --config recipes/configs/semantic_segmentation/ade20k_512.yaml --data.path ade20k --run.out runs/ade
    accelerate launch recipes/semantic_segmentation.py \
        --config recipes/configs/semantic_segmentation/ade20k_512.yaml --data.path ade20k \
        --data.test_split validation --mode evaluate --model runs/ade/best --scales "[0.75, 1.0, 1.25]" --flip true
    accelerate launch recipes/semantic_segmentation.py --mode predict --model runs/ade/best --data.path photos

Data are a hub id, parquet files, or a folder with `images/<split>/x.jpg` and `annotations/<split>/x.png`. Without a
data option it learns to segment handwritten digits in scenes, in a few minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image
from torch import nn

from d2v.cli import run
from d2v.config import Optim, Recipe, Run
from d2v.data.image import picture_rows
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.pairs import read_pairs
from d2v.data.segmentation import (
    SegmentationData,
    file_names,
    load_examples,
    random_crops,
    read_example,
    segmentation_head,
    segmentation_processor,
    to_pixels,
)
from d2v.decode.segmentation import draw_overlays, images_loss, label_map
from d2v.demo.images import SCENE_CLASSES, scenes
from d2v.errors import InputError
from d2v.metrics.segmentation import note_pixels, pixel_counts, segmentation_metrics, write_class_table
from d2v.metrics.statistics import pixel_statistics
from d2v.models.vision_heads import Data2VecVisionForSemanticSegmentation, segmentation_loss
from d2v.training import About, build, finish, fit, predict, start, test_split, timed


@dataclass
class Config(Recipe):
    """Semantic segmentation.

    Attributes:
        scales: factors that an image is resized by in evaluation; the probabilities at all scales are averaged.
        flip: average with the probabilities of the mirrored image in evaluation.
    """

    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False
    data: SegmentationData = field(default_factory=SegmentationData)
    optim: Optim = field(default_factory=lambda: Optim(betas=(0.9, 0.999), weight_decay=0.05, clip=0.0))
    run: Run = field(default_factory=lambda: Run(out="runs/semantic_segmentation"))

    def __post_init__(self):
        super().__post_init__()
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"scales should be factors above 0, such as [0.75, 1.0, 1.25], not {self.scales}")


def collate(rows: list[dict], *, data, processor, classes) -> dict[str, Any]:
    """A batch of augmented crops in training, else of images of any size, with label maps if there are any."""
    rows, images, labels, decoded = load_examples(rows, data, processor, classes)
    about = {"rows": [row["row"] for row in rows], "size": len(rows), "decoded": decoded}
    if "seed" in rows[0]:
        return about | random_crops(images, labels, [row["seed"] for row in rows], data, processor)
    sizes = [(image.height, image.width) for image in images]
    return about | {"images": [to_pixels(image, data, processor) for image in images], "sizes": sizes, "labels": labels}


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a segmentation model, evaluate one or segment with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: images and their label maps
    inputs, targets = {"image": data.image_column}, {"mask": data.mask_column}
    splits = load(job, scenes, reader=read_pairs, inputs=inputs, targets=targets)

    # Model: UPerNet on four layers of the encoder
    model = build(job, Data2VecVisionForSemanticSegmentation, **segmentation_head(job, SCENE_CLASSES))
    settings, names = model.config, list(model.config.id2label.values())
    if job.training and job.accelerator.num_processes > 1 and job.accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    processor = segmentation_processor(job, settings)
    rows = {name: picture_rows(job, split) for name, split in splits.items()}
    classes = len(names) if job.labelled else None
    collate_rows = partial(collate, data=data, processor=processor, classes=classes)

    # Loss: pixels' cross-entropy of the head and the auxiliary head
    def loss_fn(model, batch):
        if "images" in batch:
            return images_loss(model, batch["images"], batch["labels"], data.window, data.stride)
        outputs = model(batch["pixel_values"])
        return segmentation_loss(outputs.logits, outputs.auxiliary_logits, batch["labels"], settings)

    # Prediction: the label map of each image, written at once, and its pixel counts
    segment = partial(label_map, window=data.window, stride=data.stride, scales=config.scales, flip=config.flip)

    def predict_fn(model, batch, files=None):
        counts, columns = [], (batch[name] for name in ("rows", "images", "sizes", "labels"))
        for row, image, size, reference in zip(*columns, strict=True):
            labels = segment(model, image, size)  # (H, W)
            if files:
                Image.fromarray(labels.cpu().numpy()).save(files[row])
            counts.append((pixel_counts(labels, reference, len(names)).cpu(), labels.numel()) if job.labelled else None)
        return counts

    def predict_split(model, split, files=None):
        return predict(job, model, eval_loader(job, rows[split], collate_rows), partial(predict_fn, files=files))

    # Metrics: IoU and accuracy over all pixels
    def compute_metrics(predictions, split="validation"):
        counts, pixels = (sum(parts) for parts in zip(*(counted for _, counted in predictions), strict=True))
        note_pixels(job, split, counts, pixels, names)
        return segmentation_metrics(counts)

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    if job.training:
        batches = train_loader(job, rows["train"], collate_rows)
        model = fit(job, model, batches, loss_fn, evaluate, keep=[processor], metric="mean_iou")

    # Test: label maps, on a split that was not used to choose the checkpoint
    split = test_split(rows)
    (job.out / "masks").mkdir(exist_ok=True)
    files = [job.out / "masks" / f"{name}.png" for name in file_names(rows[split].ids)]
    predictions, seconds = timed(predict_split, model, split, files)
    metrics = compute_metrics(predictions, split) if job.labelled else {}
    statistics = pixel_statistics(predictions) if job.labelled else None
    first = (row for row, _ in predictions[:6])
    examples = ((*read_example(rows[split][i], data, processor, classes)[:2], Image.open(files[i])) for i in first)
    draw = partial(draw_overlays, examples, names, job.out / "overlays.png")
    if job.is_main and job.labelled:
        write_class_table(sum(counts for _, (counts, _) in predictions), names, job.out / "classes.csv")
    records = rows[split].records([(row, {"mask": f"masks/{files[row].name}"}) for row, _ in predictions])
    notes = {"scales": config.scales, "flip": config.flip, "window": data.window} if job.labelled else None
    about: About = {"metric": "mean_iou", "task": "image-segmentation", "demo": "scenes of handwritten digits"}
    return finish(job, metrics, records, statistics, draw, split=split, seconds=seconds, notes=notes, **about)


if __name__ == "__main__":
    run(main, Config)
