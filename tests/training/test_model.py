"""The model that a run starts from: loaded or new, changed in training alone, frozen or with adapters."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.recipe import load_recipe
from d2v.config import Lora
from d2v.data.text import TextData, tokenizer_for
from d2v.data.token_classification import TokenData
from d2v.errors import InputError
from d2v.models.audio_heads import Data2VecAudioForCTC, Data2VecAudioForSequenceClassification
from d2v.models.text_heads import (
    Data2VecTextForCausalLM,
    Data2VecTextForMaskedLM,
    Data2VecTextForMultipleChoice,
    Data2VecTextForQuestionAnswering,
    Data2VecTextForSequenceClassification,
    Data2VecTextForTokenClassification,
)
from d2v.models.vision_heads import Data2VecVisionForImageClassification, Data2VecVisionForSemanticSegmentation
from d2v.models.xvector import Data2VecAudioForXVector
from d2v.processors.ctc import CTCTokenizer
from d2v.processors.text import Tokenizer
from d2v.training.model import build
from tests.helpers import make_job, tiny_reader, tiny_recogniser, tiny_viewer
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION, sentences

TEXTS = sentences(40, seed=1)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


def job(model=None, mode="train", arch=TINY_TEXT, freeze="nothing", **lora):
    made = make_job(TextData(max_length=12), mode=mode, model=model)
    return replace(made, config=replace(made.config, arch=dict(arch), freeze=freeze, lora=Lora(**lora)))


def test_own_data_and_random_weights_are_said(tokenizer):
    for path, said in (("mine", ["model: new, with random weights; --model starts from a checkpoint"]), (None, [])):
        made = make_job(TextData(path=path, max_length=12))
        made = replace(made, config=replace(made.config, arch=TINY_TEXT))
        build(made, Data2VecTextForSequenceClassification, tokenizer=tokenizer)
        assert [fact["line"] for fact in made.facts] == said


@pytest.mark.parametrize(
    ("model", "given", "frozen"),
    [
        (None, None, "nothing"),
        ("some/model", None, "feature_encoder"),
        (None, "feature_encoder", "feature_encoder"),
        ("some/model", "nothing", "nothing"),
    ],
)
def test_random_convolutions_of_sound_are_learnt(model, given, frozen):
    assert load_recipe("asr_ctc").Config(model=model, freeze=given).freeze == frozen
    assert load_recipe("text_classification").Config(model=model).freeze == "nothing"


def test_random_weights_that_stay_so_are_said(tokenizer):
    for options in ({"freeze": "encoder"}, {"rank": 2}):
        made = job(**options)
        build(made, Data2VecTextForSequenceClassification, tokenizer=tokenizer)
        option = "lora.rank" if "rank" in options else "freeze encoder"
        line = f"model: new, and what --{option} does not train stays random"
        assert line in [fact["line"] for fact in made.facts]


def test_weights_that_an_adapter_cannot_hold_are_said():
    made = job(arch=TINY_AUDIO | {"use_weighted_layer_sum": True}, rank=2)
    build(made, Data2VecAudioForSequenceClassification)
    lines = [fact["line"] for fact in made.facts if fact["fact"] == "not trained"]
    assert lines == ["layer_weights: not trained with --lora.rank, whose files hold layers alone"]


def test_a_new_model_has_room_for_the_longest_text(tokenizer):
    model = build(job(), Data2VecTextForSequenceClassification, tokenizer=tokenizer, id2label={0: "a", 1: "b"})
    assert (model.config.max_tokens, model.config.vocab_size) == (12, len(tokenizer))
    ids = tokenizer([" ".join(TEXTS)], max_length=12)[0].ids
    assert model(torch.tensor([ids])).logits.shape == (1, 2)
    with pytest.raises(ValueError, match="a text of 13 tokens; the model has positions for 12"):
        model(torch.tensor([[*ids, 2]]))


def test_a_loaded_model_is_changed_in_training_alone(tmp_path):
    folder = str(tiny_reader(tmp_path))
    Data2VecTextForTokenClassification.from_pretrained(folder, verbose=False).save_pretrained(folder)
    tokenizer, arch = Tokenizer.from_pretrained(folder), {"hidden_dropout_prob": 0.25}
    cls, fine_tuning = Data2VecTextForTokenClassification, {"hidden_dropout_prob": 0.5, "layer_norm_eps": 1e-3}
    trained = build(job(folder, arch=arch), cls, fine_tuning, tokenizer=tokenizer, num_labels=5).config
    assert (trained.hidden_dropout_prob, trained.layer_norm_eps, trained.num_labels) == (0.25, 1e-3, 5)
    model = build(job(folder, "evaluate", arch, rank=2), cls, fine_tuning, tokenizer=tokenizer, num_labels=5)
    assert (model.config.hidden_dropout_prob, model.config.num_labels) == (0.1, 2) and not hasattr(model, "peft_config")


def test_an_architecture_that_has_no_effect_is_said(tmp_path):
    folder, cls, said = str(tiny_viewer(tmp_path)), Data2VecVisionForImageClassification, []
    cls.from_pretrained(folder, verbose=False).save_pretrained(folder)
    for arch in (TINY_VISION, {"image_size": 48, "out_indices": [0, 1, 2, 3], "patch_sise": 2}):
        for mode in ("evaluate", "predict"):
            made = job(folder, mode, arch)
            assert build(made, cls).config.image_size == 24
            said.append([fact["line"] for fact in made.facts])
    lines = [
        "arch.image_size 48 is for training; the model has 24",
        "arch.out_indices [0, 1, 2, 3] is for training; the model has (2, 3, 4, 5)",
        "arch.patch_sise 2 is for training; the model has no such field",
    ]
    assert said == [[], [], lines, lines]
    made = job(None, arch=TINY_VISION | {"num_labels": 7})
    assert build(made, cls, id2label={0: "a", 1: "b"}).config.num_labels == 2
    assert "arch.num_labels 7 has no effect: by the data it is 2" in [fact["line"] for fact in made.facts]


def test_an_adapter_names_its_base(tmp_path):
    """A folder's name may have an @, behind which a hub id has its revision."""
    folder = str(tiny_reader(tmp_path / "me@home" / "model"))
    tokenizer = Tokenizer.from_pretrained(folder)
    adapter = build(job(folder, arch={}, rank=2), Data2VecTextForSequenceClassification, tokenizer=tokenizer)
    found = adapter.peft_config["default"]
    assert (found.base_model_name_or_path, found.revision) == (folder, None)


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_some_fields_hold_whatever_the_mode(mode, tmp_path):
    folder = str(tiny_reader(tmp_path))
    Data2VecTextForCausalLM.from_pretrained(folder, verbose=False).save_pretrained(folder)
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


# Heads of checkpoints

TASKS = [
    (Data2VecAudioForCTC, TINY_AUDIO),
    (Data2VecAudioForSequenceClassification, TINY_AUDIO),
    (Data2VecAudioForXVector, TINY_AUDIO),
    (Data2VecTextForMultipleChoice, TINY_TEXT),
    (Data2VecTextForSequenceClassification, TINY_TEXT),
    (Data2VecTextForQuestionAnswering, TINY_TEXT),
    (Data2VecTextForMaskedLM, TINY_TEXT),
    (Data2VecVisionForImageClassification, TINY_VISION),
    (Data2VecVisionForSemanticSegmentation, TINY_VISION),
]


def saved(folder, cls, arch, **fields):
    """The folder of a new model, and the model."""
    torch.manual_seed(1)
    model = cls(cls.config_class.from_dict({}, **arch, **fields))
    model.save_pretrained(folder)
    return str(folder), model


@pytest.mark.parametrize("mode", ["evaluate", "predict"])
@pytest.mark.parametrize(("cls", "arch"), TASKS)
def test_an_encoder_without_a_head_does_nothing_but_train(cls, arch, mode, tmp_path):
    encoder = saved(tmp_path / "whole", cls, arch)[1].base_model
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(
        InputError, match=rf"encoder: lacks .*, without which it cannot {mode}; train it first"
    ) as error:
        build(job(str(tmp_path / "encoder"), mode), cls)
    assert "\n" not in str(error.value)
    training = job(str(tmp_path / "encoder"), arch={})
    build(training, cls)
    assert training.facts[0]["line"].startswith("Weights newly initialised, since the checkpoint lacks them: ")


def test_what_only_training_uses_may_be_missing(tmp_path):
    """The speakers of training, the second head of segmentation, what masks are filled with; an encoder's layer not."""
    for cls, arch, unused in (
        (Data2VecAudioForXVector, TINY_AUDIO, ["objective.weight", "data2vec_audio.masked_spec_embed"]),
        (Data2VecVisionForSemanticSegmentation, TINY_VISION, ["auxiliary_head.classifier.weight"]),
    ):
        folder, _ = saved(tmp_path / cls.__name__, cls, arch)
        weights = load_file(f"{folder}/model.safetensors")
        assert set(unused) <= weights.keys()
        kept = {key: value for key, value in weights.items() if key not in unused}
        save_file(kept, f"{folder}/model.safetensors")
        build(job(folder, "evaluate"), cls)
        gone = next(key for key in kept if "encoder.layer" in key)
        save_file({key: value for key, value in kept.items() if key != gone}, f"{folder}/model.safetensors")
        with pytest.raises(InputError, match=f"lacks {gone}, without which it cannot evaluate"):
            build(job(folder, "evaluate"), cls)


@pytest.mark.parametrize("mode", ["evaluate", "predict"])
def test_weights_that_do_not_fit_their_configuration_are_not_evaluated(mode, tmp_path):
    folder, _ = saved(tmp_path / "model", Data2VecVisionForImageClassification, TINY_VISION, num_labels=3)
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"id2label": {str(i): str(i) for i in range(5)}}))
    with pytest.raises(InputError, match=r"other shapes than its config.json says: classifier.bias \(3,\) instead of"):
        build(job(folder, mode), Data2VecVisionForImageClassification)


@pytest.mark.parametrize(("cls", "arch"), TASKS)
def test_a_frozen_encoder_leaves_the_head_and_its_pooler(cls, arch):
    model = build(job(freeze="encoder", arch=arch), cls)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    base = f"{model.base_model_prefix}."
    assert {name for name in trained if name.startswith(base)} == {
        name for name, _ in model.named_parameters() if name.startswith(f"{base}pooler.dense.")
    }
    assert trained >= {name for name, _ in model.named_parameters() if not name.startswith(base)}


NAMES = {0: "cat", 1: "dog", 2: "eel"}
OTHERS = {0: "eel", 1: "fox", 2: "cat", 3: "Dog"}


@pytest.mark.parametrize(
    ("cls", "arch", "weight", "axis"),
    [
        (Data2VecAudioForSequenceClassification, TINY_AUDIO, "classifier.weight", 0),
        (Data2VecAudioForXVector, TINY_AUDIO, "objective.weight", 1),
        (Data2VecTextForSequenceClassification, TINY_TEXT, "classifier.out_proj.bias", 0),
        (Data2VecTextForTokenClassification, TINY_TEXT, "classifier.weight", 0),
        (Data2VecVisionForImageClassification, TINY_VISION, "classifier.weight", 0),
        (Data2VecVisionForSemanticSegmentation, TINY_VISION, "auxiliary_head.classifier.weight", 0),
    ],
)
def test_rows_of_a_head_are_found_by_name(cls, arch, weight, axis, tmp_path):
    folder, model = saved(tmp_path, cls, arch, id2label=NAMES)
    for key, value in model.state_dict().items():
        if key == weight:
            value.copy_(torch.rand_like(value) + 1)  # so that the rows of a bias differ too
    model.save_pretrained(tmp_path)
    before = model.state_dict()[weight].movedim(axis, 0)
    training = job(folder, arch={})
    after = build(training, cls, id2label=OTHERS).state_dict()[weight].movedim(axis, 0)
    assert torch.equal(after[[0, 2, 3]], before[[2, 0, 1]]) and not any(torch.equal(after[1], row) for row in before)
    assert [fact["line"] for fact in training.facts] == ["head: 3 of 4 rows are the checkpoint's, by name; new: fox"]
    training = job(folder, arch={})
    after = build(training, cls, id2label={0: "dog", 1: "cat"}).state_dict()[weight].movedim(axis, 0)
    assert torch.equal(after, before[[1, 0]])
    line = "head: 2 of 2 rows are the checkpoint's, by name; left out: eel"
    assert [fact["line"] for fact in training.facts] == [line]
    training = job(folder, arch={})  # the same classes in the same order: nothing happened
    build(training, cls, id2label=NAMES)
    assert training.facts == []


def test_classes_without_names_are_kept_in_order_only_if_asked(tmp_path):
    folder, model = saved(tmp_path, Data2VecTextForTokenClassification, TINY_TEXT, num_labels=2)
    kept = build(job(folder, arch={}), type(model), id2label={0: "LABEL_0", 1: "LABEL_1"}).classifier.weight
    assert torch.equal(kept, model.classifier.weight)
    training = job(folder, arch={})
    other = build(training, type(model), id2label={0: "O", 1: "B"}).classifier.weight
    assert not torch.equal(other, model.classifier.weight)
    line = "head: 0 of 2 rows are the checkpoint's, by name; new: O, B; left out: LABEL_0, LABEL_1"
    assert [fact["line"] for fact in training.facts] == [line]
    made = make_job(TokenData(match="order"), model=folder)
    assert torch.equal(build(made, type(model), id2label={0: "O", 1: "B"}).classifier.weight, model.classifier.weight)
    values = build(job(folder, arch={}), Data2VecTextForSequenceClassification, num_labels=1, problem_type="regression")
    assert values.classifier.out_proj.weight.shape[0] == 1


@pytest.mark.parametrize("head", [6, 8])
def test_a_ctc_head_has_its_rows_by_character(head, tmp_path):
    """A vocabulary that grew, and one whose file has more or fewer tokens than the head has rows."""
    folder = str(tiny_recogniser(tmp_path))  # five characters and three other tokens
    model = Data2VecAudioForCTC.from_pretrained(folder)
    tokenizer = CTCTokenizer.from_pretrained(folder)
    config = replace(model.config, vocab_size=head)
    smaller = Data2VecAudioForCTC(config)
    smaller.save_pretrained(folder)
    tokens = [*tokenizer.tokens[:3], "E", "Z", *tokenizer.tokens[3:7]]
    grown = CTCTokenizer({token: i for i, token in enumerate(tokens)}, bos_token=None, eos_token=None)
    training = job(folder, arch={})
    weight = build(training, Data2VecAudioForCTC, tokenizer=grown).lm_head.weight
    known = {i: tokenizer.vocab[token] for i, token in enumerate(tokens) if tokenizer.vocab.get(token, head) < head}
    assert len(known) == {6: 6, 8: 8}[head] and len(weight) == 9
    for i, row in known.items():
        assert torch.equal(weight[i], smaller.lm_head.weight[row])
    assert training.facts[0]["line"].startswith(f"head: {len(known)} of 9 rows are the checkpoint's, by name; new: ")


@pytest.mark.parametrize("rows", [0, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_begin_as_the_mean(rows, tied, tmp_path):
    """In rows that the model has beyond its tokenizer, or in new ones; in an output layer too."""
    folder = tiny_reader(tmp_path)
    known = Tokenizer.from_pretrained(folder)
    arch = TINY_TEXT | {"vocab_size": len(known) + rows, "max_position_embeddings": 20, "tie_word_embeddings": tied}
    saved(folder, Data2VecTextForMaskedLM, arch)
    made = make_job(TextData(add_tokens=["<a>", "<b>"]), model=str(folder))
    tokenizer = tokenizer_for(made, list)
    model = build(made, Data2VecTextForMaskedLM, tokenizer=tokenizer)
    assert model.config.vocab_size == len(known) + (rows or 2)
    tables = [model.base_model.embeddings.word_embeddings.weight]
    tables += [] if tied else [model.lm_head.decoder.weight]
    for table in tables:
        mean = table[: len(known)].mean(0)
        assert all(torch.equal(table[tokenizer.vocab[token]], mean) for token in ("<a>", "<b>"))
    (encoding,) = tokenizer(["the <a> cat"])
    assert model(torch.tensor([encoding.ids])).logits.shape[-1] == model.config.vocab_size
