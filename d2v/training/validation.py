"""Evaluations during training: a trial before the first update, and the loss from the same forward passes."""

import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2v.config import Job
from d2v.data.facts import collecting, everyones, note
from d2v.errors import InputError, Interrupted
from d2v.models.sharded import is_sharded
from d2v.training.resume import RandomState

TRYING: ContextVar[str] = ContextVar("trying", default="")
"""While `try_evaluation` evaluates two batches: "predictions", or "metrics" if metrics are tried too; else empty."""


class Tried(Exception):
    """Raised when two batches were predicted; the rest of an evaluation needs all of them."""


LossFn = Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Tensor]]


@dataclass
class Validation:
    """The loss of all predictions so far, on this process.

    Attributes:
        loss_fn: of the recipe, which returns the sum of the losses and the number of items.
        total, items: sums of what it returned.
        batches: number of batches, whether or not they have labels.
    """

    loss_fn: LossFn
    total: float = 0.0
    items: float = 0.0
    batches: int = 0


VALIDATION: ContextVar[Validation | None] = ContextVar("validation", default=None)
"""The loss of the current evaluation during training; `predict` adds to it."""


def measured(
    job: Job, evaluate: Callable[[Any], dict[str, float]], model: nn.Module, loss_fn: LossFn | None
) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of an evaluation, and the `loss` of its rows if they have one; the same on every process.

    Args:
        job: from `d2v.training.job.start`.
        evaluate: returns metrics.
        model: to evaluate.
        loss_fn: of the recipe; None if the metrics include the loss.
    """
    found = Validation(loss_fn) if loss_fn else None
    token = VALIDATION.set(found)
    try:
        metrics = {key: float(value) for key, value in evaluate(model).items()}
    finally:
        VALIDATION.reset(token)
    if found is None:
        return metrics, {}
    total, items, batches = map(sum, zip(*everyones(job, (found.total, found.items, found.batches)), strict=True))
    if batches and not items:
        note(job, "no validation loss", "validation has no loss: none of its rows has what is trained on")
    return metrics, {"loss": total / items} if items else {}


@contextmanager
def counting_loss(model: nn.Module, batch: dict[str, Any]) -> Iterator[None]:
    """Add a batch's loss to the current evaluation's, if any; within, the model reuses what it computed for it.

    Batches without `labels` have no loss.
    """
    found = VALIDATION.get()
    if found is None:
        yield
        return
    found.batches += 1
    outputs: list[tuple[Any, Any]] = []
    if "labels" in batch:
        with forward_of(model, outputs, keep=True):
            total, items = found.loss_fn(model, batch)
        if count := float(items):  # the loss of no items may be NaN
            found.total, found.items = found.total + float(total), found.items + count
    with forward_of(model, outputs, keep=False):
        yield


@contextmanager
def forward_of(model: nn.Module, outputs: list[tuple[Any, Any]], *, keep: bool) -> Iterator[None]:
    """Within, the model returns its earlier output for equal inputs; labels, which change only its loss, may differ.

    Args:
        model: in evaluation mode, where equal inputs have equal outputs.
        outputs: inputs and outputs.
        keep: whether to add new ones.
    """
    if is_sharded(model):  # its processes compute in step, so none may skip a pass
        yield
        return
    forward, own = model.forward, vars(model).get("forward")  # accelerate may have wrapped it
    expected = deque(outputs)  # starting with the next: calls come again in the same order

    def once(*args: Any, **kwargs: Any) -> Any:
        for _ in range(len(expected)):
            inputs, output = expected[0]
            expected.rotate(-1)
            if equal(inputs, (args, kwargs)):
                return output
        output = forward(*args, **kwargs)
        if keep:
            outputs.append(((args, {key: value for key, value in kwargs.items() if key != "labels"}), output))
        return output

    model.forward = once
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


def equal(a: Any, b: Any) -> bool:
    """Whether two inputs of a model are equal; tensors on one device with the same shape, type and values are."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (
            (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and a.numel() > 0 and torch.equal(a, b)
        )
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


def try_evaluation(job: Job, measure: Callable[[Any], Any], model: nn.Module, random: RandomState) -> None:
    """Predict the two longest batches of validation, so that a broken evaluation shows before training.

    Metrics may need all rows and are left out, unless `run.metric` names one: then they are tried, and it has to be
    among those of the two batches, if these give any. The random number generators are left as they were.

    Args:
        job: from `d2v.training.job.start`.
        measure: returns metrics and, if there is one, the loss.
        model: to be trained.
        random: of this process.
    """
    state = random.state_dict()
    with trying("predictions"), suppress(Tried):
        measure(model)
    if job.config.run.metric:
        found = None
        with trying("metrics"), collecting(), redirect_stdout(io.StringIO()):
            try:
                found = measure(model)
            except Interrupted:
                raise
            except Exception:  # two batches may be too few; a real fault shows in the first evaluation
                found = None
        if found:
            chosen_metrics(job.config.run.metric, *found)
    random.load_state_dict(state)
    model.train()


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Within, `predict` ends after two batches, see `TRYING`."""
    token = TRYING.set(what)
    try:
        yield
    finally:
        TRYING.reset(token)


def chosen_metrics(wanted: str, metrics: Mapping[str, float], more: Mapping[str, float] | None = None) -> list[str]:
    """The metric that chooses the best model, then those that break ties: by default the next of the evaluation's.

    Args:
        wanted: names separated by commas; as in the log they may begin with eval_.
        metrics: of the evaluation.
        more: other values that can be named.

    Raises:
        InputError: there is no such metric.
    """
    names = [name.strip().removeprefix("eval_") for name in wanted.split(",")]
    there = [*metrics, *(more or ())]
    if unknown := [name for name in names if name not in there]:
        raise InputError(
            f"run.metric {unknown[0]}: evaluation gives {', '.join(there)}; give one of them, with --run.resume true "
            "if the run has begun"
        )
    return names if len(names) > 1 else names + [name for name in metrics if name not in names][:1]
