"""Masks: spans over time or channels (SpecAugment as wav2vec 2.0 uses it), blocks of patches (BEiT).

Random numbers come from torch's generator.

Shapes: B batch, L length of the masked axis. A grid is its (rows, columns).
"""

import math
from collections.abc import Sequence

import numpy as np
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


def seen_blocks(grid: tuple[int, int], count: int, block: tuple[int, int]) -> Tensor:
    """A mask that leaves blocks, which may overlap, until all but `count` positions are seen (data2vec 2.0's inverse).

    Args:
        grid: rows and columns; (1, L) for a row.
        count: positions to mask, exactly; but at least one is masked, and at least one is seen.
        block: rows and columns of a block.

    Returns:
        (rows, columns) bool, True where masked.
    """
    mask = np.ones(grid, dtype=bool)  # a block takes NumPy a tenth of torch's time
    rows, columns = min(block[0], grid[0]), min(block[1], grid[1])
    tops, lefts = grid[0] - rows + 1, grid[1] - columns + 1
    more = max(mask.size - max(count, 1), 1)
    while more:
        for start in torch.randint(tops * lefts, (mask.size,)).tolist():
            top, left = divmod(start, lefts)
            part = mask[top : top + rows, left : left + columns]
            new = int(np.count_nonzero(part))
            if new > more:  # of the last block as much as it takes
                places = np.argwhere(part)[torch.randperm(new)[:more].numpy()]
                part[places[:, 0], places[:, 1]] = False
            else:
                part[:] = False
            more -= min(new, more)
            if not more:
                break
    return torch.from_numpy(mask)


def block_mask(grid: tuple[int, int], count: int, smallest: int = 16, flattest: float = 0.3) -> Tensor:
    """A mask of rectangles that may overlap, drawn until `count` patches are masked (Bao et al., 2022, algorithm 1).

    Args:
        grid: rows and columns of patches.
        count: patches to mask. There are fewer where ten rectangles in a row are too large for what is left; where none
            fits at all, as into a single row of patches, they are a run of patches.
        smallest: patches of the smallest rectangle.
        flattest: ratio of its sides, down to this and up to its inverse.

    Returns:
        (rows, columns) bool, True where masked.
    """
    mask = torch.zeros(grid, dtype=torch.bool)
    misses, left = 0, count
    while left > 0 and misses < 10:
        area, ratio = torch.rand(2).tolist()
        area = smallest + area * (left - smallest)
        ratio = flattest ** (2 * ratio - 1)  # as often flat as high
        rows, columns = max(round(math.sqrt(area * ratio)), 1), max(round(math.sqrt(area / ratio)), 1)
        new = 0
        if rows < grid[0] and columns < grid[1]:
            top, first = int(torch.randint(grid[0] - rows + 1, ())), int(torch.randint(grid[1] - columns + 1, ()))
            block = mask[top : top + rows, first : first + columns]
            new = int((~block).sum())
        if 0 < new <= left:
            block[:] = True
            misses, left = 0, left - new
        else:
            misses += 1
    if left == count:
        first = int(torch.randint(mask.numel() - count + 1, ()))
        mask.view(-1)[first : first + count] = True
    return mask
