r"""Learning beside transformers: the same size, data, learning rate and wall-clock limit, at the same time.

    python -m benchmarks.learning asr_ctc --config recipes/configs/asr_ctc/digits.yaml --model none \
        --optim.freeze_encoder_steps 0 --run.precision fp32 --data.path DIR --run.out OUT --run.max_minutes 15

Each has half the cores, so that whatever else the machine does slows both. Everything behind the task's name goes to
our recipe. Transformers' model then learns in a plain loop, written as by
hand: shuffled batches of `data.batch_size`, padded, with an attention mask, no length buckets; AdamW, clipping, warm-up
and linear decay over the time it has, so that it ends with its learning rate at 0 however fast the machine is. It gets
the same share of train and its test clips one by one, since padding would change its outputs.
"""

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import Data2VecAudioConfig, Data2VecAudioForCTC

from benchmarks.recipe import RECIPES, load_recipe
from d2v.cli import parse
from d2v.config import Job
from d2v.data.load import choose_splits, read
from d2v.data.loaders import pad_labels
from d2v.metrics.asr import error_rates
from d2v.processors.audio import AudioFeatureExtractor, load_audio
from d2v.processors.ctc import CTCTokenizer


def transformers_asr_ctc(recipe, config) -> dict[str, float]:
    """Word and character error rate on test after a plain loop over transformers' model."""
    torch.manual_seed(config.run.seed)
    columns = {"audio": config.data.audio_column, "text": config.data.text_column}
    job = Job(replace(config, run=replace(config.run, out=f"{config.run.out}_transformers")), Accelerator(), "asr_ctc")
    splits = choose_splits(job, read(config.data), {"audio": columns["audio"]}, {"text": columns["text"]})
    texts = splits["train"].column(columns["text"])
    tokenizer = CTCTokenizer.from_texts(texts, case=config.data.case, remove=config.data.remove)
    extractor = AudioFeatureExtractor()
    train, test = (
        [(load_audio(row[columns["audio"]]), tokenizer.encode(row[columns["text"]])) for row in splits[name]]
        for name in ("train", "test")
    )
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = Data2VecAudioForCTC(Data2VecAudioConfig(**recipe.FINE_TUNING | config.arch | vocabulary)).train()
    print(f"transformers: {sum(p.numel() for p in model.parameters()):,} parameters, sdpa")
    optim, bf16 = config.optim, config.run.precision == "bf16"
    optimizer = torch.optim.AdamW(model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
    order, begun, limit = random.Random(config.run.seed), time.monotonic(), 60 * config.run.max_minutes
    for epoch in count():
        order.shuffle(train)
        for first in range(0, len(train), config.data.batch_size):
            gone = (time.monotonic() - begun) / limit
            if gone >= 1:
                break
            rise = gone / optim.warmup
            optimizer.param_groups[0]["lr"] = optim.lr * min(rise, (1 - gone) / (1 - optim.warmup))
            clips, labels = zip(*train[first : first + config.data.batch_size], strict=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**extractor(list(clips)), labels=pad_labels(list(labels))).loss / len(clips)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
            optimizer.step()
        if gone >= 1:
            break
        print(f"transformers, epoch {epoch}: {time.monotonic() - begun:.0f} s, loss {loss.item():.2f}", flush=True)
    model.eval()
    with torch.no_grad():
        heard = [model(**extractor([clip])).logits[0].argmax(-1).tolist() for clip, _ in test]
    references = [tokenizer.normalize(text) for text in splits["test"].column(columns["text"])]
    return error_rates(references, [tokenizer.decode(frames) for frames in heard])


def main(argv: list[str]) -> None:
    """Run our recipe and transformers' loop at the same time, each on half the cores, and print both."""
    task, *args = argv
    if task != "asr_ctc":
        sys.exit(f"{task}: a plain loop over transformers' model is written here for asr_ctc alone")
    recipe = load_recipe(task)
    config = parse(recipe.Config, args)
    threads = max(1, torch.get_num_threads() // 2)
    torch.set_num_threads(threads)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command, begun = [sys.executable, str(RECIPES / f"{task}.py"), *args], time.monotonic()
    log = Path(config.run.out + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output, ThreadPoolExecutor() as pool:
        done = pool.submit(
            lambda: (subprocess.run(command, check=True, env=environment, stdout=output), time.monotonic() - begun)
        )
        theirs = transformers_asr_ctc(recipe, config)
        _, seconds = done.result()
    ours = json.loads(Path(config.run.out, "results.json").read_text("utf-8"))
    print(f"\n{threads} threads each\n{'':<14}{'wer':>8}{'cer':>8}{'minutes':>9}")
    for name, result, minutes in (("d2v", ours, seconds / 60), ("transformers", theirs, config.run.max_minutes)):
        print(f"{name:<14}{result['wer']:>8.4f}{result['cer']:>8.4f}{minutes:>9.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
