"""The vision models beside transformers': same weights, same numbers, at any image size."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.interpolate import RectBivariateSpline
from scipy.optimize import brentq

from d2v import Data2VecVisionConfig, Data2VecVisionForImageClassification, Data2VecVisionModel
from d2v.errors import InputError
from d2v.hub import rename
from d2v.models.patches import RelativePositionBias, offset_index, resize_positions, resize_table
from d2v.models.tables import stretched
from d2v.pretrained import load_weights
from tests.parity import (
    EXACT,
    apart,
    assert_as_close,
    assert_same_gradients,
    exact,
    flat,
    gradients_of,
    opens_both_ways,
    pair,
    same_gradients,
    same_outputs,
)
from tests.tiny import TINY_VISION

VARIANTS = {
    "plain": {},
    "per layer": {"use_relative_position_bias": True},
    "shared": {"use_shared_relative_position_bias": True},
    "both": {"use_relative_position_bias": True, "use_shared_relative_position_bias": True},
    "absolute": {"use_absolute_position_embeddings": True},
    "class token": {"use_mean_pooling": False, "use_shared_relative_position_bias": True},
    "mask token": {"use_mask_token": True, "use_absolute_position_embeddings": True},
    "no scales": {"layer_scale_init_value": 0.0, "hidden_act": "relu"},
    "other patches": {"patch_size": 6, "num_channels": 1, "use_relative_position_bias": True},
}
SETTINGS = settings(derandomize=True, deadline=None, max_examples=30)
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
PRETRAINED = {"use_shared_relative_position_bias": True, "use_mean_pooling": False}
FT1K = {"use_relative_position_bias": True, "num_labels": 1000}


def tiny(name="Data2VecVisionModel", implementation="eager", **changes):
    """Both models with the same weights; positions and tokens are so large that a wrong one shows."""
    strong = {"initializer_range": 0.2, "layer_scale_init_value": 0.5}  # what layers add, mistakes included
    theirs, ours = pair(name, implementation, **TINY_VISION | strong | changes)
    their_own = dict(theirs.named_parameters())
    with torch.no_grad():
        for own, parameter in ours.named_parameters():
            if own.endswith(("table", "position_embeddings", "token")):
                their_own[rename(own, ours.renames)].copy_(parameter.normal_())
    return theirs, ours


def images_for(model, batch=3, size=(24, 24)):
    return torch.randn(batch, model.config.num_channels, *size)


# ---------------------------------------------------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------------------------------------------------


def test_every_field_and_default_is_transformers():
    theirs, ours = transformers.Data2VecVisionConfig(), Data2VecVisionConfig()
    own = {field.name for field in dataclasses.fields(ours)} - {"num_labels", "attn_implementation", "extra"}
    their_own = {name for name in type(theirs).__annotations__ if not name.startswith("_")} - {"model_type"}
    assert own == their_own | {"id2label", "problem_type"}
    for name in own:
        expected = getattr(theirs, name)
        assert getattr(ours, name) == (tuple(expected) if isinstance(expected, list) else expected), name
    assert ours.model_type == theirs.model_type


@pytest.mark.parametrize("sizes", [(24, 4), ((16, 24), (4, 6)), ([16, 24], [4, 6])])
def test_configurations_go_both_ways(sizes, tmp_path):
    changes = {"image_size": sizes[0], "patch_size": sizes[1], "out_indices": [1, 2, 3, 4], "drop_path_rate": 0}
    ours = Data2VecVisionConfig(**changes)
    (tmp_path / "config.json").write_text(json.dumps(ours.to_dict()))
    assert Data2VecVisionConfig.from_pretrained(tmp_path).to_dict() == ours.to_dict()
    theirs = transformers.Data2VecVisionConfig.from_pretrained(tmp_path)
    for name in changes:
        value, expected = getattr(theirs, name), getattr(ours, name)
        assert (tuple(value) if isinstance(value, list) else value) == expected
    theirs.save_pretrained(tmp_path)
    assert (
        Data2VecVisionConfig.from_pretrained(tmp_path).grid() == ours.grid() == ((6, 6) if sizes[0] == 24 else (4, 4))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size should be a whole number above 0 or two, .height, width., not 0"),
        ({"image_size": (24,)}, "image_size should be"),
        ({"patch_size": [4, 4.0]}, "patch_size should be"),
        ({"patch_size": "16"}, "patch_size should be"),
        ({"image_size": 15}, "image_size 15 is smaller than patch_size 16"),
        ({"image_size": (32, 15)}, "is smaller than"),
        ({"hidden_act": "gelux"}, "hidden_act should be"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(InputError, match=message):
        Data2VecVisionConfig(**changes)


# ---------------------------------------------------------------------------------------------------------------------
# Parity
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients(variant, implementation):
    theirs, ours = tiny(implementation=implementation, **VARIANTS[variant])
    inputs = {"pixel_values": images_for(ours), "output_hidden_states": True}
    if implementation == "eager":
        inputs["output_attentions"] = True
    if ours.config.use_mask_token:
        inputs["bool_masked_pos"] = torch.rand(3, 36) < 0.4
    direction = torch.randn(3, 1 + math.prod(ours.config.grid()), 32)
    found, _, _ = same_outputs(theirs, ours, lambda output: (output.last_hidden_state * direction).sum(), **inputs)
    assert len(found.hidden_states) == 5


@pytest.mark.parametrize("size", [(12, 12), (32, 32), (20, 32), (35, 18)])
@pytest.mark.parametrize("variant", ["plain", "per layer", "shared", "both", "absolute", "class token"])
def test_images_of_another_size(variant, size):
    theirs, ours = tiny(**VARIANTS[variant])
    images, reference = images_for(ours, size=size), exact(theirs)
    outputs = [model(images) for model in (ours, theirs)] + [reference(images.double())]
    assert_as_close(*(output.last_hidden_state for output in outputs))
    for model, output, x in zip((ours, reference), outputs[::2], (images, images.double()), strict=True):
        asked = model(x, interpolate_pos_encoding=True)  # which changes nothing there either
        assert torch.equal(asked.last_hidden_state, output.last_hidden_state)
    direction = torch.randn_like(images.new_empty(outputs[0][0].shape))
    for output in outputs:
        (output.last_hidden_state * direction).sum().backward()
    same_gradients(theirs, ours, reference)


def test_drop_path_and_dropout_are_where_transformers_has_them(monkeypatch):
    monkeypatch.setattr("d2v.models.cpu.drop", torch.nn.functional.dropout)  # ours draws other numbers
    rand = torch.rand  # in float64 it would draw others
    monkeypatch.setattr("torch.rand", lambda *args, dtype=None, **options: rand(*args, **options).to(dtype))
    theirs, ours = map(exact, tiny(drop_path_rate=0.6, hidden_dropout_prob=0.2))
    images, found = images_for(ours).double(), []
    for model in (theirs.train(), ours.train()):
        torch.manual_seed(3)
        found.append(model(images).last_hidden_state)
    assert apart(found[1], found[0]) < 1e-6  # in float64 too, rates and factors are rounded to fp32
    torch.manual_seed(4)
    assert apart(ours(images).last_hidden_state, found[0]) > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoints_go_both_ways(variant, tmp_path):
    theirs, ours = tiny(**VARIANTS[variant])
    opens_both_ways(theirs, ours, tmp_path, pixel_values=images_for(ours))
    assert {rename(key, ours.renames) for key in ours.state_dict()} == set(theirs.state_dict())
    assert {rename(key, ours.renames, to_ours=True) for key in theirs.state_dict()} == set(ours.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("Data2VecVisionModel", PRETRAINED),
        ("Data2VecVisionForImageClassification", FT1K),
        ("Data2VecVisionModel", PRETRAINED | LARGE),
        ("Data2VecVisionForImageClassification", FT1K | LARGE),
    ],
)
def test_released_configurations(name, released):
    theirs, ours = pair(name, "sdpa", **released)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        same_outputs(theirs, ours, pixel_values=images, output_hidden_states=True)


# ---------------------------------------------------------------------------------------------------------------------
# Positions
# ---------------------------------------------------------------------------------------------------------------------


def bias_by_hand(table, trained, grid):
    """(H, 1 + P, 1 + P), pair by pair."""
    offsets = table[:-3].view(2 * trained[0] - 1, 2 * trained[1] - 1, -1)
    if grid != trained:
        size = (2 * grid[0] - 1, 2 * grid[1] - 1)
        offsets = F.interpolate(offsets.permute(2, 0, 1)[None], size=size, mode="bilinear")[0].permute(1, 2, 0)
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    bias = table.new_empty(table.shape[1], 1 + len(places), 1 + len(places))
    bias[:, 0, :], bias[:, :, 0], bias[:, 0, 0] = table[-3][:, None], table[-2][:, None], table[-1]
    for a, query in enumerate(places, 1):
        for b, key in enumerate(places, 1):
            bias[:, a, b] = offsets[query[0] - key[0] + grid[0] - 1, query[1] - key[1] + grid[1] - 1]
    return bias


GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(GRIDS, GRIDS)
@SETTINGS
def test_relative_positions_by_hand(trained, grid):
    module = RelativePositionBias(trained, 2).double()
    module.relative_position_bias_table.data.normal_()
    for asked in (trained, grid):
        found = module(asked, offset_index(asked))
        torch.testing.assert_close(found[0], bias_by_hand(module.relative_position_bias_table, trained, asked))


@given(GRIDS, GRIDS)
@SETTINGS
def test_absolute_positions_by_hand(trained, grid):
    positions = torch.randn(1, 1 + trained[0] * trained[1], 5, dtype=torch.float64)
    picture = positions.new_empty(1, 5, *trained)
    for row in range(trained[0]):
        for column in range(trained[1]):
            picture[0, :, row, column] = positions[0, 1 + row * trained[1] + column]
    picture = F.interpolate(picture, size=grid, mode="bicubic")
    found = resize_positions(positions, trained, grid)
    assert torch.equal(found[:, 0], positions[:, 0]) and found.shape[1] == 1 + grid[0] * grid[1]
    for row in range(grid[0]):
        for column in range(grid[1]):
            torch.testing.assert_close(found[0, 1 + row * grid[1] + column], picture[0, :, row, column])


@pytest.mark.parametrize("variant", ["both", "absolute"])
def test_images_that_are_not_square_when_trained(variant):
    """Turned by a quarter, images and positions give the turned states."""
    changes = TINY_VISION | VARIANTS[variant]
    wide = Data2VecVisionModel(Data2VecVisionConfig(**changes | {"image_size": (12, 20)})).eval().double()
    tall = Data2VecVisionModel(Data2VecVisionConfig(**changes | {"image_size": (20, 12)})).eval().double()
    for name, parameter in wide.named_parameters():
        parameter.data.normal_(std=0.3)
        value = parameter.data
        if name.endswith("table"):
            value = torch.cat((value[:-3].view(5, 9, -1).transpose(0, 1).flatten(0, 1), value[-3:]))
        elif name.endswith("position_embeddings"):
            value = torch.cat((value[:, :1], value[:, 1:].view(1, 3, 5, -1).transpose(1, 2).flatten(1, 2)), dim=1)
        elif name.endswith("projection.weight"):
            value = value.transpose(2, 3)
        tall.get_parameter(name).data.copy_(value)
    for size in ((12, 20), (16, 28)):
        images, (rows, columns) = images_for(wide, size=size).double(), (size[0] // 4, size[1] // 4)
        states = wide(images).last_hidden_state
        turned = states[:, 1:].unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
        found = tall(images.transpose(2, 3)).last_hidden_state
        assert apart(found[:, 1:], turned) < EXACT and apart(found[:, 0], states[:, 0]) < EXACT


def beit(table, old, new):
    """BEiT's resizing, of one head's (2 * rows - 1, 2 * columns - 1), by a spline of two variables."""
    known, wanted = [], []
    for before, after in zip(old, new, strict=True):

        def beyond(q, before=before, after=after):
            return sum(q**i for i in range(before - 1)) - (after - 1)

        q = 1.01 if beyond(1.01) > 0 else 1.5 if beyond(1.5) < 0 else brentq(beyond, 1.01, 1.5)
        distances = [sum(q**i for i in range(n)) for n in range(1, before)]
        distances = list(range(1, before)) if before == after else distances
        known.append([-d for d in reversed(distances)] + [0] + distances)
        wanted.append([float(d) for d in range(1 - after, after)])
    degrees = [min(3, len(k) - 1) for k in known]
    return torch.from_numpy(RectBivariateSpline(*known, table.numpy(), kx=degrees[0], ky=degrees[1])(*wanted))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((14, 14), (32, 32)),
        ((6, 6), (8, 8)),
        ((6, 6), (4, 4)),
        ((3, 3), (9, 9)),
        ((2, 2), (4, 4)),
        ((6, 6), (6, 9)),
        ((6, 6), (10, 4)),
        ((5, 7), (9, 7)),
    ],
)
def test_tables_are_resized_as_beit_does(old, new):
    table = torch.randn((2 * old[0] - 1) * (2 * old[1] - 1) + 3, 2)
    found = resize_table(table, old, new)
    assert torch.equal(found[-3:], table[-3:])
    for head in range(2):
        expected = beit(table[:-3, head].view(2 * old[0] - 1, -1).double(), old, new)
        # Its bisection stops at 1e-6, which a table of noise makes the most of.
        torch.testing.assert_close(found[:-3, head].double(), expected.flatten(), rtol=0, atol=2e-3)


@given(st.integers(2, 24), st.integers(1, 40))
@SETTINGS
def test_old_distances_span_the_new_ones(old, new):
    distances = stretched(old, new)
    steps = np.diff(distances, prepend=0.0)
    ratios = steps[1:] / steps[:-1]
    assert len(distances) == old - 1 and distances[0] == 1 and bool((ratios >= 1.01).all() and (ratios <= 1.5).all())
    reach = [sum(q**i for i in range(old - 1)) for q in (1.01, 1.5)]
    assert distances[-1] == pytest.approx(min(max(new - 1, reach[0]), reach[1]), rel=1e-3)


@given(st.tuples(st.integers(2, 7), st.integers(2, 7)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
@SETTINGS
def test_resized_tables_keep_what_they_should(old, new):
    offsets = torch.randn(2 * old[0] - 1, 2 * old[1] - 1, 1, dtype=torch.float64)
    even = (offsets + offsets.flip(0, 1)).flatten(0, 1)  # the same there and back
    table = torch.cat((torch.cat((even, torch.ones_like(even)), 1), torch.randn(3, 2)))
    found = resize_table(table, old, new)
    resized = found[:-3].view(2 * new[0] - 1, 2 * new[1] - 1, 2)
    assert apart(resized.flip(0, 1), resized) < EXACT
    assert apart(resized[..., 1], torch.ones_like(resized[..., 1])) < EXACT  # a constant stays one
    middle, before = resized[new[0] - 1, new[1] - 1], table[:-3].view(*offsets.shape[:2], 2)[old[0] - 1, old[1] - 1]
    assert apart(middle, before) < EXACT  # no offset is no offset


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["per layer", "shared", "both", "absolute", "mask token"])
def test_loading_at_a_new_size(variant, tmp_path, capsys):
    theirs, ours = tiny(**VARIANTS[variant])
    theirs.save_pretrained(tmp_path)
    for size, grid in ((32, (8, 8)), ((16, 40), (4, 10))):
        model = Data2VecVisionModel.from_pretrained(tmp_path, image_size=size)
        assert capsys.readouterr().out == ""  # nothing missing, unexpected or left out
        for name, old in ours.named_parameters():
            new = model.get_parameter(name)
            if name.endswith("table"):
                assert torch.equal(new, resize_table(old.data, (6, 6), grid))
            elif name.endswith("position_embeddings"):
                assert torch.equal(new, resize_positions(old.data, (6, 6), grid))
            else:
                assert torch.equal(new, old)
        images = images_for(ours, size=(grid[0] * 4, grid[1] * 4))
        if variant == "absolute":  # forward and loading resize these alike
            assert_as_close(model(images)[0], ours(images)[0], exact(ours)(images.double())[0])
        model.save_pretrained(tmp_path / "resized")
        again = Data2VecVisionModel.from_pretrained(tmp_path / "resized")
        assert torch.equal(again(images)[0], model(images)[0])
    turned = Data2VecVisionModel.from_pretrained(tmp_path / "resized", image_size=(40, 16))  # as many patches
    for name, old in model.named_parameters():
        if name.endswith("table"):
            assert torch.equal(turned.get_parameter(name), resize_table(old.data, (4, 10), (10, 4)))
        elif name.endswith("position_embeddings"):
            assert torch.equal(turned.get_parameter(name), resize_positions(old.data, (4, 10), (10, 4)))
    config = json.loads((tmp_path / "resized/config.json").read_text())
    (tmp_path / "resized/config.json").write_text(
        json.dumps(config | {"image_size": 24})
    )  # which the weights are not of
    with pytest.raises(InputError, match="the configuration asks for"):
        Data2VecVisionModel.from_pretrained(tmp_path / "resized")


def test_a_table_that_all_layers_shared_becomes_each_layers_own(tmp_path, capsys):
    theirs, ours = tiny(**VARIANTS["shared"])
    theirs.save_pretrained(tmp_path)
    changes = {"use_shared_relative_position_bias": False, "use_relative_position_bias": True}
    model = Data2VecVisionModel.from_pretrained(tmp_path, **changes)
    assert capsys.readouterr().out == ""
    images = images_for(ours).double()
    assert apart(exact(model)(images)[0], exact(ours)(images)[0]) < EXACT
    tables = [parameter for name, parameter in model.named_parameters() if name.endswith("table")]
    assert len(tables) == 4 and len({table.data_ptr() for table in tables}) == 4  # each its own from now on
    larger = Data2VecVisionForImageClassification.from_pretrained(tmp_path, image_size=32, **changes, verbose=False)
    expected = resize_table(ours.encoder.relative_position_bias.relative_position_bias_table.data, (6, 6), (8, 8))
    for layer in larger.base_model.encoder.layers:
        assert torch.equal(layer.attn.relative_position_bias.relative_position_bias_table, expected)


def test_old_checkpoints_with_index_buffers(tmp_path):
    _, ours = tiny(**VARIANTS["both"])
    ours.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    tables = [name for name in weights if name.endswith("relative_position_bias_table")]
    index = {name.replace("bias_table", "index"): torch.zeros(37, 37, dtype=torch.int64) for name in tables}
    assert len(index) == 5
    save_file(weights | index, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert str(load_weights(Data2VecVisionModel(ours.config), tmp_path)) == ""


# ---------------------------------------------------------------------------------------------------------------------
# What every model does
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "both"])
def test_sdpa_equals_eager(variant):
    eager = exact(tiny(**VARIANTS[variant])[1])
    sdpa, images = copy.deepcopy(eager), images_for(eager).double()
    sdpa.set_attn_implementation("sdpa")
    expected = eager(images, output_attentions=True)
    for options in ({}, {"output_attentions": True}):
        assert apart(sdpa(images, **options)[0], expected[0]) < EXACT
    found = sdpa(images, output_attentions=True)
    assert all(torch.equal(a, b) for a, b in zip(found.attentions, expected.attentions, strict=True))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", [(4,), (4, 4)])  # 4 heads; 4 layers of them
def test_head_mask_by_hand(implementation, shape):
    """A factor for a head's output is a factor for its values."""
    ours = exact(tiny(implementation=implementation, **VARIANTS["both"])[1])
    images, head_mask = images_for(ours).double(), torch.rand(shape)
    head_mask[..., 1] = 0
    scaled = copy.deepcopy(ours)
    for layer, factors in zip(scaled.encoder.layers, head_mask.expand(4, 4), strict=True):
        layer.attn.v_proj.weight.data *= factors.repeat_interleave(8)[:, None]
        layer.attn.v_proj.bias.data *= factors.repeat_interleave(8)
    assert apart(ours(images, head_mask=head_mask)[0], scaled(images)[0]) < EXACT
    assert apart(ours(images)[0], scaled(images)[0]) > 1e-2


def test_gradient_checkpointing_gives_the_same_gradients():
    _, ours = tiny(**VARIANTS["both"], drop_path_rate=0.3, hidden_dropout_prob=0.1, implementation="sdpa")
    images, found = images_for(ours), []
    for enable in (False, True):
        ours.gradient_checkpointing_enable(enable)
        ours.zero_grad()
        torch.manual_seed(5)
        ours.train()(images).last_hidden_state.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in ours.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_filler_behind_the_packed_patches_changes_nothing(monkeypatch):
    """What bf16 on a CPU adds for the sake of its kernels, here in float64 so that it can be compared."""
    ours = exact(tiny(**VARIANTS["both"], implementation="sdpa")[1])
    images, found = images_for(ours).double(), []
    for positions in (0, 7):
        monkeypatch.setattr("d2v.models.vision.filler", lambda size, x, positions=positions: positions)
        ours.zero_grad()
        output = ours(images, output_hidden_states=True, output_attentions=True)
        ours(images).last_hidden_state.square().sum().backward()
        found.append((output, gradients_of(ours)))
    (without, gradients), (output, others) = found
    assert all(apart(a, b) < EXACT for a, b in zip(flat(output.values()), flat(without.values()), strict=True))
    assert_same_gradients(others, gradients)


@pytest.mark.parametrize("variant", ["both", "mask token"])
@pytest.mark.parametrize("size", [(24, 24), (20, 32)])
def test_low_precision(variant, size):
    theirs, ours = tiny(**VARIANTS[variant], implementation="sdpa")
    images = images_for(ours, size=size)
    options = {"bool_masked_pos": torch.rand(3, size[0] * size[1] // 16) < 0.4} if variant == "mask token" else {}
    wanted = exact(theirs)(images.double(), **options).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (model(images, **options).last_hidden_state for model in (ours, theirs))
        found.float().sum().backward()
    assert apart(found.float(), wanted.float()) > 0
    assert_as_close(found, expected, wanted, torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float16):
        models = [copy.deepcopy(model).to(dtype) for model in (ours, theirs)]
        found, expected = (model(images.to(dtype), **options).last_hidden_state for model in models)
        assert found.dtype == dtype
        assert_as_close(found, expected, wanted, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiled_as_a_whole(training):
    torch._dynamo.reset()
    ours = exact(tiny(**VARIANTS["both"] | VARIANTS["mask token"], num_hidden_layers=1, implementation="sdpa")[1])
    compiled = torch.compile(ours.train(training), fullgraph=True, backend="aot_eager")
    for batch, size in ((2, (24, 24)), (3, (20, 32))):
        images, found = images_for(ours, batch, size).double(), []
        masked = torch.rand(batch, size[0] * size[1] // 16) < 0.4
        for model in (ours, compiled):
            ours.zero_grad()
            with torch.set_grad_enabled(training):
                output = model(images, masked, output_hidden_states=True)
            if training:
                output.last_hidden_state.square().sum().backward()
            found.append((output.hidden_states, [p.grad.clone() for p in ours.parameters() if p.grad is not None]))
        for plain, other in zip(*found, strict=True):
            assert all(apart(b, a) < EXACT for a, b in zip(plain, other, strict=True))


def test_initialisation():
    config = Data2VecVisionConfig(**TINY_VISION | VARIANTS["both"] | VARIANTS["mask token"], initializer_range=0.1)
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(Data2VecVisionForImageClassification(config))
    for name, parameter in models[0].named_parameters():
        assert torch.equal(parameter, models[1].get_parameter(name))  # the same seed, the same model
        if name.endswith(("norm.weight", "scale")):
            assert bool((parameter == (0.1 if name.endswith("scale") else 1)).all())
        elif parameter.ndim == 1 or name.endswith(("table", "token", "position_embeddings")):
            assert not parameter.any(), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.1, rel=0.1), name


def test_masked_patches_are_the_mask_token_and_nothing_else():
    _, ours = tiny(**VARIANTS["mask token"])
    images, masked = images_for(ours), torch.zeros(3, 36, dtype=torch.int64)
    masked[1, 8] = 1  # row 1, column 2
    seen, _ = ours.embeddings(images)
    found, _ = ours.embeddings(images, masked)
    expected = seen.clone()
    expected[1, 9] = ours.embeddings.mask_token[0, 0] + ours.embeddings.position_embeddings[0, 9]
    assert torch.equal(found, expected)
    changed = images.clone()
    changed[1, :, 4:8, 8:12] += 1  # under the mask
    assert torch.equal(ours(images, masked)[0], ours(changed, masked)[0])


def test_pooling():
    config = Data2VecVisionConfig(**TINY_VISION)
    model = Data2VecVisionModel(config, add_pooling_layer=True).eval().double()
    output = model(images_for(model).double())
    patches = output.last_hidden_state[:, 1:].mean(1)
    centred = patches - patches.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True) + config.layer_norm_eps
    assert apart(output.pooler_output, centred / variance.sqrt()) < EXACT
    config = Data2VecVisionConfig(**TINY_VISION, use_mean_pooling=False)
    output = Data2VecVisionModel(config, add_pooling_layer=True).eval()(images_for(model))
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert Data2VecVisionModel(config)(images_for(model)).pooler_output is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": torch.zeros(3, 24, 24)}, "float tensor with 4 dimensions"),
        ({"pixel_values": torch.zeros(1, 3, 24, 24, dtype=torch.uint8)}, "float tensor with 4 dimensions"),
        ({"pixel_values": torch.zeros(1, 24, 24, 3)}, "have 24 channels; the model takes 3"),
        ({"pixel_values": torch.zeros(1, 3, 3, 24)}, "images of 3 x 24 pixels are smaller than patch_size 4"),
        ({"bool_masked_pos": torch.zeros(1, 36)}, "set use_mask_token"),
    ],
)
def test_wrong_inputs_are_named(arguments, message):
    _, ours = tiny()
    with pytest.raises(ValueError, match=message):
        ours(**{"pixel_values": torch.zeros(1, 3, 24, 24)} | arguments)


def test_masks_of_the_wrong_shape():
    _, ours = tiny(**VARIANTS["mask token"])
    with pytest.raises(ValueError, match=r"bool_masked_pos has shape \(3, 6, 6\); should be \(3, 36\)"):
        ours(images_for(ours), torch.zeros(3, 6, 6))
