"""Configurations beside transformers': fields, defaults, types, round trips; what all models can do."""

import dataclasses
import json

import pytest
import torch
from transformers import modeling_outputs as their_outputs
from transformers.models.data2vec.modeling_data2vec_vision import Data2VecVisionModelOutputWithPooling

from d2v.errors import InputError
from d2v.models import outputs
from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.audio_heads import Data2VecAudioForCTC, Data2VecAudioForSequenceClassification
from d2v.models.configuration import Data2VecVisionConfig
from d2v.models.text import Data2VecTextConfig
from tests.parity import EXACT, apart
from tests.tiny import TINY_AUDIO

OURS_ALONE = {"num_labels", "attn_implementation", "extra"}  # not entries of the file, see `Config`
EXTENSIONS = {
    "frame_loss",
    "xvector_variant",
    "apply_spec_augment",
}  # entries that Hugging Face's library keeps but does not read
FIELDS = [field.name for field in dataclasses.fields(Data2VecAudioConfig) if field.name not in OURS_ALONE]


def complaint(make, *args, **options):
    with pytest.raises(InputError) as caught:
        make(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def other(name, value):
    """A value that is not the default but is of its type and goes with the other defaults."""
    if name == "id2label":
        return {0: "no", 1: "perhaps", 2: "yes"}
    if name in ("hidden_size", "num_attention_heads", "num_conv_pos_embedding_groups"):
        return 2 * value if name == "hidden_size" else value // 2  # the first is a multiple of the others
    if value is None:
        return "regression" if name == "problem_type" else 24
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(item + 1 for item in value)
    others = {"gelu": "relu", "sum": "mean", "cross_entropy": "pit_bce", "documented": "corrected"}
    if isinstance(value, float) and value < 1:  # a probability, or small
        return value + 0.25
    return others[value] if isinstance(value, str) else value + type(value)(1)


def test_every_field_and_default_is_transformers():
    from transformers import Data2VecAudioConfig as Theirs

    their_own = {name for name in Theirs.__annotations__ if not name.startswith("_")} - {"model_type"}
    of_their_base = {"id2label", "problem_type"}
    assert set(FIELDS) == their_own | of_their_base | EXTENSIONS
    ours, theirs = Data2VecAudioConfig(), Theirs()
    assert ours.model_type == theirs.model_type
    for name in set(FIELDS) - EXTENSIONS:
        expected = getattr(theirs, name)
        assert getattr(ours, name) == (tuple(expected) if isinstance(expected, list) else expected), name
    assert ours.num_labels == theirs.num_labels and ours.label2id == theirs.label2id
    assert ours.inputs_to_logits_ratio == theirs.inputs_to_logits_ratio


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_survives_both_ways(name, tmp_path):
    from transformers import Data2VecAudioConfig as Theirs

    value = other(name, getattr(Data2VecAudioConfig(), name) if name != "output_hidden_size" else None)
    ours = Data2VecAudioConfig(**{name: value})
    assert getattr(ours, name) == value
    (tmp_path / "config.json").write_text(json.dumps(ours.to_dict()))
    again = Data2VecAudioConfig.from_pretrained(tmp_path)
    assert again.to_dict() == ours.to_dict() and getattr(again, name) == value

    theirs = Theirs.from_pretrained(tmp_path)
    expected = list(value) if isinstance(getattr(theirs, name), list) else value
    assert getattr(theirs, name) == expected
    Theirs(**{name: value}).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    loaded = Data2VecAudioConfig.from_pretrained(tmp_path)
    assert getattr(loaded, name) == value
    kept = json.loads(json.dumps(loaded.to_dict()))  # saving loses nothing of theirs
    assert {key: kept[key] for key in written if written[key] is not None} == {
        k: v for k, v in written.items() if v is not None
    }


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("hidden_size", "big", "int"),
        ("hidden_size", 8.0, "int"),
        ("num_hidden_layers", True, "int"),
        ("layerdrop", "0.1", "float"),
        ("add_adapter", 1, "bool"),
        ("conv_dim", 512, "tuple[int, ...]"),
        ("conv_dim", (512.0,) * 7, "tuple[int, ...]"),
        ("pad_token_id", "0", "int | None"),
        ("eos_token_id", 2.5, "int | list[int] | None"),
        ("hidden_act", None, "Literal['gelu', 'gelu_new', "),
        ("feat_extract_activation", "gelux", "Literal['gelu', "),
        ("ctc_loss_reduction", "none", "Literal['sum', 'mean']"),
        ("initializer_range", None, "float"),
        ("attn_implementation", "flash_attention_2", "Literal['sdpa', 'eager']"),
    ],
)
def test_types(name, value, wanted):
    message = complaint(Data2VecAudioConfig, **{name: value})
    assert message.startswith(f"Data2VecAudioConfig.{name} should be {wanted}") and message.endswith(f", not {value!r}")


def test_types_that_pass():
    config = Data2VecAudioConfig(layerdrop=0, conv_dim=[8] * 7, eos_token_id=[1, 2], pad_token_id=None)
    assert config.conv_dim == (8,) * 7 and config.eos_token_id == [1, 2] and config.layerdrop == 0


@pytest.mark.parametrize(
    "changes", [{"conv_dim": [8]}, {"tdnn_dim": [8]}, {"num_attention_heads": 5}, {"num_conv_pos_embedding_groups": 5}]
)
def test_impossible_combinations_are_bad_input(changes):
    message = complaint(Data2VecAudioConfig, **TINY_AUDIO | changes)
    assert next(iter(changes)) in message


@pytest.mark.parametrize(
    ("cls", "name", "value", "lowest"),
    [
        (Data2VecAudioConfig, "num_attention_heads", 0, 1),
        (Data2VecAudioConfig, "hidden_size", -8, 1),
        (Data2VecTextConfig, "num_hidden_layers", -1, 0),
        (Data2VecVisionConfig, "intermediate_size", 0, 1),
        (Data2VecVisionConfig, "num_attention_heads", 0, 1),
        (Data2VecAudioConfig, "conv_dim", (8, 8, 0, 8, 8, 8, 8), 1),
        (Data2VecAudioConfig, "output_hidden_size", -1, 1),
        (Data2VecAudioConfig, "mask_time_min_masks", -1, 0),
        (Data2VecTextConfig, "initializer_range", -1, 0),
        (Data2VecTextConfig, "layer_norm_eps", -1e-5, 0),
    ],
)
def test_sizes_that_there_cannot_be(cls, name, value, lowest):
    assert complaint(cls, **{name: value}) == f"{cls.__name__}.{name} should be at least {lowest}, not {value}"


def test_positions_that_leave_room_for_no_token():
    message = complaint(Data2VecTextConfig, max_position_embeddings=2)
    assert message == "max_position_embeddings 2 should be at least 3, of which the first 2 are not used"
    assert Data2VecTextConfig(max_position_embeddings=3).max_tokens == 1
    zeros = {
        "mask_feature_min_masks": 0,
        "mask_time_length": 0,
        "adapter_stride": 0,
        "num_adapter_layers": 0,
        "initializer_range": 0.0,
        "pad_token_id": 0,
    }
    assert Data2VecAudioConfig(**zeros).num_adapter_layers == 0
    assert Data2VecVisionConfig(auxiliary_num_convs=0, out_indices=[0, 1, 2, 3]).out_indices[0] == 0


def test_unknown_keys():
    message = complaint(Data2VecAudioConfig.from_dict, {}, hiden_size=8)
    assert "unknown configuration key 'hiden_size'" in message and "hidden_size, id2label" in message
    # A file may have keys that only others read; they are kept, but no option.
    config = Data2VecAudioConfig.from_dict({"transformers_version": "4.0", "hidden_size": 48}, layerdrop=0.5)
    assert config.extra == {"transformers_version": "4.0"} and (config.hidden_size, config.layerdrop) == (48, 0.5)
    assert config.to_dict()["transformers_version"] == "4.0"
    assert "extra" in complaint(Data2VecAudioConfig.from_dict, {}, extra={})


def test_another_architecture():
    message = complaint(Data2VecAudioConfig.from_dict, {"model_type": "bert"})
    assert message == "config.json: model_type is 'bert'; Data2VecAudioConfig reads 'data2vec-audio'"


def test_labels():
    config = Data2VecAudioConfig.from_dict({"id2label": {"0": "a", "1": "b", "2": "c"}})
    assert config.num_labels == 3 and config.label2id == {"a": 0, "b": 1, "c": 2}
    sorted_as_text = {"0": "a", "1": "b", "10": "k"} | {str(i): "cdefghij"[i - 2] for i in range(2, 10)}
    assert "".join(Data2VecAudioConfig.from_dict({"id2label": sorted_as_text}).id2label.values()) == "abcdefghijk"
    fewer = Data2VecAudioConfig.from_dict({"id2label": {"0": "a", "1": "b", "2": "c"}}, num_labels=1)
    assert fewer.id2label == {0: "LABEL_0"}
    assert Data2VecAudioConfig.from_dict({}, id2label={0: "x"}).num_labels == 1
    assert "num_labels" not in fewer.to_dict() and "attn_implementation" not in fewer.to_dict()


def test_names_of_classes_as_files_have_them():
    for names in ({"0": 0, "1": 1}, [0, 1], ["0", "1"], {1: 1, 0: 0}):
        config = Data2VecAudioConfig.from_dict({"id2label": names})
        assert config.id2label == {0: "0", 1: "1"} and config.label2id == {"0": 0, "1": 1}
    for names in ({"yes": 0, "no": 1}, {"0": None}, {"0": "a", "1": ["b"]}, "ab", 3):
        message = complaint(Data2VecAudioConfig.from_dict, {"id2label": names})
        assert message == f"Data2VecAudioConfig: id2label should map numbers to names, not {names!r}"
    many = Data2VecAudioConfig.from_dict({"id2label": {str(i): chr(97 + i) for i in (10, 2, *range(3, 10), 1, 0)}})
    assert [*many.id2label.values()] == list("abcdefghijk")  # by number: "10" is before "2" as text
    for names, gap in (({"0": "a", "2": "b"}, 1), ({"1": "a", "2": "b"}, 0)):
        message = complaint(Data2VecAudioConfig.from_dict, {"id2label": names})
        assert (
            message
            == f"Data2VecAudioConfig: id2label should name the classes 0 to 1; it has no {gap}; edit its config.json"
        )
    for count in (-1, "3", None, 2.0, True):
        message = complaint(Data2VecAudioConfig.from_dict, {"num_labels": count})
        assert message == f"Data2VecAudioConfig: num_labels should be a whole number from 0 on, not {count!r}"


# ---------------------------------------------------------------------------------------------------------------------
# What all models can do
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return Data2VecAudioForCTC(Data2VecAudioConfig(**TINY_AUDIO))


def test_frozen_encoder_is_a_region_without_gradients(model):
    clips, labels = torch.randn(2, 2000), torch.tensor([[3, 4], [5, -100]])
    model.train()
    model.freeze_encoder()
    model(clips, labels=labels).loss.backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {"lm_head.weight", "lm_head.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.freeze_encoder(False)
    model(clips, labels=labels).loss.backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any("feature_extractor" in name for name in learning)


def test_attention_can_be_chosen_at_any_time(model):
    model.eval().set_attn_implementation("eager")
    assert {layer.attn.implementation for layer in model.data2vec_audio.encoder.layers} == {"eager"}
    model.double()
    clips = torch.randn(1, 3000, dtype=torch.float64)
    eager = model(clips).logits
    model.set_attn_implementation("sdpa")
    assert apart(model(clips).logits, eager) < EXACT
    assert "attn_implementation" in complaint(model.set_attn_implementation, "flash")
    assert model.config.attn_implementation == "sdpa"


def test_loading_prints_once_what_did_not_fit(model, tmp_path, capsys):
    model.save_pretrained(tmp_path)
    assert not capsys.readouterr().out
    Data2VecAudioForCTC.from_pretrained(tmp_path, vocab_size=9)
    assert "of another shape in the checkpoint: lm_head.bias (32,) instead of (9,), " in capsys.readouterr().out
    Data2VecAudioForCTC.from_pretrained(tmp_path, vocab_size=9, verbose=False)
    assert not capsys.readouterr().out
    assert Data2VecAudioModel.from_pretrained(tmp_path, verbose=False).base_model_prefix == "data2vec_audio"


# ---------------------------------------------------------------------------------------------------------------------
# Outputs beside transformers': the same mapping
# ---------------------------------------------------------------------------------------------------------------------

OUTPUTS = {
    outputs.AudioModelOutput: their_outputs.Wav2Vec2BaseModelOutput,
    outputs.TextModelOutput: their_outputs.BaseModelOutputWithPoolingAndCrossAttentions,
    outputs.VisionModelOutput: Data2VecVisionModelOutputWithPooling,
    outputs.HeadOutput: their_outputs.SequenceClassifierOutput,
    outputs.SegmentationOutput: their_outputs.SemanticSegmenterOutput,
    outputs.CausalLMOutput: their_outputs.CausalLMOutputWithCrossAttentions,
    outputs.QuestionAnsweringOutput: their_outputs.QuestionAnsweringModelOutput,
    outputs.XVectorOutput: their_outputs.XVectorOutput,
}


def test_every_output_is_compared():
    assert set(OUTPUTS) == set(outputs.ModelOutput.__subclasses__())


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_outputs_are_the_mappings_that_transformers_has(kind, step):
    """All fields, every second, every third; the others are None."""
    names = {field.name: field.name for field in dataclasses.fields(OUTPUTS[kind])}
    if "cache" in names:  # so recent versions call it, and understand the documented name
        names = {name: "past_key_values" if name == "cache" else name for name in names}
    own = [field.name for field in dataclasses.fields(kind)]
    assert [name for name in own if name != "auxiliary_logits"] == list(names.values())
    values = {name: torch.tensor(i) for i, name in enumerate(names.values()) if i % step == 0}
    found, expected = kind(**values), OUTPUTS[kind](**values)
    keys = [names[key] for key in expected]
    assert list(found) == list(found.keys()) == keys and len(found) == len(expected) == len(keys)
    assert tuple(found.values()) == found.to_tuple() == found[:] == expected.to_tuple()
    assert list(found.items()) == list(zip(keys, expected.values(), strict=True))
    assert dict(found) == dict(**found) == dict(zip(keys, expected.values(), strict=True))
    assert found[0] is expected[0] and found[-1] is expected[-1] and found[1:] == expected[1:]
    for name in own:
        assert (name in found) == (name in values)
        assert found.get(name) is values.get(name) is getattr(found, name) and found.get(name, 5) is values.get(name, 5)
        if name in values:
            assert found[name] is values[name]
        else:
            for output in (found, expected) if name in names.values() else (found,):
                with pytest.raises(KeyError):
                    output[name]
    for output in (found, expected):
        with pytest.raises(KeyError):
            output["to_tuple"]
        with pytest.raises(IndexError):
            output[len(values)]


def test_distributed_training_finds_the_tensors_of_an_output():
    from torch.nn.parallel.distributed import _find_tensors

    output = outputs.HeadOutput(logits=torch.ones(1), hidden_states=(torch.zeros(1), torch.zeros(2)))
    assert list(map(id, _find_tensors(output))) == list(map(id, (output.logits, *output.hidden_states)))


def test_accelerate_leaves_16_bit_outputs_as_they_are():
    from accelerate.utils import convert_to_fp32

    output = outputs.HeadOutput(logits=torch.ones(1, dtype=torch.bfloat16))
    assert convert_to_fp32(output) is output


@pytest.mark.parametrize("name", ["hidden_dropout", "layerdrop", "mask_time_prob"])
def test_probabilities_are_between_0_and_1(name):
    for value in (-0.1, 1.5):
        with pytest.raises(InputError, match=f"Data2VecAudioConfig.{name} should be between 0 and 1, not {value}"):
            Data2VecAudioConfig(**{name: value})


def test_classes_may_come_with_their_numbers(model, tmp_path):
    """As guides to Hugging Face's library have it."""
    model.save_pretrained(tmp_path)
    names, numbers = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    classes = {"num_labels": 2, "id2label": names}
    loaded = Data2VecAudioForSequenceClassification.from_pretrained(tmp_path, **classes, label2id=numbers)
    assert loaded.config.id2label == names and loaded.config.label2id == numbers
    for given in (classes | {"label2id": {"no": 1, "yes": 0}}, {"label2id": numbers}):
        with pytest.raises(InputError, match="should have the classes of id2label by name"):
            Data2VecAudioForSequenceClassification.from_pretrained(tmp_path, **given)


def test_a_model_that_is_not_to_mask_masks_only_what_is_given():
    quiet = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0)
    masks = {"mask_time_prob": 0.5, "mask_time_length": 2, "mask_feature_prob": 0.5, "mask_feature_length": 2}
    config = Data2VecAudioConfig(**TINY_AUDIO | masks | quiet | {"layerdrop": 0.0}, apply_spec_augment=False)
    model, clip = Data2VecAudioModel(config).train(), torch.randn(1, 5000)
    output = model(clip).last_hidden_state
    assert torch.equal(output, model.eval()(clip).last_hidden_state)
    given = torch.arange(output.shape[1])[None] < 3
    assert not torch.equal(model(clip, mask_time_indices=given).last_hidden_state, output)
