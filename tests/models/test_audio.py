"""The audio models beside transformers': same weights, same numbers."""

import copy

import pytest
import torch
import transformers

from d2v.checkpoint import rename
from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.models.transformer import filler

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
STILL = {  # nothing random in training
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}
LENGTHS = (400, 719, 1234, 5001, 7777)
LABELS = torch.tensor([[1, 2, 2, 5], [3, 4, -100, -100]])


def pair(name: str = "Data2VecAudioForCTC", implementation: str = "eager", **changes):
    """Transformers' model and ours with the same random weights, in evaluation mode."""
    config = transformers.Data2VecAudioConfig(**(TINY | changes))
    config._attn_implementation = implementation
    theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases are zero and norms one at first, which would hide mistakes
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours = {"Data2VecAudioForCTC": Data2VecAudioForCTC, "Data2VecAudioModel": Data2VecAudioModel}[name]
    ours = ours(Data2VecAudioConfig(**(TINY | changes), attn_implementation=implementation)).eval()
    weights = {rename(key, ours.renames, to_ours=True): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(weights)
    return theirs, ours


def padded(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch and its attention mask."""
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return batch, (torch.arange(batch.shape[1]) < torch.tensor([[len(clip)] for clip in clips])).long()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value where that is above 1."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


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
    theirs, ours = pair(**VARIANTS[variant], ctc_loss_reduction="mean", ctc_zero_infinity=True)
    clips = torch.randn(2, samples)
    options = {"labels": LABELS, "output_hidden_states": True, "output_attentions": True}
    expected, found = theirs(clips, **options), ours(clips, **options)
    assert apart(found.logits, expected.logits) < 1e-5
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    assert all(apart(a, b) < 1e-5 for a, b in zip(found.hidden_states, expected.hidden_states, strict=True))
    assert all(apart(a, b) < 1e-5 for a, b in zip(found.attentions, expected.attentions, strict=True))
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    if expected.loss > 0:  # else the labels do not fit, and there is no gradient
        expected.loss.backward()
        found.loss.backward()
        gradients = {
            rename(name, ours.renames): parameter.grad
            for name, parameter in ours.named_parameters()
            if parameter.grad is not None
        }
        wanted = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
        assert gradients.keys() == wanted.keys()
        largest = max(gradient.abs().max() for gradient in wanted.values())
        assert max((gradients[name] - wanted[name]).abs().max() for name in wanted) < 1e-5 * largest


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Data2VecAudioModel", "Data2VecAudioForCTC"])
def test_a_clip_in_a_padded_batch_equals_transformers_on_the_clip_alone(name, implementation):
    theirs, ours = pair(name, implementation)
    clips = [torch.randn(samples) for samples in (7777, 400, 5001, 5001, 719)]
    found = ours(*padded(clips), output_hidden_states=True)
    for i, clip in enumerate(clips):
        expected = theirs(clip[None], output_hidden_states=True)
        frames = expected[0].shape[1]
        assert apart(found[0][i, :frames], expected[0][0]) < 1e-5
        for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
            assert apart(a[i, :frames], b[0]) < 1e-5
            assert not a[i, frames:].any()
        if name == "Data2VecAudioModel":
            assert apart(found.extract_features[i, :frames], expected.extract_features[0]) < 1e-5


def test_a_padded_batch_has_the_loss_and_gradients_of_its_clips():
    _, ours = pair(ctc_zero_infinity=True)
    clips = [torch.randn(samples) for samples in (7777, 2000, 5001)]
    labels = torch.tensor([[1, 2, 2, 5], [3, 4, -100, -100], [7, -100, -100, -100]])
    whole = ours(*padded(clips), labels=labels).loss
    whole.backward()
    together = [parameter.grad.clone() for parameter in ours.parameters() if parameter.grad is not None]
    ours.zero_grad()
    alone = sum(ours(clip[None], labels=row[None]).loss for clip, row in zip(clips, labels, strict=True))
    alone.backward()
    assert whole.item() == pytest.approx(alone.item(), rel=1e-5)
    apart_ = [parameter.grad for parameter in ours.parameters() if parameter.grad is not None]
    largest = max(gradient.abs().max() for gradient in apart_)
    assert all((a - b).abs().max() < 1e-5 * largest for a, b in zip(together, apart_, strict=True))


def test_sdpa_equals_eager_and_attentions_have_no_weight_on_padding():
    _, eager = pair()
    sdpa = copy.deepcopy(eager)
    sdpa.set_attn_implementation("sdpa")
    batch = padded([torch.randn(samples) for samples in (7777, 2000)])
    found, expected = sdpa(*batch, output_attentions=True), eager(*batch, output_attentions=True)
    assert apart(found.logits, expected.logits) < 1e-6
    assert apart(sdpa(*batch).logits, expected.logits) < 1e-6
    frames = eager.config.frames(2000)
    assert not found.attentions[0][1, :, :frames, frames:].any()


@pytest.mark.parametrize("variant", ["default", "adapter", "even kernel"])
@pytest.mark.parametrize("lengths", [(7777, 400, 5001), (5001, 5001)])
def test_filler_behind_the_packed_frames_changes_nothing(variant, lengths, monkeypatch):
    """What bf16 on a CPU adds for the sake of its kernels, here in fp32 so that it can be compared."""
    _, ours = pair(implementation="sdpa", **VARIANTS[variant], ctc_zero_infinity=True)
    batch = padded([torch.randn(samples) for samples in lengths])
    labels = torch.randint(1, 11, (len(lengths), 1))
    found = {}
    for positions in (0, 7):
        monkeypatch.setattr("d2v.models.audio.filler", lambda size, x, positions=positions: positions)
        monkeypatch.setattr("d2v.models.waveform.filler", lambda size, x, positions=positions: positions)
        ours.zero_grad()
        output = ours(*batch, labels=labels, output_hidden_states=True, output_attentions=True)
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
        found[positions] = output, gradients
    (without, gradients), (output, others) = found[0], found[7]
    assert apart(output.logits, without.logits) < 1e-6
    assert output.loss.item() == pytest.approx(without.loss.item(), rel=1e-6)
    for name in ("hidden_states", "attentions"):
        assert all(apart(a, b) < 1e-5 for a, b in zip(getattr(output, name), getattr(without, name), strict=True))
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert all((others[name] - gradients[name]).abs().max() < 1e-5 * largest for name in gradients)


@pytest.mark.parametrize("weights", [False, True])
def test_filler_is_for_bf16_on_a_cpu(weights):
    x = torch.zeros(3, dtype=torch.bfloat16 if weights else torch.float32)
    assert filler(65, torch.zeros(3)) == 0
    with torch.autocast("cpu", torch.bfloat16, enabled=not weights):
        assert [filler(size, x) for size in (1, 64, 65)] == [63, 0, 63]


def test_given_masked_frames_are_replaced_as_in_transformers():
    theirs, ours = pair("Data2VecAudioModel")
    clips, mask = torch.randn(2, 5001), torch.rand(2, 15) < 0.4
    expected = theirs(clips, mask_time_indices=mask).last_hidden_state
    assert apart(ours(clips, mask_time_indices=mask).last_hidden_state, expected) < 1e-5
    assert apart(ours(clips).last_hidden_state, expected) > 1e-2


def test_training_masks_as_the_configuration_says():
    _, ours = pair("Data2VecAudioModel", mask_time_prob=0.5, mask_feature_prob=0.5, mask_feature_length=4, **{})
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
    theirs, ours = pair(name)
    clip = torch.randn(1, 5001)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    loaded = type(ours).from_pretrained(tmp_path / "theirs", attn_implementation="eager")
    assert torch.equal(loaded(clip)[0], ours(clip)[0])
    opened, report = getattr(transformers, name).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert torch.equal(opened(clip)[0], theirs(clip)[0])
    assert {rename(key, ours.renames) for key in ours.state_dict()} == set(theirs.state_dict())


def test_bf16_is_as_close_to_fp32_as_transformers_is():
    theirs, ours = pair(implementation="sdpa")
    errors = {"theirs": 0.0, "ours": 0.0}
    for _ in range(8):
        clip = torch.randn(1, 16_000)
        for who, model in (("theirs", theirs), ("ours", ours)):
            with torch.no_grad():
                exact = model(clip).logits
                with torch.autocast("cpu", torch.bfloat16):
                    rough = model(clip).logits.float()
            errors[who] += float((rough - exact).square().mean())
    assert errors["ours"] ** 0.5 <= 1.1 * errors["theirs"] ** 0.5


def test_fifty_updates_follow_transformers():
    theirs, ours = pair(**STILL, ctc_loss_reduction="mean", ctc_zero_infinity=True)
    models = (theirs.train(), ours.train())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
    batches = [(torch.randn(4, 8000), torch.randint(1, 11, (4, 5))) for _ in range(5)]
    for step in range(50):
        clips, labels = batches[step % 5]
        found = []
        for model, optimizer in zip(models, optimizers, strict=True):
            loss = model(clips, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        assert found[1] == pytest.approx(found[0], rel=1e-3), step


def test_freezing():
    _, ours = pair()
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
    _, ours = pair()
    with pytest.raises(ValueError, match=message):
        ours(**arguments)


def test_output_reads_as_a_tuple_too():
    _, ours = pair()
    clip = torch.randn(1, 5001)
    loss, logits = ours(clip, labels=LABELS[:1], return_dict=False)
    output = ours(clip, labels=LABELS[:1])
    assert torch.equal(loss, output[0]) and torch.equal(logits, output["logits"]) and len(output.to_tuple()) == 2


@pytest.mark.slow
def test_the_base_configuration_too():
    base = {key: value for key, value in transformers.Data2VecAudioConfig().to_dict().items() if key in TINY}
    theirs, ours = pair(implementation="sdpa", **base | STILL | {"ctc_loss_reduction": "mean"})
    clips, labels = torch.randn(2, 16_001), torch.randint(1, 32, (2, 9))
    expected, found = (model(clips, labels=labels, output_hidden_states=True) for model in (theirs, ours))
    assert apart(found.logits, expected.logits) < 1e-5
    assert all(apart(a, b) < 1e-5 for a, b in zip(found.hidden_states, expected.hidden_states, strict=True))
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    expected.loss.backward()
    found.loss.backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - wanted[rename(name, ours.renames)]).abs().max() < 1e-5 * largest
