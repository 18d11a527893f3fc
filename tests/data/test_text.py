"""Splits as tokens, and which tokenizer and model a run starts from."""

import datasets
import pytest
import torch

from d2v.config import Lora
from d2v.data.text import TextData, all_texts, encode_texts, tokenizer_for
from d2v.errors import InputError
from d2v.models.text_heads import Data2VecTextForSequenceClassification, Data2VecTextForTokenClassification
from d2v.processors.text import Tokenizer
from d2v.training.build import problem_type, text_model
from tests.helpers import tiny_reader
from tests.tiny import TINY_TEXT, sentences

TEXTS = sentences(40, seed=1)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


def rows(**columns):
    return datasets.Dataset.from_dict(columns)


def test_rows_are_encoded_as_the_tokenizer_does(tokenizer):
    found = encode_texts(tokenizer, rows(text=TEXTS), ["text"], "train", 100)
    assert [ids.tolist() for ids in found] == [encoding.ids for encoding in tokenizer(TEXTS)]
    found = encode_texts(tokenizer, rows(b=TEXTS, a=TEXTS[::-1]), ["a", "b"], "train", 100)
    assert [ids.tolist() for ids in found] == [encoding.ids for encoding in tokenizer(TEXTS[::-1], TEXTS)]


def test_many_rows_keep_their_order(tokenizer):
    texts = [f"the cat {i}" for i in range(2100)]  # more than are encoded at once
    found = encode_texts(tokenizer, rows(text=texts), ["text"], "train", 20)
    assert [tokenizer.decode(found[i]) for i in (0, 999, 1000, 2099)] == [texts[i] for i in (0, 999, 1000, 2099)]


def test_what_is_cut_is_counted(tokenizer, capsys):
    texts = ["the cat", TEXTS[0], "the dog", TEXTS[1]]
    found = encode_texts(tokenizer, rows(text=texts), ["text"], "validation", 5)
    whole = tokenizer(texts)
    assert capsys.readouterr().out == "validation: 2 of 4 texts cut to 5 tokens\n"
    assert list(map(len, found)) == [min(len(encoding), 5) for encoding in whole]
    assert all(ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id for ids in found)
    encode_texts(tokenizer, rows(text=texts), ["text"], "validation", 100)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["x", None]}, "train, row 1: a is None; should be text"),
        ({"a": ["x", " \n"]}, "train, row 1: a is empty; should be text"),
        ({"a": [1, 2]}, "train, row 0: a is 1; should be text"),
        ({"a": ["x", ""], "b": ["y", " "]}, "train, row 1: a and b are empty; should be text"),
    ],
)
def test_a_row_without_text_is_named(tokenizer, columns, message):
    with pytest.raises(InputError) as error:
        encode_texts(tokenizer, rows(**columns), list(columns), "train", 9)
    assert str(error.value) == message


def test_a_side_of_a_pair_may_be_empty(tokenizer):
    (ids,) = encode_texts(tokenizer, rows(a=["the cat"], b=[""]), ["a", "b"], "train", 20)
    assert ids.tolist() == tokenizer(["the cat"], [""])[0].ids


def test_a_late_row_is_named_by_its_number(tokenizer):
    with pytest.raises(InputError, match="^train, row 1001: a is None"):
        encode_texts(tokenizer, rows(a=["x"] * 1001 + [None]), ["a"], "train", 9)


def test_texts_of_several_columns():
    assert list(all_texts(rows(a=["x", None], b=["y", "z"]), ["a", "b"])) == ["x", "y", "z"]


def test_a_tokenizer_is_the_checkpoints_or_new(tmp_path):
    folder = tiny_reader(tmp_path)

    def refuse():
        raise AssertionError

    assert tokenizer_for(str(folder), refuse, 999).vocab == Tokenizer.from_pretrained(folder).vocab
    new = tokenizer_for(None, lambda: iter(TEXTS), 280)
    assert len(new) == 280 and not new.add_prefix_space
    assert tokenizer_for(None, lambda: iter(TEXTS), 280, add_prefix_space=True).add_prefix_space
    assert tokenizer_for(str(folder), refuse, 999, add_prefix_space=True).add_prefix_space


class Options:
    def __init__(self, model=None, mode="train", arch=TINY_TEXT, **lora):
        self.model, self.mode, self.arch, self.lora = model, mode, dict(arch), Lora(**lora)
        self.data = TextData(max_length=12)


def test_a_new_model_has_room_for_the_longest_text(tokenizer):
    model = text_model(Data2VecTextForSequenceClassification, Options(), tokenizer, {"id2label": {0: "a", 1: "b"}})
    assert (model.config.max_tokens, model.config.vocab_size) == (12, len(tokenizer))
    (ids,) = encode_texts(tokenizer, rows(text=[" ".join(TEXTS)]), ["text"], "train", 12)
    assert model(torch.tensor(ids[None])).logits.shape == (1, 2)
    with pytest.raises(ValueError, match="a text of 13 tokens; the model has positions for 12"):
        model(torch.tensor([[*ids, 2]]))


def test_a_loaded_model_is_changed_in_training_alone(tmp_path):
    folder = str(tiny_reader(tmp_path))
    tokenizer, arch = Tokenizer.from_pretrained(folder), {"hidden_dropout_prob": 0.25}
    cls = Data2VecTextForTokenClassification
    assert text_model(cls, Options(folder, arch=arch), tokenizer, {}).config.hidden_dropout_prob == 0.25
    model = text_model(cls, Options(folder, "evaluate", arch, rank=2), tokenizer, {})
    assert model.config.hidden_dropout_prob == 0.1 and not hasattr(model, "peft_config")


def test_an_adapter_leaves_little_to_train(tokenizer):
    model = text_model(Data2VecTextForSequenceClassification, Options(rank=2), tokenizer, {})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("classifier.") for name in trained)
    assert sum("lora_" in name for name in trained) == 8  # two matrices for q and v of two layers


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = str(tiny_reader(tmp_path))
    with pytest.raises(InputError, match=r"the tokenizer has \d+ tokens, its model \d+; they do not belong together"):
        longer = Tokenizer.train([*TEXTS, *2 * ["a vocabulary of others"]], 400)
        text_model(Data2VecTextForSequenceClassification, Options(folder, arch={}), longer, {})


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"num_labels": 3}, "single_label_classification"),
        ({"num_labels": 1}, "regression"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "multi_label_classification"),
    ],
)
def test_what_a_checkpoint_tells(tokenizer, tmp_path, changes, kind):
    text_model(Data2VecTextForSequenceClassification, Options(), tokenizer, changes).save_pretrained(tmp_path)
    assert problem_type(str(tmp_path)) == kind


def test_lengths_are_positive():
    with pytest.raises(InputError, match="data.batch_tokens should be at least 1, not 0"):
        TextData(batch_tokens=0)
