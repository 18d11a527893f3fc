"""Too little memory ends with one line: for what, and what takes less of it."""

import platform
import re

import numpy as np
import psutil
import pytest
import torch

from d2v.config import Data, Job, Recipe, Run
from d2v.data.loaders import eval_loader
from d2v.errors import InputError
from d2v.training.job import start
from d2v.training.memory import out_of_memory_message, trim
from d2v.training.prediction import predict
from tests.helpers import make_job
from tests.training.test_loop import LENGTHS, ROWS, collate, lines, train


def too_much(kind):
    """Raise what a GPU's allocator raises, or really ask the CPU's for a petabyte."""
    if kind == "gpu":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "mps":
        raise RuntimeError("MPS backend out of memory (MPS allocated: 17 GB). Tried to allocate 2.00 GB.")
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give memory back themselves")
def test_free_memory_is_given_back():
    pieces = [np.ones(2**13) for _ in range(4000)]  # 64 KB, which are none of the pages' own
    del pieces[:-1]  # the last one is behind them
    before = psutil.Process().memory_info().rss
    trim(torch.device("meta"))
    assert psutil.Process().memory_info().rss > before - 2**26
    trim(torch.device("cpu"))
    assert psutil.Process().memory_info().rss < before - 2**27


@pytest.mark.parametrize("kind", ["gpu", "cpu", "mps"])
def test_an_update_that_is_too_large_says_so_and_goes_on_in_pieces(tmp_path, kind):
    computed = []

    def hook(batch):
        computed.append(batch)
        if len(computed) == 3:
            too_much(kind)

    options = {"max_steps": 4, "eval_every": 1, "scores": [1, 2, 3, 4]}
    with pytest.raises(InputError) as error:
        train(tmp_path, loss_hook=hook, **options)
    (line,) = str(error.value).splitlines()
    rows = computed[2]["rows"]
    longest = max(LENGTHS[row] for row in rows)
    found = re.fullmatch(
        rf"out of memory in update 3: input_values 4 x {longest}, the longest row {longest}; [\d.]+ GB were in use at "
        r"most; --run.pieces 2 computes the same in smaller pieces, with --run.resume true from the last checkpoint on",
        line,
    )
    assert found, line
    train(tmp_path, resume=True, pieces=2, **options | {"scores": [3, 4]})
    assert len(lines(tmp_path, "loss")) == 4


def test_an_evaluation_that_is_too_large_says_so_and_pieces_are_for_it_too(tmp_path):
    job = start(Recipe(data=Data(batch_size=4), run=Run(str(tmp_path), tracker=None, pieces=2)))
    seen = []

    def predict_fn(model, batch):
        seen.append(len(batch["rows"]))
        return too_much("cpu")

    with pytest.raises(InputError, match=r"out of memory in evaluation: input_values 2 x 3100, .*; --run.pieces 4 "):
        predict(job, torch.nn.Linear(1, 1), eval_loader(job, ROWS, collate), predict_fn)
    assert seen == [2]  # of four, in two pieces


def test_other_errors_stay_what_they_are(tmp_path):
    def hook(batch):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        train(tmp_path, loss_hook=hook)


def test_a_single_row_that_is_too_large_has_other_advice():
    def line(**run):
        job: Job = make_job(**run)
        return out_of_memory_message(job, [{"input_ids": torch.zeros(1, 7), "rows": [2]}], None, "update 1")

    assert line().startswith("out of memory in update 1: input_ids 1 x 7; ")
    assert line().endswith(
        "; --run.gradient_checkpointing true keeps less for the backward pass, and changes nothing else"
    )
    assert line(gradient_checkpointing=True).endswith(
        "; a single row is too much: shorten such rows, or take a smaller model"
    )
