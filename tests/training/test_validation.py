"""The validation loss: the recipe's own, by the forward that predicts."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from d2v.config import Data, Recipe, Run
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.rows import Rows
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForSequenceClassification
from d2v.training.job import start
from d2v.training.loop import fit
from d2v.training.prediction import predict
from d2v.training.validation import VALIDATION, Validation, counting_loss, equal, forward_of, measured
from tests.helpers import make_job, make_split
from tests.recipes.common import same_weights
from tests.tiny import TINY_AUDIO

ITEMS = [{"x": torch.randn(4, generator=torch.Generator().manual_seed(i)), "y": i % 3} for i in range(8)]
ROWS = Rows(make_split(x=list(range(8))), [str(i) for i in range(8)], [1] * 8, items=ITEMS)


def collate(rows):
    labels = torch.tensor([row["y"] for row in rows])
    return {"x": torch.stack([row["x"] for row in rows]), "labels": labels, "size": len(rows)}


class Model(nn.Module):
    """Counts how often it computes."""

    def __init__(self):
        super().__init__()
        self.layer, self.computed = nn.Linear(4, 3), 0

    def forward(self, x, mask=None, labels=None):
        self.computed += 1
        logits = self.layer(x)
        return SimpleNamespace(logits=logits, loss=None if labels is None else loss(logits, labels) / len(labels))


def loss(logits, labels):
    return nn.functional.cross_entropy(logits, labels, reduction="sum")


def test_what_was_computed_for_the_loss_is_not_computed_again():
    torch.manual_seed(0)
    model, batch = Model().eval(), collate(ITEMS)

    def loss_fn(model, batch):
        # A copy of the input, as recipes make one; labels change the loss alone.
        output = model(batch["x"].clone(), labels=batch["labels"])
        return output.loss * len(batch["labels"]), torch.tensor(len(batch["labels"]))

    token = VALIDATION.set(found := Validation(loss_fn))
    try:
        with torch.no_grad(), counting_loss(model, batch):
            again = model(batch["x"]).logits
            other = model(batch["x"] + 1).logits
        with counting_loss(model, {"x": batch["x"]}):  # without labels, as of speakers that were not trained
            model(batch["x"])
    finally:
        VALIDATION.reset(token)
    assert model.computed == 3 and "forward" not in vars(model)
    assert torch.equal(again, model(batch["x"]).logits) and not torch.equal(again, other)
    assert found.total == pytest.approx(float(loss(again, batch["labels"]))) and (found.items, found.batches) == (8, 2)


def test_a_wrapped_forward_is_put_back():
    model = Model()
    model.forward = wrapped = lambda x: x + 1
    with forward_of(model, [], keep=True):
        assert model.forward is not wrapped and model(torch.ones(1)) == 2
    assert model.forward is wrapped


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ((torch.ones(2), {"k": None}), (torch.ones(2), {"k": None}), True),
        (torch.ones(2), torch.ones(2, dtype=torch.int64), False),
        (torch.ones(2), torch.ones(1, 2), False),
        (torch.ones(2), None, False),
        ([1, "a"], [1, "b"], False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        (1, True, False),
    ],
)
def test_equal_inputs(a, b, same):
    assert equal(a, b) is same


def test_the_loss_is_a_sum_over_a_count_of_all_processes(monkeypatch):
    """Of the items of both, not the mean of two means; what counts nothing adds nothing, not a number or not."""
    job = make_job(processes=2)
    parts = iter([(torch.tensor(3.0), torch.tensor(1)), (torch.tensor(float("nan")), torch.tensor(0))])

    def evaluate(model):
        for _ in range(2):
            with counting_loss(model, {"labels": 0}):
                pass
        return {"accuracy": 1}

    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: [*mine, (7.0, 4.0, 1)])
    assert measured(job, evaluate, Model(), lambda *_: next(parts)) == ({"accuracy": 1.0}, {"loss": 2.0})
    assert VALIDATION.get() is None and not job.facts


def test_a_split_that_has_nothing_of_what_is_trained_on_is_said():
    job = make_job()

    def evaluate(model):
        with counting_loss(model, {}):
            return {"eer": 0.5}

    assert measured(job, evaluate, Model(), lambda *_: 1 / 0) == ({"eer": 0.5}, {})
    assert [fact["fact"] for fact in job.facts] == ["no validation loss"]


def train(out, **run):
    """Eight rows, of which validation has all; returns the log's evaluations."""
    job = start(Recipe(data=Data(batch_size=4), run=Run(str(out), tracker=None, max_steps=4, eval_every=2, **run)))
    model = Data2VecAudioForSequenceClassification(Data2VecAudioConfig(**TINY_AUDIO, num_labels=3))

    def sounds(rows):
        batch = collate(rows)
        return batch | {"x": batch["x"].repeat(1, 400)}

    def loss_fn(model, batch):
        logits = model(batch["x"]).logits
        return loss(logits.float(), batch["labels"]), torch.tensor(len(logits))

    def predict_fn(model, batch):
        return model(batch["x"]).logits.argmax(-1).tolist()

    def evaluate(model):
        predictions = predict(job, model, eval_loader(job, ROWS, sounds), predict_fn)
        return {"accuracy": sum(label == ITEMS[row]["y"] for row, label in predictions) / len(predictions)}

    fit(job, model, train_loader(job, ROWS, sounds), loss_fn, evaluate, metric="accuracy")
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if any(key.startswith("eval_") for key in entry)]


def test_the_loss_stands_beside_the_metric_and_chooses_only_where_it_is_named(tmp_path, monkeypatch):
    evaluations = train(tmp_path / "a")
    assert [set(entry) for entry in evaluations] == [{"step", "eval_accuracy", "eval_loss"}] * 2
    with pytest.raises(InputError, match="run.metric acuracy: evaluation gives accuracy, loss; give one of them"):
        train(tmp_path / "b", metric="acuracy")
    assert not (tmp_path / "b/checkpoints").exists()  # before the first update
    assert train(tmp_path / "c", metric="eval_loss") == evaluations
    best = json.loads(next((tmp_path / "c/checkpoints").glob("*4/evaluated.json")).read_text())
    assert best["best"] == min(entry["eval_loss"] for entry in evaluations)
    monkeypatch.setattr("d2v.training.loop.measured", lambda job, evaluate, model, loss_fn: (evaluate(model), {}))
    train(tmp_path / "d")  # without the loss: not one weight differs
    same_weights(*(next((tmp_path / name / "checkpoints").glob("*4/model.safetensors")) for name in "cd"))
