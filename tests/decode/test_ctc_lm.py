"""The beam search, against every alignment of short clips scored one by one, and where a language model helps."""

import gzip
import math
import sys
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.decode.ctc import greedy
from d2v.decode.ctc_lm import BEAM, LM_WEIGHT, WORD_SCORE, Decoding, beam_search
from d2v.errors import InputError
from d2v.processors.ctc import CTCTokenizer
from tests.tiny import arpa

TOKENS = {"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4, "c": 5}
TOKENIZER = CTCTokenizer(TOKENS)
# log10 probabilities that add up to nothing in particular, so that every one of them shows.
CHARACTERS = {"<unk>": -2.5, "|": -0.4, "a": -0.6, "b": -0.9, "c": -1.1, "</s>": -0.8}
AFTER_CHARACTER = {"<s> b": -0.1, "a b": -0.2, "b |": -0.3, "| c": -0.15, "a a": -1.7, "c </s>": -0.25}
WORDS = {"<unk>": -2.0, "ab": -0.7, "a": -0.5, "b": -1.3, "ca": -0.9, "</s>": -0.6}
AFTER_WORD = {"<s> ab": -0.3, "a b": -0.2, "b </s>": -0.1, "ca a": -0.45}
ROWS = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return arpa(folder / "characters.arpa", CHARACTERS, AFTER_CHARACTER), arpa(folder / "words.arpa", WORDS, AFTER_WORD)


def lm_score(tokens, single, after):
    """log10 probability of a sentence by a bigram model whose backoff weights are 1."""
    sentence = ["<s>", *(token if token in single else "<unk>" for token in tokens), "</s>"]
    return sum(after.get(f"{a} {b}", single[b]) for a, b in pairwise(sentence))


def collapse(alignment):
    """Tokens of an alignment: repeats are one, blanks vanish."""
    return [b for a, b in pairwise([None, *alignment]) if a != b and b != "<pad>"]


def best_text(logits, tokens, score):
    """The text of the best of all alignments; `score(alignment, text)` is what counts besides the logits."""
    log_probs, best = logits.log_softmax(-1).tolist(), (-math.inf, "")
    for alignment in product(tokens, repeat=len(log_probs)):
        ids = [TOKENS[token] for token in alignment]
        text = TOKENIZER.decode(ids)
        total = sum(row[i] for row, i in zip(log_probs, ids, strict=True)) + score(alignment, text)
        best = max(best, (total, text))
    return best[1]


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_with_characters_it_finds_the_best_of_all_alignments(models, weight):
    search = beam_search(TOKENIZER, Decoding(models[0], weight=weight, beam=100_000))

    def score(alignment, text):
        tokens = collapse(["|", *alignment])[1:]  # flashlight begins in a silence, that a delimiter goes on with
        return weight * lm_score(tokens, CHARACTERS, AFTER_CHARACTER)

    logits = 2 * torch.randn(ROWS, 4, 6)
    expected = [best_text(row, TOKENS, score) for row in logits]
    assert search(logits, torch.tensor([4] * ROWS)) == expected
    assert len(set(expected)) > 4
    if weight:
        assert expected != [TOKENIZER.decode(row) for row in greedy(logits, torch.tensor([4] * ROWS))]


@pytest.mark.parametrize(("weight", "word_score"), [(0.0, 0.0), (2.0, -1.0), (1.0, 1.5)])
def test_with_words_it_finds_the_best_of_all_alignments(models, weight, word_score):
    search = beam_search(TOKENIZER, Decoding(models[1], weight=weight, word_score=word_score, beam=100_000))
    known = WORDS.keys() - {"<unk>", "</s>"}

    def score(alignment, text):
        words = text.split()
        if not known >= set(words):
            return -math.inf
        return weight * lm_score(words, WORDS, AFTER_WORD) + word_score * len(words)

    logits = 2 * torch.randn(ROWS, 5, 6)
    expected = [best_text(row, TOKENS.keys() - {"<unk>"}, score) for row in logits]
    assert search(logits, torch.tensor([5] * ROWS)) == expected
    assert len(set(expected)) > 3


@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0.1, 10))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_without_weight_it_is_greedy(models, seed, frames, scale):
    search = beam_search(TOKENIZER, Decoding(models[0], weight=0.0, beam=5))
    logits = scale * torch.randn(2, frames, 6, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([frames, (frames + 1) // 2])
    assert search(logits, lengths) == [TOKENIZER.decode(row) for row in greedy(logits, lengths)]


def sure(text, probability=0.9):
    """(T, C) logits of a text, `_` for the blank; the other classes share what is left."""
    ids = [TOKENS["<pad>" if character == "_" else character] for character in text]
    probabilities = torch.full((len(ids), 6), (1 - probability) / 5)
    probabilities[range(len(ids)), ids] = probability
    return probabilities.log()


@pytest.mark.parametrize("frames", ["ab|a", "_aab_|_a|", "|ca||b_", "a_b|ab|", "b", "___", "|_|"])
def test_words_it_is_sure_of_are_as_heard(models, frames):
    logits, length = sure(frames)[None], torch.tensor([len(frames)])
    heard = TOKENIZER.decode(greedy(logits, length)[0])
    assert beam_search(TOKENIZER, Decoding(models[1], weight=0.0, word_score=0.0))(logits, length) == [heard]


def test_a_language_model_mends_what_was_misheard(models):
    logits = sure("cb|a|b")
    logits[1, TOKENS["a"]] = logits[1, TOKENS["b"]] - 0.1  # nearly as likely
    length = torch.tensor([len(logits)])
    assert TOKENIZER.decode(greedy(logits[None], length)[0]) == "cb a b"
    assert beam_search(TOKENIZER, Decoding(models[1]))(logits[None], length) == ["ca a b"]


def test_words_of_another_case_are_written_as_the_tokenizer_does(models):
    upper = CTCTokenizer({token.upper() if len(token) == 1 else token: i for token, i in TOKENS.items()}, case="upper")
    assert beam_search(upper, Decoding(models[1]))(sure("ab|a|b")[None], torch.tensor([6])) == ["AB A B"]


def test_what_is_behind_a_clip_is_not_heard(models):
    logits = torch.stack([sure("ab|a|b"), sure("ca|||c")])
    logits[1, 3:] = torch.nan
    for model in models:
        search = beam_search(TOKENIZER, Decoding(model))
        assert search(logits, torch.tensor([6, 3])) == ["ab a b", "ca"]


def test_a_lexicon_says_what_may_be_written(models, tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("ab\ta b |\nb b |\nQ c a\n")  # "Q" is spelt "ca", and unknown to the model
    search = beam_search(TOKENIZER, Decoding(models[1], str(lexicon)))
    heard = [search(sure(frames)[None], torch.tensor([len(frames)])) for frames in ("ab|b", "a|b", "ca|ab")]
    assert heard == [["ab b"], ["ab"], ["Q ab"]]


def test_a_gzipped_model_is_the_same(models, tmp_path):
    for model in models:
        packed = tmp_path / "model.arpa.gz"
        packed.write_bytes(gzip.compress(Path(model).read_bytes()))
        logits, lengths = torch.randn(4, 10, 6), torch.tensor([10] * 4)
        searches = [beam_search(TOKENIZER, Decoding(str(path))) for path in (model, packed)]
        assert searches[0](logits, lengths) == searches[1](logits, lengths)


def test_defaults_are_those_of_fairseq():
    assert (Decoding().weight, Decoding().word_score, Decoding().beam) == (LM_WEIGHT, WORD_SCORE, BEAM) == (2, -1, 50)


WHOLE = "\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-1 <unk>\n-99 <s> 0\n-1 {word}\n\n"
WHOLE += "\\2-grams:\n-1 <s> {word}\n\n\\end\\\n"
BAD_MODELS = {
    "missing": (None, "model: no such file"),
    "text": (b"a text", "model: neither ARPA text"),
    "random": (bytes(range(256)) * 9, "model: neither ARPA text"),
    "truncated": (WHOLE.format(word="a")[:-20].encode(), "model: KenLM cannot read it"),
    "one field": (WHOLE.format(word="a").replace("-1 a", "-1").encode(), "model: neither ARPA text"),
    "gzip": (gzip.compress(b"\\data\\" * 100)[:-30], "model: neither ARPA text"),
    "binary": (b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(99), "model: KenLM cannot read it"),
    "another alphabet": (WHOLE.format(word="ы").encode(), "model: none of its words can be written"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_model_is_named(case, tmp_path):
    content, message = BAD_MODELS[case]
    path = tmp_path / "model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        beam_search(TOKENIZER, Decoding(str(path)))
    assert "\n" not in str(caught.value)


BAD_LEXICONS = {
    "missing": (None, "lexicon: not a text file"),
    "empty": ("", "lexicon: no words"),
    "not spelt": ("ab a b |\nca\n", "lexicon, line 2: 'ca' should be a word and its characters"),
    "unknown character": ("ab a b |\nd d |\n", "lexicon, line 2: 'd d |' should be"),
    "unknown words": ("aa a a |\nbb b b |\n", "words.arpa: knows none of the words .*: aa, bb"),
}


@pytest.mark.parametrize("case", BAD_LEXICONS)
def test_a_bad_lexicon_is_named(case, models, tmp_path):
    content, message = BAD_LEXICONS[case]
    path = tmp_path / "lexicon"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        beam_search(TOKENIZER, Decoding(models[1], str(path)))


def test_a_search_keeps_a_hypothesis():
    with pytest.raises(InputError, match="lm.beam should be at least 1, not 0"):
        Decoding(beam=0)


def test_a_missing_package_is_named(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(InputError, match=r'--lm.path needs flashlight: pip install -e "\.\[lm\]" in the clone of d2v'):
        beam_search(TOKENIZER, Decoding(models[0]))
