"""Image classification: `Data2VecVisionForImageClassification`, top-1 and top-5 accuracy, and ReaL.

    accelerate launch recipes/image_classification.py
    accelerate launch recipes/image_classification.py --config recipes/configs/image_classification/imagenet_base.yaml
    accelerate launch recipes/image_classification.py --mode evaluate --model facebook/data2vec-vision-base-ft1k \
        --data.path imagenet --data.match order --data.crop_ratio 0.875 --data.real real.json --run.out runs/real
    accelerate launch recipes/image_classification.py --mode evaluate --model facebook/data2vec-vision-base-ft1k \
        --data.path imagenetv2-matched-frequency-format-val --data.match number --run.out runs/v2
    accelerate launch recipes/image_classification.py --mode predict --model runs/mine/best --data.path photos

Data are a hub id, parquet files, a folder with one folder of images per class (`train/<class>/x.jpg`), or WebDataset's
archives. Without a data option it fine-tunes d2v's small model on handwritten digits, in minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from d2v import losses
from d2v.cli import run
from d2v.config import Optim, Recipe, Run
from d2v.data.augment import Augment, augmenter, mixer
from d2v.data.image import ImageData, fit_processor, image_rows, load_images, read_real
from d2v.data.labels import LabelData, read_labels
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.demo.images import digits
from d2v.metrics.classification import choose_metrics, choose_thresholds, label_metrics, real_accuracy, report_classes
from d2v.metrics.statistics import label_statistics
from d2v.models.configuration import sides
from d2v.models.vision_heads import Data2VecVisionForImageClassification
from d2v.processors.image import ImageProcessor
from d2v.training import About, build, finish, fit, predict, predict_test, start, test_split
from d2v.training.report import write_ranked_csv


@dataclass
class ClassificationData(LabelData, ImageData):
    """The data; without a path the embedded demo.

    Attributes:
        real: file with the ReaL labels of the test split, real.json; by default accuracy_real is not computed.
        test_flip: average the scores of an image and its mirror image in evaluation.
    """

    real: str | None = None
    test_flip: bool = False
    batch_size: int = 64


@dataclass
class Config(Recipe):
    """Image classification. A linear probe is --freeze encoder.

    Attributes:
        augment: augmentation of the images of train.
    """

    data: ClassificationData = field(default_factory=ClassificationData)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(
        default_factory=lambda: Optim(betas=(0.9, 0.999), weight_decay=0.05, schedule="cosine", clip=0.0)
    )
    run: Run = field(default_factory=lambda: Run(out="runs/image_classification"))


def collate(rows: list[dict], *, processor, labels, augmented, mixed, data) -> dict[str, Any]:
    """A batch of images; those of train are augmented, and mixed with one another."""
    rows, images, decoded = load_images(rows, data, processor.channels)
    batch = {"size": len(rows), "rows": [row["row"] for row in rows], "decoded": decoded}
    if "reference" in rows[0]:
        batch["labels"] = labels.encode([row["reference"] for row in rows])  # (B,)
    if "seed" not in rows[0]:
        return batch | processor(images)
    seeds = [row["seed"] for row in rows]
    pixels = torch.stack([augmented(*pair) for pair in zip(images, seeds, strict=True)])  # (B, 3, height, width)
    pixels, targets = mixed(pixels, batch["labels"], seeds[0])
    return batch | {"pixel_values": pixels, "labels": targets}


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a classifier of images, evaluate one or classify with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: images and their classes
    splits = load(job, digits, inputs={"image": data.image_column}, targets=data.targets)
    labels, references = read_labels(job, splits)
    metric_names = choose_metrics(data.metrics, labels, references, top5=True)
    ranked = labels.problem_type == "single_label"

    # Model: mean-pooled patches with one output per class
    model = build(job, Data2VecVisionForImageClassification, **labels.head)
    settings, size = model.config, sides(model.config.image_size)
    processor = fit_processor(ImageProcessor.for_model(config.model), size, data.crop_ratio, settings.num_channels)
    rows = {name: image_rows(job, split, labels, references.get(name)) for name, split in splits.items()}
    real = read_real(data.real, rows[test_split(rows)].ids, labels) if data.real else []
    augmented = augmenter(config.augment, processor, size) if job.training else None
    mixed = mixer(config.augment, labels) if job.training else None
    collate_rows = partial(collate, processor=processor, labels=labels, augmented=augmented, mixed=mixed, data=data)

    # Loss: cross-entropy with smoothed or mixed labels
    smoothing = {"label_smoothing": labels.smoothing or config.augment.smoothing} if ranked else {}

    def loss_fn(model, batch):
        logits = model(batch["pixel_values"]).logits  # (B, C)
        return losses.classification(logits, batch["labels"], settings.problem_type, **labels.loss_options | smoothing)

    # Prediction: the classes with the highest scores, at least five
    listed = max(data.listed_scores, 5) if ranked and data.listed_scores and not data.submission else None

    def predict_fn(model, batch):
        views = [batch["pixel_values"]] + ([batch["pixel_values"].flip(-1)] if data.test_flip else [])
        scores = torch.stack([labels.scores(model(view).logits) for view in views]).mean(0)  # (B, C)
        return [labels.decode(row, most=listed) for row in scores.tolist()]

    def predict_split(model, split):
        return predict(job, model, eval_loader(job, rows[split], collate_rows), predict_fn)

    # Metrics: top-1 and top-5 accuracy
    def compute_metrics(predictions, split="validation"):
        return label_metrics(metric_names, labels, *rows[split].compare(predictions))

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    if job.training:
        batches = train_loader(job, rows["train"], collate_rows)
        model = fit(job, model, batches, loss_fn, evaluate, keep=[processor], metric=metric_names[0])
        labels = choose_thresholds(job, labels, rows["validation"], partial(predict_split, model, "validation"))

    # Test: accuracy, ReaL's too, on a split that was not used to choose the checkpoint
    split, predictions, seconds = predict_test(rows, predict_split, model)
    metrics = compute_metrics(predictions, split) if job.labelled else {}
    statistics = label_statistics(list(metrics), labels, *rows[split].compare(predictions)) if job.labelled else None
    records = rows[split].records(predictions)
    if data.real:
        numbers = [labels.numbers[row["label"]] for row in records]
        metrics["accuracy_real"] = real_accuracy([real[row] for row, _ in predictions], numbers)
    if job.is_main and ranked:
        write_ranked_csv(job.out / "predictions.csv", records)
    draw = partial(report_classes, job.out, labels, *rows[split].compare(predictions)) if job.labelled else None
    about: About = {"metric": metric_names[0], "task": "image-classification", "demo": "handwritten digits"}
    notes = labels.notes(metrics)
    return finish(job, metrics, records, statistics, draw, notes=notes, split=split, seconds=seconds, **about)


if __name__ == "__main__":
    run(main, Config)
