"""Losses of windows, and texts continued, by a tiny model."""

import copy

import pytest
import torch

from d2v.decode.causal_lm import Sampling, continue_texts, show_samples, window_losses
from d2v.errors import InputError
from d2v.models.generation import repeat_less
from d2v.models.text import Data2VecTextConfig
from d2v.models.text_heads import Data2VecTextForCausalLM
from d2v.processors.text import Tokenizer
from tests.tiny import TINY_TEXT, sentences


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(sentences(20, seed=0), 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sizes = TINY_TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 22}
    return Data2VecTextForCausalLM(Data2VecTextConfig(**sizes, is_decoder=True, initializer_range=0.3)).eval()


def prompts(tokenizer, texts):
    return tokenizer.pad([encoding.ids[:-1] for encoding in tokenizer(texts)])


def test_losses_are_those_of_each_window(tokenizer):
    labels = torch.tensor(tokenizer(["the cat sees the dog"])[0].ids[1:])
    logits = torch.randn(len(labels), len(tokenizer), generator=torch.Generator().manual_seed(0))
    rows = window_losses(logits, labels, [2, len(labels) - 2], tokenizer)
    assert "".join(row["text"] for row in rows) == "the cat sees the dog</s>"
    assert [row["tokens"] for row in rows] == [2, len(labels) - 2]
    costs = -logits.log_softmax(-1)[torch.arange(len(labels)), labels]
    assert [row["loss"] for row in rows] == pytest.approx([float(costs[:2].sum()), float(costs[2:].sum())])


def test_new_tokens_and_prompts_share_the_positions(model):
    assert model.config.max_tokens == 20
    assert Sampling(max_new_tokens=5).bounds(model.config) == (16, 5)
    assert Sampling(max_new_tokens=100).bounds(model.config) == (11, 10)


def test_texts_go_on_as_generate_says(model, tokenizer):
    batch = prompts(tokenizer, ["the red cat", ""])
    likeliest = model.generate(**batch, max_new_tokens=4)[:, batch["input_ids"].shape[1] :]
    expected = [tokenizer.decode(row) for row in likeliest]
    assert continue_texts(model, batch, tokenizer, Sampling(max_new_tokens=4, temperature=0), 0) == expected
    warm = Sampling(max_new_tokens=4, temperature=5.0, top_p=1.0)
    first, again, other = (continue_texts(model, batch, tokenizer, warm, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_text_does_not_depend_on_what_stands_beside_it(model, tokenizer):
    warm, texts = Sampling(max_new_tokens=6, temperature=3.0, top_p=1.0), ["the red cat", "", "the red cat"]
    together = continue_texts(model, prompts(tokenizer, texts) | {"rows": [4, 5, 6]}, tokenizer, warm, 0)
    alone = [
        continue_texts(model, prompts(tokenizer, [text]) | {"rows": [row]}, tokenizer, warm, 0)[0]
        for row, text in zip((4, 5, 6), texts, strict=True)
    ]
    assert together == alone and alone[0] != alone[2]  # the same beginning goes on in another way


def test_samples_stand_behind_their_prompts(model, tokenizer, capsys):
    sampling = Sampling(prompts=["the red cat"], max_new_tokens=3)
    show_samples(model, tokenizer, sampling, 7)
    (text,) = continue_texts(model, prompts(tokenizer, sampling.prompts), tokenizer, sampling, 7)
    assert capsys.readouterr().out == f"\nthe red cat{text}\n\n"


def test_options_out_of_range():
    with pytest.raises(InputError, match="sampling.max_new_tokens should be at least 1, not 0"):
        Sampling(max_new_tokens=0)
    with pytest.raises(InputError, match="sampling.temperature should be at least 0, not -1"):
        Sampling(temperature=-1)
    with pytest.raises(InputError, match="sampling.repetition_penalty should be above 0, not 0"):
        Sampling(repetition_penalty=0)


def test_nothing_of_the_mass_is_the_likeliest(model, tokenizer):
    batch = prompts(tokenizer, ["the red cat", ""])
    greedy = continue_texts(model, batch, tokenizer, Sampling(max_new_tokens=4, temperature=0), 0)
    assert continue_texts(model, batch, tokenizer, Sampling(max_new_tokens=4, top_p=0.0), 0) == greedy


def test_rows_without_a_token_are_never_written(model, tokenizer):
    """A model may have more rows than its tokenizer has tokens."""
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(len(tokenizer) + 3)
    larger.lm_head.bias.data[len(tokenizer) :] = 1e3  # the likeliest by far
    batch = prompts(tokenizer, ["the red cat", ""])
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new_tokens=4, temperature=temperature)
        expected = continue_texts(model, batch, tokenizer, sampling, 3)
        assert continue_texts(larger, batch, tokenizer, sampling, 3) == expected


def test_what_was_written_is_less_likely():
    logits, ids = torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[0, 1, 0]])
    assert repeat_less(logits, ids, 2.0).tolist() == [[1.0, -4.0, 1.0]] and repeat_less(logits, ids, 1.0) is logits
