"""Loaders: what a batch holds, and that each process gets its share."""

from types import SimpleNamespace

import pytest
import torch

from d2v.data.collate import eval_loader, pad_labels, train_loader
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
    sampler = LengthBatches(LENGTHS, max_rows=3, seed=1)
    loader = train_loader(ROWS, collate, sampler, workers)
    for epoch, skip in ((0, 0), (1, 0), (1, 2), (0, 0)):  # workers that stay do not keep the order of the first epoch
        loader.batch_sampler.set_epoch(epoch, skip=skip)
        expected = [[10 * i for i in batch] for batch in sampler]
        found = list(loader)
        assert [batch["values"].tolist() for batch in found] == expected
        assert [batch["size"] for batch in found] == list(map(len, expected))
    assert len(loader) == len(sampler)


def test_an_iterator_takes_no_random_number_of_the_run():
    loader = train_loader(ROWS, collate, LengthBatches(LENGTHS, max_rows=3), 0)
    state = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("processes", [1, 3])
def test_evaluation_numbers_its_rows_and_shares_them(workers, processes):
    seen = []
    for rank in range(processes):
        for batch in eval_loader(ROWS, LENGTHS, collate, 2, workers, process(rank, processes)):
            assert batch["values"].tolist() == [10 * i for i in batch["rows"]]
            assert 1 <= len(batch["rows"]) == batch["size"] <= 2
            seen += batch["rows"]
    assert sorted(seen) == list(range(11))
