"""Which rows make which update: every row once, within bounds, the same on any number of processes."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from d2v.data.sampler import LengthBatches, deal, eval_batches
from d2v.errors import InputError

lengths = st.lists(st.floats(0.1, 40), min_size=1, max_size=400)
SETTINGS = settings(derandomize=True, deadline=None, max_examples=150)


def batches_of(sampler, epoch=0):
    return [batch for update in sampler.updates(epoch) for batch in update]


@given(
    lengths,
    st.integers(1, 20),
    st.none() | st.floats(0.1, 200),
    st.integers(1, 16),
    st.integers(0, 5),
    st.integers(0, 3),
)
@example([1.0] * 5, 1, None, 2, 0, 0)  # five batches of a row are not whole updates of two
@example([9.0] * 7, 16, 5.0, 6, 0, 1)
@example([40.0] * 7, 16, 0.1, 1, 0, 0)  # every row is longer than a batch may be
@SETTINGS
def test_an_epoch(lengths, max_rows, max_length, batches, seed, epoch):
    options = {"max_rows": max_rows, "max_length": max_length, "seed": seed, "batches": batches}
    if len(lengths) < batches:
        with pytest.raises(InputError, match=rf"{len(lengths)} rows .* optim.batches {batches}$"):
            LengthBatches(lengths, **options)
        return
    sampler = LengthBatches(lengths, **options)
    updates = list(sampler.updates(epoch))
    epoch_batches = [batch for update in updates for batch in update]

    # Every row once. Only if all batches are single rows, too few for an update may be left over for another epoch.
    rows = sorted(row for batch in epoch_batches for row in batch)
    single = all(len(batch) == 1 for batch in epoch_batches)
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(len(lengths)))
    assert len(rows) == (len(lengths) // batches * batches if single else len(lengths))

    # Within the bounds, none empty, rows of one length side by side.
    for batch in epoch_batches:
        assert [lengths[i] for i in batch] == sorted(lengths[i] for i in batch)
        assert 1 <= len(batch) <= max_rows
        longest = max(lengths[i] for i in batch)
        assert max_length is None or len(batch) == 1 or len(batch) * longest <= max_length * 1.0001

    # The same number in every epoch, and whole updates.
    assert {len(update) for update in updates} <= {batches}
    assert {len(list(sampler.updates(epoch))) for epoch in range(4)} == {len(sampler)}


@given(lengths, st.integers(1, 9), st.integers(0, 10**6), st.integers(0, 10**4))
@SETTINGS
def test_the_order_depends_on_seed_and_epoch_alone(lengths, max_rows, seed, epoch):
    fresh = LengthBatches(lengths, max_rows=max_rows, max_length=60.0, seed=seed)
    used = LengthBatches(lengths, max_rows=max_rows, max_length=60.0, seed=seed)
    for other in (epoch + 1, 0, epoch):
        list(used.updates(other))
    assert list(used.updates(epoch)) == list(used.updates(epoch)) == list(fresh.updates(epoch))


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


def test_a_long_row_is_a_batch_of_its_own():
    batches = batches_of(LengthBatches([1.0] * 160 + [99.0], max_rows=2, max_length=4.0))
    assert [160] in batches and {len(batch) for batch in batches} == {1, 2}


@given(
    lengths, st.integers(1, 20), st.none() | st.floats(1, 200), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5)
)
@SETTINGS
def test_how_an_update_is_dealt_changes_none_of_its_rows(lengths, max_rows, max_length, batches, processes, pieces):
    if len(lengths) < batches:
        return
    update = next(LengthBatches(lengths, max_rows=max_rows, max_length=max_length, batches=batches).updates(1))
    dealt = deal(update, lengths, max_rows, max_length, processes=processes, pieces=pieces)
    rows = [row for piece in dealt for share in piece for row in share]
    assert sorted(rows) == sorted(row for batch in update for row in batch)
    for piece in dealt:
        assert len(piece) == processes and piece[0]  # all take part, the first has rows
        sizes = [len(share) for share in piece]
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= max(1, max_rows // pieces)
        for share in piece:
            longest = max((lengths[i] for i in share), default=0.0)
            assert max_length is None or len(share) <= 1 or len(share) * longest <= max_length / pieces * 1.0001


def test_one_process_computes_a_batch_as_it_is():
    lengths = [float(i % 7 + 1) for i in range(50)]
    for update in LengthBatches(lengths, max_rows=6, max_length=30.0).updates(3):
        assert deal(update, lengths, 6, 30.0) == [[batch] for batch in update]


@given(lengths, st.integers(1, 9), st.floats(0.1, 200), st.integers(1, 4))
@SETTINGS
def test_evaluation_covers_every_row_once(lengths, max_rows, max_length, processes):
    ranks = [eval_batches(lengths, max_rows, max_length, rank, processes) for rank in range(processes)]
    assert sorted(row for rank in ranks for batch in rank for row in batch) == list(range(len(lengths)))
    for rank in ranks:
        for batch in rank:
            assert 1 <= len(batch) <= max_rows
            assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= max_length * 1.0001
        ordered = [lengths[row] for batch in rank for row in batch]
        assert ordered == sorted(ordered, reverse=True)  # too little memory shows at once
    sizes = [sum(map(len, rank)) for rank in ranks]
    assert max(sizes) - min(sizes) <= 1
    assert eval_batches([0.0], 2, 1.0) == [[0]]
    assert eval_batches([1] * 5, 2, None) == [[0, 1], [2, 3], [4]]


def test_an_epoch_is_planned_in_arrays():
    """Of many rows the first update is there at once, in a tenth of the memory that a list for each batch takes."""
    lengths = np.random.default_rng(0).uniform(1, 20, 100_000)
    tracemalloc.start()
    sampler = LengthBatches(lengths, max_rows=16, max_length=40.0, batches=8)
    updates = sampler.updates(0)
    first, (_, peak) = next(updates), tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 120 * len(lengths) and len(first) == 8
    rest = list(updates)
    assert list(sampler.updates(0, 1000)) == rest[999:] and len(rest) + 1 == len(sampler)
