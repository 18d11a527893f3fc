"""Dropout, whose random numbers are cheap on a CPU as well."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16
"""What sixteen random bits can be: a chance of dropout is rounded to so many parts, which the factor allows for."""


def drop(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`F.dropout`, with a random number of 16 bits for each element on a CPU.

    There torch draws one after another on a single thread, unless the CPU is Intel's: in a small model an eighth of
    the time of an update, and more with more threads.

    Args:
        x: floating point, of any shape.
        p: chance that an element becomes zero; the others are scaled up.
        training: False to change nothing.
    """
    if not training or not 0 < p < 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all of their 64 bits
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    keep = torch.ge(bits, dropped - LEVELS // 2, out=torch.empty(x.shape, dtype=x.dtype))  # faster than via bool
    return x * keep.mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Dropout):
    """The module of the function."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return drop(x, self.p, self.training)
