"""Who speaks when, or what is heard when: `Data2VecAudioForAudioFrameClassification`, diarization error or frame F1.

    accelerate launch recipes/audio_frame_classification.py
    accelerate launch recipes/audio_frame_classification.py \
        --config recipes/configs/audio_frame_classification/digits.yaml --data.path fsdd_mixture
    accelerate launch recipes/audio_frame_classification.py --mode evaluate \
        --model runs/audio_frame_classification/best --run.out again
    accelerate launch recipes/audio_frame_classification.py --mode predict \
        --model runs/audio_frame_classification/best --data.path recordings --run.out heard

Without a data option it learns to tell apart two synthesised voices that talk at once, in a few minutes on a CPU.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from d2v import losses
from d2v.config import Optim, Run, at_least, check_mode, run
from d2v.data.audio import AudioData, check_splits, crop_start, load_clips
from d2v.data.diarization import (
    Segment,
    read_rttm,
    read_segments,
    recording_names,
    segment_classes,
    segment_problem,
    segments_to_frames,
)
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, train_loader
from d2v.decode.diarization import decode_segments, write_rttm
from d2v.demo.speech import conversations
from d2v.metrics.diarization import baselines, choose_threshold, diarization_metrics, plot_timelines
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForAudioFrameClassification
from d2v.pretrained import fetch_file, read_json, write_json
from d2v.processors.audio import AudioFeatureExtractor
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish


@dataclass
class TurnData(AudioData):
    """The data; without a path the embedded demo.

    Attributes:
        turns_column: lists of segments, each with `start` and `end` in seconds and a label.
        label_key: what in a segment says who or what it is; null where they are all of one kind.
        rttm: file of the segments of all splits' recordings, in place of the column.
        crop_seconds: longer recordings are cropped at random in training; evaluation hears them whole.
        max_seconds: the longest recording of train.
    """

    turns_column: str = "turns"
    label_key: str | None = "speaker"
    rttm: str | None = None
    crop_seconds: float = 8.0
    max_seconds: float = 3600.0

    def __post_init__(self):
        super().__post_init__()
        at_least(0.1, "data", self, ("crop_seconds",))


@dataclass
class Config:
    """Classification of frames.

    Attributes:
        mode: train and score, score a model, or write down what a model hears.
        task: diarization, of at most `--arch.num_labels` speakers (two); or frames, of classes that may overlap.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecAudioConfig` that are to differ, such as `--arch.num_labels 3`.
        freeze: train all, all but the waveform front end, or the head alone; the last with
            `--arch.use_weighted_layer_sum true` is SUPERB's protocol.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    task: Literal["diarization", "frames"] = "diarization"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    freeze: Literal["nothing", "feature_encoder", "encoder"] = "feature_encoder"
    data: TurnData = field(default_factory=TurnData)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=lambda: Run(out="runs/audio_frame_classification"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    columns = {"audio": data.audio_column} | ({"turns": data.turns_column} if labelled and not data.rttm else {})
    splits = load(config, conversations, columns, accelerator)
    in_file = read_rttm(data.rttm) if labelled and data.rttm else None
    extractor = AudioFeatureExtractor.for_model(config.model)
    rate = extractor.sampling_rate

    def turns(row: dict[str, Any]) -> list[Segment]:
        return read_segments(row, data.audio_column, data.turns_column, data.label_key, in_file)

    # Model
    changes = {}
    if training and config.task == "diarization":
        changes = config.arch | {"frame_loss": "pit_bce"}
    elif training:
        classes = dict(enumerate(segment_classes(splits["train"], turns)))
        changes = config.arch | {"frame_loss": "cross_entropy", "id2label": classes}
    if config.model:
        model = Data2VecAudioForAudioFrameClassification.from_pretrained(config.model, **changes)
    else:
        model = Data2VecAudioForAudioFrameClassification(Data2VecAudioConfig.from_dict({}, **changes))
    if config.freeze == "encoder":
        model.freeze_base_model()
    elif config.freeze == "feature_encoder":
        model.freeze_feature_encoder()
    settings = model.config
    diarization = settings.frame_loss == "pit_bce"
    names = [f"speaker_{i}" for i in settings.id2label] if diarization else list(settings.id2label.values())
    hop = settings.inputs_to_logits_ratio / rate  # seconds from one frame to the next
    decision = {"threshold": 0.5, "filter": 11 if diarization else 1}
    if not training and (path := fetch_file(config.model, "diarization.json")):
        decision |= read_json(path)

    # Rows
    known = None if diarization else settings.label2id
    rows = check_splits(
        splits,
        data,
        settings.shortest_clip / rate,
        learn=lambda row, seconds: segment_problem(row, seconds, turns, known, most=len(names)),
        score=lambda row, seconds: segment_problem(row, seconds, turns, known) if labelled else None,
    )
    clips = {role: row_names(split, data.audio_column) for role, (split, _) in rows.items() if role != "train"}
    recordings = {role: recording_names(clips[role], role) for role in clips}
    real = {role: dict(zip(recordings[role], map(turns, rows[role][0]), strict=True)) for role in clips if labelled}

    def collate(rows: list[dict]) -> dict[str, Any]:
        rows, clips = load_clips(rows, data.audio_column, rate, data.bad_rows)
        return extractor(clips) | {"size": sum(map(len, clips)) / rate}

    def collate_parts(rows: list[dict]) -> dict[str, Any]:
        rows, clips = load_clips(rows, data.audio_column, rate, data.bad_rows)
        longest, labels = round(data.crop_seconds * rate), []
        for i, (row, clip) in enumerate(zip(rows, clips, strict=True)):
            begin = crop_start(len(clip), longest, row["draw"])
            clips[i] = clip[begin : begin + longest]
            found, frames = sorted(turns(row)), settings.frames(len(clips[i]))
            speakers = dict.fromkeys(who for *_, who in found)  # as they come up
            columns = [*speakers, *[""] * (len(names) - len(speakers))] if diarization else names
            labels.append(torch.from_numpy(segments_to_frames(found, columns, frames, hop, begin=begin / rate)))
        batch = extractor(clips) | {"size": sum(map(len, clips)) / rate}
        return batch | {"labels": pad_sequence(labels, batch_first=True, padding_value=losses.IGNORE)}  # (B, T, C)

    # What is learnt, and how it is judged
    def loss_fn(model, batch):
        logits = model(batch["input_values"], batch["attention_mask"]).logits  # (B, T, C)
        if diarization:
            return losses.pit_bce(logits, batch["labels"])
        counts = batch["labels"][..., 0] != losses.IGNORE
        return losses.classification(logits[counts], batch["labels"][counts], "multi_label_classification")

    def probabilities(model, batch) -> list[np.ndarray]:
        logits = model(batch["input_values"], batch["attention_mask"]).logits
        frames = settings.frames(batch["attention_mask"].sum(dim=1)).tolist()
        return [row[:count] for row, count in zip(logits.float().sigmoid().cpu().numpy(), frames, strict=True)]

    def listen(model, role: str) -> dict[str, np.ndarray]:
        batches = eval_loader(*rows[role], collate, data, data.batch_seconds, accelerator)
        return dict(zip(recordings[role], predict(model, batches, probabilities, accelerator), strict=True))

    def decide(heard: dict[str, np.ndarray]) -> dict[str, list[Segment]]:
        return decode_segments(heard, names, hop, decision["threshold"], decision["filter"])

    def rates(heard: dict[str, np.ndarray], role: str) -> dict[str, float]:
        frames = {name: len(values) for name, values in heard.items()}
        return diarization_metrics(real[role], decide(heard), frames, hop, free_names=diarization)

    def save(folder: Path) -> None:
        for part in (model, extractor):
            part.save_pretrained(folder)

    metric = "der" if diarization else "frame_f1"
    if training:
        split, seconds = rows["train"]
        options = data, data.batch_seconds, config.optim, config.run.seed, accelerator
        fit(
            model,
            train_loader(split, [min(x, data.crop_seconds) for x in seconds], collate_parts, *options, draws=True),
            loss_fn,
            lambda model: rates(listen(model, "validation"), "validation"),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric=metric,
            higher_is_better=not diarization,
            unit="audio s",
        )
        model = Data2VecAudioForAudioFrameClassification.from_pretrained(out / "best", verbose=False)
    if training and diarization:
        threshold, size, _ = choose_threshold(listen(model, "validation"), real["validation"], hop)
        decision = {"threshold": threshold, "filter": size}
        if accelerator.is_main_process:
            write_json(out / "best" / "diarization.json", decision)

    # The end: what the best model hears in recordings that chose nothing
    role, begun = "test" if "test" in rows else "validation", time.perf_counter()
    heard = listen(model, role)
    seconds = time.perf_counter() - begun
    found, notes = decide(heard), decision | ({"freeze": config.freeze} if training else {})
    if labelled and diarization:
        lengths = dict(zip(recordings[role], rows[role][1], strict=True))
        notes |= {f"der_{name}": round(error, 4) for name, error in baselines(real[role], lengths).items()}
    if accelerator.is_main_process:
        write_rttm(out / "hypothesis.rttm", found)
        (out / "probabilities").mkdir(exist_ok=True)
        for name, values in heard.items():
            np.save(out / "probabilities" / f"{name}.npy", values)
        if labelled:
            plot_timelines(real[role], found, out / "timeline.png", free_names=diarization)
    predictions = []
    for clip, segments in zip(clips[role], found.values(), strict=True):
        listed = [{"start": round(start, 3), "end": round(end, 3), "speaker": who} for start, end, who in segments]
        predictions.append({"id": clip, "segments": listed})
    return finish(
        out,
        rates(heard, role) if labelled else {},
        predictions,
        split=role,
        seconds=seconds,
        trained=metric if training else None,
        recipe="audio_frame_classification",
        task="voice-activity-detection",
        data=data.path or "synthesised conversations",
        accelerator=accelerator,
        notes=notes,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/audio_frame_classification/demo.yaml")
