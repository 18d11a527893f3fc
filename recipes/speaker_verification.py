"""Speaker verification with x-vectors: `Data2VecAudioForXVector`, equal error rate and minDCF.

    accelerate launch recipes/speaker_verification.py
    accelerate launch recipes/speaker_verification.py --config recipes/configs/speaker_verification/voxceleb1.yaml
    accelerate launch recipes/speaker_verification.py --mode evaluate --model runs/speaker_verification/best \
        --s_norm 20 --run.out again
    accelerate launch recipes/speaker_verification.py --mode predict --model runs/speaker_verification/best \
        --data.path recordings --data.trials trials.txt --run.out scored

Without a data option it learns synthesised voices, and tells apart others that it has never heard.
"""

import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from d2v.config import Optim, Run, at_least, check_mode, run
from d2v.data.audio import AudioData, check_splits, load_clips, random_crop
from d2v.data.labels import check_classes, name_classes
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.verification import Trial, all_trials, first_clips, number_clips, read_trials, sample_trials
from d2v.decode import verification
from d2v.demo.speech import voices
from d2v.errors import InputError
from d2v.metrics.verification import plot_det, verification_metrics
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.xvector import Data2VecAudioForXVector
from d2v.processors.audio import AudioFeatureExtractor
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish


@dataclass
class SpeakerData(AudioData):
    """The data; without a path the embedded demo.

    Attributes:
        speaker_column: who speaks; names or numbers.
        crop_seconds: longer clips are cropped at random in training; evaluation hears them whole.
        held_out_speakers: left out of train and validation, and alone in test.
        trials: file of `1|0 enrolled tested` or `enrolled tested` a line, ids or files of the test split; by default
            trials are drawn from its speakers, or all pairs of its clips are scored.
        drawn_trials: how many are drawn at the most, half of them of one speaker.
    """

    speaker_column: str = "speaker"
    crop_seconds: float = 8.0
    held_out_speakers: list[str] = field(default_factory=list)
    trials: str | None = None
    drawn_trials: int = 10_000

    def __post_init__(self):
        super().__post_init__()
        at_least(2, "data", self, ("drawn_trials",))


@dataclass
class Config:
    """Speaker verification.

    Attributes:
        mode: train and score, score a model, or write down the scores of pairs.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecAudioConfig` that are to differ, such as `--arch.xvector_output_dim 256`.
        freeze: train all, all but the waveform front end, or the head alone; the last with
            `--arch.use_weighted_layer_sum true` is SUPERB's protocol.
        center: subtract the mean of the training speakers from every embedding that is scored in the end.
        s_norm: normalise these scores by so many of the most alike training speakers (adaptive s-norm); 0 for none.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    freeze: Literal["nothing", "feature_encoder", "encoder"] = "feature_encoder"
    center: bool = False
    s_norm: int = 0
    data: SpeakerData = field(default_factory=SpeakerData)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=lambda: Run(out="runs/speaker_verification"))

    def __post_init__(self):
        if self.s_norm < 0 or self.s_norm == 1:
            raise InputError(f"s_norm should be 0, or at least 2 speakers, not {self.s_norm}")


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    named = training or (labelled and not data.trials)  # a list of trials does without knowing who speaks
    columns = {"audio": data.audio_column} | ({"speaker": data.speaker_column} if named else {})
    splits = load(config, voices, columns, accelerator)
    splits = hold_out(name_classes(splits, data.speaker_column)[0], data) if named else splits
    extractor = AudioFeatureExtractor.for_model(config.model)
    rate = extractor.sampling_rate

    # Model
    changes, cohort = {}, None
    if training:
        heard = {name for name in splits["train"][data.speaker_column] if isinstance(name, str)}
        speakers = {"id2label": dict(enumerate(check_classes(sorted(heard), data.speaker_column)))}
        changes = {"xvector_variant": "normalized"} | config.arch | speakers
    if config.model:
        model = Data2VecAudioForXVector.from_pretrained(config.model, **changes)
    else:
        model = Data2VecAudioForXVector(Data2VecAudioConfig.from_dict({}, **changes))
    if config.freeze == "encoder":
        model.freeze_base_model()
    elif config.freeze == "feature_encoder":
        model.freeze_feature_encoder()
    settings, numbers = model.config, model.config.label2id
    if not training and (config.center or config.s_norm):
        cohort = verification.read_cohort(config.model, settings.xvector_output_dim)

    # Rows
    def problem(row: dict, seconds: float) -> str | None:
        speaker = row[data.speaker_column] if named else ""
        return None if isinstance(speaker, str) else f"{data.speaker_column} is {speaker!r}; should be a name or number"

    lengths = count(settings.shortest_clip, settings.inputs_to_logits_ratio)  # of clips, one frame after another
    shortest = next(length for length in lengths if settings.frames(length) >= settings.tdnn_context + 2) / rate
    if data.crop_seconds < shortest:
        raise InputError(f"data.crop_seconds {data.crop_seconds:g}: the model's frames take {shortest:.3f} s")
    if training:
        splits["cohort"] = splits["train"].select(first_clips(splits["train"][data.speaker_column]))
    rows = check_splits(splits, data, shortest, learn=problem, score=problem)

    def collate(rows: list[dict]) -> dict[str, Any]:
        rows, clips = load_clips(rows, data.audio_column, rate, data.bad_rows)
        learning, longest = "draw" in rows[0], round(data.crop_seconds * rate)
        if learning:
            clips = [random_crop(clip, longest, row["draw"]) for clip, row in zip(clips, rows, strict=True)]
        batch = extractor(clips) | {"size": sum(map(len, clips)) / rate}
        if learning:  # other splits may have other speakers
            batch["labels"] = torch.tensor([numbers[row[data.speaker_column]] for row in rows])
        return batch

    # Trials, between clips by number; and what their clips are called
    def drawn(name: str) -> list[Trial]:
        return sample_trials(rows[name][0][data.speaker_column], data.drawn_trials, config.run.seed, name)

    name = "test" if "test" in rows else "validation"
    split = rows[name][0]
    names = row_names(split, data.audio_column)
    if data.trials:
        files = row_names(split.select_columns(data.audio_column), data.audio_column)
        clips = number_clips(files) | number_clips(names)
        listed = read_trials(data.trials, clips, labelled=labelled)
        trials = [(label, clips[enrol], clips[test]) for label, enrol, test in listed]
    else:
        trials = drawn(name) if labelled else all_trials(len(split))
        listed = [(label, names[enrol], names[test]) for label, enrol, test in trials]
    chosen_by = drawn("validation") if training else []

    # What is learnt, and how it is judged
    def loss_fn(model, batch):
        clips = batch["labels"].new_tensor(len(batch["labels"]))
        return model(batch["input_values"], batch["attention_mask"], labels=batch["labels"]).loss * clips, clips

    def embeddings(model, batch) -> list[np.ndarray]:
        return list(model(batch["input_values"], batch["attention_mask"]).embeddings.float().cpu().numpy())

    def embed(model, name: str) -> np.ndarray:
        split, seconds = rows[name]
        batches = eval_loader(split, seconds, collate, data, data.batch_seconds, accelerator)
        return np.stack(predict(model, batches, embeddings, accelerator))  # (clips, xvector_output_dim)

    def rates(trials: list[Trial], scores: np.ndarray) -> dict[str, float]:
        return verification_metrics([label for label, _, _ in trials], scores)

    def save(folder: Path) -> None:
        for part in (model.folded(), extractor):
            part.save_pretrained(folder)

    if training:
        split, seconds = rows["train"]
        options = (collate, data, data.batch_seconds, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(split, [min(x, data.crop_seconds) for x in seconds], *options, draws=True),
            loss_fn,
            lambda model: rates(chosen_by, verification.cosine_scores(embed(model, "validation"), chosen_by)),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric="eer",
            higher_is_better=False,
            unit="audio s",
        )
        model = Data2VecAudioForXVector.from_pretrained(out / "best", verbose=False)
        cohort = verification.speaker_means(embed(model, "cohort"), rows["cohort"][0][data.speaker_column])
        if accelerator.is_main_process:
            verification.write_cohort(out / "best", cohort)

    # The end: how alike the best model finds voices in clips that chose nothing
    begun = time.perf_counter()
    scores = verification.score_trials(embed(model, name), trials, cohort, center=config.center, top=config.s_norm)
    seconds = time.perf_counter() - begun
    if accelerator.is_main_process:
        verification.write_scores(out / "scores.txt", listed, scores)
        if labelled:
            plot_det([label for label, _, _ in trials], scores, out / "det.png")
    found = [
        {"enrol": enrol, "test": test, "score": float(score)} | ({} if label is None else {"label": label})
        for (label, enrol, test), score in zip(listed, scores, strict=True)
    ]
    source = Path(data.trials).name if data.trials else f"drawn from {name}" if labelled else "all pairs"
    notes = {"trials": source, "center": config.center, "s_norm": config.s_norm}
    return finish(
        out,
        rates(trials, scores) if labelled else {},
        found,
        split=name,
        seconds=seconds,
        trained="eer" if training else None,
        recipe="speaker_verification",
        task="audio-classification",  # the hub has no task for it
        data=data.path or "synthesised voices",
        accelerator=accelerator,
        notes=notes | ({"freeze": config.freeze} if training else {}),
    )


def hold_out(splits: dict[str, Any], data: SpeakerData) -> dict[str, Any]:
    """The splits with the held-out speakers in test alone, and nobody else there; as they are if none is held out."""
    held, speakers = set(data.held_out_speakers), {role: split[data.speaker_column] for role, split in splits.items()}
    if not held:
        return splits
    there = {name for name in speakers.get("test", []) if isinstance(name, str)}
    if unknown := sorted(held - there):
        known = ", ".join(sorted(there)[:20])
        raise InputError(f"test: no speaker {unknown[0]!r} (data.held_out_speakers); there are {known}")
    return {
        role: split.select([i for i, name in enumerate(speakers[role]) if (name in held) == (role == "test")])
        for role, split in splits.items()
    }


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/speaker_verification/demo.yaml")
