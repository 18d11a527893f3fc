"""data2vec 2.0's economy: the student encodes what it sees and nothing else, and views share a teacher's pass."""

import pytest
import torch
from torch import Tensor

from d2v import losses
from d2v.errors import InputError
from d2v.models.economy import Decoder, encode_seen
from d2v.models.masking import seen_blocks
from d2v.models.pretraining import Student, Teacher, at_masked
from tests.models.test_pretraining import PUBLISHED, Case, batch_of, case, stirred

KINDS = ["audio", "text", "vision"]


def economical(kind: str, views: int = 3) -> Case:
    """A student with a decoder, and a batch of several views whose masks leave something of each row."""
    each = case(kind)
    base = each.student.base_model
    if kind == "vision":
        base.encoder.relative_position_bias, base.config.use_shared_relative_position_bias = None, False
    torch.manual_seed(5)
    grid = (6, 6) if kind == "vision" else None
    decoder = Decoder(32, 16, layers=2, kernel=3, groups=4, grid=grid)
    student = stirred(Student(base, head_layers=1, decoder=decoder), 3).double()
    teacher = Teacher(student, layers=2, **PUBLISHED[kind])
    teacher.model.double()
    real = batch_of(kind)["masked"] | True
    if kind == "audio":
        real = torch.arange(13) < torch.tensor([[13], [9], [13]])
    if kind == "text":
        real = each.batch["attention_mask"].bool()
    masks = torch.rand(3, views, real.shape[1]) < 0.6
    masks[:, :, 2] = False
    return Case(student, teacher, each.batch | {"masked": masks & real[:, None], "mask_token": 4})


@pytest.mark.parametrize("kind", KINDS)
def test_one_view_of_nothing_dropped_has_the_targets_of_version_1(kind):
    each = economical(kind, views=1)
    plain = Student(each.student.base_model).double()
    masked = each.batch["masked"][:, 0]
    version_1 = each.batch | {"masked": masked}
    if kind == "text":
        version_1["masked_ids"] = torch.where(masked, 4, each.batch["input_ids"])
    ours, theirs = each.student(each.batch, each.teacher), plain(version_1, each.teacher)
    assert torch.allclose(ours.targets, theirs.targets, atol=1e-12) and len(ours.targets) == masked.sum()
    nothing = each.batch | {"masked": torch.zeros_like(each.batch["masked"])}
    filled, real, _, packing = encode_seen(each.student.base_model, nothing, each.student.final_norm)
    # Where nothing is masked, what is seen is all there is: the encoder's output of whole rows.
    plain.eval()  # without masks of its own
    if kind == "audio":
        states = plain.base_model(nothing["input_values"], nothing["attention_mask"]).last_hidden_state
    elif kind == "text":
        states = plain.base_model(nothing["input_ids"], nothing["attention_mask"]).last_hidden_state
    else:
        states = each.student.final_norm(plain.base_model(nothing["pixel_values"]).last_hidden_state[:, 1:])
    assert torch.allclose(filled[real], states[real], atol=1e-10) and packing.batch == 3


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_rows_of_their_own(kind):
    """Three views together are the three alone; masks, lengths and rows beside them change nothing."""
    each = economical(kind)
    together = each.student(each.batch, each.teacher)
    alone = [each.student(each.batch | {"masked": each.batch["masked"][:, i : i + 1]}, each.teacher) for i in range(3)]
    for name in ("predictions", "targets"):
        values = torch.zeros(3, 3, each.batch["masked"].shape[2], 32, dtype=torch.float64)
        values[each.batch["masked"]] = getattr(together, name)
        for i, output in enumerate(alone):
            assert torch.allclose(values[:, i][each.batch["masked"][:, i]], getattr(output, name), atol=1e-10)


@pytest.mark.parametrize("kind", ["text", "vision"])  # a frame's sound reaches into its neighbours'
def test_what_is_masked_is_not_looked_at(kind):
    """Changing the masked part of the input does not change what the student says; of the teacher it does."""
    each = economical(kind, views=1)
    masked = each.batch["masked"][:, 0]
    before = each.student(each.batch, each.teacher)
    other = dict(each.batch)
    if kind == "text":
        other["input_ids"] = torch.where(masked, 7, each.batch["input_ids"])
    else:
        hidden = masked.unflatten(1, (6, 6)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        other["pixel_values"] = torch.where(hidden, 0.3, each.batch["pixel_values"])
    after = each.student(other, each.teacher)
    assert torch.allclose(before.predictions, after.predictions, atol=1e-12)
    assert not torch.allclose(before.targets, after.targets, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_learns_the_mask_embedding_too(kind):
    each = economical(kind)
    output = each.student(each.batch, each.teacher)
    losses.regression(output.predictions, output.targets)[0].backward()
    assert {name for name, parameter in each.student.named_parameters() if parameter.grad is None} == set()
    assert all(parameter.grad is None for parameter in each.teacher.parameters())
    embedding = {"audio": "masked_spec_embed", "text": "embeddings.word_embeddings.weight"}.get(kind)
    gradient: Tensor = each.student.base_model.get_parameter(embedding or "embeddings.mask_token").grad
    assert (gradient[4] if kind == "text" else gradient).abs().sum() > 0


def test_dropout_of_the_projection_is_the_views_own():
    each = economical("audio")
    without = each.student(each.batch, each.teacher)
    each.student.base_model.feature_projection.dropout.p = 0.5
    output = each.student(each.batch, each.teacher)
    assert torch.equal(output.targets, without.targets) and not torch.allclose(output.predictions, without.predictions)


def test_relative_positions_are_refused():
    each = case("vision")
    student = Student(each.student.base_model, decoder=Decoder(32, 16, layers=1, kernel=3, groups=4, grid=(6, 6)))
    with pytest.raises(InputError, match="economy.views does not go with relative positions"):
        student.double()(each.batch | {"masked": each.batch["masked"][:, None]}, each.teacher)


def test_decoders_that_cannot_be():
    for options, match in (({"groups": 5}, "economy.groups 5 should divide"), ({"kernel": 4}, "kernel should be odd")):
        with pytest.raises(InputError, match=match):
            Decoder(32, 16, **{"layers": 1, "kernel": 3, "groups": 4} | options)


def test_seen_blocks_leave_an_exact_share():
    torch.manual_seed(0)
    for grid, block, count in (((1, 100), (1, 5), 50), ((14, 14), (3, 3), 157), ((1, 4), (1, 9), 4)):
        masks = torch.stack([seen_blocks(grid, count, block) for _ in range(50)])
        assert set(masks.flatten(1).sum(1).tolist()) == {min(count, grid[0] * grid[1] - 1)}
    rows = torch.stack([seen_blocks((1, 100), 50, (1, 5))[0] for _ in range(200)])
    runs = [len(run) for row in rows for run in "".join(" " if each else "x" for each in row).split()]
    assert sum(run >= 5 for run in runs) > 0.6 * len(runs)  # the last block is cut, also in its middle
    assert rows.float().mean(0)[20:80].std() < 0.1


def test_a_mask_takes_few_numbers_of_torch(monkeypatch):
    """Some calls for each block took 27 ms a view of 510 tokens, more than a GPU takes for the row."""
    calls, draw = [], torch.randint
    monkeypatch.setattr(torch, "randint", lambda *args, **options: calls.append(args) or draw(*args, **options))
    torch.manual_seed(0)
    assert seen_blocks((1, 510), 245, (1, 1)).sum() == 245 and len(calls) <= 3


def test_short_rows_have_something_masked():
    for length, count, expected in ((2, 0, 1), (3, 0, 1), (3, 3, 2), (1, 0, 0), (1, 1, 0)):
        assert seen_blocks((1, length), count, (1, 5)).sum() == expected


def test_values_at_masked_places_of_views():
    values = torch.arange(6).reshape(2, 3)
    masked = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[0, 0, 1], [0, 0, 0]]]).bool()
    assert at_masked(values, masked).tolist() == [0, 1, 2, 5]
    assert at_masked(values, masked[:, 0]).tolist() == [0, 5]
