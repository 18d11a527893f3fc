"""The probe of pretraining: its classifier beside scikit-learn's."""

from types import SimpleNamespace

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from d2v.data.rows import Rows
from d2v.errors import InputError
from d2v.training.probe import RIDGE, build_probe, ridge_accuracy
from d2v.training.teaching import Probe
from tests.helpers import make_split


def test_ridge_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    labels, other = (torch.randint(4, (size,), generator=generator) for size in (120, 80))
    centres = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    train, test = (
        centres[each] + 1.5 * torch.randn(len(each), 10, generator=generator, dtype=torch.float64)
        for each in (labels, other)
    )
    scaler = StandardScaler().fit(train.numpy())
    ridge = Ridge(alpha=RIDGE * len(train)).fit(scaler.transform(train.numpy()), torch.eye(4)[labels].numpy())
    expected = (ridge.predict(scaler.transform(test.numpy())).argmax(1) == other.numpy()).mean()
    assert ridge_accuracy(train, test, labels, other) == expected and 0.4 < expected < 1
    assert ridge_accuracy(train, test, labels, torch.full_like(other, -1)) == 0


def test_a_probe_hears_the_parts_and_labels_that_there_are():
    """Of a meeting each part has its own sound; a row without a label is none of a class None."""
    table = {"audio": ["a.wav"] * 4, "who": ["x", None, "y", "x"]}
    split, parts = make_split(**table), [(float(i), i + 1.0) for i in range(4)]
    rows = {name: Rows(split, split.ids(), [1] * 4, parts=parts) for name in ("train", "validation")}
    heard = []

    def read(batch):
        heard.extend(row["part"] for row in batch)
        return {"x": torch.tensor([[[row["part"][0], 1.0]] for row in batch])}

    model = torch.nn.Linear(1, 1)
    model.forward = lambda x, output_hidden_states: SimpleNamespace(hidden_states=[x])
    job = SimpleNamespace(config=SimpleNamespace(probe=Probe(column="who")))
    assert 0 <= build_probe(job, rows, read)(model)["probe_accuracy"] <= 1
    assert heard == [parts[0], parts[2], parts[3]] * 2
    empty = make_split(audio=["a.wav"], who=[None])
    with pytest.raises(InputError, match="train: no row has a value in 'who'"):
        build_probe(job, dict.fromkeys(rows, Rows(empty, ["0"], [1])), read)
