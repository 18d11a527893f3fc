"""The audio heads beside transformers': same weights, same numbers; and what is ours alone, by hand."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import d2v
from d2v import losses
from d2v.errors import InputError
from tests.parity import (
    EXACT,
    apart,
    assert_as_close,
    assert_same_gradients,
    exact,
    gradients_of,
    opens_both_ways,
    pair,
    same_outputs,
    same_updates,
)
from tests.tiny import STILL_AUDIO, TINY_AUDIO, padded

CLIPS, FRAMES = "Data2VecAudioForSequenceClassification", "Data2VecAudioForAudioFrameClassification"
SPEAKERS = "Data2VecAudioForXVector"
HEADS = {
    CLIPS: {"num_labels": 5, "classifier_proj_size": 12},
    FRAMES: {"num_labels": 3},
    SPEAKERS: {"num_labels": 5, "tdnn_dim": [12, 12, 12, 12, 20], "xvector_output_dim": 10},
}
LENGTHS = (7777, 5300, 12_001, 12_001, 5200)  # the last gives 16 frames, the fewest that an x-vector takes
every_head = pytest.mark.parametrize("name", HEADS)
either_layer_sum = pytest.mark.parametrize("weighted", [False, True])


def head_pair(name: str, implementation: str = "eager", weighted: bool = False, **changes):
    """Transformers' model and ours, tiny, with heads of which the clips matter: as drawn at first, biases alone do."""
    config = TINY_AUDIO | HEADS[name] | {"use_weighted_layer_sum": weighted, "layerdrop": 0.0} | changes
    theirs, ours = pair(name, implementation, **config)
    with torch.no_grad():
        for key, parameter in ours.named_parameters():  # both sides call a head's weights the same
            if not key.startswith("data2vec_audio."):
                parameter.normal_(std=(2 / parameter.shape[1]) ** 0.5 if parameter.ndim == 2 else 0.1)
                theirs.get_parameter(key).copy_(parameter)
    return theirs, ours


def labels_for(model, clips: torch.Tensor) -> torch.Tensor:
    """Seeded labels of a batch (B, S): one-hot for frames, else class numbers."""
    if FRAMES not in type(model).__name__:
        return torch.arange(len(clips)) % 5
    return F.one_hot(torch.randint(3, (len(clips), model.config.frames(clips.shape[1]))), 3).float()


@pytest.mark.parametrize("samples", [5201, 7777])
@either_layer_sum
@every_head
def test_unpadded_clips_give_the_same_outputs_loss_and_gradients(name, weighted, samples):
    theirs, ours = head_pair(name, weighted=weighted)
    clips = torch.randn(3, samples)
    labels = labels_for(ours, clips)
    inputs = {"input_values": clips, "labels": labels, "output_hidden_states": True, "output_attentions": True}
    found, _, _ = same_outputs(theirs, ours, lambda output: output.loss, **inputs)
    assert apart(found.logits[0], found.logits[1]) > 0.05
    assert len(found.hidden_states) == 3 and len(found.attentions) == 2
    assert not weighted or ours.layer_weights.grad.any()


@pytest.mark.parametrize("samples", [400, 719, 1234])
@pytest.mark.parametrize("name", [CLIPS, FRAMES])
def test_clips_of_a_few_frames_too(name, samples):
    theirs, ours = head_pair(name, weighted=True)
    same_outputs(theirs, ours, input_values=torch.randn(2, samples))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@either_layer_sum
@every_head
def test_a_clip_in_a_padded_batch_equals_transformers_on_the_clip_alone(name, weighted, implementation):
    theirs, ours = head_pair(name, implementation, weighted)
    reference = exact(theirs)
    clips = [torch.randn(samples) for samples in LENGTHS]
    found = ours(*padded(clips))
    assert found.hidden_states is None and found.attentions is None
    for i, clip in enumerate(clips):
        wanted = reference(clip[None].double())
        for expected in (theirs(clip[None]), theirs(clip[None], attention_mask=torch.ones(1, len(clip)).long())):
            frames = expected.logits.shape[1] if name == FRAMES else None
            assert_as_close(found.logits[i, :frames], expected.logits[0], wanted.logits[0])
            if name == FRAMES:
                assert not found.logits[i, frames:].any()
            if name == SPEAKERS:
                assert_as_close(found.embeddings[i], expected.embeddings[0], wanted.embeddings[0])


@pytest.mark.parametrize("changes", [{}, {"frame_loss": "pit_bce", "xvector_variant": "corrected"}])
@every_head
def test_a_padded_batch_has_the_loss_and_gradients_of_its_clips(name, changes):
    ours = exact(head_pair(name, weighted=True, **changes)[1])
    clips = [torch.randn(samples, dtype=torch.float64) for samples in LENGTHS]
    frames = [ours.config.frames(samples) for samples in LENGTHS]
    batch, mask = padded(clips)
    labels = labels_for(ours, batch)
    whole = ours(batch, mask, labels=labels).loss
    whole.backward()
    together = gradients_of(ours)
    ours.zero_grad()
    weights = torch.tensor(frames if name == FRAMES else [1] * len(clips))
    alone = [
        ours(clip[None], labels=row[None, :n] if name == FRAMES else row[None]).loss
        for clip, row, n in zip(clips, labels, frames, strict=True)
    ]
    mean = (torch.stack(alone) * weights).sum() / weights.sum()
    mean.backward()
    assert apart(whole, mean) < EXACT
    assert_same_gradients(together, gradients_of(ours))


@pytest.mark.parametrize("changes", [{}, {"frame_loss": "pit_bce", "xvector_variant": "corrected"}])
@either_layer_sum
@every_head
def test_checkpoints_go_both_ways(name, weighted, changes, tmp_path):
    theirs, ours = head_pair(name, weighted=weighted, **changes)
    opens_both_ways(theirs, ours, tmp_path, input_values=torch.randn(1, 6000))
    config = type(ours).from_pretrained(tmp_path / "theirs").config  # they keep entries that they do not know
    assert config.frame_loss == changes.get("frame_loss", "cross_entropy")
    assert config.xvector_variant == changes.get("xvector_variant", "documented")


@every_head
def test_fifty_updates_follow_transformers(name):
    theirs, ours = head_pair(name, weighted=True, **STILL_AUDIO)
    batches = [{"input_values": torch.randn(2, 5601)} for _ in range(5)]
    same_updates(theirs, ours, [batch | {"labels": labels_for(ours, batch["input_values"])} for batch in batches])


@either_layer_sum
@every_head
def test_frozen_encoder_leaves_the_head_and_the_layer_weights(name, weighted):
    _, ours = head_pair(name, weighted=weighted)
    clips = torch.randn(2, 6000)
    head = {key for key, _ in ours.named_parameters() if not key.startswith("data2vec_audio.")}
    assert ("layer_weights" in head) == weighted
    for freeze in (ours.freeze_encoder, ours.freeze_base_model):
        ours.zero_grad()
        freeze()
        ours.train()(clips, labels=labels_for(ours, clips)).loss.backward()
        assert {key for key, parameter in ours.named_parameters() if parameter.grad is not None} == head
        ours.freeze_encoder(False)
    assert {key for key, parameter in ours.named_parameters() if parameter.requires_grad} == head


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_head_mask_scales_what_a_head_adds(implementation):
    ours = exact(head_pair(CLIPS, implementation, weighted=True)[1])
    batch = padded([torch.randn(samples, dtype=torch.float64) for samples in LENGTHS])
    head_mask = torch.tensor([[0.0, 1.0], [0.5, 2.0]])  # (layers, H)
    by_hand = copy.deepcopy(ours)
    for layer, factors in zip(by_hand.data2vec_audio.encoder.layers, head_mask, strict=True):
        layer.attn.out_proj.weight.data *= factors.repeat_interleave(16)  # a head's 16 columns
    expected = by_hand(*batch).logits
    assert apart(ours(*batch, head_mask=head_mask).logits, expected) < EXACT
    assert apart(ours(*batch).logits, expected) > 1e-4
    assert apart(ours(*batch, head_mask=head_mask, output_attentions=True).logits, expected) < EXACT


@every_head
def test_gradient_checkpointing_changes_no_gradient(name):
    ours = exact(head_pair(name, "sdpa", weighted=True, **STILL_AUDIO)[1])
    batch, mask = padded([torch.randn(samples, dtype=torch.float64) for samples in LENGTHS])
    labels, gradients = labels_for(ours, batch), []
    for enable in (False, True):
        ours.gradient_checkpointing_enable(enable)
        ours.zero_grad()
        ours.train()(batch, mask, labels=labels).loss.backward()
        gradients.append(gradients_of(ours))
    assert_same_gradients(*gradients)


@every_head
def test_bf16_trains(name):
    theirs, ours = head_pair(name, "sdpa", weighted=True, **STILL_AUDIO)
    clips = torch.randn(3, 7777)
    labels, wanted = labels_for(ours, clips), exact(theirs)(clips.double())
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours.train()(clips, labels=labels), theirs(clips)
    found.loss.backward()
    assert found.loss.dtype == torch.float32
    assert_as_close(found.logits, expected.logits, wanted.logits, torch.bfloat16)
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters() if parameter.grad is not None)


# ---------------------------------------------------------------------------------------------------------------------
# Classes of clips
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "labels", "loss"),
    [
        ({}, torch.tensor([4, 0, -100]), nn.CrossEntropyLoss()),
        ({}, torch.tensor([[1.0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]), nn.BCEWithLogitsLoss()),
        ({"problem_type": "regression"}, torch.randn(3, 5), nn.MSELoss()),
        ({"num_labels": 1}, torch.randn(3), lambda logits, labels: nn.MSELoss()(logits[:, 0], labels)),
    ],
)
def test_the_loss_fits_the_labels(changes, labels, loss):
    _, ours = head_pair(CLIPS, **changes)
    labels = labels.double() if labels.is_floating_point() else labels
    output = exact(ours)(torch.randn(3, 2000, dtype=torch.float64), labels=labels)
    assert apart(output.loss, loss(output.logits, labels)) < EXACT


# ---------------------------------------------------------------------------------------------------------------------
# Classes of frames
# ---------------------------------------------------------------------------------------------------------------------


def test_frames_that_are_padded_or_not_labelled_do_not_count():
    ours = exact(head_pair(FRAMES)[1])
    batch, mask = padded([torch.randn(samples, dtype=torch.float64) for samples in LENGTHS])
    labels = labels_for(ours, batch)
    labels[2, 5:9] = losses.IGNORE
    output = ours(batch, mask, labels=labels)
    real = torch.arange(labels.shape[1]) < torch.tensor([[ours.config.frames(samples)] for samples in LENGTHS])
    real[2, 5:9] = False
    assert apart(output.loss, F.cross_entropy(output.logits[real], labels[real].argmax(-1))) < EXACT
    labels[0, -1] = torch.tensor([1.0, 1.0, 1.0])  # beyond the first clip
    assert torch.equal(ours(batch, mask, labels=labels).loss, output.loss)


def test_overlapping_speakers_in_any_order():
    ours = exact(head_pair(FRAMES, frame_loss="pit_bce")[1])
    batch, mask = padded([torch.randn(samples, dtype=torch.float64) for samples in LENGTHS])
    labels = torch.randint(2, (len(batch), ours.config.frames(batch.shape[1]), 3)).float()
    output, total, count = ours(batch, mask, labels=labels), 0.0, 0
    for logits, activity, samples in zip(output.logits, labels, LENGTHS, strict=True):
        frames = ours.config.frames(samples)
        total += losses.pit_bce(logits[None, :frames], activity[None, :frames])[0]
        count += 3 * frames
    assert apart(output.loss, total / count) < EXACT
    labels[1] = labels[1][:, [2, 0, 1]]
    assert apart(ours(batch, mask, labels=labels).loss, output.loss) < EXACT


# ---------------------------------------------------------------------------------------------------------------------
# Speakers
# ---------------------------------------------------------------------------------------------------------------------


def x_vector(variant):
    """The same weights whatever the variant."""
    torch.manual_seed(0)
    _, documented = head_pair(SPEAKERS)
    model = type(documented)(dataclasses.replace(documented.config, xvector_variant=variant)).eval()
    loaded = model.load_state_dict(documented.state_dict(), strict=False)
    assert not loaded.unexpected_keys and all("norm." in key for key in loaded.missing_keys)
    return model


@pytest.mark.parametrize("variant", ["corrected", "normalized"])
@pytest.mark.parametrize("samples", [5200, 7777])
def test_the_x_vector_by_hand(samples, variant):
    """Window by window, sum by sum, and the loss as its paper writes it."""
    ours = x_vector(variant).double()
    norms = [module for module in ours.modules() if isinstance(module, nn.BatchNorm1d)]
    assert len(norms) == (6 if variant == "normalized" else 0)
    for norm in norms:
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.5, 2)

    def normalized(x, norm):
        if not norms:
            return x
        return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias

    clips, config = torch.randn(2, samples, dtype=torch.float64), ours.config
    found = ours(clips, labels=torch.tensor([3, 1]))
    rows = []
    for x in ours.projector(ours.data2vec_audio(clips).last_hidden_state):
        for layer, taps, dilation in zip(ours.tdnn, config.tdnn_kernel, config.tdnn_dilation, strict=True):
            starts = range(len(x) - (taps - 1) * dilation)
            x = torch.stack([layer.kernel(torch.cat([x[t + i * dilation] for i in range(taps)])) for t in starts])
            x = normalized(x.clamp(min=0), layer.norm)
        assert len(x) == config.frames(samples) - 14 == config.frames(samples) - config.tdnn_context
        mean = x.sum(0) / len(x)
        rows.append(torch.cat([mean, ((x - mean).square().sum(0) / (len(x) - 1)).sqrt()]))
    embeddings = ours.feature_extractor(torch.stack(rows))
    assert embeddings.min() < 0
    assert apart(found.embeddings, embeddings) < EXACT
    assert apart(found.logits, ours.classifier(normalized(embeddings.clamp(min=0), ours.norm))) < EXACT
    total = 0.0
    for x, label in zip(found.logits, (3, 1), strict=True):
        cosines = [torch.cosine_similarity(x, weight, dim=0).item() for weight in ours.objective.weight.T]
        right = math.exp(30 * (cosines[label] - 0.4))
        others = sum(math.exp(30 * cosine) for i, cosine in enumerate(cosines) if i != label)
        total -= math.log(right / (right + others))
    assert found.loss.item() == pytest.approx(total / 2, rel=EXACT)


def test_the_documented_x_vector_lacks_the_relu():
    documented = x_vector("documented")
    corrected = x_vector("corrected")
    clip = torch.randn(1, 7777)
    a, b = documented(clip), corrected(clip)
    assert torch.equal(a.embeddings, b.embeddings) and apart(a.logits, b.logits) > 1e-3


def test_a_folded_model_is_equal():
    model = x_vector("normalized").double()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d)):
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            nn.init.normal_(tensor)
        norm.running_var.uniform_(0.5, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded, clips = model.folded(), torch.randn(2, 7777, dtype=torch.float64)
    assert folded.config.xvector_variant == "corrected" and not any("norm." in key for key in folded.tdnn.state_dict())
    found, expected = folded(clips), model(clips)
    assert apart(found.embeddings, expected.embeddings) < EXACT
    assert apart(found.logits, expected.logits) < EXACT
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert folded.folded() is folded


@pytest.mark.parametrize("low", [False, True])
def test_normalisation_sees_the_frames_of_clips_alone(low):
    """The running means after one batch are those of the clips one by one, weighted by their frames: no window of two
    clips and no padding counts, in bf16's filled batches neither."""
    layer = x_vector("normalized").tdnn[0].train()
    layer.norm.momentum = 1.0
    x, lengths = torch.randn(61, layer.kernel.in_features // layer.taps), [20, 31, 10]
    layer, x = (layer, x) if low else (layer.double(), x.double())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        _, left = layer(x, lengths)
        together, means = layer.norm.running_mean.clone(), []
        for clip in x.split(lengths):
            layer(clip, [len(clip)])
            means.append(layer.norm.running_mean.clone())
    expected = sum(mean * n for mean, n in zip(means, left, strict=True)) / sum(left)
    # In bf16 a mean is as uncertain as its products, whose kernels differ with their number of rows.
    assert apart(together, expected) < (2 * torch.finfo(torch.bfloat16).eps if low else EXACT)
    assert left == [n - layer.taps + 1 for n in lengths]


def test_a_clip_alone_is_normalised_by_running_statistics():
    """Which it leaves as they are; its gradient is that of evaluation."""
    model = x_vector("normalized")
    norm, x = model.norm, torch.randn(1, model.config.xvector_output_dim)
    for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        tensor.uniform_(0.5, 2)
    mean, expected = norm.running_mean.clone(), norm.eval()(x)
    assert torch.equal(norm.train()(x), expected) and torch.equal(norm.running_mean, mean)
    norm(x.repeat(2, 1) + torch.tensor([[0.0], [1.0]]))
    assert not torch.equal(norm.running_mean, mean)
    model.train()(torch.randn(1, 7777), labels=torch.tensor([3])).loss.backward()
    assert model.projector.weight.grad.abs().max() > 0


def test_a_quiet_channel_has_a_gradient():
    """The deviation of a constant is 0, where a square root has no derivative."""
    _, ours = head_pair(SPEAKERS)
    nn.init.constant_(ours.tdnn[-1].kernel.bias, -100.0)  # no ReLU lets anything through
    ours(torch.randn(2, 7777), labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters() if parameter.grad is not None)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        (CLIPS, torch.tensor([0, 5]), "label 5"),
        (CLIPS, torch.tensor([0, 1, 2]), "(3,)"),
        (CLIPS, torch.zeros(2, 4), "(2, 4)"),
        (FRAMES, torch.zeros(2, 17, 3), "(2, 17, 3)"),
        (FRAMES, torch.zeros(2, 18), "(2, 18)"),
        (FRAMES, torch.full((2, 18, 3), 2.0), "label 2"),
        (SPEAKERS, torch.tensor([0, 5]), "label 5"),
        (SPEAKERS, torch.tensor([0]), "(1,)"),
    ],
)
def test_wrong_labels_are_named(name, labels, message):
    _, ours = head_pair(name)
    with pytest.raises(ValueError) as caught:
        ours(torch.randn(2, 6000), labels=labels)
    assert message in str(caught.value)


def test_a_clip_too_short_for_an_x_vector_is_named():
    _, ours = head_pair(SPEAKERS)
    with pytest.raises(ValueError, match="15 frames; a speaker's embedding takes 16"):
        ours(*padded([torch.randn(7000), torch.randn(5199)]))


@every_head
def test_no_head_takes_an_adapter(name):
    kind = getattr(d2v, name)
    with pytest.raises(InputError, match="add_adapter should be false"):
        kind(d2v.Data2VecAudioConfig(**TINY_AUDIO | {"add_adapter": True}))


def test_a_mask_may_be_of_any_dtype():
    _, ours = head_pair("Data2VecAudioForSequenceClassification")
    clips, mask = padded([torch.randn(2000), torch.randn(1500)])
    expected = ours(clips, mask).logits
    for dtype in (torch.bool, torch.uint8, torch.float32, torch.float16):
        assert torch.equal(ours(clips, mask.to(dtype)).logits, expected)
        assert torch.equal(ours.data2vec_audio(clips, mask.to(dtype))[0], ours.data2vec_audio(clips, mask)[0])


def test_the_mean_of_many_large_frames_fits_into_fp16():
    """Their sum does not: it was infinite, and the logits NaN."""
    theirs, ours = head_pair("Data2VecAudioForSequenceClassification")
    clip = torch.randn(1, 16_000 * 4)
    for model in (theirs, ours):
        with torch.no_grad():
            names = [name for name, _ in model.named_parameters() if ".encoder.layers." in name and "norm" in name]
            model.get_parameter(names[-1])[0] = 1000.0  # the last norm's bias
        model.half()
    with torch.no_grad():
        found, expected = ours(clip.half()).logits, theirs(clip.half()).logits
    assert found.isfinite().all() and torch.allclose(found, expected, rtol=0.02, atol=0.02)


def test_output_reads_as_a_tuple_too():
    _, ours = head_pair(SPEAKERS)
    loss, logits, embeddings = ours(torch.randn(2, 6000), labels=torch.tensor([0, 1]), return_dict=False)
    assert loss.ndim == 0 and logits.shape == embeddings.shape == (2, 10)
