"""The class that a checkpoint was saved from."""

import json

import pytest
import torch
import transformers

import d2v
from d2v import auto
from d2v.errors import InputError

MODELS = [name for name in d2v.__all__ if not name.endswith("Config")]


@pytest.mark.parametrize("name", MODELS)
def test_every_class_is_found(name, tmp_path):
    for written in (name, "TF" + name):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [written]}))
        assert auto.model_class(tmp_path) is getattr(d2v, name)


def test_without_architectures_it_is_the_plain_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "data2vec-audio"}')
    assert auto.model_class(tmp_path) is d2v.Data2VecAudioModel


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    with pytest.raises(InputError, match="no class for BertModel, model_type bert"):
        auto.model_class(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no class for None"):
        auto.model_class(tmp_path)


def test_loading(tmp_path):
    config = d2v.Data2VecTextConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9
    )
    d2v.Data2VecTextForMaskedLM(config).save_pretrained(tmp_path)
    model = auto.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(model) is d2v.Data2VecTextForMaskedLM and model.config.attn_implementation == "eager"


def test_the_documentations_snippet(tmp_path):
    """As in Hugging Face's page on data2vec, "Using Scaled Dot Product Attention", but for the import."""
    config = transformers.Data2VecVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, num_labels=5
    )
    transformers.Data2VecVisionForImageClassification(config).save_pretrained(tmp_path)
    model = d2v.Data2VecVisionForImageClassification.from_pretrained(
        tmp_path, attn_implementation="sdpa", torch_dtype=torch.float16
    )
    logits = model(torch.randn(2, 3, 32, 32, dtype=torch.float16)).logits
    assert logits.dtype == torch.float16 and logits.shape == (2, 5) and logits.isfinite().all()
