"""Streams: rows that are read during training, shard by shard, and the updates that are made of them.

A process reads some rows of its own shards, a buffer, makes updates of them by length as of a small data set, and reads
the next ones meanwhile. So the state of a stream is the beginning of the buffer and the number of its updates done: a
resumed run reads the buffer again, from the middle of a few shards, and decodes no row of the updates done. Once per
buffer all processes exchange the lengths read, so that they plan the same updates: similar lengths on all processes.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from threading import Thread, main_thread
from typing import Any

import numpy as np

from d2v.config import Job
from d2v.data.facts import Decoded, collecting, everyones, note
from d2v.data.rows import Rows, Split
from d2v.data.sampler import LengthBatches, deal
from d2v.data.shards import BLOCK, Shards
from d2v.errors import InputError

OPEN = 4
"""Number of shards that a process reads rows from in turn, so that a shard's neighbours are apart in a buffer."""


@dataclass(frozen=True)
class StreamRows:
    """The rows of a stream.

    Attributes:
        stream: the shards.
        make: makes the usable rows of a block.
        beginning: the rows of the first block that has any.
    """

    stream: Shards
    make: Callable[[Split], Rows]
    beginning: Rows


def rows_of(split: Split, make: Callable[[Split], Rows]) -> Any:
    """`make(split)`; for a stream `StreamRows`, made of each block as it is read."""
    if split.stream is None:
        return make(split)
    with collecting():  # facts are noted when rows are read
        stream = split.stream
        for shard in range(len(stream.shards)):
            for table in islice(stream.tables(shard), 1):
                beginning = make(stream.split(shard, 0, table))
                if len(beginning):
                    return StreamRows(stream, make, beginning)
        return StreamRows(stream, make, beginning)


class Reader:
    """A process's rows of a stream, epoch after epoch, without end.

    An epoch has all rows once, its shards in an order of its own. If the shards cannot be dealt evenly to the
    processes, each reads all of them and keeps its share of the rows.

    Attributes:
        at: the position, in plain values: the epoch; the next shard in its order; the open shard whose turn it is; and
            for each open shard its place in the order, the number of its block, and that of the next row made of it.
        facts: noted for the blocks read since it was last emptied.
    """

    def __init__(self, rows: StreamRows, seed: int, rank: int = 0, processes: int = 1, at: Any = None):
        self.rows, self.seed, self.rank, self.processes = rows, seed, rank, processes
        self.at: dict[str, Any] = deepcopy(at) if at else {"epoch": 0, "next": 0, "turn": 0, "open": []}
        self.even = len(rows.stream.shards) % processes == 0
        self.blocks: dict[int, tuple[Iterator[Any], int, Rows | None]] = {}
        self.facts: list[dict[str, Any]] = []

    def order(self) -> list[int]:
        """The shards of this epoch that this process reads."""
        order = np.random.default_rng((self.seed, self.at["epoch"])).permutation(len(self.rows.stream.shards))
        return order[self.rank :: self.processes].tolist() if self.even else order.tolist()

    def block(self, place: int, shard: int, number: int) -> Rows | None:
        """The rows made of a block of the shard at a place in the order; None after its last block."""
        stream = self.rows.stream
        tables, now, rows = self.blocks.get(place, (None, -1, None))
        if now != number:
            tables = tables or stream.tables(shard, number * BLOCK)
            table = next(tables, None)
            with collecting() as facts:
                rows = (
                    None
                    if table is None
                    else self.rows.make(stream.split(shard, number * BLOCK, table, self.at["epoch"]))
                )
            place_of = {"first": f"{stream.shards[shard]}, after row {number * BLOCK}"}
            self.facts += [place_of | each for each in facts]
            self.blocks[place] = tables, number, rows
        return rows

    def take(self, count: int, *, one_epoch: bool = False) -> tuple[list[dict[str, Any]], list[float]]:
        """The next rows, with their number as `row` and the `seed` of their augmentation, and their lengths.

        Args:
            count: number of rows.
            one_epoch: return at most the rows left in this epoch.

        Raises:
            InputError: a shard or a row cannot be used, or no row can.
        """
        at, taken, lengths, without = self.at, list[dict[str, Any]](), list[float](), 0
        order = self.order()
        while len(taken) < count and main_thread().is_alive():  # else the process ends, and waits for this thread
            while len(at["open"]) < OPEN and at["next"] < len(order):
                at["open"].append([at["next"], 0, 0])
                at["next"] += 1
            if not at["open"]:
                at.update(epoch=at["epoch"] + 1, next=0, turn=0)
                order = self.order()
                without = 0 if taken else without + 1
                if without == 2:
                    first = self.rows.stream.shards[order[0]]
                    raise InputError(f"not one row of {len(order)} shards can be used; the first is {first}")
                if one_epoch and taken:
                    break
                continue
            turn = at["turn"] % len(at["open"])
            place, number, i = at["open"][turn]
            shard = order[place]
            rows = self.block(place, shard, number)
            if rows is None:
                at["turn"] = turn
                del at["open"][turn], self.blocks[place]
            elif i == len(rows):
                at["open"][turn] = [place, number + 1, 0]
            else:
                at["open"][turn][2] += 1
                at["turn"] = turn + 1
                if self.even or (shard + number + i) % self.processes == self.rank:
                    key = (shard << 48) + (number << 20) + i
                    taken.append(rows[i] | {"row": key, "seed": (self.seed, at["epoch"], key)})
                    lengths.append(rows.lengths[i])
        return taken, lengths


class Ahead(Thread):
    """Reads rows during training. An executor's thread would not end before it had a whole buffer."""

    def __init__(self, reader: Reader, count: int):
        """See `Reader.take`."""
        super().__init__(name="stream")
        self.reader, self.count = reader, count
        self.error: BaseException | None = None

    def run(self) -> None:
        """The thread's work."""
        try:
            self.taken = self.reader.take(self.count)
        except BaseException as error:  # raised in the thread that waits
            self.error = error

    def rows(self) -> tuple[list[dict[str, Any]], list[float]]:
        """What `take` returned or raised."""
        self.join()
        if self.error:
            raise self.error
        return self.taken


def evenly(max_rows: int, batches: int, processes: int, least: float) -> tuple[int, int]:
    """The number of batches in an update, each with at least one row per process, and a process's most rows in one.

    Args:
        max_rows: of a batch.
        batches: of an update.
        processes: that share them.
        least: batches that have a row for each process.
    """
    if processes == 1:
        return batches, max_rows
    most = {count: max(1, round(max_rows * batches / count / processes)) for count in range(1, batches + 1)}
    fitting = range(1, max(1, int(batches // max(least, 1))) + 1)
    # An update has nearly the wanted number of rows; batches are small, and so of similar lengths.
    count = min(fitting, key=lambda count: (abs(count * most[count] * processes - max_rows * batches), -count))
    return count, most[count]


def plan(
    lengths: Sequence[Sequence[float]],
    *,
    max_rows: int,
    max_length: float | None,
    batches: int,
    pieces: int,
    seed: int,
    epoch: int,
) -> tuple[list[list[list[int]]], list[list[int]]]:
    """The updates of a buffer, planned alike on all processes, in groups of one row of similar length per process.

    Args:
        lengths: of each process's rows, equally many on all.
        max_rows, max_length, batches, seed: as for `LengthBatches`.
        pieces: as for `deal`.
        epoch: number of the buffer.

    Returns:
        The pieces of each update, as numbers of groups; and for each process its row in each group.
    """
    processes = len(lengths)
    orders = [sorted(range(len(each)), key=each.__getitem__) for each in lengths]
    groups = [max(each[order[i]] for each, order in zip(lengths, orders, strict=True)) for i in range(len(orders[0]))]
    # If a batch has fewer rows than processes, several are joined; an update stays as large.
    least = max(processes / max_rows, processes * max(groups) / max_length if max_length else 0)
    count, most = evenly(max_rows, batches, processes, least)
    longest = None if max_length is None else max_length * batches / count / processes
    made = LengthBatches(groups, max_rows=most, max_length=longest, seed=seed, batches=count)
    dealt = [deal(update, groups, max_rows, max_length, pieces=pieces) for update in made.updates(epoch)]
    return [[piece[0] for piece in update] for update in dealt], orders


class StreamUpdates:
    """An endless iterable of a stream's updates, each as this process's batches; see `d2v.data.loaders.Updates`.

    Its state is that of all processes, whose number has to be the same when a run is resumed.
    """

    def __init__(self, job: Job, rows: StreamRows, planned: list[Any], loader: Any):
        """Begin at the first row.

        Args:
            job: from `d2v.training.job.start`.
            rows: to train on.
            planned: gets the rows of the batches that the loader makes next.
            loader: iterates over these batches.
        """
        data, accelerator = job.config.data, job.accelerator
        most = data.batch_size * job.config.optim.batches
        if data.buffer_rows < most:
            raise InputError(
                f"data.buffer_rows {data.buffer_rows} is less than an update may have, {most} rows "
                "(data.batch_size times optim.batches)"
            )
        processes = accelerator.num_processes
        count, each = evenly(data.batch_size, job.config.optim.batches, processes, processes / data.batch_size)
        if (taken := count * each * processes) != most:
            line = f"train: an update has {taken} rows, not {most}, for {processes} processes to have as many each"
            note(job, "rows of an update", f"{line} (data.batch_size, optim.batches)", rows=taken)
        self.job, self.rows, self.planned, self.loader = job, rows, planned, loader
        self.rank, self.processes = accelerator.process_index, processes
        self.starts: list[Any] = [None] * self.processes
        self.size: int | None = None  # of a process's buffer
        self.buffer = self.done = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        data, config = self.job.config.data, self.job.config
        share = -(-data.buffer_rows // self.processes)
        reader = Reader(self.rows, config.run.seed, self.rank, self.processes, self.starts[self.rank])
        taken, lengths = reader.take(self.size or share, one_epoch=self.size is None)
        start = self.starts[self.rank] or Reader(self.rows, 0).at
        while True:
            if self.size is None:  # a stream shorter than a buffer is read again and again
                self.size = max(everyones(self.job, len(taken)))
                more = reader.take(self.size - len(taken))
                taken, lengths = taken + more[0], lengths + more[1]
            self.starts, all_lengths = map(list, zip(*everyones(self.job, (start, lengths)), strict=True))
            start, decoded = deepcopy(reader.at), self.note_facts(reader)
            updates, orders = plan(
                all_lengths,
                max_rows=data.batch_size,
                max_length=data.max_size,
                batches=config.optim.batches,
                pieces=config.run.pieces,
                seed=config.run.seed,
                epoch=self.buffer,
            )
            own = orders[self.rank]
            self.planned[:] = [[taken[own[i]] for i in piece] for update in updates[self.done :] for piece in update]
            batches = iter(self.loader)
            ahead = Ahead(reader, self.size)
            ahead.start()  # workers, if any, have been forked before
            for update in updates[self.done :]:
                self.done += 1
                made = [next(batches) for _ in update]
                for batch in made:
                    met = [("train", fact, where) for _, fact, where in batch.get("decoded", ())]
                    batch["decoded"], decoded = [*decoded, *met], []
                yield made
            taken, lengths = ahead.rows()
            self.buffer, self.done = self.buffer + 1, 0

    def note_facts(self, reader: Reader) -> list[Decoded]:
        """The facts of a reader about rows, as `decoded` of a batch; other facts are noted."""
        facts, reader.facts = reader.facts, []
        for each in facts:
            if "rows" not in each:
                note(self.job, **{key: value for key, value in each.items() if key != "first"})
        return [("train", each["fact"], each["first"], each["rows"]) for each in facts if "rows" in each]

    def state_dict(self) -> dict[str, Any]:
        """The beginning of each process's buffer, and the number of its updates given out."""
        return {"starts": self.starts, "size": self.size, "buffer": self.buffer, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from this position; InputError if the number of processes has changed."""
        if len(state["starts"]) != self.processes:
            raise InputError(
                f"the stream was read by {len(state['starts'])} processes, not {self.processes}; use as many to resume"
            )
        self.starts, self.size, self.buffer, self.done = (state[key] for key in ("starts", "size", "buffer", "done"))
