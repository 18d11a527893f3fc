"""Speech recognition with CTC: `Data2VecAudioForCTC`, word and character error rate, with a language model too.

    accelerate launch recipes/asr_ctc.py
    accelerate launch recipes/asr_ctc.py --config recipes/configs/asr_ctc/librispeech_100h.yaml
    accelerate launch recipes/asr_ctc.py --mode evaluate --model runs/asr_ctc/best --run.out runs/asr_ctc_evaluate
    accelerate launch recipes/asr_ctc.py --mode evaluate --model runs/asr_ctc/best --lm.path lm.arpa --run.out with_lm
    accelerate launch recipes/asr_ctc.py --mode predict --model runs/asr_ctc/best --data.path recordings \
        --data.chunk_seconds 30 --run.out heard

Without a data option it learns number words from synthesised speech, in a few minutes on a CPU.
"""

import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from d2v import losses
from d2v.config import Optim, Run, check_mode, run
from d2v.data.audio import AudioData, check_splits, load_clips, text_problem, transcript_problem
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.decode.ctc import greedy, hear_in_windows, words_with_times
from d2v.decode.ctc_lm import Decoding, beam_search
from d2v.demo.speech import number_words
from d2v.errors import InputError
from d2v.metrics.asr import error_rates, normalized_error_rate, show_errors, whisper_normalizer
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.pretrained import fetch_file
from d2v.processors.audio import AudioFeatureExtractor, CTCTokenizer
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish

# What fairseq changes to fine-tune with CTC (examples/wav2vec/config/finetuning/base_960h.yaml); `arch` goes before it.
FINE_TUNING = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "activation_dropout": 0.1,
    "layerdrop": 0.1,
    "mask_time_prob": 0.5,
    "mask_feature_prob": 0.1,
    "mask_feature_length": 64,
    "ctc_zero_infinity": True,
}


@dataclass
class SpeechData(AudioData):
    """The data; without a path the embedded demo.

    Attributes:
        text_column: what was said.
        case: of the vocabulary and the references.
        remove: characters to delete from transcripts.
        normalizer: also score after Whisper's normaliser of English text, as the Open ASR Leaderboard does.
        chunk_seconds: hear longer recordings in windows of so many seconds, in memory that does not grow with them.
        stride_seconds: context at either end of a window; by default a sixth of it.
    """

    text_column: str = "text"
    case: Literal["keep", "lower", "upper"] = "keep"
    remove: str = ""
    normalizer: Literal["none", "whisper"] = "none"
    chunk_seconds: float | None = None
    stride_seconds: float | None = None


@dataclass
class Config:
    """Speech recognition with CTC.

    Attributes:
        mode: train and score, score a model, or write down what a model hears.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecAudioConfig` that are to differ, such as `--arch.mask_time_prob 0.65`.
        freeze_feature_encoder: keep the waveform front end as it is.
        lm: a language model to decode with as well, when all is learnt.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    freeze_feature_encoder: bool = True
    lm: Decoding = field(default_factory=Decoding)
    data: SpeechData = field(default_factory=SpeechData)
    optim: Optim = field(
        default_factory=lambda: Optim(clip=0.0, schedule="tri_stage", start_scale=0.01, final_scale=0.05)
    )
    run: Run = field(default_factory=lambda: Run(out="runs/asr_ctc"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    columns = {"audio": data.audio_column} | ({"text": data.text_column} if labelled else {})
    splits = load(config, number_words, columns, accelerator)

    # Processor
    if config.model and fetch_file(config.model, "vocab.json"):
        tokenizer = CTCTokenizer.from_pretrained(config.model)
    elif training:
        texts = (text for text in splits["train"][data.text_column] if isinstance(text, str))
        tokenizer = CTCTokenizer.from_texts(texts, case=data.case, remove=data.remove)
    else:
        raise InputError(f"{config.model}: no vocab.json, so it cannot write yet; --mode train teaches it")
    extractor = AudioFeatureExtractor.for_model(config.model)
    normalize = whisper_normalizer() if data.normalizer == "whisper" else None
    search = beam_search(tokenizer, config.lm) if config.lm.path else None

    # Model
    changes = {}
    if training:
        vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        changes = FINE_TUNING | config.arch | vocabulary
    if config.model:
        model = Data2VecAudioForCTC.from_pretrained(config.model, **changes)
    else:
        model = Data2VecAudioForCTC(Data2VecAudioConfig.from_dict({}, **changes))
    if config.freeze_feature_encoder:
        model.freeze_feature_encoder()
    settings, rate, hear_long = model.config, extractor.sampling_rate, None
    if data.chunk_seconds:
        hear_long = hear_in_windows(settings, rate, data.chunk_seconds, data.stride_seconds, data.batch_seconds)

    # Rows
    def can_learn(row: dict, seconds: float) -> str | None:
        return transcript_problem(row[data.text_column], tokenizer, settings.frames(int(seconds * rate)))

    def can_score(row: dict, seconds: float) -> str | None:
        return text_problem(row[data.text_column]) if labelled else None

    rows = check_splits(splits, data, settings.shortest_clip / rate, learn=can_learn, score=can_score)

    def collate(rows: list[dict], longest: float = math.inf) -> dict[str, Any]:
        rows, clips = load_clips(rows, data.audio_column, rate, data.bad_rows)
        if max(map(len, clips)) > longest * rate:
            return {"recordings": [extractor([clip])["input_values"][0].numpy() for clip in clips]}
        batch = extractor(clips) | {"size": sum(map(len, clips)) / rate}
        if labelled:
            batch["labels"] = pad_labels([tokenizer.encode(row[data.text_column]) for row in rows])
        return batch

    # What is learnt, and how it is judged
    def forward(model, batch):
        if "recordings" in batch:
            return hear_long(model, batch["recordings"])
        logits = model(batch["input_values"], batch["attention_mask"]).logits  # (B, T, C)
        return logits, settings.frames(batch["attention_mask"].sum(dim=1))

    def loss_fn(model, batch):
        logits, frames = forward(model, batch)
        options = {"blank": tokenizer.pad_token_id, "zero_infinity": settings.ctc_zero_infinity}
        return losses.ctc(logits, batch["labels"], frames, **options)

    def transcribe(model, name: str, search=None) -> list[dict[str, Any]]:
        split, seconds = rows[name]
        hop = settings.inputs_to_logits_ratio / rate  # seconds from one frame to the next
        whole = partial(collate, longest=data.chunk_seconds or math.inf)
        batches = eval_loader(split, seconds, whole, data, data.batch_seconds, accelerator)

        def read(model, batch) -> list[dict[str, Any]]:
            logits, frames = forward(model, batch)
            best = greedy(logits, frames)
            found = [{"text": tokenizer.decode(row), "words": words_with_times(row, tokenizer, hop)} for row in best]
            if search:
                texts = search(logits, frames)
                found = [row | {"text_lm": text} for row, text in zip(found, texts, strict=True)]
            return found

        found = predict(model, batches, read, accelerator)
        if labelled:
            references = map(tokenizer.normalize, split[data.text_column])
            found = [row | {"reference": text} for row, text in zip(found, references, strict=True)]
        return [{"id": clip} | row for clip, row in zip(row_names(split, data.audio_column), found, strict=True)]

    def pairs(found: list[dict[str, Any]], key: str = "text") -> tuple[list[str], list[str]]:
        return [row["reference"] for row in found], [row[key] for row in found]

    def score(found, name: str) -> dict[str, float]:
        metrics = error_rates(*pairs(found))
        if search:
            metrics |= {f"{key}_lm": value for key, value in error_rates(*pairs(found, "text_lm")).items()}
        if normalize:
            raw = rows[name][0][data.text_column]
            metrics |= normalized_error_rate(raw, [row["text"] for row in found], normalize)
        return metrics

    def save(folder: Path) -> None:
        for part in (model, extractor, tokenizer):
            part.save_pretrained(folder)

    if training:
        fit(
            model,
            train_loader(*rows["train"], collate, data, data.batch_seconds, config.optim, config.run.seed, accelerator),
            loss_fn,
            lambda model: error_rates(*pairs(transcribe(model, "validation"))),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric="wer",
            higher_is_better=False,
            unit="audio s",
        )
        model = Data2VecAudioForCTC.from_pretrained(out / "best", verbose=False)

    # The end: what the best model hears in clips that chose nothing
    name, begun = "test" if "test" in rows else "validation", time.perf_counter()
    found = transcribe(model, name, search)
    seconds = time.perf_counter() - begun
    metrics = score(found, name) if labelled else {}
    if accelerator.is_main_process and labelled:
        print(f"\n{show_errors(*pairs(found))}\n")
    return finish(
        out,
        metrics,
        found,
        split=name,
        seconds=seconds,
        trained="wer" if training else None,
        recipe="asr_ctc",
        task="automatic-speech-recognition",
        data=data.path or "synthesised number words",
        accelerator=accelerator,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/asr_ctc/demo.yaml")
