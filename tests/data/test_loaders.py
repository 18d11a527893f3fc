"""Loaders: what a batch holds, and that each process gets its share."""

from types import SimpleNamespace

import pytest
import torch

from d2v.config import Data, Optim
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.sampler import LengthBatches

ROWS = [{"value": 10 * i} for i in range(11)]
LENGTHS = [float(i % 4 + 1) for i in range(11)]


def collate(rows):
    return {"values": torch.tensor([row["value"] for row in rows]), "size": len(rows)}


def process(rank, processes):
    return SimpleNamespace(process_index=rank, num_processes=processes)


def test_labels_are_padded_with_what_counts_for_nothing():
    padded = pad_labels([[3, 1, 2], [], [5]])
    assert padded.tolist() == [[3, 1, 2], [-100, -100, -100], [5, -100, -100]]
    assert padded.dtype == torch.int64
    assert pad_labels([[7]]).tolist() == [[7]] and pad_labels([[]]).shape == (1, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_follows_the_sampler(workers):
    data, optim = Data(batch_size=3, workers=workers), Optim(accumulation=2)
    loader = train_loader(ROWS, LENGTHS, collate, data, 8.0, optim, 5, process(1, 2))
    sampler = LengthBatches(LENGTHS, max_rows=3, max_length=8.0, seed=5, rank=1, processes=2, accumulation=2)
    for epoch, skip in ((0, 0), (1, 0), (1, 2), (0, 0)):  # workers that stay do not keep the order of the first epoch
        sampler.set_epoch(epoch, skip=skip)
        loader.batch_sampler.set_epoch(epoch, skip=skip)
        found = list(loader)
        assert [batch["values"].tolist() for batch in found] == [[10 * i for i in batch] for batch in sampler]
    assert len(loader) == len(sampler)


def test_an_iterator_takes_no_random_number_of_the_run():
    loader = train_loader(ROWS, LENGTHS, collate, Data(), 8.0, Optim(), 0, process(0, 1))
    state = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("processes", [1, 3])
def test_evaluation_numbers_its_rows_and_shares_them(workers, processes):
    seen, data = [], Data(batch_size=2, workers=workers)
    for rank in range(processes):
        for batch in eval_loader(ROWS, LENGTHS, collate, data, 6.0, process(rank, processes)):
            assert batch["values"].tolist() == [10 * i for i in batch["rows"]]
            assert 1 <= len(batch["rows"]) == batch["size"] <= 2
            assert len(batch["rows"]) * max(LENGTHS[i] for i in batch["rows"]) <= 6.0
            seen += batch["rows"]
    assert sorted(seen) == list(range(11))
