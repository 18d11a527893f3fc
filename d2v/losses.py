"""Losses, each as (sum, count), so that whoever adds them up over micro-batches and ranks divides only once.

Shapes: B batch, N predictions, T frames or tokens, C classes or vocabulary, L labels.
"""

from itertools import permutations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.devices import moved

IGNORE = -100
"""Label that counts for nothing, as in `torch.nn.functional.cross_entropy`."""


def at_least_fp32(x: Tensor) -> Tensor:
    """16-bit numbers as fp32, others as they are: losses are never summed in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def ctc(
    logits: Tensor, labels: Tensor, lengths: Tensor, *, blank: int, zero_infinity: bool = False, reduction: str = "sum"
) -> tuple[Tensor, Tensor]:
    """Connectionist temporal classification (Graves et al., 2006).

    Args:
        logits: (B, T, C).
        labels: (B, L); `IGNORE` (as any negative number), or the blank, where a row has ended.
        lengths: (B,) real frames of each row.
        blank: id of the blank.
        zero_infinity: count 0, and no gradient, for labels that do not fit into their frames.
        reduction: "sum" adds up the rows' losses; "mean" divides each by its number of labels first.

    Returns:
        Sum over rows and the number of rows.
    """
    real = (labels >= 0) & (labels != blank)  # labels and lengths on the host make it wait for no device
    precision = torch.promote_types(logits.dtype, torch.float32)
    log_probs = F.log_softmax(logits, dim=-1, dtype=precision).transpose(0, 1)  # (T, B, C)
    if logits.device.type == "mps":  # whose kernel is missing or young: autograd takes the gradient back to it
        log_probs = log_probs.cpu()
    target_lengths = real.sum(dim=1)
    # cuDNN's CTC is not deterministic and takes no labels longer than 256.
    with torch.backends.cudnn.flags(enabled=False):
        losses = F.ctc_loss(
            log_probs,
            moved(labels[real], log_probs.device),
            lengths,
            target_lengths,
            blank=blank,
            reduction="none",
            zero_infinity=zero_infinity,
        )
    if reduction == "mean":
        losses = losses / moved(target_lengths, losses.device).clamp(min=1)
    return moved(losses.sum(), logits.device), torch.tensor(len(labels))


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore: int = IGNORE,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy.

    Args:
        logits: (N, C), or (N, C, ...) for maps.
        labels: (N,) or (N, ...) class numbers, `ignore` where nothing counts; or probabilities of logits' shape.
        ignore: that number.
        weight: (C,) of the classes, by which a label's whole loss is multiplied; by default all have 1. torch weights
            each class of a smoothed label by its own, so that a rare one is the best answer to all labels.
        label_smoothing: share of the probability that is spread over all classes.

    Returns:
        Sum over labels and how many count, or the sum of their weights.
    """
    logits, counted = at_least_fp32(logits), labels != ignore
    if weight is not None:
        weight = weight.to(labels.device, logits.dtype)
        if labels.is_floating_point():
            counted = labels.to(weight) @ weight
        else:
            counted = counted * weight[labels.masked_fill(~counted, 0)]
    elif labels.is_floating_point():
        counted = torch.tensor(labels.numel() // labels.shape[1])
    labels, reduction = moved(labels, logits.device), "sum" if weight is None else "none"
    loss = F.cross_entropy(logits, labels, ignore_index=ignore, reduction=reduction, label_smoothing=label_smoothing)
    return loss if weight is None else (loss * moved(counted, loss.device)).sum(), counted.sum()


def choice(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy over the choices of each row, which may be more or fewer.

    Args:
        logits: (B, C), negative infinity for choices that a row does not have.
        labels: (B,) the right ones.
        label_smoothing: share of the probability that is spread over all choices of a row.

    Returns:
        Sum over rows and their number.
    """
    if not label_smoothing:
        return cross_entropy(logits, labels)
    there = logits > -torch.inf
    logits = at_least_fp32(logits).masked_fill(~there, torch.finfo(torch.float32).min)  # times 0 it is 0
    right = moved(F.one_hot(labels, logits.shape[1]), logits.device).to(logits.dtype)
    spread = there.to(logits) / there.sum(1, keepdim=True)
    return cross_entropy(logits, (1 - label_smoothing) * right + label_smoothing * spread)


def classification(
    logits: Tensor,
    labels: Tensor,
    problem_type: str | None = None,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The loss that fits the labels: cross-entropy, binary cross-entropy for each class, or squared error.

    Args:
        logits: (B, C).
        labels: (B,) class numbers, or (B, C) probabilities of them; (B, C) zeros and ones, or values; (B,) values if
            C is 1.
        problem_type: "single_label_classification", "multi_label_classification" or "regression"; by default a single
            output is a regression, whole numbers are classes, and anything else is several labels at once.
        weight: (C,) of the classes; with several labels of the ones among the labels.
        label_smoothing: share of the probability that is spread over all classes, with several labels over 0 and 1.

    Returns:
        Sum, and the number of labels or, but for classes, of elements.

    Raises:
        ValueError: there is no such type of problem.
    """
    if problem_type is None:
        whole = not labels.is_floating_point()
        problem_type = "single_label_classification" if whole else "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else problem_type
    if problem_type == "single_label_classification":
        labels = labels if labels.is_floating_point() else labels.flatten()
        return cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing)
    logits = at_least_fp32(logits)
    labels = moved(labels, logits.device).to(logits.dtype).view_as(logits)
    if problem_type == "regression":
        return F.mse_loss(logits, labels, reduction="sum"), torch.tensor(labels.numel())
    if problem_type != "multi_label_classification":
        known = "single_label_classification, multi_label_classification or regression"
        raise ValueError(f"problem_type should be {known}, not {problem_type!r}")
    smooth = labels * (1 - label_smoothing) + label_smoothing / 2
    if weight is not None:  # of what the label is, before it was smoothed
        weight = 1 + labels * (moved(weight, logits.device).to(logits.dtype) - 1)
    loss = F.binary_cross_entropy_with_logits(logits, smooth, weight, reduction="sum")
    return loss, torch.tensor(labels.numel())


def pit_bce(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy under each clip's best order of the speakers: permutation-invariant training.

    Which output is which speaker is free, so a clip counts as if its speakers came in the order that costs least
    (Fujita et al., 2019, "End-to-End Neural Speaker Diarization with Permutation-Free Objectives"). Sum over count is
    what EEND's `batch_pit_loss` returns; s3prl adds up the speakers, and so has C times as much.

    Args:
        logits: (B, T, C), C so small that all C! orders can be tried.
        labels: (B, T, C), 1 where a speaker is active, else 0; `IGNORE` where nothing counts, as in padding.

    Returns:
        Sum over clips and the number of pairs of frame and speaker that count.
    """
    logits, labels = at_least_fp32(logits), moved(labels, logits.device)
    outputs, speakers = logits[..., None], labels.to(logits.dtype)[..., None, :]
    outputs, speakers = torch.broadcast_tensors(outputs, speakers)  # (B, T, C, C)
    real = labels != IGNORE
    costs = F.binary_cross_entropy_with_logits(outputs, speakers, reduction="none") * real[..., None, :]
    costs = costs.sum(dim=1)  # (B, C, C): what each output costs as each speaker
    orders = moved(torch.tensor(list(permutations(range(logits.shape[-1])))), logits.device)  # (C!, C)
    totals = costs[:, orders, torch.arange(orders.shape[1], device=logits.device)].sum(dim=-1)  # (B, C!)
    # Not `amin`, which splits the gradient between orders that cost the same, and so would never decide for one.
    return totals.min(dim=1).values.sum(), real.sum()


def regression(
    predictions: Tensor, targets: Tensor, *, beta: float = 0.0, reduction: Literal["sum", "root", "mean"] = "mean"
) -> tuple[Tensor, Tensor]:
    """Distance of vectors: smooth L1, or squared.

    Args:
        predictions, targets: (N, D).
        beta: difference from which the loss grows linearly; 0 for the squared difference.
        reduction: of a vector's D losses: their sum, their sum over the root of D, or their mean.

    Returns:
        Sum over vectors and their number.
    """
    predictions, targets = at_least_fp32(predictions), at_least_fp32(targets)
    if beta == 0:
        total = F.mse_loss(predictions, targets, reduction="sum")
    else:
        total = F.smooth_l1_loss(predictions, targets, reduction="sum", beta=beta)
    width = predictions.shape[-1]
    divisor = {"sum": 1.0, "root": width**0.5, "mean": float(width)}[reduction]
    return total / divisor, torch.tensor(len(predictions))
