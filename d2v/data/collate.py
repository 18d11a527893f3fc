"""Loaders: rows to batches.

Shapes: B batch, L labels.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from d2v.data.sampler import LengthBatches, eval_batches
from d2v.losses import IGNORE


def pad_labels(labels: list[list[int]]) -> Tensor:
    """(B, L) int64, `IGNORE` where a row has ended."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in labels], True, IGNORE)


def train_loader(rows, collate: Callable, batches: LengthBatches, workers: int) -> DataLoader:
    """Batches for training: `collate(list of rows)` is a dict with the batch's `size`."""
    return DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # iterators draw a seed for workers: not from the numbers that a resumed run needs
    )


def eval_loader(rows, lengths: list[float], collate: Callable, max_rows: int, workers: int, accelerator) -> DataLoader:
    """Batches of this process's share of the rows, for `d2v.train.predict`; a batch has the `rows` it holds."""

    class Numbered:
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, i: int):
            return i, rows[i]

    return DataLoader(
        Numbered(),
        batch_sampler=eval_batches(lengths, max_rows, accelerator.process_index, accelerator.num_processes),
        collate_fn=lambda pairs: collate([row for _, row in pairs]) | {"rows": [i for i, _ in pairs]},
        num_workers=workers,
    )
