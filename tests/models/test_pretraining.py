"""data2vec's method beside an independent computation with transformers' models, a row at a time and in float64."""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from d2v import losses
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.masking import block_mask
from d2v.models.packing import Packing
from d2v.models.pretraining import Student, Teacher, at_masked, begin, normalise
from d2v.models.text import Data2VecTextConfig, Data2VecTextModel
from d2v.models.vision import Data2VecVisionConfig, Data2VecVisionModel
from tests.tiny import STILL_AUDIO, TINY_AUDIO, TINY_TEXT, TINY_VISION

STILL_TEXT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MASKABLE = STILL_AUDIO | {"mask_time_prob": 0.5}  # has the mask embedding; masks are given
PUBLISHED = {  # what differs between the modalities: fairseq's data2vec_audio.py and data2vec_text.py, data2vec_vision
    "audio": {"layer_norm": "instance"},
    "text": {"layer_norm": "layer"},
    "vision": {"outputs": "block", "layer_norm": "layer", "target_norm": "layer"},
}
LOSS = {"audio": (0.0, "root"), "text": (4.0, "sum"), "vision": (2.0, "mean")}


@dataclass
class Case:
    student: Student
    teacher: Teacher
    batch: dict[str, Tensor]


def stirred(model: nn.Module, seed: int) -> nn.Module:
    """The model with weights at which every part matters: as initialised, biases and vision's tokens are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def batch_of(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    if kind == "audio":
        lengths, frames = [4400, 3000, 4400], [13, 9, 13]
        values = torch.zeros(3, 4400)
        for row, length in zip(values, lengths, strict=True):
            row[:length] = torch.randn(length)
        masked = torch.rand(3, 13) < 0.5
        for row, count in zip(masked, frames, strict=True):
            row[count:] = False
        mask = (torch.arange(4400) < torch.tensor(lengths)[:, None]).long()
        return {"input_values": values, "attention_mask": mask, "masked": masked}
    if kind == "text":
        ids = torch.randint(5, 50, (3, 9))
        ids[1, 6:] = 1
        masked = (torch.rand(3, 9) < 0.4) & (ids != 1)
        seen = torch.where(masked, 4, ids)
        return {"input_ids": ids, "masked_ids": seen, "attention_mask": (ids != 1).long(), "masked": masked}
    return {"pixel_values": torch.randn(3, 3, 24, 24), "masked": torch.rand(3, 36) < 0.6}


def case(kind: str, dtype: torch.dtype = torch.float64, auxiliary: int = 0, **options) -> Case:
    torch.manual_seed(0)
    if kind == "audio":
        base = Data2VecAudioModel(Data2VecAudioConfig(**TINY_AUDIO | MASKABLE))
    elif kind == "text":
        base = Data2VecTextModel(Data2VecTextConfig(**TINY_TEXT | STILL_TEXT, vocab_size=50), add_pooling_layer=False)
    else:
        extra = {"use_mask_token": True, "use_absolute_position_embeddings": True}
        base = Data2VecVisionModel(Data2VecVisionConfig(**TINY_VISION | extra, use_shared_relative_position_bias=True))
    student = Student(stirred(base, 0), head_layers=2 if kind == "text" else 1, auxiliary=auxiliary).to(dtype)
    teacher = Teacher(student, layers=2 if kind != "vision" else 3, **PUBLISHED[kind] | options)
    stirred(teacher.model, 1)
    teacher.model.to(dtype)
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch_of(kind).items()}
    return Case(student.train(), teacher, batch)


def reference(model: nn.Module, folder) -> nn.Module:
    """The same weights in transformers' model."""
    model.save_pretrained(folder)
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def keep(kept: list, module: nn.Module, inputs: tuple, output: Tensor) -> None:
    kept.append(output)


def by_hand(kind: str, each: Case, tmp_path) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Predictions and targets of every row at its masked places, and the loss summed over them."""
    theirs = {name: reference(model, tmp_path / name) for name, model in pair_of(each).items()}
    batch, predictions, targets = each.batch, [], []
    blocks = theirs["teacher"].encoder.layers if kind == "audio" else theirs["teacher"].encoder.layer
    parts = {"audio": lambda b: b.feed_forward.output_dense, "text": lambda b: b.output.dense, "vision": lambda b: b}
    for row in range(3):
        kept = []
        last = blocks[-each.teacher.layers :]
        hooks = [parts[kind](block).register_forward_hook(partial(keep, kept)) for block in last]
        masked = batch["masked"][row]
        if kind == "audio":
            samples = batch["attention_mask"][row].sum()
            clip = batch["input_values"][row : row + 1, :samples]
            frames = (int(samples) - 400) // 320 + 1
            masked = masked[:frames]
            # what the convolutions say is the student's, for the teacher too
            for part in ("feature_extractor", "feature_projection"):
                setattr(theirs["teacher"], part, getattr(theirs["student"], part))
            theirs["teacher"](clip)
            states = theirs["student"](clip, mask_time_indices=masked[None]).last_hidden_state[0]
        elif kind == "text":
            length = batch["attention_mask"][row].sum()
            masked = masked[:length]
            theirs["teacher"](batch["input_ids"][row : row + 1, :length])
            states = theirs["student"](batch["masked_ids"][row : row + 1, :length]).last_hidden_state[0]
        else:
            pixels = batch["pixel_values"][row : row + 1]
            theirs["teacher"](pixels)
            states = theirs["student"](pixels, bool_masked_pos=masked[None]).last_hidden_state[0, 1:]
            states = F.layer_norm(states, (32,), each.student.final_norm.weight, each.student.final_norm.bias, 1e-12)
        for hook in hooks:
            hook.remove()
        outputs = [(output[0] if isinstance(output, tuple) else output) for output in kept]
        assert len(outputs) == each.teacher.layers
        if kind == "audio":  # over time, channel by channel
            mean = sum(F.instance_norm(output.mT).mT for output in outputs) / len(outputs)
        else:
            mean = sum(F.layer_norm(output, (32,)) for output in outputs) / len(outputs)
        if kind == "vision":
            mean = F.layer_norm(mean, (32,))[:, 1:]
        targets.append(mean[0][masked])
        predictions.append(each.student.head(states[masked]))
    error = torch.cat(predictions) - torch.cat(targets)
    beta, reduction = LOSS[kind]
    size = error.abs()
    loss = error**2 if beta == 0 else torch.where(size < beta, error**2 / (2 * beta), size - beta / 2)
    return predictions, targets, loss.sum() / {"root": math.sqrt(32), "sum": 1, "mean": 32}[reduction]


def pair_of(each: Case) -> dict[str, nn.Module]:
    return {"student": each.student.base_model, "teacher": each.teacher.model}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_targets_and_loss_are_those_of_an_independent_computation(kind, tmp_path):
    each = case(kind)
    output = each.student(each.batch, each.teacher)
    beta, reduction = LOSS[kind]
    loss, count = losses.regression(output.predictions, output.targets, beta=beta, reduction=reduction)
    with torch.no_grad():
        predictions, targets, expected = by_hand(kind, each, tmp_path)
    assert count == each.batch["masked"].sum() == len(output.targets)
    for ours, theirs in ((output.targets, targets), (output.predictions, predictions)):
        assert (ours - torch.cat(theirs)).norm() < 1e-5 * ours.norm()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_teacher_sees_everything_and_gets_no_gradient(kind):
    each = case(kind)
    output = each.student(each.batch, each.teacher)
    others = dict(each.batch, masked=each.batch["masked"].roll(1, 0) & each.batch["masked"])
    if kind == "text":
        others["masked_ids"] = torch.where(others["masked"], 4, others["input_ids"])
    fewer = each.student(others, each.teacher)
    # What is masked changes what the student says, and not what the teacher does.
    kept = others["masked"][each.batch["masked"]]
    assert 0 < kept.sum() < len(kept)
    assert torch.allclose(output.targets[kept], fewer.targets, atol=1e-12)
    assert not torch.allclose(output.predictions[kept], fewer.predictions, atol=1e-3)
    assert not output.targets.requires_grad and not output.front.requires_grad
    losses.regression(output.predictions, output.targets)[0].backward()
    assert all(parameter.grad is None for parameter in each.teacher.parameters())
    missing = {name for name, parameter in each.student.named_parameters() if parameter.grad is None}
    assert missing == set()
    embedding = {"audio": "masked_spec_embed", "text": "embeddings.word_embeddings.weight"}.get(kind)
    gradient = each.student.base_model.get_parameter(embedding or "embeddings.mask_token").grad
    assert (gradient[4] if kind == "text" else gradient).abs().sum() > 0


def test_the_teacher_hears_the_projection_before_its_dropout():
    """As fairseq's, which keeps a copy of it (`pre_encoder_features`)."""
    each = case("audio")
    without = each.student(each.batch, each.teacher)
    each.student.base_model.feature_projection.dropout.p = 0.5
    output = each.student(each.batch, each.teacher)
    assert torch.equal(output.targets, without.targets) and not torch.allclose(output.predictions, without.predictions)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_nothing_is_learnt_where_nothing_is_masked(kind):
    """The gradient of the predictions is that of the masked places alone: elsewhere a head could say anything."""
    each = case(kind)
    output = each.student(each.batch, each.teacher)
    assert output.predictions.shape == output.targets.shape == (int(each.batch["masked"].sum()), 32)
    nothing = dict(each.batch, masked=torch.zeros_like(each.batch["masked"]))
    output = each.student(nothing, each.teacher)
    loss, count = losses.regression(output.predictions, output.targets)
    assert (loss, count) == (0, 0)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_teacher_is_an_average_of_the_blocks(kind):
    """Of speech and text the blocks alone; what lies before them, and speech's positions, are the student's own."""
    each = case(kind, torch.float32)
    before = {name: value.clone() for name, value in each.teacher.model.named_parameters()}
    each.teacher.update(each.student, 0.75)
    student = dict(each.student.base_model.named_parameters())
    copied = set()
    for name, value in each.teacher.model.named_parameters():
        if torch.equal(value, student[name]):
            copied.add(name)
        else:
            assert torch.allclose(value, 0.75 * before[name] + 0.25 * student[name], atol=1e-6), name
    expected = {
        "audio": {name for name in before if not name.startswith("encoder.") or "pos_conv_embed" in name},
        "text": {name for name in before if name.startswith("embeddings.")},
        "vision": set(),
    }
    assert copied == expected[kind]


def test_the_teacher_stays_in_fp32_and_in_evaluation():
    """A student in bf16 moves it by less than bf16 can tell, and in the end by all of it."""
    each = case("text", torch.bfloat16)
    teacher = Teacher(each.student, layers=1)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    name = "encoder.layers.0.ffn.fc1.weight"
    before = teacher.model.get_parameter(name).clone()
    each.student.base_model.get_parameter(name).data += 0.5
    wanted = each.student.base_model.get_parameter(name).float()
    for _ in range(300):
        teacher.update(each.student, 0.997)
    moved = teacher.model.get_parameter(name)
    left = 0.997**300
    assert torch.allclose(moved, left * before + (1 - left) * wanted, atol=1e-4)
    teacher.train()
    assert not any(module.training for module in teacher.modules())


def test_a_student_in_a_mixed_batch_is_a_student_alone():
    """Rows of one batch know nothing of each other, in targets either, whatever their lengths."""
    each = case("audio")
    together = each.student(each.batch, each.teacher)
    counts = each.batch["masked"].sum(1).tolist()
    for row, (targets, predictions) in enumerate(
        zip(together.targets.split(counts), together.predictions.split(counts), strict=True)
    ):
        samples = int(each.batch["attention_mask"][row].sum())
        frames = (samples - 400) // 320 + 1
        alone = {key: value[row : row + 1, :samples] for key, value in each.batch.items() if key != "masked"}
        output = each.student(alone | {"masked": each.batch["masked"][row : row + 1, :frames]}, each.teacher)
        assert torch.allclose(output.targets, targets, atol=1e-10)
        assert torch.allclose(output.predictions, predictions, atol=1e-10)


def test_instance_norm_is_over_time_and_layer_norm_over_channels():
    x = torch.randn(7, 5, dtype=torch.float64)
    packing = Packing.of(torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), 2, 4)
    rows = normalise(x, packing, "instance").split([4, 3])
    for ours, theirs in zip(rows, x.split([4, 3]), strict=True):
        assert torch.allclose(ours, (theirs - theirs.mean(0)) / (theirs.var(0, correction=0) + 1e-5).sqrt())
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(normalise(x, packing, "layer"), expected)
    assert torch.equal(normalise(x, packing, "none"), x)


def test_the_other_head():
    each = case("audio", auxiliary=7)
    output = each.student(each.batch, each.teacher)
    assert output.auxiliary.shape == (int(each.batch["masked"].sum()), 7)
    everywhere = torch.ones_like(each.batch["masked"])
    more = each.student(each.batch | {"auxiliary_at": everywhere}, each.teacher)
    assert torch.equal(more.auxiliary.unflatten(0, everywhere.shape)[each.batch["masked"]], output.auxiliary)
    assert torch.equal(more.predictions, output.predictions)
    without = each.student(each.batch, each.teacher, auxiliary=False)
    assert without.auxiliary is None and torch.equal(without.predictions, output.predictions)
    alone = Student(copy.deepcopy(each.student.base_model), head_layers=0, auxiliary=7).double()
    output = alone(each.batch)
    assert output.predictions is None and output.targets is None and output.auxiliary.shape[1] == 7
    text = case("text", auxiliary=50)
    assert text.student(text.batch, text.teacher).auxiliary.shape == (int(text.batch["masked"].sum()), 50)


def test_more_blocks_than_there_are_is_an_error():
    with pytest.raises(InputError, match="teacher.layers should be 1 to 2, the model's blocks, not 3"):
        Teacher(case("text").student, layers=3)


def test_blocks_of_patches():
    """BEiT's 120 of 196 patches, seldom a few less, in blocks; on a small grid as well."""
    torch.manual_seed(0)
    for grid, count, smallest in (((14, 14), 120, 16), ((8, 8), 38, 4)):
        masks = torch.stack([block_mask(grid, count, smallest) for _ in range(200)])
        counts = masks.flatten(1).sum(1).float()
        assert counts.max() <= count and counts.mean() > 0.97 * count
        neighbours = (masks[:, :, 1:] == masks[:, :, :-1]).float().mean()
        assert neighbours > 0.75  # of single patches 0.52
        places = masks.float().mean(0)
        assert places.min() > 0.02  # every patch is masked now and then, and seen now and then
        assert places.max() < 0.98


def test_blocks_that_do_not_fit_leave_no_mask_empty():
    """Ten rectangles of 16 patches and more seldom fit into so few; a row of patches has no room for any."""
    torch.manual_seed(0)
    for grid, count in (((4, 4), 10), ((2, 6), 7), ((1, 9), 5), ((9, 1), 5), ((2, 2), 1)):
        counts = [int(block_mask(grid, count).sum()) for _ in range(100)]
        assert min(counts) > 0 and max(counts) <= count, grid


def test_vision_with_a_final_norm_of_its_own():
    config = replace(case("vision").student.base_model.config, use_mean_pooling=False)
    student = Student(Data2VecVisionModel(config))
    assert student.final_norm is student.base_model.layernorm
    state = student.state_dict()
    assert {"base_model.layernorm.weight", "head.0.weight"} <= state.keys()


def test_the_loss_of_a_vector():
    predictions, targets = torch.tensor([[0.0, 0.0, 6.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    for beta, expected in ((0.0, 37.0), (4.0, 1 / 8 + 4.0), (1.0, 0.5 + 5.5)):
        for reduction, divisor in (("sum", 1), ("root", 2), ("mean", 4)):
            total, count = losses.regression(predictions, targets, beta=beta, reduction=reduction)
            assert (float(total), int(count)) == (pytest.approx(expected / divisor), 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PUBLISHED)
def test_an_update_of_the_released_size(kind):
    """Version 1 with the published targets, in bf16 with gradient checkpointing: finite, and the teacher follows."""
    torch.manual_seed(0)
    base = {
        "audio": lambda: Data2VecAudioModel(Data2VecAudioConfig()),
        "text": lambda: Data2VecTextModel(Data2VecTextConfig(vocab_size=50265), add_pooling_layer=False),
        "vision": lambda: Data2VecVisionModel(
            Data2VecVisionConfig(use_mask_token=True, use_shared_relative_position_bias=True)
        ),
    }[kind]()
    layers = {"audio": 8, "text": 10, "vision": 6}[kind]
    student = Student(base, head_layers=2 if kind == "text" else 1).train()
    student.gradient_checkpointing_enable()
    teacher = Teacher(student, layers=layers, **PUBLISHED[kind])
    batch = batch_of(kind)
    if kind == "vision":
        batch = {"pixel_values": torch.randn(2, 3, 224, 224), "masked": torch.rand(2, 196) < 0.6}
    with torch.autocast("cpu", torch.bfloat16):
        output = student(batch, teacher)
        beta, reduction = LOSS[kind]
        loss, _ = losses.regression(output.predictions, output.targets, beta=beta, reduction=reduction)
    loss.backward()
    assert output.targets.dtype == torch.float32 and loss.isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in student.parameters())
    torch.optim.SGD(student.parameters(), lr=1e-3).step()
    before = teacher.model.encoder.layers[0].ffn.fc1.weight.clone()
    teacher.update(student, 0.999)
    assert 0 < float((teacher.model.encoder.layers[0].ffn.fc1.weight - before).abs().max()) < 1e-3


def test_blocks_of_images_begin_as_beits():
    """What the i-th adds to the residual is divided by the root of 2 i; of text and speech it is not."""
    torch.manual_seed(0)
    vision = Data2VecVisionModel(Data2VecVisionConfig(**TINY_VISION | {"initializer_range": 0.1}))
    before = [block.ffn.fc2.weight.clone() for block in vision.encoder.layers]
    begin(vision)
    for i, (block, old) in enumerate(zip(vision.encoder.layers, before, strict=True), 1):
        assert torch.allclose(block.ffn.fc2.weight, old / (2 * i) ** 0.5)
        assert block.attn.out_proj.weight.detach().std() == pytest.approx(0.1 / (2 * i) ** 0.5, rel=0.1)
    text = Data2VecTextModel(Data2VecTextConfig(**TINY_TEXT, vocab_size=50))
    before = [block.ffn.fc2.weight.clone() for block in text.encoder.layers]
    begin(text)
    assert all(torch.equal(block.ffn.fc2.weight, old) for block, old in zip(text.encoder.layers, before, strict=True))


def test_what_is_at_masked_places():
    values, masked = torch.randn(3, 5, 2), torch.rand(3, 5) < 0.5
    assert torch.equal(at_masked(values, masked), values[masked])
    views = torch.rand(3, 4, 5) < 0.5
    assert torch.equal(at_masked(values, views), values[:, None].expand(-1, 4, -1, -1)[views])
