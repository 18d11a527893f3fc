"""Equal error rate and detection cost: golden values, the formulas of VoxSRC, counting over all thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import roc_curve

from d2v.errors import InputError
from d2v.metrics.verification import equal_error_rate, min_dcf, plot_det, verification_metrics


def counted(labels, scores):
    """Shares of missed targets and accepted non-targets at every threshold that makes a difference."""
    labels, scores = np.array(labels), np.array(scores)
    thresholds = [*np.unique(scores), np.inf]
    return [(np.mean(scores[labels == 1] < t), np.mean(scores[labels == 0] >= t)) for t in thresholds]


def test_golden_values():
    assert equal_error_rate([1, 1, 0, 0, 0], [0.9, 0.8, 0.7, 0.2, 0.1]) == pytest.approx(0, abs=1e-9)
    assert equal_error_rate([1, 0, 1, 0], [0.5] * 4) == pytest.approx(0.5)
    assert equal_error_rate([1, 1, 0], [0.1, 0.2, 0.3]) == pytest.approx(1)
    # Misses 1/2 and accepts 0, or misses 1/2 and accepts 1/2: the curve meets the diagonal there.
    assert equal_error_rate([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx(0.5)


def test_golden_values_of_gaussian_scores():
    # Written down when VoxSRC's formula was run on them. The largest of both errors, as in voxceleb_trainer, would be
    # 0.3 for the first and 0.215 for the third; the mean of both at the nearest threshold 0.1464 for the second.
    generator = np.random.RandomState(0)
    for targets, others, eer in [(10, 10, 0.2), (20, 7, 0.1429), (200, 200, 0.21), (500, 37, 0.278)]:
        scores = np.concatenate([generator.normal(1.5, 1, targets), generator.normal(0, 1, others)])
        assert equal_error_rate(np.repeat([1, 0], [targets, others]), scores) == pytest.approx(eer, abs=6e-5)


def test_cost_by_hand():
    labels, scores = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [9, 8, 7, 3, 6, 5, 4, 2, 1, 0]
    # Above 6: 1 of 4 missed, none accepted. At 3: none missed, 3 of 6 accepted.
    assert min_dcf(labels, scores, p_target=0.01) == pytest.approx(0.25)
    assert min_dcf(labels, scores, p_target=0.9) == pytest.approx(0.1 * 0.5 / 0.1)  # nothing missed is cheaper here
    assert min_dcf(labels, scores, p_target=0.5, c_miss=10) == pytest.approx(0.5 * 0.5 / 0.5)
    assert min_dcf([1, 0], [0, 1], p_target=0.05) == pytest.approx(1)  # no worse than refusing all
    metrics = verification_metrics(labels, scores)
    assert metrics == {"eer": metrics["eer"], "min_dcf_001": pytest.approx(0.25), "min_dcf_005": pytest.approx(0.25)}


trials = st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@given(trials, st.floats(0.01, 0.99), st.floats(0.1, 10))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_against_counting(rows, p_target, c_miss):
    labels, scores = zip(*rows, strict=True)
    curve = counted(labels, scores)
    costs = [c_miss * p_target * miss + (1 - p_target) * accepted for miss, accepted in curve]
    expected = min(costs) / min(c_miss * p_target, 1 - p_target)
    assert min_dcf(labels, scores, p_target, c_miss) == pytest.approx(expected)
    # Where misses and acceptances change places, the rate lies between the thresholds' errors.
    eer = equal_error_rate(labels, scores)
    after = next(i for i, (miss, accepted) in enumerate(curve) if miss >= accepted)
    before = max(after - 1, 0)
    assert curve[before][0] - 1e-9 <= eer <= curve[before][1] + 1e-9
    assert curve[after][1] - 1e-9 <= eer <= curve[after][0] + 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_as_voxsrc(seed, targets, others):
    generator = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [targets, others])
    scores = generator.normal(labels * 2, 1)
    false_alarms, hits, _ = roc_curve(labels, scores, pos_label=1)
    expected = brentq(lambda x: 1.0 - x - interp1d(false_alarms, hits)(x), 0.0, 1.0)
    assert equal_error_rate(labels, scores) == pytest.approx(expected, abs=1e-6)


def test_gaussian_scores():
    # Targets lie 2 deviations above the others: at the middle both errors are the share of a Gaussian beyond 1.
    labels = np.repeat([1, 0], 20_000)
    scores = np.random.default_rng(0).normal(labels * 2, 1)
    assert equal_error_rate(labels, scores) == pytest.approx(norm.cdf(-1), abs=0.004)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], r"labelled \[1\]"),
        ([], [], r"labelled \[\]"),
        ([1, 2], [0.1, 0.2], r"labelled \[1, 2\]"),
        ([1, 0, 0], [0.1, 0.2, np.nan], "trial 2 is nan"),
        ([1, 0], [np.inf, 0], "trial 0 is inf"),
    ],
)
def test_trials_that_cannot_be_scored(labels, scores, message):
    with pytest.raises(InputError, match=message):
        verification_metrics(labels, scores)


@pytest.mark.parametrize(("distance", "highest"), [(2, 0.6), (50, 0.6), (-2, 0.99)])
def test_the_picture(tmp_path, monkeypatch, distance, highest):
    labels = np.repeat([1, 0], 1000)
    scores = np.random.default_rng(0).normal(labels * distance, 1)
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: drawn.append(figure) or save(figure, *args))
    plot_det(labels, scores, tmp_path / "det.png")
    (axis,) = drawn[0].axes
    curve, _, point = axis.lines
    assert (tmp_path / "det.png").stat().st_size > 5000
    assert np.isfinite(curve.get_xydata()).all() and axis.get_xlim()[1] == pytest.approx(norm.ppf(highest))
    eer = equal_error_rate(labels, scores)
    assert point.get_xdata() == point.get_ydata() == pytest.approx(norm.ppf(max(eer, 0.0005)))
    assert axis.get_legend().get_texts()[0].get_text() == f"equal error rate {100 * eer:.2f} %"
    if distance == 2:  # Gaussian scores of equal width: a line of slope -1
        x, y = curve.get_xydata()[(np.abs(curve.get_xydata()) < 1.5).all(axis=1)].T
        assert np.polyfit(x, y, 1)[0] == pytest.approx(-1, abs=0.15)
