"""Images before the encoder: patches and their positions, absolute or as a bias of attention, on any grid.

A model has positions for the grid of patches of one image size. On another grid they are interpolated: in `forward`
plainly, as Hugging Face does, and when a checkpoint is loaded at a new size as BEiT does, so that training goes on from
tables of that size.

Shapes: B batch, P patches, D width, H heads. A grid is its (rows, columns).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.devices import moved
from d2v.models import tables
from d2v.models.configuration import Grid
from d2v.models.cpu import Dropout
from d2v.models.packing import Packing
from d2v.models.tables import offset_grid
from d2v.models.transformer import Attention


class PatchEmbeddings(nn.Module):
    """A class token, and every patch through one linear layer: a convolution whose stride is its kernel."""

    def __init__(self, config):
        super().__init__()
        self.grid, width = config.grid(), config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_mask_token else None
        self.position_embeddings = None
        if config.use_absolute_position_embeddings:
            self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        self.projection = nn.Conv2d(config.num_channels, width, config.patch_size, stride=config.patch_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, masked: Tensor | None = None) -> tuple[Tensor, Grid]:
        """Images (B, channels, height, width) to (B, 1 + P, D) and their grid.

        Args:
            pixel_values: what is left over at the right and the bottom, less than a patch, is not seen.
            masked: (B, P), nonzero at patches to replace by the mask token.
        """
        x = self.projection(pixel_values.to(self.projection.weight.dtype))  # (B, D, rows, columns)
        grid = tuple(x.shape[2:])
        x = x.flatten(2).mT  # (B, P, D)
        if masked is not None and self.mask_token is not None:
            x = torch.where(moved(masked, x.device).bool()[:, :, None], self.mask_token, x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.position_embeddings is not None:
            x = x + resize_positions(self.position_embeddings, self.grid, grid)
        return self.dropout(x), grid


class RelativePositionBias(nn.Module):
    """What attention adds to the score of two positions for the way from one to the other, learnt for each head (BEiT).

    The table has a row for each offset between two patches of a grid, (2 * rows - 1) * (2 * columns - 1) of them, and
    three more: from the class token to a patch, from a patch to the class token, from the class token to itself.
    """

    def __init__(self, grid: Grid, heads: int):
        super().__init__()
        self.grid = grid
        rows, columns = offset_grid(grid)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows * columns + 3, heads))

    def forward(self, grid: Grid, index: Tensor) -> Tensor:
        """(1, H, 1 + P, 1 + P), for queries and keys on a grid whose `offset_index` is given."""
        table = self.relative_position_bias_table.t()  # (H, offsets + 3)
        if grid != self.grid:
            offsets = table[None, :, :-3].unflatten(2, offset_grid(self.grid))
            offsets = F.interpolate(offsets, size=offset_grid(grid), mode="bilinear")[0].flatten(1)
            table = torch.cat((offsets, table[:, -3:]), dim=1)
        # Heads first, so that neither this nor its gradient strides over memory: many times as fast as `table[index]`.
        return table.contiguous().index_select(1, index.flatten()).unflatten(1, index.shape)[None]


@dataclass(frozen=True)
class PatchPacking(Packing):
    """Packing of images of one size: nothing is padded.

    Attributes:
        grid: of the patches that follow each image's class token.
        offsets: its `offset_index`, if the model has relative positions.
    """

    grid: Grid = (0, 0)
    offsets: Tensor | None = None


class PatchAttention(Attention):
    """Attention with its layer's own relative positions."""

    def __init__(self, config, **options):
        super().__init__(config.hidden_size, config.num_attention_heads, **options)
        self.relative_position_bias = RelativePositionBias(config.grid(), config.num_attention_heads)

    def forward(  # type: ignore[override]  # patches have a grid
        self, x: Tensor, packing: PatchPacking, bias: Tensor | None = None, *rest
    ):
        """As `Attention.forward`."""
        own = self.relative_position_bias(packing.grid, packing.offsets)
        return super().forward(x, packing, own if bias is None else own + bias, *rest)


def offset_index(grid: Grid, device: torch.device | None = None) -> Tensor:
    """(1 + P, 1 + P): which row of a table each query and key have."""
    rows, columns = (torch.arange(size, device=device) for size in grid)
    down, right = rows[:, None] - rows + grid[0] - 1, columns[:, None] - columns + grid[1] - 1  # from key to query
    patches = down[:, None, :, None] * offset_grid(grid)[1] + right[:, None, :]  # (rows, columns, rows, columns)
    offsets = math.prod(offset_grid(grid))
    index = F.pad(patches.flatten(2).flatten(0, 1), (1, 0, 1, 0), value=offsets + 1)
    index[0] = offsets
    index[0, 0] = offsets + 2
    return index


def resize_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Absolute positions (1, 1 + P, D) for another grid, by bicubic interpolation; the class token's stays."""
    if old == new:
        return positions
    patches = positions[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    patches = F.interpolate(patches, size=new, mode="bicubic")
    return torch.cat((positions[:, :1], patches.flatten(2).mT), dim=1)


def resize_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """A table of relative positions for another grid, as `d2v.models.tables.resize_table` makes it."""
    return torch.from_numpy(tables.resize_table(table.double().numpy(), old, new)).to(table.dtype)
