"""What makes a recipe's batches can be sent to a process that was not forked, and makes the same batches there."""

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.recipe import RECIPES, load_recipe
from d2v.cli import parse

FEW = [f"--data.max_{split}_samples=8" for split in ("train", "validation", "test")]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@pytest.mark.parametrize(
    "name", ["token_classification", "question_answering", "multiple_choice", "causal_lm", "masked_lm"]
)
def test_collate_functions_pickle(name, tmp_path, monkeypatch):
    recipe, collates = load_recipe(name), {}

    def look(loader, make, job, rows, collate):
        collates[loader] = (rows, collate)
        return make(job, rows, collate)

    for loader in ("train_loader", "eval_loader"):
        monkeypatch.setattr(recipe, loader, partial(look, loader, getattr(recipe, loader)))
    args = [*FEW, "--run.max_steps=1", "--run.tracker=null", f"--run.out={tmp_path}"]
    recipe.main(parse(recipe.Config, args, demo=RECIPES / f"configs/{name}/demo.yaml"))
    assert set(collates) == {"train_loader", "eval_loader"}
    for loader, (rows, collate) in collates.items():
        about = {"row": 0} | ({"seed": (0, 1, 0)} if loader == "train_loader" else {})
        batch, again = (function([rows[0] | about]) for function in (collate, pickle.loads(pickle.dumps(collate))))
        assert batch.keys() == again.keys() and all(same(batch[key], again[key]) for key in batch)
        assert sum(batch["lengths"]) == batch["size"] and len(batch["lengths"]) == len(batch["input_ids"])
