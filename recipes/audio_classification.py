"""Audio classification: `Data2VecAudioForSequenceClassification`, accuracy and macro F1, or mAP for multi-label.

    accelerate launch recipes/audio_classification.py
    accelerate launch recipes/audio_classification.py --model facebook/data2vec-audio-base --data.path DIR
    accelerate launch recipes/audio_classification.py --mode evaluate --model runs/audio_classification/best
    accelerate launch recipes/audio_classification.py --mode predict --model runs/audio_classification/best \
        --data.path clips --run.out predicted

Without a data option it fine-tunes d2v's small model on twelve keywords of synthesised speech, in minutes on a CPU.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from d2v import losses
from d2v.cli import run
from d2v.config import Recipe, Run, shares
from d2v.data.audio import AudioData, clip_batch, clip_rows, random_speed
from d2v.data.labels import LabelData, read_labels
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.demo.speech import spoken_words
from d2v.metrics.classification import choose_metrics, choose_thresholds, label_metrics, report_classes
from d2v.metrics.statistics import label_statistics
from d2v.models.audio_heads import Data2VecAudioForSequenceClassification
from d2v.processors.audio import AudioFeatureExtractor
from d2v.training import About, build, finish, fit, predict, predict_test, start


@dataclass
class ClassificationData(LabelData, AudioData):
    """The data; without a path the embedded demo.

    Attributes:
        crop_seconds: length of the random crops of longer clips in training, in seconds; by default clips stay whole.
        speed: maximum share by which clips are played faster or slower in training, such as 0.1; 0 disables it.
    """

    crop_seconds: float | None = None
    speed: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        shares("data", self, ("speed",))


@dataclass
class Config(Recipe):
    """Audio classification.

    SUPERB's protocol is --freeze encoder with --arch.use_weighted_layer_sum true.
    """

    data: ClassificationData = field(default_factory=ClassificationData)
    run: Run = field(default_factory=lambda: Run(out="runs/audio_classification"))


def collate(rows: list[dict], *, extractor, labels, data) -> dict[str, Any]:
    """A batch of clips; those of train are augmented."""
    change = partial(random_speed, most=data.speed) if data.speed else None
    rows, batch = clip_batch(rows, extractor, data, change, data.crop_seconds)
    if "reference" in rows[0]:
        batch["labels"] = labels.encode([row["reference"] for row in rows])
    return batch


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a classifier of clips, evaluate one or classify with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: clips and their classes
    splits = load(job, spoken_words, inputs={"audio": data.audio_column}, targets=data.targets)
    labels, references = read_labels(job, splits)
    metric_names = choose_metrics(data.metrics, labels, references)
    extractor = AudioFeatureExtractor.for_model(config.model)

    # Model: a pooled encoder with one output per class
    model = build(job, Data2VecAudioForSequenceClassification, **labels.head)
    settings = model.config
    rows = clip_rows(
        *(job, splits, extractor.sampling_rate, math.ceil(settings.shortest_clip * (1 + data.speed)), references),
        problem=lambda label, seconds: labels.problem(label),
        eval_problem=lambda label, seconds: labels.problem(label),
        crop_seconds=data.crop_seconds or math.inf,
    )
    collate_rows = partial(collate, extractor=extractor, labels=labels, data=data)

    # Loss: cross-entropy of each clip's class or classes
    def loss_fn(model, batch):
        logits = model(batch["input_values"], batch["attention_mask"]).logits  # (B, C)
        return losses.classification(logits, batch["labels"], settings.problem_type, **labels.loss_options)

    # Prediction: the classes of a clip with their scores
    def predict_fn(model, batch):
        logits = model(batch["input_values"], batch["attention_mask"]).logits  # (B, C)
        return [labels.decode(scores) for scores in labels.scores(logits).tolist()]

    def predict_split(model, split):
        return predict(job, model, eval_loader(job, rows[split], collate_rows), predict_fn)

    # Metrics: accuracy and F1, or average precision
    def compute_metrics(predictions, split="validation"):
        return label_metrics(metric_names, labels, *rows[split].compare(predictions))

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    if job.training:
        batches = train_loader(job, rows["train"], collate_rows)
        model = fit(job, model, batches, loss_fn, evaluate, keep=[extractor], metric=metric_names[0])
        labels = choose_thresholds(job, labels, rows["validation"], partial(predict_split, model, "validation"))

    # Test: accuracy, on a split that was not used to choose the checkpoint
    split, predictions, seconds = predict_test(rows, predict_split, model)
    metrics = compute_metrics(predictions, split) if job.labelled else {}
    statistics = label_statistics(list(metrics), labels, *rows[split].compare(predictions)) if job.labelled else None
    draw = partial(report_classes, job.out, labels, *rows[split].compare(predictions)) if job.labelled else None
    about: About = {"metric": metric_names[0], "task": "audio-classification", "demo": "synthesised words"}
    records, notes = rows[split].records(predictions), labels.notes(metrics)
    return finish(job, metrics, records, statistics, draw, notes=notes, split=split, seconds=seconds, **about)


if __name__ == "__main__":
    run(main, Config)
