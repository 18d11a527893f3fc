"""Speaker diarization or sound event detection: `Data2VecAudioForAudioFrameClassification`, DER or frame F1.

    accelerate launch recipes/audio_frame_classification.py
    accelerate launch recipes/audio_frame_classification.py \
        --config recipes/configs/audio_frame_classification/digits.yaml --data.path fsdd_mixture
    accelerate launch recipes/audio_frame_classification.py --mode evaluate \
        --model runs/audio_frame_classification/best --run.out runs/audio_frame_classification_evaluate
    accelerate launch recipes/audio_frame_classification.py --mode predict \
        --model runs/audio_frame_classification/best --data.path recordings --run.out predicted

Without a data option d2v's small model learns to tell apart two synthesised voices that talk at once, in minutes.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from d2v import losses
from d2v.cli import run
from d2v.config import Recipe, Run
from d2v.data.audio import clip_batch, long_recordings
from d2v.data.diarization import (
    SegmentData,
    frame_head,
    frame_labels,
    read_segments,
    recording_names,
    segment_rows,
)
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.decode.captions import Format, export, segment_tiers
from d2v.decode.diarization import (
    DECISION,
    decode_segments,
    read_decision,
    segment_records,
    segment_windows,
    write_arrays,
    write_rttm,
)
from d2v.decode.windows import frame_logits
from d2v.demo.speech import conversations
from d2v.devices import taken
from d2v.hub import write_json
from d2v.metrics.diarization import baselines, choose_threshold, diarization_metrics, plot_timelines
from d2v.metrics.statistics import diarization_statistics
from d2v.models.audio_heads import Data2VecAudioForAudioFrameClassification
from d2v.processors.audio import AudioFeatureExtractor
from d2v.training import About, build, finish, fit, predict, predict_test, start


@dataclass
class Config(Recipe):
    """Classification of frames. SUPERB's protocol is --freeze encoder with --arch.use_weighted_layer_sum true.

    Attributes:
        task: diarization of at most --arch.num_labels speakers, by default two; or frames of classes that may overlap.
        export: formats that segments are also written in, among textgrid, srt, vtt and rttm; by default none.
    """

    task: Literal["diarization", "frames"] = "diarization"
    export: list[Format] = field(default_factory=list)
    data: SegmentData = field(default_factory=SegmentData)
    run: Run = field(default_factory=lambda: Run(out="runs/audio_frame_classification"))


def collate(rows: list[dict], *, extractor, data, settings) -> dict[str, Any]:
    """A batch of recordings, with the labels of their frames; those of train are cropped."""
    rows, batch = clip_batch(rows, extractor, data, crop_seconds=data.crop_seconds)
    rate = extractor.sampling_rate
    if "reference" in rows[0]:
        starts = batch.get("starts", [0] * len(rows))
        batch["labels"] = frame_labels(rows, batch["lengths"], starts, settings, rate)
    return batch if "starts" in batch else long_recordings(batch, (data.chunk_seconds or math.inf) * rate)


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a diarizer or detector, evaluate one or segment with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: recordings and their segments
    targets = {"segments": None if data.rttm else data.segments_column}
    splits = load(job, conversations, inputs={"audio": data.audio_column}, targets=targets)
    segments = read_segments(job, splits)
    extractor = AudioFeatureExtractor.for_model(config.model)

    # Model: one output per speaker or class for every frame
    head = frame_head(segments["train"] if config.task == "frames" else None) if job.training else {}
    model = build(job, Data2VecAudioForAudioFrameClassification, **head)
    settings, rate, diarization = model.config, extractor.sampling_rate, model.config.frame_loss == "pit_bce"
    names = [f"speaker_{i}" for i in settings.id2label] if diarization else list(settings.id2label.values())
    hop, rows = settings.inputs_to_logits_ratio / rate, segment_rows(job, splits, rate, settings, segments)
    windowed = segment_windows(data, settings, rate)
    collate_rows = partial(collate, extractor=extractor, data=data, settings=settings)
    recordings = {split: recording_names(rows[split].ids, split) for split in rows if split != "train"}

    def by_recording(split, values):
        return dict(zip(recordings[split], values, strict=True))

    # Loss: of speakers in the best order, or of classes as they are
    def loss_fn(model, batch):
        logits, _ = frame_logits(model, batch, settings, windowed)  # (B, T, C)
        labels = batch["labels"]  # (B, T, C)
        if diarization:
            return losses.pit_bce(logits, labels)
        real = labels[..., 0] != losses.IGNORE  # (B, T)
        return losses.classification(taken(logits, real), labels[real], "multi_label_classification")

    # Prediction: probabilities of each frame, by recording
    def predict_fn(model, batch):
        logits, frames = frame_logits(model, batch, settings, windowed)  # (B, T, C), (B,)
        probabilities = logits.float().sigmoid().cpu().numpy()
        return [values[:count] for values, count in zip(probabilities, frames.tolist(), strict=True)]

    def predict_split(model, split):
        predictions = predict(job, model, eval_loader(job, rows[split], collate_rows), predict_fn)
        return {recordings[split][row]: probabilities for row, probabilities in predictions}

    decision: dict[str, Any] = {"threshold": 0.5, "filter": 11 if diarization else 1}
    decision |= read_decision(config.model) if config.model and not job.training else {}

    def decode(probabilities):
        return decode_segments(probabilities, names, hop, decision["threshold"], decision["filter"])

    # Metrics: diarization error or frame F1
    def compute_metrics(probabilities, split="validation"):
        references = by_recording(split, rows[split].references)
        frames = {name: len(values) for name, values in probabilities.items()}
        return diarization_metrics(references, decode(probabilities), frames, hop, free_names=diarization)

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    metric = "der" if diarization else "frame_f1"
    if job.training:
        batches, keep = train_loader(job, rows["train"], collate_rows), [extractor]
        model = fit(job, model, batches, loss_fn, evaluate, keep=keep, metric=metric)
    if job.training and diarization:
        references = by_recording("validation", rows["validation"].references)
        threshold, size, _ = choose_threshold(predict_split(model, "validation"), references, hop)
        decision |= {"threshold": threshold, "filter": size}
        if job.is_main:
            write_json(job.out / "best" / DECISION, decision)

    # Test: segments, on a split that was not used to choose the checkpoint
    split, probabilities, seconds = predict_test(rows, predict_split, model)
    predictions, metrics, statistics, notes = decode(probabilities), {}, None, dict(decision)
    if job.labelled:
        metrics, references = compute_metrics(probabilities, split), by_recording(split, rows[split].references)
        references = {name: references[name] for name in predictions}
        statistics = diarization_statistics(references, predictions, probabilities, hop, free_names=diarization)
    if job.labelled and diarization:
        errors = baselines(references, by_recording(split, rows[split].lengths))
        notes |= {f"der_{name}": None if math.isnan(error) else round(error, 4) for name, error in errors.items()}
    if job.is_main:
        write_rttm(job.out / "hypothesis.rttm", predictions)
        write_arrays(job.out / "probabilities", probabilities)
    timelines = partial(plot_timelines, path=job.out / "timeline.png", free_names=diarization)
    draw = partial(timelines, references, predictions) if job.labelled else None
    export(job, segment_tiers(predictions))
    records = segment_records(predictions, by_recording(split, rows[split].named()))
    about: About = {"metric": metric, "task": "voice-activity-detection", "demo": "synthesised conversations"}
    return finish(job, metrics, records, statistics, draw, split=split, seconds=seconds, notes=notes, **about)


if __name__ == "__main__":
    run(main, Config)
