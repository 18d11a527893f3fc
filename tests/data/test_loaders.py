"""Loaders: what a batch holds, that each process gets its share, and that updates go on where they were."""

from itertools import islice

import pytest
import torch

from d2v.config import Data, Optim
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.rows import Rows
from d2v.data.sampler import LengthBatches, deal
from tests.helpers import make_job, make_split

LENGTHS = [float(i % 4 + 1) for i in range(11)]
ROWS = Rows(
    split=make_split(value=[10 * i for i in range(11)]),
    ids=[str(i) for i in range(11)],
    lengths=LENGTHS,
    references=None,
)


class Bounded(Data):
    max_size = 8.0


def collate(rows):
    batch = {"values": torch.tensor([row["value"] for row in rows]), "size": len(rows)}
    return batch | ({"seeds": [row["seed"] for row in rows]} if "seed" in rows[0] else {})


def test_labels_are_padded_with_the_ignored_label():
    padded = pad_labels([[3, 1, 2], [], [5]])
    assert padded.tolist() == [[3, 1, 2], [-100, -100, -100], [5, -100, -100]]
    assert padded.dtype == torch.int64
    assert pad_labels([[7]]).tolist() == [[7]] and pad_labels([[]]).shape == (1, 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pieces", [1, 2])
def test_training_follows_the_sampler(workers, pieces):
    options = {"optim": Optim(batches=2), "seed": 5, "pieces": pieces}
    loaders = [
        train_loader(make_job(Bounded(batch_size=3, workers=workers), rank=rank, processes=2, **options), ROWS, collate)
        for rank in (0, 1)
    ]
    sampler = LengthBatches(LENGTHS, max_rows=3, max_length=8.0, seed=5, batches=2)
    assert len(loaders[0]) == len(sampler)
    updates = [(epoch, update) for epoch in range(3) for update in sampler.updates(epoch)]
    for (epoch, update), *shares in zip(updates, *(islice(loader, len(updates)) for loader in loaders), strict=True):
        dealt = deal(update, LENGTHS, 3, 8.0, processes=2, pieces=pieces)
        for rank, batches in enumerate(shares):
            assert [batch["rows"] for batch in batches if batch["counts"]] == [
                piece[rank] for piece in dealt if piece[rank]
            ]
            assert len(batches) == len(dealt)
            for batch in batches:
                assert batch["values"].tolist() == [10 * row for row in batch["rows"]]
                assert batch["seeds"] == [(5, epoch, row) for row in batch["rows"]]


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_the_rows_of_every_update_are_the_same_on_any_number_of_processes(processes):
    def rows(count, pieces):
        shares = [
            train_loader(make_job(Bounded(batch_size=3), rank=rank, processes=count, pieces=pieces), ROWS, collate)
            for rank in range(count)
        ]
        return [
            sorted(row for batches in update for batch in batches if batch["counts"] for row in batch["rows"])
            for update in zip(*(islice(share, 9) for share in shares), strict=True)
        ]

    assert rows(processes, 1) == rows(processes, 3) == rows(1, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_updates_go_on_where_they_were(workers):
    job = make_job(Bounded(batch_size=3, workers=workers))
    straight = [[batch["rows"] for batch in update] for update in islice(train_loader(job, ROWS, collate), 13)]
    for done in range(12):
        first = train_loader(job, ROWS, collate)
        list(islice(first, done))
        second = train_loader(job, ROWS, collate)
        second.load_state_dict(first.state_dict())
        assert [[batch["rows"] for batch in update] for update in islice(second, 13 - done)] == straight[done:]


def test_an_iterator_takes_no_random_number_of_the_run():
    loader = train_loader(make_job(), ROWS, collate)
    state = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("processes", [1, 3])
def test_evaluation_numbers_its_rows_and_shares_them(workers, processes):
    seen, data = [], Bounded(batch_size=2, workers=workers)
    for rank in range(processes):
        for batch in eval_loader(make_job(data, rank=rank, processes=processes), ROWS, collate):
            assert batch["values"].tolist() == [10 * i for i in batch["rows"]] and "seeds" not in batch
            assert 1 <= len(batch["rows"]) == batch["size"] <= 2
            assert len(batch["rows"]) * max(LENGTHS[i] for i in batch["rows"]) <= 8.0
            seen += batch["rows"]
    assert sorted(seen) == list(range(11))


def keep_even(rows):
    rows = [row for row in rows if row["value"] % 20 == 0] or rows[:1]
    return {"rows": [row["row"] for row in rows], "size": len(rows)}


def test_a_collate_function_that_leaves_rows_out_says_which_it_kept():
    batches = list(eval_loader(make_job(Bounded(batch_size=3)), ROWS, keep_even))
    assert all(len(batch["rows"]) == batch["size"] for batch in batches)
    assert sum(batch["size"] for batch in batches) < 11


def test_workers_need_not_be_forked(monkeypatch):
    """Rows, collate function and sampler cross a process boundary by pickling."""
    loader = eval_loader(make_job(Data(workers=1)), ROWS, collate)
    loader.multiprocessing_context = "spawn"
    assert sorted(row for batch in loader for row in batch["rows"]) == list(range(11))
