"""The probe of pretraining: its classifier beside scikit-learn's."""

import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from d2v.training.probe import RIDGE, ridge_accuracy


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
