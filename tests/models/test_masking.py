"""Span masks: how many, how long, where, beside transformers' and fairseq's rule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.models.masking import span_mask

SETTINGS = settings(derandomize=True, deadline=None, max_examples=150)


def runs(row):
    """Lengths of the masked runs of a row."""
    return [len(run) for run in "".join("x" if masked else " " for masked in row.tolist()).split()]


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=5),
    st.integers(0, 5),
    st.floats(0, 2),
    st.integers(1, 20),
    st.integers(0, 4),
)
@SETTINGS
def test_masks_are_spans_within_the_row(lengths, padding, prob, span, min_spans):
    length = max(lengths) + padding
    mask = span_mask(lengths, length, prob, span, min_spans)
    assert mask.shape == (len(lengths), length) and mask.dtype == torch.bool
    for row, real in zip(mask, lengths, strict=True):
        assert not row[real:].any()
        assert all(run >= span for run in runs(row))
        spans = prob * real / span
        assert row.sum() <= span * max(int(spans) + 1, min_spans)
        if real < span:
            assert not row.any()
        elif real and max(int(spans), min_spans):  # the starts differ, so n spans cover span + n - 1 at the least
            starts = real - span + 1
            assert row.sum() >= span + min(max(int(spans), min_spans), starts) - 1


def test_the_expected_number_of_spans_is_right():
    # Length 50, spans of 1, so the masked positions are the spans: 50 * 0.05 = 2.5, rounded up half of the time.
    counts = span_mask([50] * 4000, 50, 0.05, 1).sum(1)
    assert set(counts.tolist()) == {2, 3}
    assert counts.float().mean() == pytest.approx(2.5, abs=0.04)  # 5 standard errors of 0.5 / sqrt(4000)
    counts = span_mask([20, 40] * 2000, 40, 0.05, 1).sum(1).view(-1, 2).float().mean(0)  # of the real length
    assert counts.tolist() == pytest.approx([1.0, 2.0], abs=1e-6)


def test_every_start_is_as_likely():
    mask = span_mask([12] * 6000, 12, 0.3, 4)  # 0.9 spans a row: one or none
    starts = mask[mask.any(1)].int().argmax(1)
    shares = torch.bincount(starts, minlength=9) / len(starts)
    assert len(shares) == 9 and shares.sub(1 / 9).abs().max() < 0.02
    assert mask.any(1).float().mean() == pytest.approx(0.9, abs=0.02)


def test_rows_differ_and_the_seed_decides():
    torch.manual_seed(3)
    first = span_mask([100] * 8, 100, 0.5, 10)
    assert len({tuple(row) for row in first.tolist()}) == 8
    assert not torch.equal(first, span_mask([100] * 8, 100, 0.5, 10))
    torch.manual_seed(3)
    assert torch.equal(first, span_mask([100] * 8, 100, 0.5, 10))


@pytest.mark.parametrize(("prob", "span", "min_spans"), [(0.65, 10, 0), (0.5, 10, 2), (0.05, 10, 2), (0.9, 3, 0)])
def test_as_much_is_masked_as_in_transformers(prob, span, min_spans):
    import numpy as np
    from transformers.models.data2vec.modeling_data2vec_audio import _compute_mask_indices

    lengths = [200, 120] * 200
    np.random.seed(0)
    mask = torch.arange(200) < torch.tensor(lengths)[:, None]
    theirs = _compute_mask_indices((400, 200), prob, span, attention_mask=mask.long(), min_masks=min_spans)
    ours = span_mask(lengths, 200, prob, span, min_spans)
    for row in (0, 1):  # long and short rows
        expected, found = theirs[row::2].sum(1), ours[row::2].sum(1).float()
        assert found.mean() == pytest.approx(expected.mean(), rel=0.04)
