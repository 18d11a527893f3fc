"""Rows of multiple choice: SWAG's columns, lists of any length, and what cannot be used."""

import json

import pytest

from d2v.data.multiple_choice import ChoiceData, choice_rows, every_text, read_choices, read_exams
from d2v.errors import InputError
from d2v.processors.text import Tokenizer
from tests.helpers import make_job, make_split

SWAG = {"sent1": "It rains.", "sent2": "We", "ending0": "stay in.", "ending1": "swim.", "label": 1}
COLUMNS = {"prompt": "sent1", "start": "sent2", "choices": ["ending0", "ending1"], "label": "label"}
ARC = {"prompt": "q", "start": None, "choices": ["c"], "label": "k"}
LISTS = {"prompt": "question", "start": None, "choices": ["answers"], "label": "answer"}


def read(rows, columns, mode="train", **options):
    """The texts and labels of a split with these rows."""
    names = {"choice_columns" if use == "choices" else f"{use}_column": column for use, column in columns.items()}
    split = make_split(**{name: [row[name] for row in rows] for name in rows[0]})
    _, texts, labels = read_choices(make_job(ChoiceData(**names, **options), mode), {"train": split})
    return texts["train"], labels.get("train")


def test_swag():
    texts, labels = read([SWAG], COLUMNS)
    assert texts == [{"prompt": "It rains.", "choices": ["We stay in.", "We swim."]}] and labels == [1]
    assert list(every_text(texts)) == ["It rains.", "We stay in.", "We swim."]


def test_lists_of_any_length_and_numbers_as_text():
    rows = [{"question": "A?", "answers": ["b", "c", "d"], "answer": "2"}]
    rows.append({"question": "E?", "answers": ["f", "g"], "answer": "0"})
    texts, labels = read(rows, LISTS)
    assert [len(row["choices"]) for row in texts] == [3, 2] and labels == [2, 0]


def test_endings_that_begin_with_themselves():
    """Half of HellaSwag's rows have a blank `ctx_b`."""
    texts, _ = read([SWAG | {"sent2": ""}, SWAG | {"sent2": " "}], COLUMNS)
    assert [row["choices"] for row in texts] == [["stay in.", "swim."]] * 2


def test_the_question_of_a_long_article_is_kept(tmp_path):
    """RACE's authors give an article several questions; where it is too long it is the article that is cut."""
    exam = {"article": "The cat sat on a mat. " * 50, "questions": ["Who sat?", "Where?"]}
    exam |= {"options": [["cat", "dog"], ["mat", "bed"]], "answers": ["A", "A"]}
    (tmp_path / "train").mkdir()
    (tmp_path / "train/1.txt").write_text(json.dumps(exam), "utf-8")
    for start in ("sent2", None):
        data = ChoiceData(path=str(tmp_path), choice_columns=["options"], start_column=start)
        split = make_split(**read_exams(data)["train"].to_dict())
        _, texts, _ = read_choices(make_job(data), {"train": split})
        assert [row["choices"] for row in texts["train"]] == [
            ["Who sat? cat", "Who sat? dog"],
            ["Where? mat", "Where? bed"],
        ]
        tokenizer = Tokenizer.train(["The cat sat on a mat. Who sat? Where? dog bed"], 280)
        rows = choice_rows(make_job(data), split, texts["train"], [0, 0], tokenizer, 64)
        ends = [tokenizer.decode(rows[i]["ids"][0]) for i in range(2)]
        assert ends[0].endswith("Who sat? cat") and ends[1].endswith("Where? mat")


RIGHT = {
    "RACE": ({"q": "A?", "c": ["b", "d"], "k": "B"}, ["c"]),
    "small letter": ({"q": "A?", "c": ["one", "two"], "k": "b"}, ["c"]),
    "a number as text": ({"q": "A?", "c": ["one", "two"], "k": "1"}, ["c"]),
    "a number, of choices that are texts": ({"q": "A?", "c": ["1", "2"], "k": 1}, ["c"]),
    "ARC": ({"q": "A?", "c": {"text": ["b", "d"], "label": ["A", "B"]}, "k": "B"}, ["c"]),
    "ARC, numbers from 1": ({"q": "A?", "c": {"text": ["b", "d"], "label": ["1", "2"]}, "k": "2"}, ["c"]),
    "one field named": ({"q": "A?", "c": {"text": ["b", "d"], "label": ["A", "B"]}, "k": "B"}, ["c.text"]),
    "both fields named": ({"q": "A?", "c": {"text": ["b", "d"], "label": ["A", "B"]}, "k": "B"}, ["c.text", "c.label"]),
    "objects": ({"q": "A?", "c": [{"text": "b", "label": "X"}, {"text": "d", "label": "Y"}], "k": "Y"}, ["c"]),
    "a float, as pandas makes it": ({"q": "A?", "c": ["b", "d"], "k": 1.0}, ["c"]),
    "such a float as text": ({"q": "A?", "c": ["b", "d"], "k": "1.0"}, ["c"]),
    "the choice itself": ({"q": "A?", "c": ["bee", "dee"], "k": "dee"}, ["c"]),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_says_the_right_choice(case):
    row, choices = RIGHT[case]
    columns = {"prompt": "q", "start": None, "choices": choices, "label": "k"}
    assert read([row], columns)[1] == [1] and len(read([row], columns)[0][0]["choices"]) == 2


def test_what_a_label_is_the_column_says():
    """A number was always taken for a choice's number, in a column of choices too."""
    columns = {"prompt": "q", "start": None, "choices": ["c"], "label": "k"}
    numbers = [{"q": "?", "c": ["1", "0", "two"], "k": number} for number in ("0", "1", "2")]
    assert read(numbers, columns)[1] == [0, 1, 2]  # "2" is no choice of its row, so all are numbers
    texts = [{"q": "?", "c": ["Rome", "Oslo"], "k": "Oslo"}, {"q": "?", "c": ["1", "0"], "k": "0"}]
    with pytest.raises(InputError, match=r"row 1: k is '0', which is choice 0 and choice 1, by its text and by"):
        read([*texts, {"q": "?", "c": ["x", "y"], "k": "A"}], columns)
    assert read(texts, columns)[1] == [1, 1]
    for label in ("B", "A"):
        with pytest.raises(InputError, match=f"k is '{label}', which is choice 0 and choice 1"):
            read([{"q": "?", "c": ["B", "A"], "k": label}], columns)


def test_bad_rows_are_left_out():
    rows = [SWAG | {"label": 7}, SWAG, SWAG | {"ending0": None}]
    texts, labels = read(rows, COLUMNS, bad_rows="skip")
    assert labels == [1] and texts == [{"prompt": "It rains.", "choices": ["We stay in.", "We swim."]}]


def test_without_labels():
    texts, labels = read([{name: value for name, value in SWAG.items() if name != "label"}], COLUMNS, "predict")
    assert set(texts[0]) == {"prompt", "choices"} and labels is None


BAD = {
    "no column": (SWAG, COLUMNS | {"choices": ["ending0", "ending9"]}, "train: no column 'ending9'"),
    "too large": (SWAG | {"label": 2}, COLUMNS, r"train, row 0: label is 2; should be the number of a choice, 0 to 1"),
    "negative": (SWAG | {"label": -1}, COLUMNS, "label is -1"),
    "a letter too far": (
        SWAG | {"label": "C"},
        COLUMNS,
        "label is 'C'; should be the number of a choice, 0 to 1, or a",
    ),
    "a share": (SWAG | {"label": 0.5}, COLUMNS, "label is 0.5"),
    "no name": (
        {"q": "A?", "c": {"text": ["b", "d"], "label": ["1", "2"]}, "k": "0"},
        ARC,
        "k is .0.; should be the number of a choice, 1, 2",
    ),
    "none": (SWAG | {"label": None}, COLUMNS, "label is None"),
    "empty choice": (SWAG | {"ending1": " "}, COLUMNS, "train, row 0: choice 1 is ' '; should be text"),
    "no prompt": (SWAG | {"sent1": None}, COLUMNS, "sent1 is None; should be text"),
    "one column": (SWAG, COLUMNS | {"choices": ["ending0"]}, "ending0 is 'stay in.'; should be a list"),
    "one choice": ({"question": "A?", "answers": ["b"], "answer": 0}, LISTS, "answers has 1 choices"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows(case):
    row, columns, message = BAD[case]
    with pytest.raises(InputError, match=message):
        read([row], columns)


def test_tokens(capsys):
    tokenizer, split = Tokenizer.train(["It rains. We stay in."], 280), make_split(id=["a", "b"])
    texts = [
        {"prompt": "It rains.", "choices": ["We stay in.", "We", "in."]},
        {"prompt": "It", "choices": ["in", "We"]},
    ]
    rows = choice_rows(make_job(ChoiceData()), split, texts, [2, 0], tokenizer, 64)
    assert [len(row["ids"]) for row in rows.items] == [3, 2] and rows[0]["choices"] == texts[0]["choices"]
    assert (rows.ids, rows.references) == (["a", "b"], [2, 0])
    assert tokenizer.decode(rows[0]["ids"][2], skip_special_tokens=False) == "<s>It rains.</s></s>in.</s>"
    assert rows.lengths == [len(row["ids"]) * max(map(len, row["ids"])) for row in rows.items]
    assert capsys.readouterr().out == ""
    longer = sum(len(ids) > 12 for row in rows.items for ids in row["ids"])
    rows = choice_rows(make_job(ChoiceData()), split, texts, None, tokenizer, 12)
    assert max(len(ids) for ids in rows[0]["ids"]) == 12 and rows.references is None
    assert capsys.readouterr().out == f"train: {longer} of 5 texts cut to 12 tokens\n"
