"""The validation loss: the recipe's own, of the batches that an evaluation predicts anyway, by the same forward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2v.config import Job
from d2v.data.facts import note
from d2v.training.engine import is_sharded

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
    from accelerate.utils import gather_object

    found = Validation(loss_fn) if loss_fn else None
    token = VALIDATION.set(found)
    try:
        metrics = {key: float(value) for key, value in evaluate(model).items()}
    finally:
        VALIDATION.reset(token)
    if found is None:
        return metrics, {}
    total, items, batches = map(sum, zip(*gather_object([(found.total, found.items, found.batches)]), strict=True))
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

    def once(*args: Any, **kwargs: Any) -> Any:
        for inputs, output in outputs:
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
