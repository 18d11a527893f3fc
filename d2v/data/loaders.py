"""Loaders: rows to batches.

Shapes: B batch, L labels.
"""

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from d2v.config import Job
from d2v.data.rows import NoneDecodedError, Rows
from d2v.data.sampler import LengthBatches, deal, eval_batches
from d2v.data.streams import StreamRows, StreamUpdates
from d2v.devices import on_cuda
from d2v.errors import InputError
from d2v.losses import IGNORE

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]
"""Makes a batch of rows: a dict of tensors, with its `size` in the unit of the data.

Rows have their number as `row`, and in training a `seed`. The function has to pickle, so that workers need not be
forked: a module's function, or a `partial` of one.
"""


def pad_labels(labels: Sequence[Sequence[int] | np.ndarray]) -> Tensor:
    """(B, L) int64, `IGNORE` where a row has ended."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in labels], True, IGNORE)


class NumberedRows(Dataset[dict[str, Any]]):
    """Rows by number, which they get as `row`; by (number, epoch) also with the `seed` of their augmentation.

    A row comes once per epoch, so no two seeds are equal; they depend neither on the process that makes the batch nor
    on interruptions.
    """

    def __init__(self, rows: Rows, seed: int):
        self.rows, self.seed = rows, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int] | dict[str, Any]) -> dict[str, Any]:
        if isinstance(key, dict):  # a stream sends its rows along
            return key
        row, *epoch = key if isinstance(key, tuple) else (key,)
        numbered = self.rows[row] | {"row": row}
        return numbered | {"seed": (self.seed, *epoch, row)} if epoch else numbered


class NumberedBatches:
    """A collate function whose batches have the `rows` they are made of.

    A collate function that leaves rows out says which it kept. If it kept none, the batch has no `rows`; in training it
    then has another row, which is not counted, since all processes compute every piece of an update.
    """

    def __init__(self, collate: Collate, source: NumberedRows):
        self.collate, self.source = collate, source

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch."""
        try:
            return {"rows": [row["row"] for row in rows]} | self.collate(rows)
        except NoneDecodedError as nothing:
            batch: dict[str, Any] = {"size": 0}
            if "seed" in rows[0]:
                batch = self.stand_in(rows[0]) | {"counts": False}
            return batch | {"rows": [], "decoded": nothing.decoded}

    def stand_in(self, row: dict[str, Any]) -> dict[str, Any]:
        """A batch of the next row that can be decoded; for a stream, from its first block."""
        count, epoch = len(self.source), row["seed"][1]
        for step in range(1, count + 1):
            try:
                return self.collate([self.source[(row["row"] + step) % count, epoch]])
            except NoneDecodedError as error:
                last = error
        raise InputError(str(last) if count > 1 else f"{row['where']}: the only row, and it cannot be decoded")


def outlive_signals(worker: int) -> None:
    """Let a worker continue when its whole process group is told to stop, so that the run can save first.

    SIGTERM ends it half a minute later, if nothing else does; the death of the run's own process ends it in any case.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):  # not on Windows
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(30))


def loader(job: Job, rows: Rows, collate: Collate, batches: Any) -> DataLoader:
    """A loader of these batches of row numbers."""
    numbered = NumberedRows(rows, job.config.run.seed)
    return DataLoader(
        numbered,
        batch_sampler=batches,
        collate_fn=NumberedBatches(collate, numbered),
        num_workers=job.config.data.workers,
        persistent_workers=job.config.data.workers > 0,
        worker_init_fn=outlive_signals,
        pin_memory=on_cuda(),
        generator=torch.Generator(),  # iterators draw a seed for workers: not from the generator that a run restores
    )


class Planned:
    """Batches of row numbers that are planned while the loader makes them, as an epoch has many.

    Attributes:
        batches: the planned batches that come next.
    """

    def __init__(self) -> None:
        self.batches: Callable[[], Iterator[list[tuple[int, int]]]] = lambda: iter(())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches()


def plan(
    sampler: LengthBatches, deal_out: Callable, rank: int, counts: deque[list[bool]], epoch: int, done: int
) -> Iterator[list[tuple[int, int]]]:
    """This process's batches of the rest of an epoch; `counts` gets whether each is counted, update by update.

    It must not refer to the loader, whose iterator holds it: in a reference cycle the garbage collector closes the
    workers' queues before they are told to end, and torch waits ten seconds for them.
    """
    for batches in sampler.updates(epoch, done):
        pieces = deal_out(batches)
        counts.append([bool(piece[rank]) for piece in pieces])
        for piece in pieces:
            # A process without a row of a piece computes one that is not counted: all take part in every piece.
            yield [(row, epoch) for row in piece[rank] or piece[0][:1]]


class Updates:
    """An endless iterable of updates, epoch after epoch, each as this process's batches.

    Its state is its position. Another source of updates, such as a stream, iterates likewise, has the same two methods,
    and needs no length if `run.max_steps` is given.
    """

    def __init__(self, job: Job, rows: Rows, collate: Collate):
        data, accelerator = job.config.data, job.accelerator
        self.sampler = LengthBatches(
            rows.lengths,
            max_rows=data.batch_size,
            max_length=data.max_size,
            seed=job.config.run.seed,
            batches=job.config.optim.batches,
        )
        deal_out = partial(
            deal,
            lengths=self.sampler.lengths,
            max_rows=data.batch_size,
            max_length=data.max_size,
            processes=accelerator.num_processes,
            pieces=job.config.run.pieces,
        )
        self.plan = partial(plan, self.sampler, deal_out, accelerator.process_index)
        self.planned = Planned()
        self.loader = loader(job, rows, collate, self.planned)
        self.epoch = self.done = 0

    def __len__(self) -> int:
        """Updates in an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while True:
            counts: deque[list[bool]] = deque()  # of the pieces of updates whose batches the loader has begun to make
            self.planned.batches = partial(self.plan, counts, self.epoch, self.done)
            batches = iter(self.loader)
            for _ in range(self.done, len(self)):
                self.done += 1
                made = [next(batches)]
                counting = counts.popleft()
                made += islice(batches, len(counting) - 1)
                pairs = zip(made, counting, strict=True)
                yield [batch | {"counts": own and batch.get("counts", True)} for batch, own in pairs]
            self.epoch, self.done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The position: the epoch, and the number of its updates given out so far."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from this position."""
        self.epoch, self.done = state["epoch"], state["done"]


def train_loader(job: Job, rows: Rows | StreamRows, collate: Collate) -> Updates | StreamUpdates:
    """Updates for training, see `d2v.training.loop.fit`.

    Args:
        job: from `d2v.training.job.start`.
        rows: to train on.
        collate: makes a batch of rows that have a `seed`.
    """
    if isinstance(rows, StreamRows):
        planned: list[Any] = []
        return StreamUpdates(job, rows, planned, loader(job, rows.beginning, collate, planned))
    return Updates(job, rows, collate)


def eval_loader(job: Job, rows: Rows, collate: Collate) -> DataLoader:
    """Batches of this process's share of the rows, longest first, for `d2v.training.prediction.predict`.

    Args:
        job: from `d2v.training.job.start`.
        rows: to predict.
        collate: makes a batch of rows.
    """
    data, accelerator = job.config.data, job.accelerator
    share = accelerator.process_index, accelerator.num_processes
    pieces = job.config.run.pieces  # of a batch, as in training
    most_rows, longest = max(1, data.batch_size // pieces), None if data.max_size is None else data.max_size / pieces
    batches: Sequence[list[int]] = eval_batches(rows.lengths, most_rows, longest, *share)
    return loader(job, rows, collate, batches)
