"""The losses of the Keras models, with labels as `d2v.losses` takes them. Shapes: B batch, C classes."""

import keras
import numpy as np
from keras import ops

from d2v.errors import InputError
from d2v.keras.interpolation import resample
from d2v.keras.layers import at_least_fp32
from d2v.models.configuration import Data2VecVisionConfig

IGNORE = -100
"""Label of classification that counts for nothing, as `d2v.losses.IGNORE`."""


def kind(problem_type: str | None, labels, classes: int) -> str:
    """What the labels are, as `d2v.losses.classification` finds it."""
    if problem_type is not None:
        return problem_type
    if classes == 1:
        return "regression"
    whole = not keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype))
    return "single_label_classification" if whole else "multi_label_classification"


def check_labels(labels, config: Data2VecVisionConfig, shape: tuple[int | None, ...]) -> None:
    """Raise InputError unless labels have this shape and, where their values are known, are classes or ignored.

    In compiled code they are not known: there a label that is no class makes the loss NaN.
    """
    found, classes, maps = tuple(labels.shape), config.num_labels, len(shape) == 3
    if not maps and kind(config.problem_type, labels, classes) != "single_label_classification":
        if np.prod(found[1:], dtype=int) != classes:
            raise InputError(f"labels have shape {found}; should be {(*shape, classes)}")
        return
    fits = len(found) == len(shape) or (not maps and found[1:] == (1,))
    if not fits or any(None not in pair and pair[0] != pair[1] for pair in zip(found, shape, strict=False)):
        wanted = "(B, height, width)" if maps else str(shape)
        raise InputError(f"labels have shape {found}; should be {wanted}")
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if keras.backend.is_float_dtype(dtype):
        raise InputError(f"labels are {dtype}; should be whole numbers, classes")
    try:
        values = keras.ops.convert_to_numpy(labels)
    except Exception:  # each backend has its own for what has no value yet
        return
    ignored = config.semantic_loss_ignore_index if maps else IGNORE
    outside = values[(values != ignored) & ((values < 0) | (values >= classes))]
    if outside.size:
        raise InputError(f"label {int(outside[0])} is outside the {classes} classes; {ignored} counts for nothing")


def cross_entropy(logits, labels, ignore: int):
    """Sum over labels and how many count.

    Args:
        logits: (..., C).
        labels: (...) class numbers, `ignore` where nothing counts.
        ignore: that number.
    """
    logits, labels = at_least_fp32(logits), ops.cast(labels, "int32")
    counted, classes = labels != ignore, logits.shape[-1]
    outside = ops.any(ops.logical_and(counted, ops.logical_or(labels < 0, labels >= classes)))
    known = ops.clip(ops.where(counted, labels, 0), 0, classes - 1)
    losses = ops.sparse_categorical_crossentropy(known, logits, from_logits=True)
    total = ops.sum(ops.where(counted, losses, ops.zeros_like(losses)))
    return ops.where(outside, ops.full_like(total, np.nan), total), ops.sum(ops.cast(counted, logits.dtype))


def classification(logits, labels, problem_type: str | None):
    """Mean of the loss that fits the labels, as `d2v.losses.classification`."""
    what = kind(problem_type, labels, logits.shape[-1])
    if what == "single_label_classification":
        total, count = cross_entropy(logits, ops.reshape(labels, (-1,)), IGNORE)
        return total / count
    logits = at_least_fp32(logits)
    labels = ops.cast(ops.reshape(labels, ops.shape(logits)), logits.dtype)
    if what == "regression":
        return ops.mean(ops.square(logits - labels))
    return ops.mean(ops.relu(logits) - logits * labels + ops.softplus(-ops.abs(logits)))


def pixels(logits, auxiliary, labels, config: Data2VecVisionConfig):
    """Mean cross-entropy of the pixels that count, the auxiliary head's weighted and added; 0 where none counts.

    Args:
        logits, auxiliary: (B, height, width, C) of any size, interpolated to the labels' size; `auxiliary` may be None.
        labels: (B, height, width), `config.semantic_loss_ignore_index` where nothing counts.
        config: has the weight.
    """
    size, ignore = tuple(labels.shape[1:]), config.semantic_loss_ignore_index
    total, count = cross_entropy(resample(at_least_fp32(logits), size), labels, ignore)
    if auxiliary is not None:
        helped, _ = cross_entropy(resample(at_least_fp32(auxiliary), size), labels, ignore)
        total = total + config.auxiliary_loss_weight * helped
    return total / ops.maximum(count, 1)
