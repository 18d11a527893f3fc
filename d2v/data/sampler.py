"""Which rows make which batch: rows of similar length together, in an order that only the seed and the epoch decide."""

from itertools import pairwise

import torch
from torch.utils.data import Sampler

from d2v.errors import InputError


class LengthBatches(Sampler[list[int]]):
    """Batches bounded in rows and in padded length, for training.

    Rows are sorted by length into buckets once. Every epoch shuffles the rows of each bucket, cuts them into batches
    and shuffles these. Within a batch the shortest come first: neighbours of one length share a call of attention, see
    `d2v.models.packing`. The number of batches does not change from epoch to epoch, every row comes once an epoch, and
    the order is a pure function of (seed, epoch), so that a run can go on in the middle of an epoch. Only where all
    batches are single rows, and their number is not one of whole updates, the last few rows of an epoch are left out.

    An update takes the next `processes * accumulation` batches, whoever computes them: splitting it among more
    processes instead of accumulating changes nothing.
    """

    def __init__(
        self,
        lengths: list[float],
        *,
        max_rows: int,
        max_length: float | None = None,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        accumulation: int = 1,
    ):
        """Sort rows into buckets.

        Args:
            lengths: of each row, in any unit.
            max_rows: most rows in a batch.
            max_length: most padded length of a batch: rows times the longest, in the same unit. A longer row is a
                batch of its own.
            seed: of the order.
            rank: the process this sampler is for.
            processes: how many there are.
            accumulation: batches of each process for an update.

        Raises:
            InputError: fewer rows than batches for one update.
        """
        self.seed, self.rank, self.processes, self.accumulation = seed, rank, processes, accumulation
        self.epoch = self.skip = 0
        self.lengths = lengths
        group = processes * accumulation
        if len(lengths) < group:
            raise InputError(
                f"{len(lengths)} rows to train on are too few for {processes} processes x optim.accumulation "
                f"{accumulation}"
            )
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        # Twenty buckets at the most, of eight usual batches at least: lengths differ little, much is left to shuffle.
        usual = max_rows if max_length is None else min(max_rows, max_length * len(lengths) / sum(lengths))
        count = max(1, min(20, int(len(order) / (8 * max(usual, 1)))))
        if lengths[order[0]] == lengths[order[-1]]:  # buckets would only keep neighbours, often of one class, together
            count = 1
        bounds = [round(len(order) * i / count) for i in range(count + 1)]
        self.buckets = [order[start:end] for start, end in pairwise(bounds)]
        self.sizes = []  # of each bucket's batches
        for bucket in self.buckets:
            rows = max_rows if max_length is None else min(max_rows, max(1, int(max_length // lengths[bucket[-1]])))
            self.sizes.append([len(bucket[i : i + rows]) for i in range(0, len(bucket), rows)])
        # All updates have their full number of batches: halve the largest.
        while sum(map(len, self.sizes)) % group and max(map(max, self.sizes)) > 1:
            sizes = max(self.sizes, key=max)
            largest = sizes.pop(sizes.index(max(sizes)))
            sizes += [largest - largest // 2, largest // 2]
        self.total = sum(map(len, self.sizes)) // group * group  # batches of all processes in an epoch

    @property
    def sampler(self) -> "LengthBatches":
        """Where Accelerate looks for `set_epoch` when it has wrapped a batch sampler."""
        return self

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The next pass is this epoch's, without its first `skip` batches of this process."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return self.total // self.processes

    def __iter__(self):
        # A large prime between seeds, so that no two runs share an epoch's order.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        batches = []
        for bucket, sizes in zip(self.buckets, self.sizes, strict=True):
            shuffled = torch.tensor(bucket)[torch.randperm(len(bucket), generator=generator)]
            batches += [rows.tolist() for rows in shuffled.split(sizes)]
        order = torch.randperm(len(batches), generator=generator).tolist()
        mine = order[self.rank : self.total : self.processes]
        for i in mine[self.skip :]:
            yield sorted(batches[i], key=self.lengths.__getitem__)


def eval_batches(
    lengths: list[float], max_rows: int, max_length: float, rank: int = 0, processes: int = 1
) -> list[list[int]]:
    """Batches of a process's share of the rows for evaluation, longest first, each row in one batch of one process."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])[rank::processes]
    batches = []
    while order:
        rows = max(1, min(max_rows, int(max_length // max(lengths[order[0]], 1e-9))))
        batches.append(order[:rows])
        order = order[rows:]
    return batches
