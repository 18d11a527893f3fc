"""Questions in windows: answers are found again character by character; files and rows that cannot be used."""

import json
from itertools import pairwise

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.config import Data
from d2v.data.question_answering import (
    QuestionData,
    answer_tokens,
    as_lists,
    check_questions,
    question_rows,
    question_windows,
    read_questions,
    text_tokens,
)
from d2v.data.rows import Split
from d2v.errors import InputError
from d2v.processors.text import Tokenizer
from tests.helpers import make_job, make_split

SEEDED = settings(derandomize=True, deadline=None, max_examples=200)
WORDS = ["cat", "  ", "naïve", "🦄", "e\u0301", "\u200d", "ﬁ", "東京", "\n", "it's", "(a)", "½", "\t"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat, the unbelievable cat"] * 3, 300)


def cut(tokenizer, context, question="what?", max_length=24, stride=4):
    split = make_split("test", question=[question], context=[context])
    return question_windows(make_job(QuestionData(stride=stride)), split, tokenizer, max_length)[0]


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=15).map(" ".join), st.data())
@SEEDED
def test_an_answer_is_found_again(tokenizer, context, data):
    """Whatever the characters: in each window that has all of it, by the fewest tokens that hold it."""
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start : data.draw(st.integers(start + 1, len(context)))]
    if not text.strip():
        return
    windows = cut(tokenizer, "x " + context)
    found = 0
    for window in windows:
        first, last = answer_tokens(window, text, start + 2)
        offsets = window["offsets"]
        held = text_tokens(window)
        assert held.sum() == (offsets[:, 0] < offsets[:, 1]).sum()
        if (first, last) == (0, 0):
            continue
        found += 1
        assert window["first"] <= first <= last < len(window["ids"]) - 1 and held[first] and held[last]
        begin, end = offsets[first - window["first"], 0], offsets[last - window["first"], 1]
        covered, wanted = ("x " + context)[begin:end], text.strip()
        assert wanted in covered
        # No token more than is needed: without its first or last one a part of the answer would be missing.
        begins = start + 2 + len(text) - len(text.lstrip())
        assert offsets[first - window["first"], 1] > begins and offsets[last - window["first"], 0] < begins + len(
            wanted
        )
    longest = max(len(window["offsets"]) for window in windows)
    if len(tokenizer([text])[0].ids) <= 4 and longest > 10:  # shorter than what windows share
        assert found


def test_by_hand(tokenizer):
    context = "the 🦄 cat sat"
    (window,) = cut(tokenizer, context, question="  what?\n")
    ids = window["ids"].tolist()
    assert ids == tokenizer(["what?"], [context])[0].ids  # white space around the question is gone
    for text in ("the", "🦄", "cat", "the 🦄 cat sat", " cat "):
        first, last = answer_tokens(window, text, context.index(text))
        assert tokenizer.decode(ids[first : last + 1]).strip() == text.strip()
    assert answer_tokens(window, "sat.", 10) == (0, 0)  # goes on behind the window


def test_windows_hold_every_token_and_share_some(tokenizer):
    context = "the unbelievable cat sat on the mat, " * 5
    windows = cut(tokenizer, context)
    whole = tokenizer([context])[0].offsets[1:-1]
    assert len(windows) > 3 and all(len(window["ids"]) <= 24 for window in windows)
    assert {tuple(pair) for window in windows for pair in window["offsets"].tolist()} == set(whole)
    for one, following in pairwise(windows):
        assert one["offsets"][-4:].tolist() == following["offsets"][:4].tolist()


def test_rows_keep_their_windows(tokenizer):
    contexts = ["cat", "the cat sat on the mat " * 4, "mat"]
    split = make_split("test", question=["a", "b", "c"], context=contexts)
    windows, _ = question_windows(make_job(QuestionData(stride=2)), split, tokenizer, 20)
    sources = [window["source"] for window in windows]
    assert sources == sorted(sources) and sources.count(0) == sources.count(2) == 1 and sources.count(1) >= 2
    assert all(window["context"] == contexts[window["source"]] for window in windows)


def test_windows_of_train_know_the_answer(tokenizer):
    right = [{"text": ["cat", "sat"], "answer_start": [4, 8]}, {"text": [], "answer_start": []}]
    columns = {"question": ["who?", "why?"], "context": ["the cat sat on the mat " * 4] * 2, "answers": right}
    job = make_job(QuestionData(stride=2))
    rows = question_rows(job, make_split(**columns), tokenizer, 20)
    assert rows.references == [["cat", "sat"] if window["source"] == 0 else [] for window in rows.items]
    first, *others = (window["answer"] for window in rows.items)
    assert tokenizer.decode(rows.items[0]["ids"][first[0] : first[1] + 1]).strip() == "cat"  # the first of the two
    assert len(others) > 3 and set(others) == {(0, 0)}
    # Those of other splits know it too, for their loss, unless the answers do not say where they are.
    others = question_rows(job, make_split("validation", **columns), tokenizer, 20)
    assert [window["answer"] for window in others.items] == [window["answer"] for window in rows.items]
    columns["answers"] = [{"text": ["cat"], "answer_start": [5]}, {"text": ["cat"]}]
    others = question_rows(job, make_split("validation", **columns), tokenizer, 20)
    assert {window["answer"] for window in others.items} == {(-100, -100)}
    del columns["answers"]
    rows = question_rows(make_job(QuestionData(stride=2), "predict"), make_split("test", **columns), tokenizer, 20)
    assert rows.references is None and {"question", "context"} < rows[0].keys()


def test_a_question_without_room(tokenizer):
    questions = ["who?", "the cat sat on the mat " * 3]
    split = make_split("test", question=questions, context=["the cat sat " * 20] * 2).select([1, 0])
    with pytest.raises(InputError, match=r"test, row 1: the text that .* \(data.max_length, data.stride\) \(--data"):
        question_rows(make_job(QuestionData(stride=4), "predict"), split, tokenizer, 24)
    job = make_job(QuestionData(stride=4, bad_rows="skip"), "predict")
    rows = question_rows(job, split, tokenizer, 24)
    assert set(rows.ids) == {"0"} and {rows[i]["source"] for i in range(len(rows))} == {0}
    assert "1 of 2 rows left out; the first is test, row 1" in job.facts[0]["line"]


OFFICIAL = {
    "version": "v2.0",
    "data": [
        {
            "title": "Cats",
            "paragraphs": [
                {
                    "context": "A cat sat.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "Who?",
                            "is_impossible": False,
                            "answers": [{"text": "cat", "answer_start": 2}, {"text": "A cat", "answer_start": 0}],
                        },
                        {
                            "id": "2",
                            "question": "Why?",
                            "is_impossible": True,
                            "answers": [],
                            "plausible_answers": [{"text": "sat", "answer_start": 6}],
                        },
                    ],
                }
            ],
        }
    ],
}
FLAT = [
    {"id": "1", "title": "Cats", "context": "A cat sat.", "question": "Who?"}
    | {"answers": {"text": ["cat", "A cat"], "answer_start": [2, 0]}},
    {"id": "2", "title": "Cats", "context": "A cat sat.", "question": "Why?"}
    | {"answers": {"text": [], "answer_start": []}},
]


def test_all_layouts_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        (tmp_path / "a" / name).write_text(json.dumps(OFFICIAL), "utf-8")
    splits = read_questions(Data(path=str(tmp_path / "a")))
    assert set(splits) == {"train-v2.0", "dev-v2.0"} and splits["train-v2.0"].to_list() == FLAT
    (tmp_path / "flat.json").write_text(json.dumps({"data": FLAT}), "utf-8")  # as Hugging Face's scripts take it
    assert read_questions(Data(path=str(tmp_path / "flat.json")))["train"].to_list() == FLAT
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in FLAT), "utf-8")
    assert read_questions(Data(path=str(tmp_path / "lines.json")))["train"].to_list() == FLAT
    (tmp_path / "p").mkdir()
    datasets.Dataset.from_list(FLAT).to_parquet(tmp_path / "p/test.parquet")
    assert read_questions(Data(path=str(tmp_path / "p")))["test"].to_list() == FLAT


def test_questions_without_labels_have_no_answers(tmp_path):
    article = {"paragraphs": [{"context": "A cat.", "qas": [{"id": "1", "question": "Who?"}]}]}
    (tmp_path / "test.json").write_text(json.dumps({"data": [article]}), "utf-8")
    split = read_questions(Data(path=str(tmp_path / "test.json")))["test"]
    assert split.column_names == ["id", "title", "context", "question"]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.json").write_text('{"data": [{"paragraphs": [{"qas": [{"id": "1"}]}]}]}', "utf-8")
    with pytest.raises(InputError, match="a.json: should be data\\[\\].paragraphs\\[\\].qas\\[\\].*context"):
        read_questions(Data(path=str(tmp_path / "a.json")))
    (tmp_path / "b.json").write_bytes('{"data": "caf\xe9"}'.encode("latin-1"))
    with pytest.raises(InputError, match="b.json: not UTF-8"):
        read_questions(Data(path=str(tmp_path / "b.json")))


def check(split: str, rows: datasets.Dataset, **options) -> dict[str, Split]:
    job = make_job(QuestionData(**options))
    return check_questions(job, {split: Split(split, rows, np.arange(len(rows)), ((split, len(rows)),))})


NONE: dict[str, list] = {"text": [], "answer_start": []}
GOOD = {"question": "Who?", "context": "A cat sat.", "answers": {"text": ["cat"], "answer_start": [2]}}
BAD = {
    "no question": ({"question": " "}, "the question is ' '; should be text"),
    "no context": ({"context": None}, "the context is None; should be text"),
    "no list of answers": ({"answers": None}, "no answer"),
    "no place": ({"answers": {"text": ["cat"]}}, "should be lists 'text' and 'answer_start' of one length"),
    "places are too few": ({"answers": {"text": ["cat"], "answer_start": []}}, "of one length"),
    "no answer": ({"answers": {"text": [], "answer_start": []}}, "no answer; --data.unanswerable true is for"),
    "an empty answer": (
        {"answers": {"text": [""], "answer_start": [-1]}},
        "no answer; --data.unanswerable true is for",
    ),
    "an empty one of two": ({"answers": {"text": ["cat", ""], "answer_start": [2, 0]}}, "the answer '' should be text"),
    "elsewhere": (
        {"answers": {"text": ["cat"], "answer_start": [3]}},
        "the answer 'cat' should begin at character 3 of its context, where 'at ' is",
    ),
    "before": ({"answers": {"text": ["cat"], "answer_start": [-8]}}, "character -8 of its context, where None is"),
}


def test_places_may_be_written_as_text():
    written = {"text": ["cat"], "answer_start": [" 2"]}
    assert as_lists({"text": ["cat"], "answer_start": [2.0]}) == GOOD["answers"]
    assert as_lists({"text": [""], "answer_start": [-1]}) == as_lists({"text": "", "answer_start": None}) == NONE
    assert as_lists(written) == as_lists({"text": "cat", "answer_start": "2"}) == GOOD["answers"]
    assert len(check("train", datasets.Dataset.from_list([GOOD | {"answers": written}]))["train"]) == 1


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(case):
    changes, message = BAD[case]
    features = {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int32"))}
    features = {"answers": features} | {name: datasets.Value("string") for name in ("question", "context")}
    rows = datasets.Dataset.from_list([GOOD, GOOD | changes], features=datasets.Features(features))
    message = message if case not in ("no list of answers", "no place") else "answers are .*; should be lists"
    with pytest.raises(InputError, match=f"train, row 1: .*{message}"):
        check("train", rows)


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["cat"], "answer_start": [2]},
        [{"text": "cat", "answer_start": 2}],
        {"text": "cat", "answer_start": 2},
    ],
)
def test_answers_as_data_have_them(answers):
    assert as_lists(answers) == GOOD["answers"]
    rows = datasets.Dataset.from_list([GOOD | {"answers": answers}])
    assert len(check("train", rows)["train"]) == 1


def test_bad_rows_are_left_out():
    rows = datasets.Dataset.from_list([GOOD | {"question": ""}, GOOD, GOOD | {"context": "A dog."}])
    kept = check("train", rows, bad_rows="skip")["train"]
    assert kept.column("question") == ["Who?"] and kept.where(0) == "train, row 1"


def test_what_is_scored_needs_no_places():
    for answers in ({"text": ["cat"]}, {"text": ["dog"], "answer_start": [77]}):
        rows = datasets.Dataset.from_list([GOOD | {"answers": answers}])
        check("test", rows)
    empty = datasets.Dataset.from_list([GOOD, GOOD | {"answers": {"text": [], "answer_start": []}}])
    check("train", empty, unanswerable=True)


def test_ids_differ():
    rows = datasets.Dataset.from_list([GOOD | {"id": "7"}] * 2)
    with pytest.raises(InputError, match="test: two questions have the id '7'; ids should differ"):
        check("test", rows)
    check("train", rows)
