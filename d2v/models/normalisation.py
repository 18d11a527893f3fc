"""Batch normalisation that takes a batch of one.

A batch is of one row where rows are few, or shared by processes or pieces; what is then one value a channel has no
variance. torch raises; a copy beside it would teach the running statistics that there is none.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class TakesOne(_BatchNorm):
    """A batch normalisation that takes one value a channel, in training too, by its running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) or (B, D, height, width) to the same."""
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class BatchNorm1d(TakesOne, nn.BatchNorm1d):
    """Of (B, D)."""


class BatchNorm2d(TakesOne, nn.BatchNorm2d):
    """Of (B, D, height, width)."""
