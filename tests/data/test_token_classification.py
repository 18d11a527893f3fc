"""Words as tokens: none is lost, none counts twice, also where a sentence is longer than the model."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.conll import sentences
from d2v.data.token_classification import (
    TokenData,
    as_words,
    cut_words,
    firsts,
    inside_classes,
    piece_labels,
    read_tags,
    tagged_rows,
    word_windows,
)
from d2v.errors import InputError
from d2v.losses import IGNORE
from d2v.processors.text import Tokenizer
from tests.helpers import make_job, make_split

HASHES = {
    "It PRP B-NP\n# # B-NP\n1.5 CD I-NP\n": ["It", "#", "1.5"],
    "# # B-NP\n1.5 CD I-NP\n": ["#", "1.5"],
    "# sent_id = 1\n# newdoc id\nIt PRP B-NP\n": ["It"],
    "# newdoc\nIt O\n# B-NP\n": ["It", "#"],
    "It\n# text\n#\n": ["It", "#"],
}


@pytest.mark.parametrize("text", HASHES)
def test_a_hash_is_a_word_where_it_has_the_columns_of_one(text, tmp_path):
    (tmp_path / "a.conll").write_text(text)
    assert [words for words, _ in sentences(tmp_path / "a.conll")] == [HASHES[text]]


@pytest.mark.parametrize("name", ["a.conll", "a.conllu"])
def test_words_may_have_any_sign_but_a_space(name, tmp_path):
    words = ["10\u00a0000", "a\u2028b", "c\x85d", "e\x0bf"]
    lines = [f"{i}\t{word}\t_\tNUM\r\n" if name.endswith("u") else f"{word} B-X\n" for i, word in enumerate(words, 1)]
    (tmp_path / name).write_text("".join(lines), "utf-8", newline="")
    assert [found for found, _ in sentences(tmp_path / name)] == [words]


def test_words_may_have_blanks_where_tabs_are_between_columns(tmp_path):
    (tmp_path / "a.conll").write_text("New York\tB-LOC\nis\tO\n\n10 000\tO\n", "utf-8")
    assert list(sentences(tmp_path / "a.conll")) == [(["New York", "is"], ["B-LOC", "O"]), (["10 000"], ["O"])]
    (tmp_path / "b.conll").write_text("New\tNNP B-LOC\nis\tVB O\n", "utf-8")  # of either
    assert list(sentences(tmp_path / "b.conll")) == [(["New", "is"], ["B-LOC", "O"])]


SEEDED = settings(derandomize=True, deadline=None, max_examples=200)
WORDS = ["the", "unbelievable", "cat", "—", "naïve", "🦄🦄", "x", "\u200d", "don't", "<mask>"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat, the unbelievable cat"] * 3, 300, add_prefix_space=True)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 20), st.integers(0, 30))
@SEEDED
def test_every_word_counts_once_and_fits(pieces, room, stride):
    windows = list(cut_words(pieces, room, stride))
    assert [word for *_, first, last in windows for word in range(first, last)] == list(range(len(pieces)))
    cut = np.minimum(pieces, room)
    for begin, end, first, last in windows:
        assert begin <= first < last <= end and cut[begin:end].sum() <= room
    for (begin, end, *_), (following, *_) in pairwise(windows):
        assert begin < following <= end and cut[following:end].sum() <= stride


def test_words_count_in_the_middle():
    """Ten words of one token, windows of six that share four: each counts where it has more around it."""
    assert list(cut_words([1] * 10, 6, 4)) == [(0, 6, 0, 4), (2, 8, 4, 6), (4, 10, 6, 10)]
    assert list(cut_words([1, 1], 6, 4)) == [(0, 2, 0, 2)]
    assert list(cut_words([1, 9, 1], 3, 0)) == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]  # one longer than a window


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(3, 30))
@SEEDED
def test_sentences_in_windows(tokenizer, sentences, max_length):
    windows = word_windows(make_job(TokenData(stride=4)), make_split(), sentences, tokenizer, max_length)
    for row, sentence in enumerate(sentences):
        own = [window for window in windows if window["source"] == row]
        counted = [int(word) for window in own for word in window["words"][firsts(window["words"])]]
        assert counted == list(range(len(sentence)))
    for window in windows:
        ids, words = window["ids"].tolist(), window["words"]
        assert len(ids) == len(words) <= max_length and window["tokens"] == sentences[window["source"]]
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) and words[0] == words[-1] == -1
        # A word's tokens are those it has by itself, after a space; all of them, unless it is longer than the window.
        for word in set(words.tolist()) - {-1}:
            alone = tokenizer([" " + sentences[window["source"]][word]])[0].ids[1:-1][: max_length - 2]
            assert [i for i, owner in zip(ids, words, strict=True) if owner == word] == alone


def test_without_truncation_it_is_the_encoding(tokenizer):
    (window,) = word_windows(make_job(TokenData(stride=4)), make_split(), [["the", "cat"]], tokenizer, 20)
    assert window["ids"].tolist() == tokenizer(["the cat"])[0].ids


def test_labels_of_pieces():
    words = np.array([-1, 0, 1, 1, 2, 2, 2, -1])
    numbers = {"O": 0, "B-A": 1, "I-A": 2, "B-X": 3}  # there is no I-X
    labels = np.array([0, 1, 3])
    first = [IGNORE, 0, 1, IGNORE, 3, IGNORE, IGNORE, IGNORE]
    assert firsts(words).tolist() == [False, True, True, False, True, False, False, False]
    assert piece_labels(words, labels, None).tolist() == first
    assert inside_classes(numbers).tolist() == [0, 2, 2, 3]
    assert piece_labels(words, labels, inside_classes(numbers)).tolist() == [IGNORE, 0, 1, 2, 3, 3, 3, IGNORE]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (None, "train, row 1: tokens is None; should be a list of words"),
        ([], r"train, row 1: tokens is \[\]; should be a list of words"),
        (["a", " "], "train, row 1: tokens has ' ' as word 1; should be text"),
        (["a", None], "train, row 1: tokens has None as word 1; should be text"),
    ],
)
def test_what_are_no_words(words, message):
    with pytest.raises(InputError, match=message):
        tagged_rows(make_job(TokenData()), {"train": make_split(tokens=[["a"], words], tags=[["A"], ["B"]])})


def test_text_has_its_words_between_spaces():
    _, sentences, _, _ = tagged_rows(make_job(TokenData(), "predict"), {"test": make_split("test", tokens=["[1] b"])})
    assert sentences["test"] == [["[1]", "b"]]
    rows = {"train": make_split(tokens=["a  b", "['c']"], tags=["A B", "B"])}
    _, sentences, _, tags = tagged_rows(make_job(TokenData()), rows)
    assert sentences["train"] == [["a", "b"], ["c"]] and tags["train"] == [["A", "B"], ["B"]]
    with pytest.raises(InputError, match="train, row 0: 3 words in tokens, 2 labels in tags; should be as many"):
        tagged_rows(make_job(TokenData()), {"train": make_split(tokens=["a b c", "d"], tags=["A B", "B"])})
    cut = "['a' ... 'z']"  # as NumPy writes long arrays
    with pytest.raises(InputError, match=r"train, row 0: tokens is .* should be a list of words"):
        tagged_rows(make_job(TokenData()), {"train": make_split(tokens=[cut], tags=["A B C"])})


def checkpoint(folder, *names):
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    return str(folder)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["A"], "test, row 1: 2 words in tokens, 1 labels in tags; should be as many"),
        (["A", "C"], "test, row 1: tags 'C' is not one of the classes A, B"),
        (None, "test, row 1: tags is None; should be a list of labels"),
    ],
)
def test_what_are_no_tags(tags, message, tmp_path):
    split = make_split("test", tokens=[["a"], ["a", "b"]], tags=[["B"], tags])
    model = checkpoint(tmp_path, "A", "B")
    with pytest.raises(InputError, match=message):
        tagged_rows(make_job(TokenData(), "evaluate", model=model), {"test": split})
    job = make_job(TokenData(bad_rows="skip"), "evaluate", model=model)
    kept, sentences, _, named = tagged_rows(job, {"test": split})
    assert (len(kept["test"]), sentences["test"], named["test"]) == (1, [["a"]], [["B"]])
    assert job.facts[0]["fact"] == "rows left out" and job.facts[0]["rows"] == 1


def test_classes_are_those_of_train(tmp_path):
    words = {"tokens": [["a", "b"], ["c"]]}
    splits = {"train": make_split(**words, tags=[["B", "A"], ["A"]]), "test": make_split("test", tags=[["C"]])}
    labels, tags = read_tags(make_job(TokenData()), splits)
    assert labels.names == ["A", "B"] and tags == {"train": [["B", "A"], ["A"]], "test": [["C"]]}
    with pytest.raises(InputError, match="train: tags has 1 classes: A; should have two or more"):
        read_tags(make_job(TokenData()), {"train": make_split(tags=[["A"]])})
    model = checkpoint(tmp_path, "B", "A")
    for mode, expected in (("evaluate", {"test": [["A"]]}), ("predict", {})):
        labels, tags = read_tags(make_job(TokenData(), mode, model=model), {"test": make_split("test", tags=[["A"]])})
        assert (labels.names, tags) == (["B", "A"], expected)
    # training on keeps the model's order where the names are the same
    assert read_tags(make_job(TokenData(), model=model), {"train": splits["train"]})[0].names == ["B", "A"]


@pytest.mark.parametrize("nothing", [-100, -1, None])
def test_words_without_a_label_are_neither_a_class_nor_a_problem(nothing):
    split = make_split(tokens=[["a", "b", "c"]], tags=[[1, nothing, 0]])
    _, _, labels, tags = tagged_rows(make_job(TokenData()), {"train": split})
    assert labels.names == ["0", "1"] and tags == {"train": [["1", None, "0"]]}
    words, numbers = np.array([-1, 0, 0, 1, 2, -1]), np.array([1, IGNORE, 0])
    assert piece_labels(words, numbers, None).tolist() == [IGNORE, 1, IGNORE, IGNORE, 0, IGNORE]
    assert piece_labels(words, numbers, np.array([0, 1])).tolist() == [IGNORE, 1, 1, IGNORE, 0, IGNORE]


def test_a_type_is_not_needed_to_go_on():
    assert inside_classes({"O": 0, "B": 1, "I": 2}).tolist() == [0, 2, 2]
    assert inside_classes({"B_X": 0, "I_X": 1, "Brand": 2}).tolist() == [1, 1, 2]


def test_no_room(tokenizer):
    with pytest.raises(InputError, match="data.max_length is 2; should be at least 3"):
        word_windows(make_job(TokenData(stride=0)), make_split(), [["a"]], tokenizer, 2)


def test_files_of_ten_columns_are_universal_by_any_name(tmp_path):
    """The words of CoNLL-X, and of CoNLL-U called `.conll`, are in the second column."""
    line = "{0}\t{1}\t{1}\t{2}\t_\t_\t2\tnsubj\t_\tSpaceAfter=No"
    text = "\n".join(["# text = Dogs bark", line.format(1, "Dogs", "NOUN"), line.format(2, "bark", "VERB"), "", ""])
    for name in ("a.conll", "a.conllu"):
        (tmp_path / name).write_text(text)
        assert list(sentences(tmp_path / name)) == [(["Dogs", "bark"], ["NOUN", "VERB"])]


def test_a_bracket_is_a_word():
    job = make_job(TokenData())
    assert as_words("[ John ] went home", job) == ["[", "John", "]", "went", "home"]
    assert as_words("['a' 'b' ... 'c']", job) == "['a' 'b' ... 'c']"
