"""Gaps are filled with the likeliest tokens, and compared with the right ones where these are known."""

import pytest
import torch

from d2v.decode.masked_lm import LISTED, fill_texts, write_gaps
from d2v.processors.text import Tokenizer
from tests.tiny import sentences

TOKENIZER = Tokenizer.train(sentences(20, seed=0), 300)


def gaps(*texts):
    """A batch of texts, where their gaps are, and logits by which each gap is likeliest " cat", then " dog"."""
    ids = TOKENIZER.pad([encoding.ids for encoding in TOKENIZER(texts)])["input_ids"]
    where = ids == TOKENIZER.mask_token_id
    logits = torch.full((int(where.sum()), len(TOKENIZER)), -9.0)
    logits[:, token(" cat")], logits[:, token(" dog")] = 2.0, 1.0
    return ids, where, logits


def token(text: str) -> int:
    (number,) = TOKENIZER([text])[0].ids[1:-1]
    return number


def test_gaps_are_filled():
    first, second = fill_texts(*gaps("the red<mask> sees", "<mask> sees the<mask>"), TOKENIZER)
    assert (first["filled"], second["filled"]) == ("the red cat sees", " cat sees the cat")
    assert [len(row["guesses"]) for row in (first, second)] == [1, 2] and set(first) == {"filled", "guesses", "scores"}
    assert first["guesses"][0][:2] == [" cat", " dog"] and len(first["guesses"][0]) == len(first["scores"][0]) == LISTED
    assert first["scores"][0][:2] == pytest.approx([0.731, 0.269], abs=1e-2)


def test_known_tokens_are_compared():
    ids, where, logits = gaps("the red<mask> sees", "<mask> sees the<mask>")
    labels = torch.tensor([token(" cat"), token(" dog"), token(" cat")])
    first, second = fill_texts(ids, where, logits, TOKENIZER, labels)
    assert first["filled"] == "the red[ cat| cat] sees" and second["filled"] == "[ dog| cat] sees the[ cat| cat]"
    assert [(row["tokens"], row["correct"]) for row in (first, second)] == [(1, 1), (2, 1)]
    costs = -logits.log_softmax(-1)[torch.arange(3), labels]
    assert [first["loss"], second["loss"]] == pytest.approx([float(costs[0]), float(costs[1:].sum())])


def test_a_text_without_a_gap_stays():
    (encoding,) = TOKENIZER(["the red cat"])
    ids = torch.tensor(encoding.ids)
    assert write_gaps(ids, torch.zeros_like(ids, dtype=torch.bool), [], TOKENIZER) == "the red cat"


def test_rows_without_a_token_are_never_guessed():
    """A model may have more rows than its tokenizer has tokens; a guess of one ended the prediction."""
    ids, where, logits = gaps("the red<mask> sees")
    larger = torch.nn.functional.pad(logits, (0, 5), value=1e3)
    assert fill_texts(ids, where, larger, TOKENIZER) == fill_texts(ids, where, logits, TOKENIZER)
