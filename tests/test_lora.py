"""Low-rank adapters on all models, from and to peft on transformers' models."""

import json

import peft
import pytest
import torch

from d2v.errors import InputError
from d2v.lora import add_lora, load_lora, merge_lora, save_adapted, save_lora
from tests.parity import EXACT, apart, assert_as_close, exact, pair

ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
AUDIO = ENCODER | {"conv_dim": [32] * 7, "num_conv_pos_embedding_groups": 4, "vocab_size": 11, "layerdrop": 0.0}
TEXT = ENCODER | {"vocab_size": 61, "max_position_embeddings": 40}
VISION = ENCODER | {"image_size": 32, "patch_size": 8, "use_relative_position_bias": True, "drop_path_rate": 0.0}
MODELS = {
    "Data2VecAudioModel": (AUDIO, (2, 5001)),
    "Data2VecAudioForCTC": (AUDIO, (2, 5001)),
    "Data2VecAudioForSequenceClassification": (AUDIO, (2, 5001)),
    "Data2VecAudioForAudioFrameClassification": (AUDIO, (2, 5001)),
    "Data2VecAudioForXVector": (AUDIO, (2, 9001)),
    "Data2VecTextModel": (TEXT, (2, 9)),
    "Data2VecTextForMaskedLM": (TEXT, (2, 9)),
    "Data2VecTextForCausalLM": (TEXT | {"is_decoder": True}, (2, 9)),
    "Data2VecTextForSequenceClassification": (TEXT, (2, 9)),
    "Data2VecTextForMultipleChoice": (TEXT, (2, 3, 9)),
    "Data2VecTextForTokenClassification": (TEXT, (2, 9)),
    "Data2VecTextForQuestionAnswering": (TEXT, (2, 9)),
    "Data2VecVisionModel": (VISION, (2, 3, 32, 32)),
    "Data2VecVisionForImageClassification": (VISION, (2, 3, 32, 32)),
    "Data2VecVisionForSemanticSegmentation": (
        VISION | {"num_hidden_layers": 4, "out_indices": [2, 3, 4, 5]},
        (2, 3, 32, 32),
    ),
}
FEW = ["Data2VecAudioForCTC", "Data2VecTextForSequenceClassification", "Data2VecVisionForImageClassification"]
ALL_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def models(name: str):
    """Both models and an input."""
    config, shape = MODELS[name]
    x = torch.randint(3, 61, shape) if "Text" in name else torch.randn(shape)
    return *pair(name, **config), x


def wide(x: torch.Tensor) -> torch.Tensor:
    """Inputs in float64, unless they are token numbers."""
    return x.double() if x.is_floating_point() else x


def stir(model) -> None:
    """Adapters begin as zero updates; make them count."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_of_ours_in_transformers_and_peft(name, tmp_path):
    theirs, ours, x = models(name)
    plain = ours(x)[0]
    wanted = exact(theirs)(wide(x))[0]
    add_lora(ours, 3, target_modules=ALL_LAYERS)
    assert_as_close(ours(x)[0], theirs(x)[0], wanted)
    stir(ours)
    save_lora(ours, tmp_path)
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path)
    assert apart(ours(x)[0], plain) > 1e-3
    assert_as_close(ours(x)[0], loaded(x)[0], exact(loaded)(wide(x))[0])


@pytest.mark.parametrize("name", FEW)
def test_an_adapter_of_peft_here(name, tmp_path):
    theirs, ours, x = models(name)
    targets = (
        ["q_proj", "v_proj", "intermediate_dense"] if "Audio" in name else ["query", "value", "intermediate.dense"]
    )
    head = ["lm_head"] if "CTC" in name else ["classifier"]
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=4, target_modules=targets, modules_to_save=head))
    stir(adapted)
    adapted.save_pretrained(tmp_path)
    load_lora(ours, tmp_path)
    assert_as_close(ours(x)[0], adapted(x)[0], exact(adapted)(wide(x))[0])


@pytest.mark.parametrize("name", FEW)
def test_merged_it_is_a_plain_model(name, tmp_path):
    _, ours, x = models(name)
    keys = list(ours.state_dict())
    add_lora(ours, 2)
    stir(ours)
    adapted, wanted = ours(x)[0], exact(ours)(wide(x))[0]
    merge_lora(ours)
    assert list(ours.state_dict()) == keys
    assert_as_close(ours(x)[0], adapted, wanted)
    ours.save_pretrained(tmp_path)
    loaded = type(ours).from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(loaded(x)[0], ours(x)[0])


def test_what_is_trained():
    _, ours, _ = models("Data2VecTextForMultipleChoice")
    add_lora(ours, 2, target_modules=["fc1"])
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    adapters = {f"data2vec_text.encoder.layers.{i}.ffn.fc1.lora_{part}.default.weight" for i in (0, 1) for part in "AB"}
    head = {"classifier.weight", "classifier.bias"}
    assert trained == adapters | head | {"data2vec_text.pooler.dense.weight", "data2vec_text.pooler.dense.bias"}


def test_alpha_scales_the_update():
    ours = exact(models("Data2VecTextModel")[1])
    layer = ours.encoder.layers[0].attn.q_proj
    before = layer.weight.detach().clone()
    add_lora(ours, 4, alpha=6)
    stir(ours)
    adapted = ours.encoder.layers[0].attn.q_proj
    update = adapted.lora_B["default"].weight @ adapted.lora_A["default"].weight
    merge_lora(ours)
    assert apart(ours.encoder.layers[0].attn.q_proj.weight, before + 6 / 4 * update) < EXACT


def test_wrong_adapters_are_named(tmp_path):
    _, ours, _ = models("Data2VecTextModel")
    with pytest.raises(InputError, match="Data2VecTextModel has no layers query"):
        add_lora(ours, 2, target_modules=["query"])
    with pytest.raises(InputError, match="has no layers v_porj for an adapter; there are q_proj"):
        add_lora(ours, 2, target_modules=["q_proj", "v_porj"])
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        load_lora(ours, tmp_path)
    add_lora(ours, 2)
    save_lora(ours, tmp_path)
    with pytest.raises(InputError, match="Data2VecAudioModel has no layers attention.self.query"):
        load_lora(models("Data2VecAudioModel")[1], tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(InputError, match="should be a LoRA"):
        load_lora(models("Data2VecTextModel")[1], tmp_path)


def test_adapters_of_another_shape_are_named(tmp_path):
    name = "Data2VecTextForSequenceClassification"
    config, _ = MODELS[name]
    _, ours, _ = models(name)
    add_lora(ours, 2)
    save_lora(ours, tmp_path)
    file = tmp_path / "adapter_config.json"
    told = json.loads(file.read_text())
    with pytest.raises(InputError, match=r"classifier.out_proj.\w+ has shape \(2.*\); the model .* ask for \(3"):
        load_lora(pair(name, **config, num_labels=3)[1], tmp_path)
    for changes, message in (
        ({"r": 4}, r"query.lora_A.weight has shape \(2, 32\); the model and the rank .* ask for \(4, 32\)"),
        ({"r": "2"}, "adapter_config.json: r is '2'; should be a whole number, at least 1"),
        ({"r": 0}, "r is 0; should be a whole number, at least 1"),
        ({"lora_alpha": None}, "lora_alpha is None; should be a number, at least 0"),
        ({"lora_dropout": "0.1"}, "lora_dropout is '0.1'; should be a number, at least 0"),
    ):
        file.write_text(json.dumps(told | changes))
        with pytest.raises(InputError, match=message) as caught:
            load_lora(models(name)[1], tmp_path)
        assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FEW)
def test_an_adapted_model_is_saved_merged_and_as_an_adapter(name, tmp_path):
    theirs, ours, x = models(name)
    add_lora(ours, 2)
    stir(ours)
    expected, wanted = ours(x)[0], exact(ours)(wide(x))[0]
    save_adapted(ours, tmp_path)
    assert_as_close(type(ours).from_pretrained(tmp_path, verbose=False)(x)[0], expected, wanted)
    assert_as_close(peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")(x)[0], expected, wanted)
    assert torch.equal(ours(x)[0], expected) and hasattr(ours, "peft_config")  # training goes on


def test_without_an_adapter_there_is_no_folder_for_one(tmp_path):
    _, ours, _ = models(FEW[1])
    save_adapted(ours, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
