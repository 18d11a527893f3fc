"""Predictions of a split, on all processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from d2v.config import Job
from d2v.data.facts import everyones, note_decoded
from d2v.errors import InputError, Interrupted
from d2v.training.engine import in_step, keeping_casts, to_device
from d2v.training.memory import out_of_memory
from d2v.training.report import timed
from d2v.training.signals import received
from d2v.training.validation import TRYING, Tried, counting_loss

Predictions = TypeVar("Predictions")


@torch.no_grad()
def predict(
    job: Job, model: nn.Module, batches: DataLoader, predict_fn: Callable[[nn.Module, dict[str, Any]], Sequence[Any]]
) -> list[tuple[int, Any]]:
    """A split's predictions as (row number, prediction) in order, on every process; rows may be missing.

    Args:
        job: from `d2v.training.job.start`.
        model: to be put into evaluation mode.
        batches: from `eval_loader`: each process's share of the rows.
        predict_fn: returns one prediction per row of a batch.
    """
    from accelerate.utils import gather_object

    model.to(job.accelerator.device).eval()
    predictions: list[tuple[int, Any]] = []
    decoded: list[Any] = []
    stopped = False

    def predict_batch(batch: dict[str, Any]) -> None:
        batch = to_device(batch, job.accelerator.device)
        memory = out_of_memory(job, [batch], batches, "evaluation")
        with job.accelerator.autocast(), memory, counting_loss(model, batch):
            predictions.extend(zip(batch["rows"], predict_fn(model, batch), strict=True))

    with in_step(model, batches, predict_batch), keeping_casts(model, job.accelerator.device):
        for batch in batches:
            decoded += batch.pop("decoded", ())
            if not batch["rows"]:  # none could be decoded
                continue
            predict_batch(batch)
            stopped = bool(received)  # in an evaluation during training; a resumed run repeats it
            if stopped or (TRYING.get() and len(predictions) > len(batch["rows"])):  # of two batches
                break
    if any(everyones(job, stopped)):  # on all at once: else some would wait for the others' predictions for ever
        raise Interrupted
    if TRYING.get() == "predictions":
        raise Tried
    note_decoded(job, gather_object(decoded))
    found = sorted(gather_object(predictions), key=lambda pair: pair[0])
    if not found and decoded:
        raise InputError(f"not one row can be decoded; the last is {decoded[-1][2]}")
    return found


def test_split(rows: Mapping[str, Any]) -> str:
    """The split that is scored at the end: test, or validation where there is none."""
    return "test" if "test" in rows else "validation"


def predict_test(
    rows: Mapping[str, Any], predict_split: Callable[..., Predictions], model: nn.Module, *options: Any
) -> tuple[str, Predictions, float]:
    """Predictions of the split that was not used for selection: test, or validation where there is none.

    Args:
        rows: of each split.
        predict_split: `predict_split(model, split, *options)` predicts a split.
        model: the best one.
        *options: of `predict_split`.

    Returns:
        The split's name, its predictions, and their time in seconds.
    """
    split = test_split(rows)
    return split, *timed(predict_split, model, split, *options)
