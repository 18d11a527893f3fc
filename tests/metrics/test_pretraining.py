"""Ranks and deviations of what is known."""

import math

import pytest
import torch

from d2v.metrics.pretraining import Moments, effective_rank
from d2v.models.pretraining import PretrainingOutput


def test_the_rank_of_equal_and_of_unequal_directions():
    assert effective_rank(torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0]).double())) == pytest.approx(3)
    assert effective_rank(torch.diag(torch.tensor([3.0, 0.0, 0.0]).double())) == pytest.approx(1)
    expected = torch.tensor([0.8, 0.2]).double()
    assert effective_rank(torch.diag(expected * 7)) == pytest.approx(float((-(expected * expected.log()).sum()).exp()))
    assert effective_rank(torch.zeros(3, 3).double()) == pytest.approx(1, abs=1)  # and no NaN


def test_ranks_take_no_fp64(monkeypatch):
    """Every so many updates all processes wait for them; fp32 tells as much, of steep spectra too."""
    kinds, compute = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: kinds.append(matrix.dtype) or compute(matrix))
    basis = torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(0)).double())[0]
    for steepness in (0, -2, -8):
        spectrum = torch.logspace(0, steepness, 200).double()
        shares = spectrum / spectrum.sum()
        expected = float((-(shares * shares.log()).sum()).exp())
        assert effective_rank(basis @ spectrum.diag() @ basis.T) == pytest.approx(expected, rel=1e-3)
    assert kinds == [torch.float32] * 3


def test_moments_are_those_of_all_batches_together():
    torch.manual_seed(0)
    targets, error = torch.randn(60, 4) + 3, 0.5 * torch.randn(60, 4)
    front = torch.randn(60, 5)
    moments = Moments()
    for part in (slice(0, 10), slice(10, 60)):
        with torch.autocast("cpu", torch.bfloat16):  # as in a run in 16 bits
            moments.add(PretrainingOutput((targets + error)[part], targets[part], None, front[part]))
    moments.add(PretrainingOutput(targets * 9, targets, None, front), counts=False)
    figures = moments.figures()
    assert figures["unexplained"] == pytest.approx(
        float(error.square().sum() / (targets - targets.mean(0)).square().sum()), rel=1e-4
    )
    for name, values in (("target", targets), ("prediction", targets + error), ("front", front)):
        assert figures[f"{name}_deviation"] == pytest.approx(float(values.std(0, correction=0).mean()), rel=1e-4)
        rank = effective_rank(torch.cov(values.double().T, correction=0))
        assert figures[f"{name}_rank"] == pytest.approx(rank, rel=1e-4)


def test_without_a_teacher_there_is_the_front_alone():
    moments = Moments()
    moments.add(PretrainingOutput(None, None, torch.randn(3, 2), torch.randn(7, 5)))
    assert moments.figures().keys() == {"front_rank", "front_deviation"}


def test_a_pass_that_is_not_finite_has_no_rank():
    """Its update is skipped; the line of the log that follows must not end the run."""
    assert math.isnan(effective_rank(torch.full((3, 3), torch.nan)))
