"""Speech recognition with CTC: `Data2VecAudioForCTC`, word and character error rate, with or without a language model.

    accelerate launch recipes/asr_ctc.py
    accelerate launch recipes/asr_ctc.py --config recipes/configs/asr_ctc/librispeech_100h.yaml
    accelerate launch recipes/asr_ctc.py --mode evaluate --model runs/asr_ctc/best --run.out runs/asr_ctc_evaluate
    accelerate launch recipes/asr_ctc.py --mode evaluate --model runs/asr_ctc/best --lm.path lm.arpa --run.out with_lm
    accelerate launch recipes/asr_ctc.py --mode predict --model runs/asr_ctc/best --data.path recordings \
        --data.chunk_seconds 30 --run.out predicted

Without a data option it fine-tunes d2v's small model on number words of synthesised speech, in minutes on a CPU.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from d2v import losses
from d2v.cli import run
from d2v.config import Optim, Recipe, Run
from d2v.data.audio import clip_batch, long_recordings
from d2v.data.ctc import TranscriptData, ctc_tokenizer, speech_records, speech_rows
from d2v.data.load import load
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.decode.captions import Format, export, transcript_tiers
from d2v.decode.ctc import transcribe
from d2v.decode.ctc_lm import Decoding, beam_search
from d2v.decode.windows import frame_logits, windowed_logits
from d2v.demo.speech import number_words
from d2v.metrics.asr import normalized_error_rate, show_errors, transcript_metrics, whisper_normalizer
from d2v.metrics.statistics import transcript_statistics
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.processors.audio import AudioFeatureExtractor
from d2v.training import About, build, finish, fit, predict, predict_test, start

# fairseq's config/finetuning/base_960h.yaml and the defaults of wav2vec2_asr.py beneath it; `arch` goes before them.
FINE_TUNING = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0}
FINE_TUNING |= {"activation_dropout": 0.1, "layerdrop": 0.1, "ctc_zero_infinity": True}
FINE_TUNING |= {"mask_time_prob": 0.5, "mask_feature_prob": 0.1, "mask_feature_length": 64, "apply_spec_augment": True}
SCALES: dict[str, Any] = {"start_scale": 0.01, "final_scale": 0.05}  # tri_stage_lr_scheduler.py, and that file


@dataclass
class SpeechData(TranscriptData):
    """The data; without a path the embedded demo.

    Attributes:
        normalizer: whisper adds wer_normalized, by Whisper's English normaliser, as on the Open ASR Leaderboard.
        chunk_seconds: length of the windows that longer recordings are transcribed in, in seconds; by default none.
        stride_seconds: context at either end of a window, in seconds; by default a sixth of the window.
    """

    normalizer: Literal["none", "whisper"] = "none"
    chunk_seconds: float | None = None
    stride_seconds: float | None = None


@dataclass
class Config(Recipe):
    """Speech recognition with CTC.

    Attributes:
        lm: language model that the test split is also decoded with.
        export: formats that transcripts are also written in, among textgrid, srt, vtt and rttm; by default none.
    """

    lm: Decoding = field(default_factory=Decoding)
    export: list[Format] = field(default_factory=list)
    data: SpeechData = field(default_factory=SpeechData)
    optim: Optim = field(default_factory=partial(Optim, clip=0.0, schedule="tri_stage", **SCALES))
    run: Run = field(default_factory=lambda: Run(out="runs/asr_ctc"))


def collate(rows: list[dict], *, extractor, tokenizer, data, longest: float = math.inf) -> dict[str, Any]:
    """A batch of clips; if one exceeds `longest` seconds, a list of recordings, each normalised as a whole."""
    rows, batch = clip_batch(rows, extractor, data)
    if "reference" in rows[0]:
        batch["labels"] = pad_labels([tokenizer.labels(row["reference"]) for row in rows])
    return long_recordings(batch, longest * extractor.sampling_rate)


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a speech recogniser, evaluate one or transcribe with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: clips, transcripts and their characters
    splits = load(job, number_words, inputs={"audio": data.audio_column}, targets={"text": data.text_column})
    extractor, tokenizer = AudioFeatureExtractor.for_model(config.model), ctc_tokenizer(job, splits)
    normalize = whisper_normalizer() if data.normalizer == "whisper" else None
    search = beam_search(tokenizer, config.lm) if config.lm.path else None
    rate = extractor.sampling_rate

    # Model: the waveform front end is frozen by default, as in fairseq
    blank = tokenizer.pad_token_id
    model = build(job, Data2VecAudioForCTC, FINE_TUNING, tokenizer=tokenizer)
    settings, windowed = model.config, None
    if data.chunk_seconds:
        windowed = windowed_logits(settings, rate, data.chunk_seconds, data.stride_seconds, data.batch_seconds)
    rows = speech_rows(job, splits, extractor, tokenizer, settings)
    collate_rows = partial(collate, extractor=extractor, tokenizer=tokenizer, data=data)

    def forward(model, batch):
        return frame_logits(model, batch, settings, windowed)  # (B, T, C), (B,)

    # Loss: CTC over the frames of each clip
    def loss_fn(model, batch):
        logits, frames = forward(model, batch)
        zero, reduction = settings.ctc_zero_infinity, settings.ctc_loss_reduction
        return losses.ctc(logits, batch["labels"], frames, blank=blank, zero_infinity=zero, reduction=reduction)

    # Prediction: the text of greedy search with the times of its words
    def predict_fn(model, batch, search=None):
        logits, frames = forward(model, batch)
        return transcribe(logits, frames, tokenizer, hop=settings.frame_hop / rate, search=search)

    def predict_split(model, split, search=None):
        batches = eval_loader(job, rows[split], partial(collate_rows, longest=data.chunk_seconds or math.inf))
        return predict(job, model, batches, partial(predict_fn, search=search))

    # Metrics: errors of words and characters
    def compute_metrics(predictions, split="validation"):
        return transcript_metrics(*rows[split].compare(predictions))

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    if job.training:
        batches, keep = train_loader(job, rows["train"], collate_rows), [extractor, tokenizer]
        model = fit(job, model, batches, loss_fn, evaluate, keep=keep, metric="wer")

    # Test: word errors, on a split that was not used to choose the checkpoint
    split, predictions, seconds = predict_test(rows, predict_split, model, search)
    metrics = compute_metrics(predictions, split) if job.labelled else {}
    texts = [prediction["text"] for _, prediction in predictions]
    statistics = transcript_statistics(*rows[split].compare(predictions)) if job.labelled else None
    if job.labelled and normalize:
        raw = rows[split].split.column(data.text_column)
        metrics |= normalized_error_rate([raw[row] for row, _ in predictions], texts, normalize)
    if job.labelled and job.is_main:
        print("", show_errors(rows[split].compare(predictions)[0], texts), "", sep="\n")
    export(job, transcript_tiers(rows[split], predictions, data.audio_column))
    about: About = {"metric": "wer", "task": "automatic-speech-recognition", "demo": "synthesised number words"}
    records = speech_records(job, rows[split], predictions)
    return finish(job, metrics, records, statistics, split=split, seconds=seconds, **about)


if __name__ == "__main__":
    run(main, Config)
