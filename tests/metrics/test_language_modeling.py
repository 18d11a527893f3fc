"""Perplexity: golden values, torchmetrics', and that cutting a text otherwise changes nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2v.errors import InputError
from d2v.metrics.language_modeling import language_modeling_metrics


def test_tokens_weigh_the_same():
    metrics = language_modeling_metrics([2.0, 9.0], [2, 3], characters=22, correct=[0, 4])
    assert metrics == {
        "loss": 2.2,  # not 2, the mean of the pieces' means
        "perplexity": math.exp(2.2),
        "loss_per_character": 0.5,
        "accuracy": 0.8,
    }
    assert set(language_modeling_metrics([2.0], [1])) == {"loss", "perplexity"}


def test_torchmetrics_agrees():
    from torchmetrics.text import Perplexity

    logits, labels = torch.randn(3, 7, 11), torch.randint(11, (3, 7))
    labels[0, 4:] = -100
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(dim=1)
    metrics = language_modeling_metrics(losses.tolist(), (labels != -100).sum(dim=1).tolist())
    assert metrics["perplexity"] == pytest.approx(Perplexity(ignore_index=-100)(logits, labels).item(), rel=1e-5)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30), st.data())
def test_how_a_text_is_cut_changes_nothing(losses, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(losses)), max_size=5)))
    bounds = list(zip([0, *cuts], [*cuts, len(losses)], strict=True))
    pieces = [losses[a:b] for a, b in bounds]
    whole = language_modeling_metrics(losses, [1] * len(losses))
    assert language_modeling_metrics(list(map(math.fsum, pieces)), list(map(len, pieces))) == pytest.approx(
        whole, rel=1e-12
    )


def test_nothing_to_predict():
    with pytest.raises(InputError, match="no token to predict"):
        language_modeling_metrics([], [])


@pytest.mark.parametrize(("loss", "perplexity"), [(700.0, math.exp(700)), (710.0, math.inf), (1e9, math.inf)])
def test_a_perplexity_beyond_all_numbers_is_infinite(loss, perplexity):
    assert language_modeling_metrics([loss], [1]) == {"loss": loss, "perplexity": perplexity}
