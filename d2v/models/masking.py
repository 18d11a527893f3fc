"""Span masks over time or channels (SpecAugment as wav2vec 2.0 uses it). Random numbers come from torch's generator.

Shapes: B batch, L length of the masked axis.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def span_mask(lengths: Sequence[int], length: int, prob: float, span: int, min_spans: int = 0) -> Tensor:
    """Masks of spans that may overlap, as fairseq's `compute_mask_indices` draws them (static lengths).

    Args:
        lengths: each row's number of positions that may be masked.
        length: L, the padded length.
        prob: share of positions that would be masked if no spans overlapped; `prob * length / span` spans start.
        span: length of a span.
        min_spans: at least so many spans in a row, as far as they fit.

    Returns:
        (B, L) bool, True where masked. A row shorter than a span has none.
    """
    mask = torch.zeros(len(lengths), length, dtype=torch.bool)
    for row, real in zip(mask, lengths, strict=True):
        starts = real - span + 1
        # The fraction left over is rounded up with a chance equal to itself, so the expected number is right.
        spans = max(int(prob * real / span + torch.rand(()).item()), min_spans)
        if starts > 0 and spans > 0:
            first = torch.randperm(starts)[:spans]
            row[(first[:, None] + torch.arange(span)).flatten()] = True
    return mask
