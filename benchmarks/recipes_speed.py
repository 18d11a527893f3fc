r"""A whole recipe beside a plain Accelerate loop over transformers' model, written as its examples are.

    python -m benchmarks.recipes_speed text_classification --updates 30 --rounds 3 \
        --config recipes/configs/text_classification/cola.yaml --model none --data.path DIR --data.name null

Both read the same files, train a model of the same size from the same options and end after the same number of
examples; they take turns, each time as a process of its own, so that imports and the preparation of data count. What is
measured: examples a second from the start of the process on, and from the second update on; which share of the latter
was spent waiting for data; seconds from the start to the end of the first update. Everything that is not an option
below goes to the recipe, and `--data.path` is a folder of parquet files.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.recipe import load_recipe
from d2v.cli import parse

FIGURES = {
    "examples/s from the start": "{:.2f}",
    "examples/s from the second update": "{:.2f}",
    "waiting for data": "{:.1%}",
    "seconds to the first update": "{:.1f}",
}
Prepared = tuple[Any, Callable[[list[Any]], dict[str, Any]], torch.nn.Module]
"""A data set of examples, what makes a batch of some, and a model."""


class Reached(Exception):
    """Enough updates were made."""


@dataclass
class Meter:
    """When updates were done, how many examples they had, and how long they were waited for."""

    begun: float
    done: list[float] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    def add(self, examples: int, waited: float) -> None:
        """An update's batches are there."""
        self.examples.append(examples)
        self.waited.append(waited)

    def figures(self) -> dict[str, float]:
        """By the names of `FIGURES`."""
        later = self.done[-1] - self.done[0]
        rates = sum(self.examples) / (self.done[-1] - self.begun), sum(self.examples[1:]) / later
        return dict(zip(FIGURES, (*rates, sum(self.waited[1:]) / later, self.done[0] - self.begun), strict=True))


def ours(name: str, config: Any, meter: Meter, updates: int) -> None:
    """Train with the recipe, until so many updates are done."""
    from d2v.training import loop

    recipe, next_update, descend = load_recipe(name), loop.next_update, loop.descend

    def counted(*args: Any) -> Any:
        update, waited = next_update(*args)
        meter.add(sum(len(batch["rows"]) for batch in update), waited)
        return update, waited

    def timed(*args: Any) -> Any:
        found = descend(*args)
        meter.done.append(time.time())
        if len(meter.done) == updates:
            raise Reached
        return found

    loop.next_update, loop.descend = counted, timed
    try:
        recipe.main(config)
    except Reached:
        return
    finally:
        loop.next_update, loop.descend = next_update, descend
    sys.exit(f"{name} ended before {updates} updates")


def plain(name: str, config: Any, meter: Meter, examples: int) -> None:
    """Train as the examples of transformers do, until so many examples are learnt from."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from transformers import get_scheduler

    torch.manual_seed(config.run.seed)
    precision = "bf16" if config.run.precision == "bf16" else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    data, collate, model = PLAIN[name](config, load_recipe(name))
    loader = DataLoader(data, config.data.batch_size, shuffle=True, collate_fn=collate)
    optim = config.optim
    optimizer = torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    updates = -(-examples // config.data.batch_size)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=updates)
    model, optimizer, loader, scheduler = accelerator.prepare(model.train(), optimizer, loader, scheduler)
    for _ in count():
        since = time.time()
        for batch in loader:
            meter.add(len(batch["labels"]), time.time() - since)
            loss = model(**batch).loss
            accelerator.backward(loss)
            if optim.clip:
                accelerator.clip_grad_norm_(model.parameters(), optim.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            since = time.time()
            meter.done.append(since)
            if sum(meter.examples) >= examples:
                return


def read(config: Any) -> Any:
    """Train, with its columns as they are in the files."""
    from datasets import Audio, Image, load_dataset

    train = load_dataset(config.data.path, split=config.data.train_split)
    for column, feature in train.features.items():
        if isinstance(feature, Audio | Image):
            train = train.cast_column(column, type(feature)(decode=False))
    return train


def text_classification(config: Any, recipe: Any) -> Prepared:
    """As `run_glue_no_trainer.py`; the tokenizer is trained, as ours is, on train."""
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    train, column = read(config), config.data.text_column
    train = train if column in train.column_names else train.rename_column("sentence", column)  # CoLA's
    names = sorted(map(str, set(train["label"])))
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(train[column], config.data.vocab_size, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, pad_token="<pad>")

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(rows[column], truncation=True, max_length=config.data.max_length)
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": [names.index(str(label)) for label in rows["label"]],
        }

    data = train.map(encode, batched=True, remove_columns=train.column_names)
    arch = getattr(recipe, "FINE_TUNING", {}) | config.arch | {"vocab_size": len(tokenizer), "num_labels": len(names)}
    settings = transformers.Data2VecTextConfig(**{"max_position_embeddings": 514, "type_vocab_size": 1} | arch)
    model = transformers.Data2VecTextForSequenceClassification(settings)
    return data, transformers.DataCollatorWithPadding(tokenizer), model


def asr_ctc(config: Any, recipe: Any) -> Prepared:
    """As `run_speech_recognition_ctc.py`, which extracts the features of all clips first; tokens are characters."""
    import soundfile
    import transformers

    train, data = read(config), config.data
    letters = sorted({letter for text in train[data.text_column] for letter in text})
    vocabulary = {letter: i for i, letter in enumerate(["<pad>", *letters])}
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        samples, rate = soundfile.read(io.BytesIO(row[data.audio_column]["bytes"]), dtype="float32")
        values = extractor(samples, sampling_rate=rate).input_values[0]
        return {"input_values": values, "labels": [vocabulary[letter] for letter in row[data.text_column]]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = extractor.pad([{"input_values": row["input_values"]} for row in rows], return_tensors="pt")
        labels = [torch.tensor(row["labels"]) for row in rows]
        return dict(batch) | {"labels": torch.nn.utils.rnn.pad_sequence(labels, True, -100)}

    arch = recipe.FINE_TUNING | config.arch | {"vocab_size": len(vocabulary), "pad_token_id": 0}
    model = transformers.Data2VecAudioForCTC(transformers.Data2VecAudioConfig(**arch))
    if config.freeze != "nothing":
        model.freeze_feature_encoder()
    return train.map(encode, remove_columns=train.column_names), collate, model


def image_classification(config: Any, recipe: Any) -> Prepared:
    """As `run_image_classification_no_trainer.py`: random crops and flips, images as they are asked for."""
    import PIL.Image
    import transformers
    from torchvision.transforms import v2

    train, column = read(config), config.data.image_column
    label = next(name for name in ("label", "labels", "fine_label") if name in train.column_names)
    names = sorted(set(train[label]))
    arch = getattr(recipe, "FINE_TUNING", {}) | config.arch | {"num_labels": len(names)}
    settings = transformers.Data2VecVisionConfig(**arch)
    change = v2.Compose(
        [
            v2.RandomResizedCrop(settings.image_size),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = [PIL.Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows[column]]
        return {"pixel_values": list(map(change, images)), "labels": [names.index(each) for each in rows[label]]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}

    return train.with_transform(transform), collate, transformers.Data2VecVisionForImageClassification(settings)


PLAIN: dict[str, Callable[[Any, Any], Prepared]] = {
    "text_classification": text_classification,
    "asr_ctc": asr_ctc,
    "image_classification": image_classification,
}


def command_line() -> argparse.ArgumentParser:
    """What the command takes; options that it does not know are the recipe's."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("recipe", choices=PLAIN)
    parser.add_argument("--updates", type=int, default=30, help="of the recipe; the plain loop has as many examples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="recipes_speed.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser


def child(name: str, args: list[str], who: str, begun: float, until: int) -> None:
    """Train one way, and print its figures as JSON."""
    meter = Meter(begun)
    config = parse(load_recipe(name).Config, args)
    (ours if who == "d2v" else plain)(name, config, meter, until)
    print("figures", json.dumps(meter.figures() | {"examples": sum(meter.examples)}))


def measure(name: str, args: list[str], who: str, until: int) -> dict[str, float]:
    """A process's figures; without a network, and with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        variables = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "benchmarks.recipes_speed", name, "--child", who, str(time.time()), str(until)]
        command += [*args, f"--run.out={folder}/run", "--run.tracker=null"]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    lines = [line for line in done.stdout.splitlines() if line.startswith("figures ")]
    if not lines:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return json.loads(lines[0].partition(" ")[2])


def main(argv: list[str] | None = None) -> None:
    """Let both train in turns, print the medians, and write all as JSON."""
    options, args = command_line().parse_known_args(argv)
    if options.child:
        who, begun, until = options.child
        child(options.recipe, args, who, float(begun), int(until))
        return
    from d2v.training.machine import environment

    found: dict[str, list[dict[str, float]]] = {"d2v": [], "transformers": []}
    for _ in range(options.rounds):
        found["d2v"].append(measure(options.recipe, args, "d2v", options.updates))
        found["transformers"].append(measure(options.recipe, args, "transformers", int(found["d2v"][-1]["examples"])))
    machine = environment()
    print(f"{options.recipe}, {machine['device']} ({' '.join(machine['instructions'])}), {machine['threads']} threads")
    print(f"{'':<36}{'d2v':>14}{'transformers':>14}")
    for figure, form in FIGURES.items():
        values = [form.format(median(run[figure] for run in runs)) for runs in found.values()]
        print(f"{figure:<36}{values[0]:>14}{values[1]:>14}")
    Path(options.out).write_text(json.dumps({"machine": machine, "arguments": args} | found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
