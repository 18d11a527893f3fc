"""Evaluations while training: tried before the first update, with the recipe's loss by the forward that predicts."""

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
"""What is tried of an evaluation after two batches, "predictions" or "metrics" too, see `try_evaluation`."""


class Tried(Exception):
    """Two batches were predicted; what follows needs all of them."""


LossFn = Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Tensor]]


@dataclass
class Validation:
    """The loss of what was predicted so far, on this process.

    Attributes:
        loss_fn: of the recipe, which returns the sum of the losses and the number of items.
        total, items: what it returned, added up.
        batches: number of batches, whether or not they have labels.
    """

    loss_fn: LossFn
    total: float = 0.0
    items: float = 0.0
    batches: int = 0


VALIDATION: ContextVar[Validation | None] = ContextVar("validation", default=None)
"""Of the evaluation that goes on while training; `predict` adds to it."""


def measured(
    job: Job, evaluate: Callable[[Any], dict[str, float]], model: nn.Module, loss_fn: LossFn | None
) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of an evaluation, and the `loss` of its rows where there is one; the same on every process.

    Args:
        job: from `d2v.training.job.start`.
        evaluate: returns metrics.
        model: to evaluate.
        loss_fn: of the recipe; None where the metrics have the loss.
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
    """Add a batch's loss to the evaluation's, if one goes on; within, what the model computed for it is not repeated.

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
        if count := float(items):  # of nothing that counts the loss need not be a number
            found.total, found.items = found.total + float(total), found.items + count
    with forward_of(model, outputs, keep=False):
        yield


@contextmanager
def forward_of(model: nn.Module, outputs: list[tuple[Any, Any]], *, keep: bool) -> Iterator[None]:
    """Within, the model returns what it returned before for equal inputs, whose labels change its loss alone.

    Args:
        model: in evaluation, where equal inputs have equal outputs.
        outputs: inputs and outputs.
        keep: add to them.
    """
    if is_sharded(model):  # whose processes compute in step, also what one of them has had before
        yield
        return
    forward, own = model.forward, vars(model).get("forward")  # accelerate may have wrapped it
    expected = deque(outputs)  # the next first: calls come again in their order

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
    """Predict the two longest batches of validation, so that an evaluation that cannot work shows before the training.

    Metrics, which may need all rows, are left out; but where `run.metric` names one they are tried, and it has to be
    among those that two batches give, if they give any. No random number is used up.

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
            except Exception:  # what two batches do not say shows after the first evaluation
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
        wanted: names, with commas; as in the log they may begin with eval_.
        metrics: of the evaluation.
        more: others that can be named.

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
