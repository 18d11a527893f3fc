"""Texts in windows: one prediction per text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2v.data.labels import Labels
from d2v.data.rows import Rows
from d2v.data.windows import group_windows


def join_windows(
    rows: Rows, predictions: Sequence[tuple[int, Tensor]], labels: Labels
) -> list[tuple[int, dict[str, Any]]]:
    """Each text's prediction from the mean logits of its windows, numbered by the first window.

    Args:
        rows: windows, from `d2v.data.text.token_windows`.
        predictions: logits (C,) of each.
        labels: the model's.
    """
    numbers, logits = [], []
    for number, windows in group_windows(rows, predictions):
        numbers.append(number)
        logits.append(torch.stack([each for _, each in windows]).mean(0))
    scores = labels.scores(torch.stack(logits)).tolist() if logits else []
    return [(number, labels.decode(row)) for number, row in zip(numbers, scores, strict=True)]
