"""Speaker verification with x-vectors: `Data2VecAudioForXVector`, equal error rate and minDCF.

    accelerate launch recipes/speaker_verification.py
    accelerate launch recipes/speaker_verification.py --config recipes/configs/speaker_verification/voxceleb1.yaml \
        --data.path DIR --data.trials veri_test.txt
    accelerate launch recipes/speaker_verification.py --mode evaluate --model runs/speaker_verification/best \
        --s_norm 20 --run.out runs/speaker_verification_evaluate
    accelerate launch recipes/speaker_verification.py --mode predict --model runs/speaker_verification/best \
        --data.path recordings --data.trials trials.txt --run.out predicted

Without a data option it trains on synthesised voices, and verifies other voices that it was not trained on.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from d2v import losses
from d2v.cli import run
from d2v.config import Recipe, Run
from d2v.data.audio import clip_batch, clip_rows
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.verification import (
    TrialData,
    choose_trials,
    cohort_clips,
    embedded_trials,
    read_speakers,
    sampled_trials,
    shortest_clip,
    speaker_head,
    speaker_problem,
)
from d2v.decode import verification
from d2v.demo.speech import voices
from d2v.errors import InputError
from d2v.metrics.statistics import trial_statistics
from d2v.metrics.verification import plot_det, verification_metrics
from d2v.models.xvector import Data2VecAudioForXVector
from d2v.processors.audio import AudioFeatureExtractor
from d2v.training import About, build, finish, fit, predict, start, test_split, timed

# As the authors of x-vectors train them: a normalisation after every ReLU, folded into the layers in `best/`.
FINE_TUNING = {"xvector_variant": "normalized"}


@dataclass
class Config(Recipe):
    """Speaker verification. SUPERB's protocol is --freeze encoder with --arch.use_weighted_layer_sum true.

    Attributes:
        center: subtract the mean of the training speakers from each embedding of the test.
        s_norm: number of most similar training speakers that test scores are normalised by (adaptive s-norm); 0
            disables it.
    """

    center: bool = False
    s_norm: int = 0
    data: TrialData = field(default_factory=TrialData)
    run: Run = field(default_factory=lambda: Run(out="runs/speaker_verification"))

    def __post_init__(self):
        super().__post_init__()
        if self.s_norm < 0 or self.s_norm == 1:
            raise InputError(f"s_norm should be 0, or at least 2 speakers, not {self.s_norm}")


def collate(rows: list[dict], *, extractor, data, numbers) -> dict[str, Any]:
    """A batch of clips; those of train are cropped, and their speakers have numbers."""
    rows, batch = clip_batch(rows, extractor, data, crop_seconds=data.crop_seconds)
    if any(row.get("reference") in numbers for row in rows):  # other splits may have other speakers
        batch["labels"] = torch.tensor([numbers.get(row["reference"], losses.IGNORE) for row in rows])
    return batch


def main(config: Config) -> dict[str, Any]:
    """Fine-tune x-vectors, evaluate them or score pairs of clips; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: clips and who speaks in them
    speaker = None if data.trials and not job.training else data.speaker_column  # a list of trials needs no speakers
    splits = load(job, voices, inputs={"audio": data.audio_column}, targets={"speaker": speaker})
    splits, speakers = read_speakers(job, splits)
    if job.training:
        splits["cohort"], speakers["cohort"] = cohort_clips(splits["train"], speakers["train"])
    extractor = AudioFeatureExtractor.for_model(config.model)

    # Model: x-vectors, with one output per training speaker
    model = build(job, Data2VecAudioForXVector, FINE_TUNING, **speaker_head(job, speakers))
    settings, rate = model.config, extractor.sampling_rate
    problem = partial(speaker_problem, column=data.speaker_column)
    options: dict[str, Any] = {"problem": problem, "eval_problem": problem, "crop_seconds": data.crop_seconds}
    rows = clip_rows(job, splits, rate, shortest_clip(settings, rate, data.crop_seconds), speakers, **options)
    collate_rows = partial(collate, extractor=extractor, data=data, numbers=settings.label2id)

    # Trials: pairs of clips, by the numbers of their rows and by their names
    split = test_split(rows)
    trials, named_trials, source = choose_trials(job, rows[split])
    validation_trials = sampled_trials(job, rows["validation"]) if job.training else []

    # Loss: additive margin softmax over the training speakers
    def loss_fn(model, batch):
        clips = (batch["labels"] != losses.IGNORE).sum()
        return model(batch["input_values"], batch["attention_mask"], labels=batch["labels"]).loss * clips, clips

    # Prediction: an embedding of each clip
    def predict_fn(model, batch):
        return list(model(batch["input_values"], batch["attention_mask"]).embeddings.float().cpu().numpy())

    def predict_split(model, split):
        return predict(job, model, eval_loader(job, rows[split], collate_rows), predict_fn)

    # Metrics: equal error rate and detection cost of trials
    def compute_metrics(trials, scores):
        return verification_metrics([label for label, _, _ in trials], scores)

    def evaluate(model):
        embeddings = dict(predict_split(model, "validation"))
        scored, _ = embedded_trials(job, embeddings, validation_trials)
        return compute_metrics(scored, verification.cosine_scores(embeddings, scored))

    cohort = None
    if job.training:
        batches = train_loader(job, rows["train"], collate_rows)
        model = fit(job, model, batches, loss_fn, evaluate, keep=[extractor], metric="eer")
        # The cohort: each training speaker's mean embedding, by which center and s_norm normalise the test's scores
        cohort = verification.speaker_means(*rows["cohort"].compare(predict_split(model, "cohort")))
        if job.is_main:
            verification.write_cohort(job.out / "best", cohort)
    elif config.model and (config.center or config.s_norm):
        cohort = verification.read_cohort(config.model, settings.xvector_output_dim)

    # Test: scores of trials, on a split that was not used to choose the checkpoint
    predictions, seconds = timed(predict_split, model, split)
    embeddings = dict(predictions)
    trials, named_trials = embedded_trials(job, embeddings, trials, named_trials)
    scores = verification.score_trials(embeddings, trials, cohort, center=config.center, top=config.s_norm)
    metrics = compute_metrics(trials, scores) if job.labelled else {}
    statistics = trial_statistics(trials, scores, rows[split].references) if job.labelled else None
    if job.is_main:
        verification.write_scores(job.out / "scores.txt", named_trials, scores)
    draw = partial(plot_det, [label for label, _, _ in trials], scores, job.out / "det.png") if job.labelled else None
    notes = {"trials": source, "center": config.center, "s_norm": config.s_norm}
    records = verification.trial_records(named_trials, scores)
    about: About = {"metric": "eer", "task": "audio-classification", "demo": "synthesised voices"}  # no task is nearer
    return finish(job, metrics, records, statistics, draw, split=split, seconds=seconds, notes=notes, **about)


if __name__ == "__main__":
    run(main, Config)
