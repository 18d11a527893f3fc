"""The audio models beside transformers': same weights, same numbers."""

import copy

import pytest
import torch

from d2v.hub import rename
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.models.cpu import filler
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
    same_loss_in_float64,
    same_outputs,
    same_updates,
    spread,
)
from tests.tiny import STILL_AUDIO, TINY_AUDIO, padded

TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [32] * 7,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 11,
    "layerdrop": 0.0,
}
RELEASED = {  # facebook/data2vec-audio-{base,large}-960h; the defaults are base's
    "base": {},
    # A third of large's 24 blocks: all of them, twice and with gradients in float64, took 21 GB.
    "large": {"hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "intermediate_size": 4096},
}
LENGTHS = (400, 719, 1234, 5001, 7777)
LABELS = torch.tensor([[1, 2, 2, 5], [3, 4, -100, -100]])


def tiny_pair(name: str = "Data2VecAudioForCTC", implementation: str = "eager", **changes):
    """Transformers' model and ours, tiny."""
    return pair(name, implementation, **TINY | changes)


VARIANTS = {
    "default": {},
    "biased convolutions": {"conv_bias": True},
    "even kernel": {"conv_pos_kernel_size": 16, "num_conv_pos_embeddings": 2},
    "other strides": {"conv_dim": [16] * 3, "conv_kernel": [10, 8, 4], "conv_stride": [4, 4, 5]},
    "adapter": {"add_adapter": True, "output_hidden_size": 32, "num_adapter_layers": 2},
    "relu": {"hidden_act": "relu", "feat_extract_activation": "gelu_new"},
}


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_unpadded_clips_give_the_same_outputs_loss_and_gradients(variant, samples):
    theirs, ours = tiny_pair(**VARIANTS[variant], ctc_loss_reduction="mean", ctc_zero_infinity=True)
    clips = torch.randn(2, samples)
    options = {"labels": LABELS, "output_hidden_states": True, "output_attentions": True}
    found, _, _ = same_outputs(theirs, ours, spread, input_values=clips, **options)
    assert len(found.hidden_states) == 4 and len(found.attentions) == 3
    same_loss_in_float64(theirs, ours, input_values=clips, labels=LABELS)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Data2VecAudioModel", "Data2VecAudioForCTC"])
def test_a_clip_in_a_padded_batch_equals_transformers_on_the_clip_alone(name, implementation):
    theirs, ours = tiny_pair(name, implementation)
    reference = exact(theirs)
    clips = [torch.randn(samples) for samples in (7777, 400, 5001, 5001, 719)]
    found = ours(*padded(clips), output_hidden_states=True)
    for i, clip in enumerate(clips):
        expected = theirs(clip[None], output_hidden_states=True)
        wanted = reference(clip[None].double(), output_hidden_states=True)
        frames = expected[0].shape[1]
        assert_as_close(found[0][i, :frames], expected[0][0], wanted[0][0])
        states = [state[i, None, :frames] for state in found.hidden_states]
        assert_as_close(states, expected.hidden_states, wanted.hidden_states)
        assert not any(state[i, frames:].any() for state in found.hidden_states)
        if name == "Data2VecAudioModel":
            features = found.extract_features[i, None, :frames]
            assert_as_close(features, expected.extract_features, wanted.extract_features)


def test_a_padded_batch_has_the_loss_and_gradients_of_its_clips():
    ours = exact(tiny_pair(ctc_zero_infinity=True)[1])
    clips = [torch.randn(samples, dtype=torch.float64) for samples in (7777, 2000, 5001)]
    labels = torch.tensor([[1, 2, 2, 5], [3, 4, -100, -100], [7, -100, -100, -100]])
    whole = ours(*padded(clips), labels=labels).loss
    whole.backward()
    together = gradients_of(ours)
    ours.zero_grad()
    alone = sum(ours(clip[None], labels=row[None]).loss for clip, row in zip(clips, labels, strict=True))
    alone.backward()
    assert apart(whole, alone) < EXACT
    assert_same_gradients(together, gradients_of(ours))


def test_sdpa_equals_eager_and_attentions_have_no_weight_on_padding():
    eager = exact(tiny_pair()[1])
    sdpa = copy.deepcopy(eager)
    sdpa.set_attn_implementation("sdpa")
    batch = padded([torch.randn(samples, dtype=torch.float64) for samples in (7777, 2000)])
    found, expected = sdpa(*batch, output_attentions=True), eager(*batch, output_attentions=True)
    assert apart(found.logits, expected.logits) < EXACT
    assert apart(sdpa(*batch).logits, expected.logits) < EXACT
    frames = eager.config.frames(2000)
    assert not found.attentions[0][1, :, :frames, frames:].any()


@pytest.mark.parametrize("variant", ["default", "adapter", "even kernel"])
@pytest.mark.parametrize("lengths", [(7777, 400, 5001), (5001, 5001)])
def test_filler_behind_the_packed_frames_changes_nothing(variant, lengths, monkeypatch):
    """What bf16 on a CPU adds for the sake of its kernels, here in float64 so that it can be compared."""
    ours = exact(tiny_pair(implementation="sdpa", **VARIANTS[variant], ctc_zero_infinity=True)[1])
    batch = padded([torch.randn(samples, dtype=torch.float64) for samples in lengths])
    labels = torch.randint(1, 11, (len(lengths), 1))
    found = {}
    for positions in (0, 7):
        monkeypatch.setattr("d2v.models.audio.filler", lambda size, x, positions=positions: positions)
        monkeypatch.setattr("d2v.models.waveform.filler", lambda size, x, positions=positions: positions)
        ours.zero_grad()
        output = ours(*batch, labels=labels, output_hidden_states=True, output_attentions=True)
        output.loss.backward()
        found[positions] = output, gradients_of(ours)
    (without, gradients), (output, others) = found[0], found[7]
    assert all(apart(a, b) < EXACT for a, b in zip(flat(output.values()), flat(without.values()), strict=True))
    assert_same_gradients(others, gradients)


@pytest.mark.parametrize("weights", [False, True])
def test_filler_is_for_bf16_on_a_cpu(weights):
    x = torch.zeros(3, dtype=torch.bfloat16 if weights else torch.float32)
    assert filler(65, torch.zeros(3)) == filler(65, torch.zeros(3).double()) == 0
    with torch.autocast("cpu", torch.bfloat16, enabled=not weights):
        assert [filler(size, x) for size in (1, 64, 65)] == [63, 0, 63]


def test_given_masked_frames_are_replaced_as_in_transformers():
    theirs, ours = tiny_pair("Data2VecAudioModel")
    clips, mask = torch.randn(2, 5001), torch.rand(2, 15) < 0.4
    _, expected, _ = same_outputs(theirs, ours, input_values=clips, mask_time_indices=mask)
    assert apart(ours(clips).last_hidden_state, expected.last_hidden_state) > 1e-2


def test_training_masks_as_the_configuration_says():
    _, ours = tiny_pair("Data2VecAudioModel", mask_time_prob=0.5, mask_feature_prob=0.5, mask_feature_length=4, **{})
    ours.train()
    seen = []
    ours.encoder.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    ours(*padded([torch.randn(40_000), torch.randn(20_000)]))
    x = seen[0].detach()  # (N, D)
    first = ours.config.frames(40_000)
    assert len(x) == first + ours.config.frames(20_000)
    zeroed = (x[:first] == 0).all(0)
    assert 0.1 < zeroed.float().mean() < 0.9  # channels, the same in all frames of a clip
    embedding = ours.masked_spec_embed.detach()
    masked = (x[:first][:, ~zeroed] == embedding[~zeroed]).all(1)
    assert 0.2 < masked.float().mean() < 0.6


@pytest.mark.parametrize("name", ["Data2VecAudioModel", "Data2VecAudioForCTC"])
def test_checkpoints_go_both_ways(name, tmp_path):
    theirs, ours = tiny_pair(name)
    opens_both_ways(theirs, ours, tmp_path, input_values=torch.randn(1, 5001))
    assert {rename(key, ours.renames) for key in ours.state_dict()} == set(theirs.state_dict())


def test_bf16_is_as_close_to_float64_as_transformers_is():
    theirs, ours = tiny_pair(implementation="sdpa")
    reference, errors = exact(theirs), {"theirs": 0.0, "ours": 0.0}
    with torch.no_grad():
        for _ in range(8):
            clip = torch.randn(1, 16_000)
            logits = reference(clip.double()).logits
            for who, model in (("theirs", theirs), ("ours", ours)):
                with torch.autocast("cpu", torch.bfloat16):
                    errors[who] += float((model(clip).logits - logits).square().mean())
    assert errors["ours"] ** 0.5 <= 1.1 * errors["theirs"] ** 0.5


def test_fifty_updates_follow_transformers():
    theirs, ours = tiny_pair(**STILL_AUDIO, ctc_loss_reduction="mean", ctc_zero_infinity=True)
    batches = [{"input_values": torch.randn(4, 8000), "labels": torch.randint(1, 11, (4, 5))} for _ in range(5)]
    same_updates(theirs, ours, batches)


def test_freezing():
    _, ours = tiny_pair()
    clip, labels = torch.randn(1, 5001), LABELS[:1]
    ours.freeze_feature_encoder()
    ours.freeze_encoder()
    ours(clip, labels=labels).loss.backward()
    assert {name for name, p in ours.named_parameters() if p.grad is not None} == {"lm_head.weight", "lm_head.bias"}
    ours.freeze_encoder(False)
    ours(clip, labels=labels).loss.backward()
    with_gradient = {name for name, p in ours.named_parameters() if p.grad is not None}
    assert "data2vec_audio.encoder.layers.0.attn.q_proj.weight" in with_gradient
    assert not any("feature_extractor" in name for name in with_gradient)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_values": torch.zeros(1, 399)}, "399 samples; one frame takes 400"),
        ({"input_values": torch.zeros(5000)}, "2 dimensions"),
        ({"input_values": torch.zeros(1, 5000, dtype=torch.int64)}, "float tensor"),
        ({"input_values": torch.zeros(1, 5000), "attention_mask": torch.ones(1, 15)}, "attention_mask has shape"),
        ({"input_values": torch.zeros(1, 5000), "labels": torch.tensor([[11]])}, "label 11 is outside"),
    ],
)
def test_wrong_inputs_are_named(arguments, message):
    _, ours = tiny_pair()
    with pytest.raises(ValueError, match=message):
        ours(**arguments)


def test_output_reads_as_a_tuple_too():
    _, ours = tiny_pair()
    clip = torch.randn(1, 5001)
    loss, logits = ours(clip, labels=LABELS[:1], return_dict=False)
    output = ours(clip, labels=LABELS[:1])
    assert torch.equal(loss, output[0]) and torch.equal(logits, output["logits"]) and len(output.to_tuple()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("size", RELEASED)
def test_the_released_sizes_too(size):
    theirs, ours = pair("Data2VecAudioForCTC", "sdpa", **RELEASED[size] | STILL_AUDIO | {"ctc_loss_reduction": "mean"})
    inputs = {"input_values": torch.randn(2, 16_001), "labels": torch.randint(1, 32, (2, 9))}
    same_outputs(theirs, ours, spread, **inputs, output_hidden_states=True)
    same_loss_in_float64(theirs, ours, **inputs)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_frames_of_adapters_are_counted(kernel):
    """Also in training, where LayerDrop would leave out some of their strides."""
    changes = {"add_adapter": True, "adapter_kernel_size": kernel, "num_adapter_layers": 2, "layerdrop": 0.9}
    ours = Data2VecAudioForCTC(Data2VecAudioConfig(**TINY_AUDIO | changes)).train()
    for samples in (5_000, 7_777, 9_000):
        assert ours(torch.randn(1, samples)).logits.shape[1] == ours.config.frames(samples)
    assert ours.config.frame_hop == 4 * ours.config.inputs_to_logits_ratio
    assert Data2VecAudioConfig(**TINY_AUDIO).frame_hop == Data2VecAudioConfig(**TINY_AUDIO).inputs_to_logits_ratio


def test_a_batch_without_a_label_has_a_loss():
    ours = Data2VecAudioForCTC(Data2VecAudioConfig(**TINY_AUDIO))
    assert ours(torch.randn(2, 5_000), labels=torch.zeros(2, 0, dtype=torch.int64)).loss > 0
