"""Rows of multiple choice: SWAG's columns, lists of any length, and what cannot be used."""

import datasets
import pytest

from d2v.data.multiple_choice import encode_choices, read_choices
from d2v.errors import InputError
from d2v.processors.text import Tokenizer

SWAG = {"sent1": "It rains.", "sent2": "We", "ending0": "stay in.", "ending1": "swim.", "label": 1}
COLUMNS = {"prompt": "sent1", "start": "sent2", "choices": ["ending0", "ending1"], "label": "label"}
LISTS = {"prompt": "question", "start": None, "choices": ["answers"], "label": "answer"}


def table(*rows):
    return datasets.Dataset.from_list(list(rows))


def test_swag():
    (row,) = read_choices(table(SWAG), "train", **COLUMNS)
    assert row == {"prompt": "It rains.", "choices": ["We stay in.", "We swim."], "label": 1}


def test_lists_of_any_length_and_numbers_as_text():
    rows = [{"question": "A?", "answers": ["b", "c", "d"], "answer": "2"}]
    rows.append({"question": "E?", "answers": ["f", "g"], "answer": "0"})
    found = read_choices(table(*rows), "train", **LISTS)
    assert [len(row["choices"]) for row in found] == [3, 2] and [row["label"] for row in found] == [2, 0]


def test_without_labels():
    (row,) = read_choices(table(SWAG).remove_columns("label"), "test", **COLUMNS | {"label": None})
    assert set(row) == {"prompt", "choices"}


BAD = {
    "no column": (SWAG, COLUMNS | {"choices": ["ending0", "ending9"]}, "train: no column 'ending9'"),
    "too large": (SWAG | {"label": 2}, COLUMNS, r"train, row 0: label is 2; should be the number of a choice, 0 to 1"),
    "negative": (SWAG | {"label": -1}, COLUMNS, "label is -1"),
    "a letter": (SWAG | {"label": "A"}, COLUMNS, "label is 'A'"),
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
        read_choices(table(row), "train", **columns)


def test_tokens(capsys):
    tokenizer = Tokenizer.train(["It rains. We stay in."], 280)
    rows = [{"prompt": "It rains.", "choices": ["We stay in.", "We", "in."]}, {"prompt": "It", "choices": ["in", "We"]}]
    found, lengths = encode_choices(rows, tokenizer, "train", 64)
    assert [len(row["ids"]) for row in found] == [3, 2] and found[0]["choices"] == rows[0]["choices"]
    assert tokenizer.decode(found[0]["ids"][2], skip_special_tokens=False) == "<s>It rains.</s></s>in.</s>"
    assert lengths == [len(row["ids"]) * max(map(len, row["ids"])) for row in found]
    assert capsys.readouterr().out == ""
    found, _ = encode_choices(rows, tokenizer, "train", 12)
    assert max(len(ids) for ids in found[0]["ids"]) == 12
    assert "train: " in capsys.readouterr().out
