"""Which rows make which batch: every row once, within bounds, the same on any number of processes."""

from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from d2v.data.sampler import LengthBatches, eval_batches
from d2v.errors import InputError

lengths = st.lists(st.floats(0.1, 40), min_size=1, max_size=400)
SETTINGS = settings(derandomize=True, deadline=None, max_examples=150)


def batches_of(sampler, epoch=0, skip=0):
    sampler.set_epoch(epoch, skip=skip)
    return list(sampler)


def all_ranks(lengths, *, processes, epoch=0, **options):
    """The epoch's batches in the order in which updates take them."""
    ranks = [LengthBatches(lengths, rank=rank, processes=processes, **options) for rank in range(processes)]
    return [batch for step in zip(*(batches_of(rank, epoch) for rank in ranks), strict=True) for batch in step]


@given(
    lengths,
    st.integers(1, 20),
    st.none() | st.floats(0.1, 200),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(0, 3),
)
@example([1.0] * 5, 1, None, 2, 1, 0, 0)  # five batches of a row cannot be shared evenly by two
@example([9.0] * 7, 16, 5.0, 3, 2, 0, 1)
@example([40.0] * 7, 16, 0.1, 1, 1, 0, 0)  # every row is longer than a batch may be
@SETTINGS
def test_an_epoch(lengths, max_rows, max_length, processes, accumulation, seed, epoch):
    options = {"max_rows": max_rows, "max_length": max_length, "seed": seed, "accumulation": accumulation}
    group = processes * accumulation
    if len(lengths) < group:
        with pytest.raises(InputError, match=rf"{len(lengths)} rows .* {processes} processes .* {accumulation}$"):
            LengthBatches(lengths, processes=processes, **options)
        return
    found = all_ranks(lengths, processes=processes, epoch=epoch, **options)

    # Every row once. Only if all batches are single rows, too few for an update may be left over for another epoch.
    rows = sorted(row for batch in found for row in batch)
    single = all(len(batch) == 1 for batch in found)
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(len(lengths)))
    assert len(rows) == (len(lengths) // group * group if single else len(lengths))

    # Within the bounds, none empty, rows of one length side by side.
    for batch in found:
        assert [lengths[i] for i in batch] == sorted(lengths[i] for i in batch)
        assert 1 <= len(batch) <= max_rows
        assert (
            max_length is None or len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_length * 1.0001
        )

    # The same number in every epoch, on every rank, and for whole updates.
    sampler = LengthBatches(lengths, processes=processes, **options)
    assert len(found) % group == 0 and len(sampler) * processes == len(found)
    assert {len(batches_of(sampler, epoch)) for epoch in range(4)} == {len(sampler)}


@given(lengths, st.integers(1, 9), st.integers(0, 10**6), st.integers(0, 10**4))
@SETTINGS
def test_the_order_depends_on_seed_and_epoch_alone(lengths, max_rows, seed, epoch):
    fresh = LengthBatches(lengths, max_rows=max_rows, max_length=60.0, seed=seed)
    used = LengthBatches(lengths, max_rows=max_rows, max_length=60.0, seed=seed)
    for other in (epoch + 1, 0, epoch):
        used.set_epoch(other)
        next(iter(used))  # and leave it there
    list(used)
    assert batches_of(used, epoch) == batches_of(used, epoch) == batches_of(fresh, epoch)


@given(lengths, st.integers(1, 9), st.integers(1, 3), st.data())
@SETTINGS
def test_skip_leaves_out_the_first(lengths, max_rows, processes, data):
    if len(lengths) < processes:
        return
    sampler = LengthBatches(lengths, max_rows=max_rows, processes=processes, rank=processes - 1)
    skip = data.draw(st.integers(0, len(sampler)))
    assert batches_of(sampler, 3, skip=skip) == batches_of(sampler, 3)[skip:]
    assert batches_of(sampler, 4) == batches_of(LengthBatches(lengths, max_rows=max_rows), 4) or processes > 1


def test_epochs_and_seeds_differ_in_order_and_in_company():
    lengths = [float(i % 37) for i in range(1, 301)]
    make = partial(LengthBatches, lengths, max_rows=4)
    orders = [batches_of(make(seed=seed), epoch) for seed in range(3) for epoch in range(3)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    companies = [{frozenset(batch) for batch in order} for order in orders]
    assert all(len(a & b) < len(a) / 2 for i, a in enumerate(companies) for b in companies[:i])


def test_rows_of_a_batch_are_alike():
    lengths = [float(i) for i in range(320)]
    spread = [max(batch) - min(batch) for batch in batches_of(LengthBatches(lengths, max_rows=4))]
    assert max(spread) < 320 / 8  # of ten buckets each holds a tenth


def test_rows_of_one_length_are_mixed_whatever_their_order():
    """A data set sorted by class has batches of many."""
    spread = [max(batch) - min(batch) for batch in batches_of(LengthBatches([1] * 320, max_rows=8))]
    assert min(spread) > 320 / 4


@given(lengths, st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
@SETTINGS
def test_processes_instead_of_accumulation_change_no_update(lengths, max_rows, processes, accumulation):
    group = processes * accumulation
    if len(lengths) < group:
        return
    options = {"max_rows": max_rows, "max_length": 50.0, "seed": 1}
    shared = all_ranks(lengths, processes=processes, accumulation=accumulation, epoch=2, **options)
    alone = batches_of(LengthBatches(lengths, accumulation=group, **options), 2)
    updates = lambda batches: [sorted(map(sorted, batches[i : i + group])) for i in range(0, len(batches), group)]  # noqa: E731
    assert updates(shared) == updates(alone)


def test_a_long_row_is_a_batch_of_its_own():
    found = batches_of(LengthBatches([1.0] * 160 + [99.0], max_rows=2, max_length=4.0))
    assert [160] in found and {len(batch) for batch in found} == {1, 2}


def test_accelerate_reaches_set_epoch_through_its_wrapper():
    from accelerate.data_loader import prepare_data_loader

    sampler = LengthBatches([1.0] * 32, max_rows=2)
    loader = prepare_data_loader(DataLoader(range(32), batch_sampler=sampler), num_processes=2, process_index=1)
    assert loader.batch_sampler is not sampler  # wrapped in a BatchSamplerShard
    orders = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        orders.append([batch.tolist() for batch in loader])
        assert sampler.epoch == epoch
        assert orders[-1] == batches_of(sampler, epoch)[1::2]
    assert orders[0] != orders[1] != orders[2]


@given(lengths, st.integers(1, 9), st.floats(0.1, 200), st.integers(1, 4))
@SETTINGS
def test_evaluation_covers_every_row_once(lengths, max_rows, max_length, processes):
    ranks = [eval_batches(lengths, max_rows, max_length, rank, processes) for rank in range(processes)]
    assert sorted(row for rank in ranks for batch in rank for row in batch) == list(range(len(lengths)))
    for rank in ranks:
        for batch in rank:
            assert 1 <= len(batch) <= max_rows
            assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= max_length * 1.0001
        found = [lengths[row] for batch in rank for row in batch]
        assert found == sorted(found, reverse=True)  # too little memory shows at once
    sizes = [sum(map(len, rank)) for rank in ranks]
    assert max(sizes) - min(sizes) <= 1
    assert eval_batches([0.0], 2, 1.0) == [[0]]
