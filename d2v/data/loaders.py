"""Loaders: rows to batches.

Shapes: B batch, L labels.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from d2v.config import Data, Optim
from d2v.data.sampler import LengthBatches, eval_batches
from d2v.losses import IGNORE


def pad_labels(labels: list[list[int]]) -> Tensor:
    """(B, L) int64, `IGNORE` where a row has ended."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in labels], True, IGNORE)


class DrawnBatches(LengthBatches):
    """Batches of (row, epoch), for `Drawn`."""

    def __iter__(self):
        for batch in super().__iter__():
            yield [(row, self.epoch) for row in batch]


class Drawn:
    """Rows by (number, epoch), each with `draw`: the numbers to seed its augmentation with.

    A row comes once an epoch, so they never come twice; and whoever makes the batch, and whether the run was stopped
    before, changes nothing.
    """

    def __init__(self, rows, seed: int):
        self.rows, self.seed = rows, seed

    def __getitem__(self, drawn: tuple[int, int]) -> dict:
        row, epoch = drawn
        return self.rows[row] | {"draw": (self.seed, epoch, row)}


def train_loader(
    rows,
    lengths: list[float],
    collate: Callable,
    data: Data,
    max_length: float,
    optim: Optim,
    seed: int,
    accelerator,
    *,
    draws: bool = False,
) -> DataLoader:
    """Batches for training, of this process's share.

    Args:
        rows: indexed by number.
        lengths: of each row, in any unit.
        collate: makes a batch, a dict with its `size`, of a list of rows.
        data: how many rows a batch has at the most, and how many workers make batches.
        max_length: most padded length of a batch, in the same unit.
        optim: how many batches make an update.
        seed: of the order.
        accelerator: from `d2v.training.loop.start`.
        draws: rows are dicts, and `collate` gets them with `draw`, see `Drawn`.
    """
    batches = (DrawnBatches if draws else LengthBatches)(
        lengths,
        max_rows=data.batch_size,
        max_length=max_length,
        seed=seed,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        accumulation=optim.accumulation,
    )
    return DataLoader(
        Drawn(rows, seed) if draws else rows,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=data.workers,
        multiprocessing_context="fork" if data.workers else None,  # a recipe's collate function is a closure
        persistent_workers=data.workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # iterators draw a seed for workers: not from the numbers that a resumed run needs
    )


def eval_loader(
    rows, lengths: list[float], collate: Callable, data: Data, max_length: float, accelerator
) -> DataLoader:
    """Batches of this process's share of the rows, for `d2v.training.loop.predict`; a batch has the `rows` it holds.

    Args:
        rows, lengths, collate, data, max_length, accelerator: as for `train_loader`.
    """

    class Numbered:
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, i: int):
            return i, rows[i]

    share = accelerator.process_index, accelerator.num_processes
    return DataLoader(
        Numbered(),
        batch_sampler=eval_batches(lengths, data.batch_size, max_length, *share),
        collate_fn=lambda pairs: collate([row for _, row in pairs]) | {"rows": [i for i, _ in pairs]},
        num_workers=data.workers,
        multiprocessing_context="fork" if data.workers else None,
        generator=torch.Generator(),  # as for training, which an evaluation more or less must not change
    )
