"""Which rows make which update: rows of similar length together, in an order that only the seed and the epoch decide.

An update is a set of rows. Dealing them to processes and cutting them into pieces that fit in memory changes only the
speed, since losses are sums and counts.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch

from d2v.errors import InputError


class LengthBatches:
    """Batches with limits on rows and padded length, and the updates that they make.

    Rows are sorted by length into buckets once. Every epoch shuffles the rows of each bucket, cuts them into batches
    and shuffles these. Within a batch the shortest come first: neighbours of one length share a call of attention, see
    `d2v.models.packing`. Every epoch has the same number of updates and every row once, and the order is a pure
    function of (seed, epoch), so that a run can be resumed in the middle of an epoch. The last few rows of an epoch are
    left out only if all batches are single rows, and these do not make a whole number of updates.
    """

    def __init__(
        self,
        lengths: Sequence[float] | np.ndarray,
        *,
        max_rows: int,
        max_length: float | None = None,
        seed: int = 0,
        batches: int = 1,
    ):
        """Sort rows into buckets.

        Args:
            lengths: of each row, in any unit.
            max_rows: maximum number of rows in a batch.
            max_length: maximum padded length of a batch: rows times the longest, in the same unit. A longer row is a
                batch of its own.
            seed: of the order.
            batches: number of batches that make an update.

        Raises:
            InputError: fewer rows than batches for one update.
        """
        self.lengths, self.seed, self.batches = np.asarray(lengths, dtype=np.float64), seed, batches
        if len(lengths) < batches:
            raise InputError(f"{len(lengths)} rows to train on are too few for updates of optim.batches {batches}")
        order = np.argsort(self.lengths, kind="stable")
        ordered = self.lengths[order]
        # At most twenty buckets, each of at least eight typical batches: similar lengths, but much left to shuffle.
        usual = max_rows if max_length is None else min(max_rows, max_length * len(order) / float(self.lengths.sum()))
        count = max(1, min(20, int(len(order) / (8 * max(usual, 1)))))
        if ordered[0] == ordered[-1]:  # buckets would only keep neighbours, often of one class, together
            count = 1
        bounds = [round(len(order) * i / count) for i in range(count + 1)]
        self.buckets = [torch.from_numpy(order[start:end]) for start, end in pairwise(bounds)]
        self.sizes = []  # of each bucket's batches
        for start, end in pairwise(bounds):
            rows = max_rows if max_length is None else min(max_rows, max(1, int(max_length // ordered[end - 1])))
            sizes = np.full(-(-(end - start) // rows), rows)
            sizes[-1] -= sizes.sum() - (end - start)
            self.sizes.append(sizes)
        # All updates have their full number of batches: the largest batches are halved.
        while sum(map(len, self.sizes)) % batches and max(map(np.max, self.sizes)) > 1:
            bucket = int(np.argmax([sizes.max() for sizes in self.sizes]))
            sizes = self.sizes[bucket]
            place, largest = int(sizes.argmax()), int(sizes.max())
            self.sizes[bucket] = np.append(np.delete(sizes, place), [largest - largest // 2, largest // 2])

    def __len__(self) -> int:
        """Updates in an epoch."""
        return sum(map(len, self.sizes)) // self.batches

    def updates(self, epoch: int, first: int = 0) -> Iterator[list[list[int]]]:
        """The updates of an epoch, in order, from number `first` on: the rows of each of their batches."""
        # A large prime between seeds, so that no two runs share an epoch's order.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled = [bucket[torch.randperm(len(bucket), generator=generator)] for bucket in self.buckets]
        rows, sizes = torch.cat(shuffled).numpy(), np.concatenate(self.sizes)
        order = torch.randperm(len(sizes), generator=generator).numpy()
        starts = (np.cumsum(sizes) - sizes)[order]  # of the batches, in the epoch's order
        sizes = sizes[order]
        ends = np.cumsum(sizes)
        rows = rows[np.arange(len(rows)) + np.repeat(starts - (ends - sizes), sizes)]
        rows = rows[np.lexsort((self.lengths[rows], np.repeat(np.arange(len(sizes)), sizes)))]
        for update in range(first, len(self)):
            batches = range(update * self.batches, (update + 1) * self.batches)
            yield [rows[ends[i] - sizes[i] : ends[i]].tolist() for i in batches]


def deal(
    batches: Sequence[Sequence[int]],
    lengths: Sequence[float] | np.ndarray,
    max_rows: int,
    max_length: float | None = None,
    *,
    processes: int = 1,
    pieces: int = 1,
) -> list[list[list[int]]]:
    """An update's rows as pieces, and each piece as the rows of every process.

    All processes compute the same number of pieces, of similar lengths: neighbours in the order of length go to
    different processes. A process may have no row of a piece if there are fewer rows than processes.

    Args:
        batches: the rows of the update's batches.
        lengths: of all rows of the data.
        max_rows, max_length: limits as for `LengthBatches`, and so of the rows that one process computes at once.
        processes: number of processes that share the update.
        pieces: number of pieces that a process's share of a batch is computed in.
    """
    rows = sorted((row for batch in batches for row in batch), key=lengths.__getitem__)
    most_rows, longest = max(1, max_rows // pieces), None if max_length is None else max_length / pieces
    cut: list[list[int]] = []
    for row in rows:
        last = cut[-1] if cut else []
        share = -(-(len(last) + 1) // processes)  # rows of the process with most rows
        fits = share <= most_rows and (longest is None or share * lengths[row] <= longest or share == 1)
        if last and fits:
            last.append(row)
        else:
            cut.append([row])
    return [[piece[rank::processes] for rank in range(processes)] for piece in cut]


def eval_batches(
    lengths: Sequence[float] | np.ndarray, max_rows: int, max_length: float | None, rank: int = 0, processes: int = 1
) -> list[list[int]]:
    """Batches of a process's share of the rows for evaluation, longest first, each row in one batch of one process."""
    sizes = np.asarray(lengths, dtype=np.float64)
    ordered = np.argsort(-sizes, kind="stable")[rank::processes]
    order, longest = ordered.tolist(), sizes[ordered].tolist()
    batches, first = [], 0
    while first < len(order):
        rows = max_rows
        if max_length is not None:
            rows = max(1, min(max_rows, int(max_length // max(longest[first], 1e-9))))
        batches.append(order[first : first + rows])
        first += rows
    return batches
