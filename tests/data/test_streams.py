"""Streams: the rows that come, that they go on where they were, and what is said of shards that cannot be read."""

import threading
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from d2v.config import Data, Optim
from d2v.data import streams
from d2v.data.facts import note_decoded, say_decoded
from d2v.data.load import load
from d2v.data.loaders import train_loader
from d2v.data.rows import Rows, check_rows
from d2v.data.streams import rows_of
from tests.helpers import make_job


class Bounded(Data):
    max_size = 24.0


SIZES = (7, 12, 5, 9, 6, 11)


def write_shards(folder: Path, sizes=SIZES, name="train-{:05d}-of-{:05d}.parquet") -> Path:
    """Parquet shards of so many rows with a `length` of 1 to 6, a `text`, and a label; and a validation split."""
    import datasets

    folder.mkdir(exist_ok=True)
    for shard, size in enumerate(sizes):
        rows = range(100 * shard, 100 * shard + size)
        columns = {"value": list(rows), "length": [1 + row * 7 % 6 for row in rows], "label": [row % 3 for row in rows]}
        columns["text"] = [f"row {row}" for row in rows]
        datasets.Dataset.from_dict(columns).to_parquet(folder / name.format(shard, len(sizes)))
    datasets.Dataset.from_dict(columns).to_parquet(folder / "validation.parquet")
    return folder


def collate(rows):
    return {key: [row[key] for row in rows] for key in ("value", "seed", "where")} | {"size": len(rows)}


def usable(job, split):
    """The rows whose value is not one of ten."""
    good = check_rows(job, split, [None if value % 10 else "is round" for value in split.column("value")])
    split = split.select(good)
    return Rows(split, split.ids(), split.column("length"))


def make_updates(folder, rank=0, processes=1, seed=0, batches=2, rows=usable, split=None, **options):
    data = Bounded(path=str(folder), streaming=True, batch_size=6, **{"bad_rows": "skip", "buffer_rows": 20} | options)
    job = make_job(data, rank=rank, processes=processes, seed=seed, optim=Optim(batches=batches), max_steps=9)
    split = split or load(job, None, inputs={"value": "value"})["train"]
    return job, train_loader(job, rows_of(split, lambda part: rows(job, part)), collate)


def as_processes(count: int, monkeypatch, work) -> list:
    """What `work(rank)` returns on each of so many simulated processes, which tell one another as gloo's do."""
    barrier, told, results = threading.Barrier(count, timeout=60), [None] * count, [None] * count
    rank_of = threading.local()

    def everyones(job, value):
        told[rank_of.rank] = value
        barrier.wait()
        values = list(told)
        barrier.wait()
        return values

    def process(rank):
        rank_of.rank = rank
        try:
            results[rank] = work(rank)
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    monkeypatch.setattr(streams, "everyones", everyones)
    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [each for each in results if isinstance(each, BaseException)], results
    return results


def taken(updates, count):
    return [[batch["value"] for batch in update] for update in islice(updates, count)]


def test_an_epoch_has_every_row_once(tmp_path):
    job, updates = make_updates(write_shards(tmp_path))
    batches = [batch for update in islice(updates, 40) for batch in update]
    for batch in batches:
        values, length = batch["value"], max(1 + value * 7 % 6 for value in batch["value"])
        assert len(values) <= 6 and len(values) * length <= 24
        for value, where in zip(values, batch["where"], strict=True):
            assert where == f"train, {tmp_path}/train-{value // 100:05d}-of-00006.parquet, row {value % 100}"
    seen = [(seed[1], value) for batch in batches for seed, value in zip(batch["seed"], batch["value"], strict=True)]
    first, second = ([value for number, value in seen if number == epoch] for epoch in range(2))
    rows = [100 * shard + row for shard, size in enumerate(SIZES) for row in range(size) if row % 10]
    assert sorted(first) == sorted(second) == rows and first != second
    note_decoded(job, [each for batch in batches for each in batch["decoded"]])
    say_decoded(job)
    fact = job.facts[-1]
    assert (fact["fact"], fact["rows"]) == ("rows left out", sum(-(-size // 10) for size in SIZES))
    assert "is round" in fact["first"]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_streams_go_on_where_they_were(processes, tmp_path, monkeypatch):
    """Shards are dealt to 2 processes, rows to 4; the processes compute as many pieces, together each row once."""
    folder, count = write_shards(tmp_path), 9
    job, _ = make_updates(folder)
    split = load(job, None, inputs={"value": "value"})["train"]

    def begin(rank):
        return make_updates(folder, rank, processes, split=split)[1]

    def resumed(done, rank):
        first, second = begin(rank), begin(rank)
        taken(first, done)
        second.load_state_dict(first.state_dict())
        return taken(second, count - done)

    straight = as_processes(processes, monkeypatch, lambda rank: taken(begin(rank), count))
    assert len({tuple(map(len, each)) for each in straight}) == 1
    for done in (1, 4, 6):
        assert as_processes(processes, monkeypatch, partial(resumed, done)) == [each[done:] for each in straight]
