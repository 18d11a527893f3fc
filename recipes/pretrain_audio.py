"""Pretraining on speech without labels: `Data2VecAudioModel`, by predicting a teacher's view of masked frames.

    accelerate launch recipes/pretrain_audio.py
    accelerate launch recipes/pretrain_audio.py --config recipes/configs/pretrain_audio/base.yaml
    accelerate launch recipes/pretrain_audio.py --model facebook/data2vec-audio-base --data.path recordings

The recipes for speech take its `best/` as `--model`. Without a data option it trains on synthesised narration, for
a few minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from d2v import losses
from d2v.cli import run
from d2v.config import Optim, Run
from d2v.data.audio import clip_rows
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.pretraining import MFCCS, MaskedAudioData, heard_clips, masked_clips
from d2v.demo.speech import narration
from d2v.models.audio import Data2VecAudioModel
from d2v.models.pretraining import at_masked
from d2v.processors.audio import AudioFeatureExtractor
from d2v.training import build, start
from d2v.training.pretraining import finish_pretraining, pretrain
from d2v.training.probe import build_probe
from d2v.training.teaching import Pretraining, Teaching, student_and_teacher

PRETRAINING = {"layerdrop": 0.05, "mask_feature_prob": 0.0}  # fairseq's base_librispeech.yaml; `arch` goes before it


@dataclass
class Config(Pretraining):
    """Pretraining on speech."""

    teacher: Teaching = field(default_factory=lambda: Teaching(layer_norm="instance", reduction="root"))
    data: MaskedAudioData = field(default_factory=MaskedAudioData)
    optim: Optim = field(default_factory=lambda: Optim(lr=5e-4, eps=1e-6, weight_decay=0.01, schedule="cosine"))
    run: Run = field(default_factory=lambda: Run(out="runs/pretrain_audio"))


def main(config: Config) -> dict[str, Any]:
    """Pretrain an audio model; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: clips
    splits = load(job, narration, inputs={"audio": data.audio_column})
    extractor = AudioFeatureExtractor.for_model(config.model)

    # Model: a student, given masked frames, and a teacher, its moving average, given all frames
    always = {"mask_time_prob": config.arch.get("mask_time_prob") or 0.05}  # else there is no mask embedding
    base = build(job, Data2VecAudioModel, PRETRAINING, always=always)
    student, teacher = student_and_teacher(job, base, auxiliary=MFCCS)
    shortest = base.config.shortest_clip
    cropping: dict[str, Any] = {"crop_seconds": data.crop_seconds, "cropped": ("train", "validation")}
    rows = clip_rows(job, splits, extractor.sampling_rate, shortest, {}, problem=lambda *_: None, **cropping)
    collate = partial(
        masked_clips,
        extractor=extractor,
        data=data,
        settings=base.config,
        auxiliary=config.auxiliary.weight > 0,
        views=config.economy.views,
    )

    # Loss: of the teacher's targets, see `pretrain`, and of MFCCs if wanted
    def auxiliary_loss(outputs, batch):
        return losses.regression(outputs, at_masked(batch["auxiliary"], batch["auxiliary_at"]))[0]

    batches, held_out = train_loader(job, rows["train"], collate), eval_loader(job, rows["validation"], collate)
    probe = build_probe(job, rows, partial(heard_clips, extractor=extractor, data=data))
    metrics = pretrain(job, student, teacher, batches, held_out, auxiliary_loss, keep=[extractor], probe=probe)
    return finish_pretraining(job, metrics, rows["validation"], demo="synthesised narration", then="asr_ctc")


if __name__ == "__main__":
    run(main, Config)
