"""The demo sets of text: their columns, that splits share no text, and that their labels are what they say."""

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from d2v.demo import docstrings as docs
from d2v.demo import text as demo
from d2v.demo.docstrings import AREAS, Documented, docstrings, paragraphs, sentences, topics
from d2v.demo.text import ask, ask_if, strip_words
from d2v.errors import InputError

SETS = {
    "docs_classification": ["text", "label"],
    "docs_tagging": ["tokens", "tags"],
    "docs_questions": ["id", "title", "context", "question", "answers"],
    "docs_next": ["sent1", "ending0", "ending1", "ending2", "ending3", "label"],
    "docs_text": ["text"],
}
KEYS = {"docs_tagging": "tokens", "docs_questions": "context", "docs_next": "sent1"}


@pytest.fixture(scope="module")
def sets():
    return {name: getattr(demo, name)() for name in SETS}


@pytest.mark.parametrize("name", SETS)
def test_columns_and_sizes(sets, name):
    found = sets[name]
    assert list(found) == ["train", "validation", "test"]
    assert all(split.column_names == SETS[name] for split in found.values())
    assert len(found["train"]) > 1000 and min(len(found["validation"]), len(found["test"])) > 100


@pytest.mark.parametrize("name", SETS)
def test_no_text_is_in_two_splits(sets, name):
    texts = [{str(value) for value in split[KEYS.get(name, "text")]} for split in sets[name].values()]
    assert sum(map(len, texts)) == len(set.union(*texts))


@pytest.mark.parametrize("name", ["docs_classification", "docs_tagging", "docs_text"])
def test_no_row_comes_twice(sets, name):
    for split in sets[name].values():
        assert len({str(value) for value in split[KEYS.get(name, "text")]}) == len(split)


@pytest.mark.slow
def test_the_same_in_every_process():
    # Two new ones: in this one another test may have imported Keras, which rewrites a docstring of Python's own.
    code = "from d2v.demo.text import *; print([s[0] for f in (docs_tagging, docs_next) for s in f().values()])"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and outputs[0].startswith("[{'tokens': [")


def test_labels_are_the_areas(sets):
    train = sets["docs_classification"]["train"]
    assert train.features["label"].names == list(AREAS)
    counts = Counter(train["label"])
    assert set(counts) == set(range(len(AREAS))) and max(counts.values()) < 0.3 * len(train)
    areas = {paragraph: each.area for each in reversed(docstrings()) for paragraph in paragraphs(each.text)}
    assert all(areas[row["text"]] == train.features["label"].int2str(row["label"]) for row in train.select(range(99)))


def test_tags_and_words_make_the_paragraph_again(sets):
    signs = {name: sign for sign, name in reversed(demo.SIGNS.items())}
    plainer = str.maketrans(";?!", ",..", demo.MARKS)
    texts = defaultdict(list)  # a few differ in their signs only
    for paragraph in demo.all_paragraphs():
        texts[re.sub(r"\W", "", paragraph)].append(paragraph.translate(plainer))
    for split in sets["docs_tagging"].values():
        names = split.features["tags"].feature.names
        for row in split:
            tags = [names[tag] for tag in row["tags"]]
            pairs = zip(row["tokens"], tags, strict=True)
            words = [word.capitalize() if tag[0].isupper() else word for word, tag in pairs]
            signed = [word.translate(plainer) + signs[tag.lower()] for word, tag in zip(words, tags, strict=True)]
            candidates = texts[re.sub(r"\W", "", "".join(words))]
            assert any(all(word in text for word in signed) for text in candidates)


def test_a_paragraph_loses_signs_and_capitals():
    paragraph = "Don't call 'x', \"object.__len__()\": it raises an IOError. However, *name* - A (see `f('x')`); ends!"
    assert strip_words(paragraph) == [
        ("don't", "Plain"),
        ("call", "plain"),
        ("x", "comma"),
        ("object.__len__", "colon"),
        ("it", "plain"),
        ("raises", "plain"),
        ("an", "plain"),
        ("IOError", "period"),
        ("however", "Comma"),
        ("name", "plain"),
        ("a", "Plain"),
        ("see", "plain"),
        ("f('x", "comma"),
        ("ends", "period"),
    ]


def test_answers_are_where_they_say(sets):
    kinds = Counter()
    for split in sets["docs_questions"].values():
        assert len(set(split["id"])) == len(split)
        for row in split:
            (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert answer and row["context"][start : start + len(answer)] == answer
            kinds[row["question"].split()[1] + row["question"].split()[-1]] += 1
    assert {"doesdo?", "doesreturn?", "exceptionraise?", "isdefault?"} <= set(kinds)


def test_questions_on_a_function():
    text = "Find a thing in a list.\n\nReturns its place, or raises LookupError. If raw is true, bytes are returned."
    found = ask(Documented("data", "find", {"self": None, "thing": "None", "raw": "False"}, text))
    context = "find(self, thing=None, raw=False). Find a thing in a list. Returns its place, or raises LookupError. "
    assert {row["context"] for row in found} == {context + "If raw is true, bytes are returned."}
    answers = {row["question"]: row["answers"]["text"][0] for row in found}
    answers.pop("What does find do?", None)  # asked of every few functions
    assert answers == {
        "What if raw is true?": "bytes are returned",
        "Which exception does find raise?": "LookupError",
        "What is raw by default?": "False",
        "What does find return?": "Returns its place, or raises LookupError.",
    }


def test_conditions_are_asked_for():
    (row,) = ask_if("Wait. If *timeout* is None, then wait for ever.")
    assert (row["question"], row["answers"]["text"]) == ("What if *timeout* is None?", ["wait for ever"])


def test_the_right_ending_follows_and_the_wrong_ones_open(sets):
    openings, following = set(), {}
    for text in demo.all_docs():
        found = [sentence for paragraph in paragraphs(text) for sentence in sentences(paragraph)]
        openings |= set(found[:1])
        for start, ending in pairwise(found):
            following.setdefault(ending, set()).add(start)
    for split in sets["docs_next"].values():
        for row in split:
            endings = [row[f"ending{i}"] for i in range(4)]
            right = endings.pop(row["label"])
            assert row["sent1"] in following[right] and set(endings) <= openings
    assert min(Counter(sets["docs_next"]["train"]["label"]).values()) > 0.2 * len(sets["docs_next"]["train"])


def test_what_others_add_to_the_library_is_left_out(monkeypatch):
    """Hugging Face's library gives `logging.Logger` methods with docstrings of their own."""
    import logging

    def added(self):
        """A docstring that the standard library has not."""

    before = [name for name, _ in docs.members(logging)]
    monkeypatch.setattr(logging.Logger, "added", added, raising=False)
    assert [name for name, _ in docs.members(logging)] == before


def test_prose_is_told_from_code():
    text = """Do a thing.

    With two
    lines of it here, and on.

    >>> do(1, "This is code.")

    | A table | of two columns |
    Heading of it
    -------------

    * An item that says a thing
      on two lines.
    * Short.
    """
    assert paragraphs(text) == ["With two lines of it here, and on.", "An item that says a thing on two lines."]
    assert sentences("One (a). Two? Three e.g. four. *five* is. Six!") == [
        "One (a).",
        "Two?",
        "Three e.g. four. *five* is.",
        "Six!",
    ]


def test_sources_are_there():
    assert len(topics()) > 70 and len(docstrings()) > docs.FEWEST
    assert len({each.text for each in docstrings()}) == len(docstrings())
    assert not any(re.search(r" at 0x\w+", str(each.parameters)) for each in docstrings())  # would differ by process


def test_stripped_docstrings_are_an_error(monkeypatch):
    monkeypatch.setattr(docs, "AREAS", {"data": "bisect"})
    with pytest.raises(InputError, match="made of Python's docstrings, which are missing here"):
        docstrings.__wrapped__()
