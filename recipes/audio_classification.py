"""Audio classification: `Data2VecAudioForSequenceClassification`, accuracy and macro F1, or mAP of several labels.

    accelerate launch recipes/audio_classification.py
    accelerate launch recipes/audio_classification.py --config recipes/configs/audio_classification/superb_ks.yaml
    accelerate launch recipes/audio_classification.py --mode evaluate --model runs/ks/best --run.out rerun
    accelerate launch recipes/audio_classification.py --mode predict --model runs/ks/best --data.path clips

Without a data option it learns twelve keywords from synthesised speech, in a few minutes on a CPU.
"""

import time
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from d2v import losses
from d2v.config import Optim, Run, check_mode, run
from d2v.data.audio import AudioData, check_splits, load_clips, random_crop, random_speed
from d2v.data.labels import check_classes, label_problem, name_classes
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, train_loader
from d2v.demo.speech import spoken_words
from d2v.errors import InputError
from d2v.metrics.classification import accuracy_and_f1, mean_average_precision, plot_confusion
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForSequenceClassification
from d2v.processors.audio import AudioFeatureExtractor
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish


@dataclass
class ClassificationData(AudioData):
    """The data; without a path the embedded demo.

    Attributes:
        label_column: class names or numbers; with `several_labels` lists of them.
        several_labels: a clip may have any number of labels, as in AudioSet.
        crop_seconds: longer clips are cropped at random in training; evaluation hears them whole.
        speed: in training clips are played up to this share faster or slower, such as 0.1.
    """

    label_column: str = "label"
    several_labels: bool = False
    crop_seconds: float | None = None
    speed: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.speed < 1:
            raise InputError(f"data.speed should be at least 0 and below 1, not {self.speed:g}")


@dataclass
class Config:
    """Audio classification.

    Attributes:
        mode: train and score, score a model, or write down what a model hears.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecAudioConfig` that are to differ, such as `--arch.mask_time_prob 0.1`.
        freeze: train all, all but the waveform front end, or the head alone; the last with
            `--arch.use_weighted_layer_sum true` is SUPERB's protocol.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    freeze: Literal["nothing", "feature_encoder", "encoder"] = "feature_encoder"
    data: ClassificationData = field(default_factory=ClassificationData)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=lambda: Run(out="runs/audio_classification"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    columns = {"audio": data.audio_column} | ({"label": data.label_column} if labelled else {})
    splits = load(config, spoken_words, columns, accelerator)
    if labelled:
        splits, classes = name_classes(splits, data.label_column)
    extractor = AudioFeatureExtractor.for_model(config.model)
    rate = extractor.sampling_rate

    # Model
    changes = {}
    if training:
        kind = "multi_label_classification" if data.several_labels else "single_label_classification"
        head = {"id2label": dict(enumerate(check_classes(classes, data.label_column))), "problem_type": kind}
        changes = config.arch | head
    if config.model:
        model = Data2VecAudioForSequenceClassification.from_pretrained(config.model, **changes)
    else:
        model = Data2VecAudioForSequenceClassification(Data2VecAudioConfig.from_dict({}, **changes))
    if config.freeze == "encoder":
        model.freeze_base_model()
    elif config.freeze == "feature_encoder":
        model.freeze_feature_encoder()
    names, numbers, kind = model.config.id2label, model.config.label2id, model.config.problem_type
    several = kind == "multi_label_classification"

    # Rows
    def problem(row: dict, seconds: float) -> str | None:
        return label_problem(row[data.label_column], numbers, data.label_column, several=several) if labelled else None

    rows = check_splits(splits, data, model.config.shortest_clip / rate, learn=problem, score=problem)

    def target(label: str | list[str]) -> int | Tensor:
        if not several:
            return numbers[label]
        return torch.zeros(len(names)).index_fill(0, torch.tensor([numbers[name] for name in label]).long(), 1)

    def collate(rows: list[dict]) -> dict[str, Any]:
        rows, clips = load_clips(rows, data.audio_column, rate, data.bad_rows)
        draws = [row["draw"] for row in rows if "draw" in row]  # of train
        if data.speed and draws:
            clips = [random_speed(*pair) for pair in zip(clips, repeat(data.speed), draws, strict=False)]
        if data.crop_seconds and draws:
            longest = round(data.crop_seconds * rate)
            clips = [random_crop(*pair) for pair in zip(clips, repeat(longest), draws, strict=False)]
        batch = extractor(clips) | {"size": sum(map(len, clips)) / rate}
        if labelled:
            targets = [target(row[data.label_column]) for row in rows]
            batch["labels"] = torch.stack(targets) if several else torch.tensor(targets)
        return batch

    # What is learnt, and how it is judged
    def loss_fn(model, batch):
        logits = model(batch["input_values"], batch["attention_mask"]).logits  # (B, C)
        return losses.classification(logits, batch["labels"], kind)

    def scores(model, batch) -> list[Tensor]:
        logits = model(batch["input_values"], batch["attention_mask"]).logits.float()
        return list((logits.sigmoid() if several else logits.softmax(-1)).cpu())

    def listen(model, name: str) -> list[dict[str, Any]]:
        split, seconds = rows[name]
        batches = eval_loader(split, seconds, collate, data, data.batch_seconds, accelerator)
        found = [
            {"label": names[int(row.argmax())], "scores": {names[i]: round(float(x), 6) for i, x in enumerate(row)}}
            for row in predict(model, batches, scores, accelerator)
        ]
        if labelled:
            found = [row | {"reference": label} for row, label in zip(found, split[data.label_column], strict=True)]
        return [{"id": clip} | row for clip, row in zip(row_names(split, data.audio_column), found, strict=True)]

    def rates(found: list[dict[str, Any]]) -> dict[str, float]:
        if several:
            targets = torch.stack([target(row["reference"]) for row in found])
            return mean_average_precision(targets.numpy(), [list(row["scores"].values()) for row in found])
        return accuracy_and_f1([row["reference"] for row in found], [row["label"] for row in found])

    def save(folder: Path) -> None:
        for part in (model, extractor):
            part.save_pretrained(folder)

    metric = "map" if several else "accuracy"
    if training:
        options = (collate, data, data.batch_seconds, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(*rows["train"], *options, draws=True),
            loss_fn,
            lambda model: rates(listen(model, "validation")),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric=metric,
            higher_is_better=True,
            unit="audio s",
        )
        model = Data2VecAudioForSequenceClassification.from_pretrained(out / "best", verbose=False)

    # The end: what the best model hears in clips that chose nothing
    name, begun = "test" if "test" in rows else "validation", time.perf_counter()
    found = listen(model, name)
    seconds = time.perf_counter() - begun
    if labelled and not several and accelerator.is_main_process:
        plot_confusion(
            [row["reference"] for row in found], [row["label"] for row in found], list(numbers), out / "confusion.png"
        )
    return finish(
        out,
        rates(found) if labelled else {},
        found,
        split=name,
        seconds=seconds,
        trained=metric if training else None,
        recipe="audio_classification",
        task="audio-classification",
        data=data.path or "synthesised words",
        accelerator=accelerator,
        notes={"freeze": config.freeze} if training else None,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/audio_classification/demo.yaml")
