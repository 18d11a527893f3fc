"""How well a label can be predicted from a model during pretraining: linear classifiers on the states of its layers.

Shapes: N rows, D width, C classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2v.config import Job
from d2v.data.rows import NoneDecodedError
from d2v.data.streams import StreamRows
from d2v.errors import InputError
from d2v.training.engine import sharding

Read = Callable[[list[dict[str, Any]]], dict[str, Tensor]]
RIDGE = 0.1
"""The penalty relative to standardised features, each with a variance of 1."""


def build_probe(job: Job, probed: Mapping[str, Any], read: Read) -> Callable[[Any], dict[str, float]] | None:
    """The function that `pretrain` calls at each evaluation; None if `probe.column` names no labels.

    Args:
        job: whose configuration is a `Pretraining`.
        probed: the usable `Rows` of train and validation; rows without a label, or that cannot be decoded, are left
            out.
        read: makes a model's input of rows.

    Raises:
        InputError: a split has no such column, or train is a stream or sharded.
    """
    options = job.config.probe
    if options.column is None:
        return None
    if any(isinstance(rows, StreamRows) for rows in probed.values()) or sharding():
        raise InputError("probe.column does not go with streams, nor with FSDP; leave it out")
    rows, labels = dict[str, list[int]](), dict[str, list[str]]()
    for name in ("train", "validation"):
        split = probed[name].split
        if options.column not in split.table.column_names:
            there = ", ".join(split.table.column_names)
            raise InputError(f"{name}: no column {options.column!r} (probe.column); there are {there}")
        values = split.column(options.column)
        order = np.random.default_rng(0).permutation(len(split)).tolist()
        rows[name] = sorted([i for i in order if values[i] is not None][: options.rows])
        if not rows[name]:
            raise InputError(f"{name}: no row has a value in {options.column!r} (probe.column)")
        labels[name] = [str(values[i]) for i in rows[name]]
    names = list(dict.fromkeys(labels["train"]))
    numbers = {name: [names.index(v) if v in names else -1 for v in found] for name, found in labels.items()}
    targets = {name: torch.tensor(found) for name, found in numbers.items()}

    @torch.no_grad()
    def probe(model: Any) -> dict[str, float]:
        device, features, known = next(model.parameters()).device, {}, {}
        for name, found in rows.items():
            states, good = [], []
            for n, i in enumerate(found):  # one at a time, without padding
                try:
                    inputs = {key: value.to(device) for key, value in read([probed[name][i] | {"row": i}]).items()}
                except NoneDecodedError:  # training and evaluation count these
                    continue
                layers = model(**inputs, output_hidden_states=True).hidden_states
                states.append(torch.stack([layer[0].cpu().double().mean(0) for layer in layers]))
                good.append(n)
            if not good:
                raise InputError(f"{name}: not one of {len(found)} rows of the probe can be decoded (probe.column)")
            features[name], known[name] = torch.stack(states, 1), targets[name][good]  # (layers, N, D), (N,)
        scores = [
            ridge_accuracy(*pair, known["train"], known["validation"])
            for pair in zip(features["train"], features["validation"], strict=True)
        ]
        best = int(np.argmax(scores))
        return {"probe_accuracy": scores[best], "probe_layer": float(best)}

    return probe


def ridge_accuracy(train: Tensor, test: Tensor, train_labels: Tensor, test_labels: Tensor) -> float:
    """Accuracy on test rows of the linear classifier that ridge regression fits to train's.

    Args:
        train, test: (N, D) float64 features.
        train_labels, test_labels: (N,) classes; -1 is never right.
    """
    mean, deviation = train.mean(0), train.std(0, correction=0).clamp(min=1e-6)
    x, y = ((part - mean) / deviation for part in (train, test))
    wanted = torch.nn.functional.one_hot(train_labels).double()
    middle = wanted.mean(0)
    weights = torch.linalg.solve(
        x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (wanted - middle)
    )
    return float(((y @ weights + middle).argmax(1) == test_labels).double().mean())
