"""Vision models with a head beside transformers': logits, losses, gradients, and how they learn."""

import pytest
import torch
import torch.nn.functional as F

from d2v import Data2VecVisionConfig, Data2VecVisionForSemanticSegmentation
from d2v.errors import InputError
from d2v.hub import rename
from d2v.models.vision_heads import Upsampling, conv_layer, conv_of_resized, resize, segmentation_loss
from tests.models.test_vision import VARIANTS, images_for, tiny
from tests.parity import (
    EXACT,
    apart,
    assert_as_close,
    assert_same_gradients,
    exact,
    flat,
    gradients_of,
    opens_both_ways,
    same_loss_in_float64,
    same_outputs,
    same_updates,
)
from tests.tiny import TINY_VISION

CLASSIFICATION, SEGMENTATION = "Data2VecVisionForImageClassification", "Data2VecVisionForSemanticSegmentation"
HEADS = {
    "auxiliary": {},
    "alone": {"use_auxiliary_head": False},
    "concatenated": {"auxiliary_concat_input": True, "auxiliary_num_convs": 2, "auxiliary_loss_weight": 0.7},
    "pools": {"pool_scales": [2, 3], "out_indices": [1, 2, 4, 5], "semantic_loss_ignore_index": 0},
    "absolute": {"use_absolute_position_embeddings": True, "use_mean_pooling": False},
}


def maps_for(model, batch=4, size=(24, 24)):
    """Labels, a fifth of them ignored."""
    labels = torch.randint(0, model.config.num_labels, (batch, *size))
    return labels.masked_fill(torch.rand(labels.shape) < 0.2, model.config.semantic_loss_ignore_index)


# ---------------------------------------------------------------------------------------------------------------------
# Classification
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_classification(variant):
    theirs, ours = tiny(CLASSIFICATION, num_labels=5, **VARIANTS[variant])
    inputs = {"pixel_values": images_for(ours), "labels": torch.tensor([4, 0, 2])}
    options = {"output_hidden_states": True, "output_attentions": True}
    same_outputs(theirs, ours, lambda output: output.loss, **inputs, **options)


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        (torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]]), {"num_labels": 3}),
        (torch.tensor([0.3, -1.0, 2.0]), {"num_labels": 1}),
        (torch.tensor([[0.3, -1.0, 2.0]] * 3), {"num_labels": 3, "problem_type": "regression"}),
        (torch.tensor([2, -100, 0]), {"num_labels": 3, "problem_type": "single_label_classification"}),
    ],
)
def test_losses_of_every_kind(labels, config):
    theirs, ours = tiny(CLASSIFICATION, **config)
    same_loss_in_float64(theirs, ours, pixel_values=images_for(ours), labels=labels)


@pytest.mark.parametrize("variant", ["class token", "per layer", "absolute"])
def test_fifty_updates_follow_transformers(variant):
    theirs, ours = tiny(CLASSIFICATION, **VARIANTS[variant], num_labels=5)
    batches = [{"pixel_values": images_for(ours, 4), "labels": torch.randint(0, 5, (4,))} for _ in range(5)]
    same_updates(theirs, ours, batches)


@pytest.mark.slow
def test_fifty_updates_of_segmentation_follow_transformers():
    theirs, ours = tiny(SEGMENTATION, **VARIANTS["per layer"], num_labels=5)
    images = [images_for(ours, 4) for _ in range(5)]
    same_updates(theirs, ours, [{"pixel_values": x, "labels": torch.randint(0, 5, (4, *x.shape[2:]))} for x in images])


@pytest.mark.parametrize("name", [CLASSIFICATION, SEGMENTATION])
@pytest.mark.parametrize("variant", ["both", "class token"])
def test_checkpoints_go_both_ways(name, variant, tmp_path):
    theirs, ours = tiny(name, **VARIANTS[variant], auxiliary_concat_input=True)
    opens_both_ways(theirs, ours, tmp_path, pixel_values=images_for(ours))
    assert {rename(key, ours.renames) for key in ours.state_dict()} == set(theirs.state_dict())
    assert {rename(key, ours.renames, to_ours=True) for key in theirs.state_dict()} == set(ours.state_dict())


@pytest.mark.parametrize("name", [CLASSIFICATION, SEGMENTATION])
def test_outputs_read_as_transformers_tuples(name):
    models = tiny(name)
    images, options = images_for(models[1]), {"output_hidden_states": True, "return_dict": False}
    expected, found = (exact(model)(images.double(), **options) for model in models)
    assert apart(found[0], expected[0]) < EXACT and len(found) == len(expected)
    assert all(apart(a, b) < EXACT for a, b in zip(found[1], expected[1], strict=True))


def test_without_classes_there_are_features(tmp_path):
    theirs, ours = tiny(CLASSIFICATION, num_labels=0)
    images = images_for(ours)
    assert ours(images).logits.shape == (len(images), ours.config.hidden_size)
    opens_both_ways(theirs, ours, tmp_path, pixel_values=images)


def test_freezing_leaves_the_pooler_and_the_head():
    _, ours = tiny(CLASSIFICATION, **VARIANTS["both"])
    ours.freeze_encoder()
    ours(images_for(ours), labels=torch.tensor([0, 1, 0])).loss.backward()
    learning = {name for name, parameter in ours.named_parameters() if parameter.grad is not None}
    pooler = "data2vec_vision.pooler.layernorm."
    assert learning == {"classifier.weight", "classifier.bias", pooler + "weight", pooler + "bias"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2]), "label 2 is outside the 2 classes"),
        (torch.tensor([0, 1]), "labels have shape"),
        (torch.zeros(3, 3), "labels have shape"),
    ],
)
def test_wrong_labels_are_named(labels, message):
    _, ours = tiny(CLASSIFICATION)
    with pytest.raises(ValueError, match=message):
        ours(images_for(ours), labels=labels)


# ---------------------------------------------------------------------------------------------------------------------
# Segmentation
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_segmentation(head, training):
    theirs, ours = tiny(SEGMENTATION, num_labels=7, **VARIANTS["shared"] | HEADS[head])
    images, labels = images_for(ours, 4), maps_for(ours)
    options = {"labels": labels, "output_hidden_states": True, "output_attentions": True}
    # In fp64, since in fp32 a ReLU whose input is nearly 0 may tip over, and its gradient with it.
    theirs, ours = exact(theirs).train(training), exact(ours).train(training)
    expected, found = (model(images.double(), **options) for model in (theirs, ours))
    assert found.logits.shape == (4, 7, 24, 24)
    for key in expected:
        assert all(apart(a, b) < EXACT for a, b in zip(flat(found[key]), flat(expected[key]), strict=True)), key
    expected.loss.backward()
    found.loss.backward()
    assert_same_gradients(gradients_of(ours, ours.renames), gradients_of(theirs))
    statistics = {name: value for name, value in theirs.named_buffers() if value.is_floating_point()}
    assert len(statistics) > 20
    for name, value in ours.named_buffers():
        if value.is_floating_point():
            assert apart(value, statistics[rename(name, ours.renames)]) < EXACT


def test_segmentation_learns_as_transformers_does():
    theirs, ours = tiny(SEGMENTATION, num_labels=5, **VARIANTS["shared"])
    batches = [{"pixel_values": images_for(ours, 4), "labels": maps_for(ours)} for _ in range(5)]
    same_updates(theirs, ours, batches, steps=15)


@pytest.mark.parametrize("size", [(16, 16), (20, 20), (32, 32)])
@pytest.mark.parametrize("variant", ["both", "absolute"])
def test_segmentation_at_another_size(variant, size):
    theirs, ours = tiny(SEGMENTATION, num_labels=7, **VARIANTS[variant])
    theirs.config.image_size = size[0]  # or it would lay the patches out on its own grid
    images, labels = images_for(ours, 4, size), maps_for(ours, size=(33, 21))
    same_outputs(theirs, ours, pixel_values=images, labels=labels)


def test_the_features_of_an_image_that_is_not_square_lie_where_its_patches_do():
    _, ours = tiny(SEGMENTATION, **VARIANTS["both"])
    images, seen = images_for(ours, 2, (20, 32)), []
    ours.decode_head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    output = ours(images, output_hidden_states=True)
    assert output.logits.shape == (2, 2, 20, 32)
    assert [tuple(map_.shape[2:]) for map_ in seen[0]] == [(20, 32), (10, 16), (5, 8), (2, 4)]
    for row in range(5):
        for column in range(8):
            assert torch.equal(seen[0][2][:, :, row, column], output.hidden_states[3][:, 1 + 8 * row + column])


def test_which_layers_are_taken():
    """5, 7, 9, 13 are what BEiT calls 3, 5, 7, 11, and what transformers takes for them."""
    theirs, ours = tiny(SEGMENTATION, num_hidden_layers=12, out_indices=[5, 7, 9, 13])
    layers, taken, images = {}, [], images_for(ours)
    for i, layer in enumerate(ours.data2vec_vision.encoder.layers):
        layer.register_forward_hook(lambda module, args, output, i=i: layers.update({i: output[0]}))
    for module in (ours.fpn1, ours.fpn2):
        module.register_forward_hook(lambda module, args, output: taken.append(args[0]))
    ours.decode_head.register_forward_hook(lambda module, args, output: taken.extend(args[0][2:]))
    found = ours(images).logits
    expected = [layers[i].view(3, 37, 32)[:, 1:].mT.unflatten(2, (6, 6)) for i in (3, 5, 7, 11)]
    expected[3] = F.max_pool2d(expected[3], 2)
    assert all(torch.equal(a, b) for a, b in zip(taken, expected, strict=True))
    assert_as_close(found, theirs(images).logits, exact(theirs)(images.double()).logits)


def test_segmentation_loss_by_hand():
    config = Data2VecVisionConfig(**TINY_VISION, auxiliary_loss_weight=0.5)
    logits, auxiliary = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 8, 8))
    labels[0, :5] = 255
    total, count = segmentation_loss(logits, auxiliary, labels, config)
    expected = 0.0
    for scores, weight in ((logits, 1.0), (auxiliary, 0.5)):
        log_probs = F.interpolate(scores, size=(8, 8), mode="bilinear").log_softmax(1)
        for image, row, column in (labels != 255).nonzero().tolist():
            expected -= weight * log_probs[image, labels[image, row, column], row, column].item()
    assert total.item() == pytest.approx(expected, rel=EXACT) and count.item() == 2 * 64 - 40
    parts = [segmentation_loss(logits[i : i + 1], auxiliary[i : i + 1], labels[i : i + 1], config) for i in range(2)]
    assert sum(part[0] for part in parts).item() == pytest.approx(expected, rel=EXACT)
    assert sum(part[1] for part in parts) == count


def test_an_image_alone_is_pooled_to_running_statistics():
    """To one value a channel, which has no variance: they stay as they are, and the image teaches the rest."""
    _, model = tiny(SEGMENTATION, num_labels=5)
    pooled, others = (model.decode_head.psp_modules[i].normalization for i in (0, 1))
    assert model.config.pool_scales[0] == 1
    for norm in (pooled, others):
        norm.running_mean.uniform_(0.5, 2), norm.running_var.uniform_(0.5, 2)
    mean, variance = pooled.running_mean.clone(), pooled.running_var.clone()
    x = torch.randn(1, model.config.hidden_size, 1, 1)
    assert torch.equal(pooled.train()(x), pooled.eval()(x))
    model.train()(images_for(model)[:1], labels=maps_for(model, batch=1)).loss.backward()
    assert torch.equal(pooled.running_mean, mean) and torch.equal(pooled.running_var, variance)
    assert not torch.equal(others.running_mean, mean)
    assert model.decode_head.psp_modules[0].convolution.weight.grad.abs().max() > 0


def test_images_without_a_labelled_pixel_teach_nothing():
    _, ours = tiny(SEGMENTATION)
    loss = ours.train()(images_for(ours, 4), labels=torch.full((4, 24, 24), 255)).loss
    loss.backward()
    assert loss.item() == 0 and not any(p.grad is not None and p.grad.any() for p in ours.parameters())


def test_the_auxiliary_head_runs_for_the_loss_alone():
    _, ours = tiny(SEGMENTATION)
    images, labels = images_for(ours, 4), maps_for(ours)
    assert ours(images).auxiliary_logits is None
    for output in (ours(images, labels=labels), ours.train()(images), ours(images, labels=labels)):
        assert output.auxiliary_logits.shape == (4, 2, 6, 6)
        total, count = segmentation_loss(output.logits, output.auxiliary_logits, labels, ours.config)
        assert output.loss is None or output.loss.item() == pytest.approx((total / count).item())


@pytest.mark.parametrize("name", [CLASSIFICATION, SEGMENTATION])
def test_low_precision(name):
    theirs, ours = tiny(name, "sdpa", **VARIANTS["both"])
    images = images_for(ours, 4)
    labels = maps_for(ours) if name == SEGMENTATION else torch.tensor([0, 1, 0, 1])
    wanted = exact(theirs)(images.double(), labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (model(images, labels=labels) for model in (ours, theirs))
    found.loss.backward()

    def compare(found, expected):
        for keys in (("logits",), ("loss", "logits")):
            assert_as_close(*([output[key] for key in keys] for output in (found, expected, wanted)), torch.bfloat16)

    compare(found, expected)
    found, expected = (model.bfloat16()(images.bfloat16(), labels=labels) for model in (ours, theirs))
    assert found.logits.dtype == torch.bfloat16 and found.loss.dtype == torch.float32
    compare(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [CLASSIFICATION, SEGMENTATION])
def test_compiled_as_a_whole(name):
    torch._dynamo.reset()
    ours = exact(tiny(name, "sdpa", num_hidden_layers=3, out_indices=[1, 2, 3, 4])[1])
    compiled = torch.compile(ours.train(), fullgraph=True, backend="aot_eager")
    images, found = images_for(ours, 4).double(), []
    labels = maps_for(ours) if name == SEGMENTATION else torch.tensor([0, 1, 0, 1])
    for model in (ours, compiled):
        ours.zero_grad()
        output = model(images, labels=labels)
        output.loss.backward()
        found.append([output.logits, output.loss, *(p.grad.clone() for p in ours.parameters() if p.grad is not None)])
    assert all(apart(b, a) < EXACT for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("size", "labels", "message"),
    [
        ((24, 24), torch.zeros(4, 576, dtype=torch.int64), r"should be \(B, height, width\)"),
        ((24, 24), torch.zeros(3, 24, 24, dtype=torch.int64), r"have shape \(3, 24, 24\); should be \(4, 24, 24\)"),
        ((24, 24), torch.full((4, 24, 24), 2), "label 2 is outside the 2 classes"),
        ((24, 24), torch.full((4, 24, 24), -1), "label -1 is outside the 2 classes"),
        ((4, 24), None, "at least 2 x 2 patches; the images have 1 x 6"),
    ],
)
def test_wrong_maps_are_named(size, labels, message):
    _, ours = tiny(SEGMENTATION)
    with pytest.raises(ValueError, match=message):
        ours(images_for(ours, 4, size), labels=labels)


@pytest.mark.parametrize("indices", [[1, 2, 3], [1, 2, 3, 3], [2, 3, 4, 6], [0, 1, 2, 3]])
def test_layers_that_are_not_there(indices):
    with pytest.raises(InputError, match="out_indices should be four different ones of 1 to 5, not"):
        Data2VecVisionForSemanticSegmentation(Data2VecVisionConfig(**TINY_VISION | {"out_indices": indices}))


def test_one_class_cannot_be_learnt():
    _, ours = tiny(SEGMENTATION, num_labels=1)
    with pytest.raises(ValueError, match="at least 2 classes"):
        ours(images_for(ours), labels=torch.zeros(3, 24, 24, dtype=torch.int64))


@pytest.mark.parametrize(
    "sizes", [[(8, 6), (4, 3), (2, 1), (1, 1)], [(1, 2), (1, 1), (2, 2), (6, 6)], [(13, 9), (7, 5), (13, 9), (3, 4)]]
)
def test_channels_are_mixed_before_maps_are_resized(sizes):
    """With the same values and gradients as a convolution of the resized maps; sizes larger than the first included."""
    layer = conv_layer(4 * 3, 5, 3).double()
    maps = [torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    wanted = layer(torch.cat([resize(x, sizes[0]) for x in maps], dim=1))
    found = conv_of_resized(layer, maps)
    assert apart(found, wanted) < EXACT
    gradients = ([*maps, *layer.parameters()], torch.randn_like(wanted))
    for mine, other in zip(*(torch.autograd.grad(y, *gradients) for y in (found, wanted)), strict=True):
        assert apart(mine, other) < EXACT


def test_upsampling_is_a_transposed_convolution():
    layer = Upsampling(3).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    wanted, found = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2), layer(x)
    assert apart(found, wanted) < EXACT
    gradients = ([x, *layer.parameters()], torch.randn_like(wanted))
    for mine, other in zip(*(torch.autograd.grad(y, *gradients) for y in (found, wanted)), strict=True):
        assert apart(mine, other) < EXACT
