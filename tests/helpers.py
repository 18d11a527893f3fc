"""What several tests need: command lines as their own parsers read them, and a tiny checkpoint."""

import gc
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.recipe import load_recipe
from d2v.cli import parse
from d2v.config import Data, Job, Optim, Recipe, Run
from d2v.data.rows import Split
from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.models.text import Data2VecTextConfig, Data2VecTextModel
from d2v.models.vision import Data2VecVisionConfig, Data2VecVisionModel
from d2v.processors.audio import AudioFeatureExtractor
from d2v.processors.ctc import CTCTokenizer
from d2v.processors.image import ImageProcessor
from d2v.processors.text import Tokenizer
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION, sentences


def make_split(name: str = "train", **columns) -> Split:
    """A split of these columns."""
    import datasets

    table = datasets.Dataset.from_dict(columns)
    return Split(name, table, np.arange(len(table)), ((name, len(table)),))


def make_job(
    data: Data | None = None, mode: str = "train", rank: int = 0, processes: int = 1, model: str | None = None, **groups
) -> Job:
    """A job without a run: what data and loaders look at."""
    groups.setdefault("out", tempfile.mkdtemp(dir=os.environ["HF_DATASETS_CACHE"]))
    config = Recipe(mode=mode, model=model, data=data or Data(), optim=groups.pop("optim", Optim()), run=Run(**groups))
    share = SimpleNamespace(
        process_index=rank,
        num_processes=processes,
        is_main_process=rank == 0,
        local_main_process_first=nullcontext,
    )
    return Job(config, share, "test")


def exit_code_of_worker(make_updates: Callable[[], Any]) -> int | None:
    """How the one data worker of training ended when nothing referred to the updates any more; None if it did not."""
    updates = make_updates()
    iterator = iter(updates)
    next(iterator)
    (worker,) = updates.loader._iterator._workers
    gc.disable()  # which would end it some time later
    try:
        del updates, iterator
        return worker.exitcode
    finally:
        gc.enable()


ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in ROOT.glob("recipes/*.py"))
PRETRAINING = [name for name in SCRIPTS if name.startswith("pretrain_")]
RECIPES = [name for name in SCRIPTS if name not in PRETRAINING]
"""A recipe has a task, with labels, a head, predictions and metrics; pretraining has none of these."""


def recipe_words(words: list[str]) -> list[str] | None:
    """Script and arguments of a command that runs a recipe, else None; the launcher's parser takes what is its own."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # environment variables
        words = words[1:]
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        args = launch_command_parser().parse_args(words[2:])
    elif words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        args = get_args_parser().parse_args(words[1:])
    elif words[0] == "python" and words[1].startswith("recipes/"):
        return words[1:]
    else:
        return None
    return [args.training_script, *args.training_script_args]


def parse_command(command: str) -> tuple[str, Any] | None:
    """The recipe that a command runs and the configuration it gives it; None if it runs no recipe."""
    words = recipe_words(shlex.split(command, comments=True))
    if words is None:
        return None
    script, *args = (str(ROOT / word) if word.startswith("recipes/") else word for word in words)
    name = Path(script).stem
    assert script == str(ROOT / f"recipes/{name}.py"), f"{script}: no recipe"
    return name, parse(load_recipe(name).Config, args, demo=ROOT / f"recipes/configs/{name}/demo.yaml")


def tiny_recogniser(folder: Path) -> Path:
    """A checkpoint of a tiny model with everything that recognition takes; returns its folder."""
    tokenizer = CTCTokenizer.from_texts(["ABCDE"])
    config = Data2VecAudioConfig(**TINY_AUDIO, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    for part in (Data2VecAudioForCTC(config), AudioFeatureExtractor(), tokenizer):
        part.save_pretrained(folder)
    return folder


def tiny_listener(folder: Path) -> Path:
    """A checkpoint of a tiny audio model without a head, and its processor; returns its folder."""
    torch.manual_seed(0)
    for part in (Data2VecAudioModel(Data2VecAudioConfig(**TINY_AUDIO)), AudioFeatureExtractor()):
        part.save_pretrained(folder)
    return folder


def tiny_reader(folder: Path) -> Path:
    """A checkpoint of a tiny text model without a head, and its tokenizer; returns its folder."""
    tokenizer = Tokenizer.train(sentences(20, seed=0), 300)
    config = Data2VecTextConfig(**TINY_TEXT, vocab_size=len(tokenizer), max_position_embeddings=514)
    torch.manual_seed(0)
    for part in (Data2VecTextModel(config), tokenizer):
        part.save_pretrained(folder)
    return folder


def tiny_viewer(folder: Path, **changes) -> Path:
    """A checkpoint of a tiny vision model without a head, and its processor; returns its folder."""
    side = TINY_VISION["image_size"]
    torch.manual_seed(0)
    for part in (
        Data2VecVisionModel(Data2VecVisionConfig(**TINY_VISION | changes)),
        ImageProcessor(size={"height": side, "width": side}),
    ):
        part.save_pretrained(folder)
    return folder
