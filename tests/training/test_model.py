"""The model that a run starts from: loaded or new, changed in training alone, frozen or with adapters."""

from dataclasses import replace

import pytest
import torch

from d2v.config import Lora
from d2v.data.text import TextData, encode_texts
from d2v.errors import InputError
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.models.text_heads import (
    Data2VecTextForCausalLM,
    Data2VecTextForSequenceClassification,
    Data2VecTextForTokenClassification,
)
from d2v.models.vision_heads import Data2VecVisionForImageClassification
from d2v.processors.text import Tokenizer
from d2v.training.model import build
from tests.helpers import make_job, make_split, tiny_reader
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION, sentences

TEXTS = sentences(40, seed=1)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


def job(model=None, mode="train", arch=TINY_TEXT, freeze="nothing", **lora):
    made = make_job(TextData(max_length=12), mode=mode, model=model)
    return replace(made, config=replace(made.config, arch=dict(arch), freeze=freeze, lora=Lora(**lora)))


def test_a_new_model_has_room_for_the_longest_text(tokenizer):
    model = build(job(), Data2VecTextForSequenceClassification, tokenizer=tokenizer, id2label={0: "a", 1: "b"})
    assert (model.config.max_tokens, model.config.vocab_size) == (12, len(tokenizer))
    (ids,) = encode_texts(tokenizer, make_split(text=[" ".join(TEXTS)]), ["text"], 12)
    assert model(torch.tensor(ids[None])).logits.shape == (1, 2)
    with pytest.raises(ValueError, match="a text of 13 tokens; the model has positions for 12"):
        model(torch.tensor([[*ids, 2]]))


def test_a_loaded_model_is_changed_in_training_alone(tmp_path):
    folder = str(tiny_reader(tmp_path))
    tokenizer, arch = Tokenizer.from_pretrained(folder), {"hidden_dropout_prob": 0.25}
    cls, fine_tuning = Data2VecTextForTokenClassification, {"hidden_dropout_prob": 0.5, "layer_norm_eps": 1e-3}
    trained = build(job(folder, arch=arch), cls, fine_tuning, tokenizer=tokenizer, num_labels=5).config
    assert (trained.hidden_dropout_prob, trained.layer_norm_eps, trained.num_labels) == (0.25, 1e-3, 5)
    model = build(job(folder, "evaluate", arch, rank=2), cls, fine_tuning, tokenizer=tokenizer, num_labels=5)
    assert (model.config.hidden_dropout_prob, model.config.num_labels) == (0.1, 2) and not hasattr(model, "peft_config")


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_some_fields_hold_whatever_the_mode(mode, tmp_path):
    folder = str(tiny_reader(tmp_path))
    model = build(job(folder, mode, arch={}), Data2VecTextForCausalLM, always={"is_decoder": True}, num_labels=5)
    assert model.config.is_decoder and (model.config.num_labels == 5) == (mode == "train")


def test_an_adapter_leaves_little_to_train(tokenizer):
    model = build(job(rank=2), Data2VecTextForSequenceClassification, tokenizer=tokenizer)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("classifier.") for name in trained)
    assert sum("lora_" in name for name in trained) == 8  # two matrices for q and v of two layers
    with pytest.raises(InputError, match="--freeze encoder and --lora.rank exclude each other"):
        build(job(rank=2, freeze="encoder"), Data2VecTextForSequenceClassification, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "cls", [Data2VecAudioForCTC, Data2VecTextForTokenClassification, Data2VecVisionForImageClassification]
)
@pytest.mark.parametrize("freeze", ["nothing", "feature_encoder", "encoder"])
def test_what_is_frozen(cls, freeze, tokenizer):
    kind = cls.config_class.model_type.rpartition("-")[2]
    arch = {"audio": TINY_AUDIO, "text": TINY_TEXT, "vision": TINY_VISION}[kind]
    model = build(job(arch=arch, freeze=freeze), cls, tokenizer=tokenizer if kind == "text" else None)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    front = "feature_extractor." if kind == "audio" else "embeddings."
    parts = {"front": front, "blocks": "encoder.layers.", "head": "head." if kind == "audio" else "classifier."}
    found = {part for part, piece in parts.items() if any(piece in name for name in trained)}
    frozen = {"nothing": set(), "feature_encoder": {"front"}, "encoder": {"front", "blocks"}}[freeze]
    assert found == parts.keys() - frozen


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = str(tiny_reader(tmp_path))
    longer = Tokenizer.train([*TEXTS, *2 * ["a vocabulary of others"]], 400)
    with pytest.raises(InputError, match=r"the tokenizer has \d+ tokens, its model \d+; they do not belong together"):
        build(job(folder, arch={}), Data2VecTextForSequenceClassification, tokenizer=longer)
