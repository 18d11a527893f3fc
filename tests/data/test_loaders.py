"""Loaders: what a batch holds, that each process gets its share, and that updates go on where they were."""

from functools import partial
from itertools import islice

import pytest
import torch

from d2v.config import Data, Optim
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.rows import NoneDecodedError, Rows, decode_rows
from d2v.data.sampler import LengthBatches, deal
from d2v.errors import InputError
from tests.helpers import exit_code_of_worker, make_job, make_split

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


@pytest.mark.slow
def test_workers_need_not_be_forked(monkeypatch):
    """Rows, collate function and sampler cross a process boundary by pickling."""
    loader = eval_loader(make_job(Data(workers=1)), ROWS, collate)
    loader.multiprocessing_context = "spawn"
    assert sorted(row for batch in loader for row in batch["rows"]) == list(range(11))


def test_workers_end_with_the_updates_they_serve():
    """In a cycle of references they would wait for the garbage collector, and it for them."""
    assert exit_code_of_worker(lambda: train_loader(make_job(Bounded(workers=1)), ROWS, collate)) == 0


def broken_collate(rows, broken=frozenset(), bad_rows="skip"):
    def decode(row):
        if row["value"] in broken:
            raise OSError("broken")
        return row["value"]

    rows, values, decoded = decode_rows(rows, decode, bad_rows)
    return {"values": values, "size": len(rows), "rows": [row["row"] for row in rows], "decoded": decoded}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_that_cannot_be_decoded_are_left_out(workers):
    """All pieces of all updates come, also those of such rows alone: they are another row, which does not count."""
    broken = frozenset({10, 30, 40, 50})
    job, collate = make_job(Data(batch_size=1, workers=workers)), partial(broken_collate, broken=broken)
    batches = [batch for (batch,) in islice(train_loader(job, ROWS, collate), len(ROWS))]
    assert sorted(value for batch in batches if batch["counts"] for value in batch["values"]) == [
        value for value in range(0, 110, 10) if value not in broken
    ]
    stand_ins = [batch for batch in batches if not batch["counts"]]
    assert len(stand_ins) == 4 and not [batch for batch in stand_ins if broken.intersection(batch["values"])]
    assert all(batch["values"] and batch["size"] for batch in batches)
    assert {where for batch in batches for *_, where in batch["decoded"]} == {
        f"train, row {value // 10}: OSError: broken" for value in broken
    }
    batches = list(eval_loader(job, ROWS, collate))
    assert len([row for batch in batches for row in batch["rows"]]) == 7 and len(batches) == 11


def test_where_no_row_can_be_decoded():
    job, collate = make_job(Data(batch_size=2)), partial(broken_collate, broken=frozenset(range(0, 110, 10)))
    with pytest.raises(InputError, match="not one row of a batch can be decoded; the last is train, row"):
        next(iter(train_loader(job, ROWS, collate)))
    with pytest.raises(InputError, match=r"^train, row \d+: OSError: broken \(--data.bad_rows skip leaves such"):
        next(iter(train_loader(job, ROWS, partial(collate, bad_rows="refuse"))))
    with pytest.raises(NoneDecodedError):
        collate([ROWS[0] | {"row": 0}])
