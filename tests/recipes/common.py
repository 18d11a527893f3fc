"""What the tests of all recipes ask: a run that was stopped goes on exactly, evaluating repeats a figure, and so on."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.recipe import RECIPES, load_recipe
from d2v.cli import parse
from d2v.training.log import read_log


def runner(name: str) -> Callable[..., dict[str, Any]]:
    """A function that runs a recipe in this process on a command line and returns its results.

    Pictures are empty files unless they are asked for: they are a third of what a tiny run takes.
    """
    recipe = load_recipe(name)

    def run(*args, pictures: bool = False) -> dict[str, Any]:
        args = [*map(str, args), "--run.tracker=null"]
        sys.modules[name] = recipe  # another test may have loaded it since, and pickle looks there
        with nullcontext() if pictures else without_pictures():
            return recipe.main(parse(recipe.Config, args, demo=RECIPES / f"configs/{name}/demo.yaml"))

    return run


def without_pictures() -> AbstractContextManager:
    """Within it, a picture that is saved is an empty file."""
    return mock.patch("matplotlib.figure.Figure.savefig", lambda figure, path, **options: path.touch())


def predictions(out: Path) -> list[dict[str, Any]]:
    """The rows of `predictions.jsonl`."""
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text("utf-8").splitlines()]


def mean_average_precision(rows: list[dict[str, Any]]) -> float:
    """Over classes, the mean precision among all that score as high as an example of the class, by hand."""
    means = []
    for name in rows[0]["scores"]:
        pairs = [(row["scores"][name], name in row["reference"]) for row in rows]
        above = [[real for other, real in pairs if other >= score] for score, real in pairs if real]
        means += [sum(sum(reals) / len(reals) for reals in above) / len(above)] if above else []
    return sum(means) / len(means)


def figures(results: dict[str, Any]) -> dict[str, float]:
    """The results without what depends on the machine, the moment and the training."""
    moment = {"seconds", "examples_per_second", "peak_memory_mb", "freeze"}
    return {key: value for key, value in results.items() if key not in moment}


def logs_its_loss(out: Path) -> None:
    """Assert that every evaluation in the log has a loss beside its metrics, which is a number."""
    evaluations = [entry for entry in read_log(out / "log.jsonl") if any(key.startswith("eval_") for key in entry)]
    assert evaluations and all(math.isfinite(entry["eval_loss"]) and len(entry) > 2 for entry in evaluations)


def same_weights(a: Path, b: Path) -> None:
    """Assert that two safetensors files hold bitwise the same."""
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def goes_on_exactly(run: Callable, args: list, tmp_path: Path) -> None:
    """Assert that six updates, stopped after each by the clock, end with the weights of six updates at once."""
    args = [*args, "--run.max_steps=6", "--run.eval_every=1"]
    straight = run(*args, f"--run.out={tmp_path / 'straight'}")
    stopped = [*args, f"--run.out={tmp_path / 'stopped'}", "--run.resume=true"]
    for _ in range(2):
        run(*stopped, "--run.max_minutes=1e-6")
    assert len(list((tmp_path / "stopped/checkpoints").iterdir())) > 0
    results = run(*stopped)
    assert figures(results) == figures(straight)
    last = "checkpoints/step-*/model.safetensors"
    same_weights(sorted((tmp_path / "straight").glob(last))[-1], sorted((tmp_path / "stopped").glob(last))[-1])
    same_weights(tmp_path / "straight/best/model.safetensors", tmp_path / "stopped/best/model.safetensors")


def repeats_exactly(run: Callable, trained: Path, args: list, tmp_path: Path) -> None:
    """Assert that a run which differs from another in nothing but `run.out` differs from it in no weight."""
    run(*args, f"--run.out={tmp_path}")
    checkpoints = [sorted((out / "checkpoints").glob("*/model.safetensors")) for out in (trained, tmp_path)]
    assert len(checkpoints[0]) > 1
    for first, second in zip(*checkpoints, strict=True):
        same_weights(first, second)


def evaluates_to_the_same(run: Callable, trained: Path, results: dict, args: list, tmp_path: Path) -> None:
    """Assert that evaluating the best model repeats the training run's figures and predictions."""
    again = run(*args, "--mode=evaluate", f"--model={trained / 'best'}", f"--run.out={tmp_path}")
    assert figures(again) == figures(results)
    assert (tmp_path / "predictions.jsonl").read_text("utf-8") == (trained / "predictions.jsonl").read_text("utf-8")


def outputs_beyond_the_tokens_take_nothing(run, cls, trained, args, tmp_path):
    """A model with five outputs more than its tokenizer has tokens, all of them likely, has the same loss."""
    out, results = trained
    model = cls.from_pretrained(out / "best")
    tokens = model.config.vocab_size
    model.resize_token_embeddings(tokens + 5)
    with torch.no_grad():
        model.lm_head.bias[tokens:] = 9.0
    shutil.copytree(out / "best", tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    again = run(*args, "--mode=evaluate", f"--model={tmp_path / 'model'}", f"--run.out={tmp_path / 'out'}")
    assert again["loss"] == pytest.approx(results["loss"], rel=1e-5)
