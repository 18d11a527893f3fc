"""Speech recognition with CTC: `Data2VecAudioForCTC`, word and character error rate.

    accelerate launch recipes/asr_ctc.py
    accelerate launch recipes/asr_ctc.py --config recipes/configs/asr_ctc/librispeech_100h.yaml
    accelerate launch recipes/asr_ctc.py --mode evaluate --model runs/asr_ctc/best --run.out runs/asr_ctc_evaluate
    accelerate launch recipes/asr_ctc.py --mode predict --model runs/asr_ctc/best --data.path recordings --run.out heard

Without a data option it learns number words from synthesised speech, in a few minutes on a CPU.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from d2v import losses
from d2v.checkpoint import fetch_file
from d2v.config import Data, Optim, Run, run
from d2v.data.audio import check_clips, clip_names, load_clips, text_problem, transcript_problem
from d2v.data.collate import eval_loader, pad_labels, train_loader
from d2v.data.demo import number_words
from d2v.data.load import choose_splits, read
from d2v.decoding import greedy, words_with_times
from d2v.errors import InputError
from d2v.metrics.asr import error_rates, show_errors
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.processors.audio import AudioFeatureExtractor, CTCTokenizer
from d2v.report import finish
from d2v.train import fit, predict, start

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
class SpeechData(Data):
    """The data; without a path the embedded demo.

    Attributes:
        audio_column: sound, as `datasets` stores it, or paths.
        text_column: what was said.
        batch_seconds: most seconds in a batch, padding counted.
        max_seconds: the longest clip of train.
        bad_rows: refuse, or skip and count, rows that cannot be used: unreadable or too short sound; in train also
            too long sound, an empty transcript, unknown characters, more labels than frames.
        case: of the vocabulary and the references.
        remove: characters to delete from transcripts.
    """

    audio_column: str = "audio"
    text_column: str = "text"
    batch_seconds: float = 100.0
    max_seconds: float = 30.0
    bad_rows: Literal["refuse", "skip"] = "refuse"
    case: Literal["keep", "lower", "upper"] = "keep"
    remove: str = ""


@dataclass
class Config:
    """Speech recognition with CTC.

    Attributes:
        mode: train and score, score a model, or write down what a model hears.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecAudioConfig` that are to differ, such as `--arch.mask_time_prob 0.65`.
        freeze_feature_encoder: keep the waveform front end as it is.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    freeze_feature_encoder: bool = True
    data: SpeechData = field(default_factory=SpeechData)
    optim: Optim = field(
        default_factory=lambda: Optim(clip=0.0, schedule="tri_stage", start_scale=0.01, final_scale=0.05)
    )
    run: Run = field(default_factory=lambda: Run(out="runs/asr_ctc"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    if not training and config.model is None:
        raise InputError(f"--mode {config.mode} needs --model, such as {config.run.out}/best")
    accelerator = start(config)

    # Data
    columns = {"audio": data.audio_column} | ({"text": data.text_column} if labelled else {})
    with accelerator.main_process_first():
        found = number_words() if data.path is None else read(data)
        splits = choose_splits(found, data, config.run.seed, columns, training=training)

    # Processor
    if config.model and fetch_file(config.model, "vocab.json"):
        tokenizer = CTCTokenizer.from_pretrained(config.model)
    elif training:
        texts = (text for text in splits["train"][data.text_column] if isinstance(text, str))
        tokenizer = CTCTokenizer.from_texts(texts, case=data.case, remove=data.remove)
    else:
        raise InputError(f"{config.model}: no vocab.json, so it cannot write yet; --mode train teaches it")
    extractor = AudioFeatureExtractor.from_pretrained(config.model) if config.model else AudioFeatureExtractor()
    if not extractor.do_normalize:  # fairseq's base configurations say so, which were made for wav2vec 2.0
        raise InputError(f"{config.model}: has do_normalize false; data2vec was trained on normalised sound")

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
    settings, rate = model.config, extractor.sampling_rate

    # Rows
    def can_learn(row: dict, seconds: float) -> str | None:
        return transcript_problem(row[data.text_column], tokenizer, settings.frames(int(seconds * rate)))

    def can_score(row: dict, seconds: float) -> str | None:
        return text_problem(row[data.text_column]) if labelled else None

    check = partial(
        check_clips, audio_column=data.audio_column, shortest=settings.shortest_clip / rate, bad_rows=data.bad_rows
    )
    rows = {
        name: check(split, name, longest=data.max_seconds, problem=can_learn)
        if name == "train"
        else check(split, name, problem=can_score, decode=True)
        for name, split in splits.items()
    }

    def collate(rows: list[dict]) -> dict[str, Any]:
        rows, clips = load_clips(rows, data.audio_column, rate, data.bad_rows)
        batch = extractor(clips) | {"size": sum(map(len, clips)) / rate}
        if labelled:
            batch["labels"] = pad_labels([tokenizer.encode(row[data.text_column]) for row in rows])
        return batch

    # What is learnt, and how it is judged
    def forward(model, batch):
        logits = model(batch["input_values"], batch["attention_mask"]).logits  # (B, T, C)
        return logits, settings.frames(batch["attention_mask"].sum(dim=1))

    def loss_fn(model, batch):
        logits, frames = forward(model, batch)
        options = {"blank": tokenizer.pad_token_id, "zero_infinity": settings.ctc_zero_infinity}
        return losses.ctc(logits, batch["labels"], frames, **options)

    def transcribe(model, name: str) -> list[dict[str, Any]]:
        split, seconds = rows[name]
        batches = eval_loader(split, seconds, collate, data, data.batch_seconds, accelerator)
        frames = predict(model, batches, lambda model, batch: greedy(*forward(model, batch)), accelerator)
        hop = settings.inputs_to_logits_ratio / rate  # seconds from one frame to the next
        found = [{"text": tokenizer.decode(row), "words": words_with_times(row, tokenizer, hop)} for row in frames]
        if labelled:
            references = map(tokenizer.normalize, split[data.text_column])
            found = [row | {"reference": text} for row, text in zip(found, references, strict=True)]
        return [{"id": clip} | row for clip, row in zip(clip_names(split, data.audio_column), found, strict=True)]

    def pairs(found: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
        return [row["reference"] for row in found], [row["text"] for row in found]

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
    found = transcribe(model, name)
    seconds = time.perf_counter() - begun
    metrics = error_rates(*pairs(found)) if labelled else {}
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
