"""Labels of words: of all windows of a sentence, and as CoNLL's columns."""

from d2v.data.windows import window_rows
from d2v.decode.token_classification import join_windows, write_conll
from tests.helpers import make_split


def test_a_sentence_has_the_labels_of_all_its_windows():
    sentences = [["a", "b", "c"], ["d"]]
    windows = [{"source": source, "tokens": sentences[source], "ids": [0]} for source in (0, 0, 1)]
    rows = window_rows(make_split(tokens=sentences), windows)
    joined = join_windows(rows, [(0, ["X", "Y"]), (1, ["Z"]), (2, ["X"])])
    assert joined == [
        (0, {"tokens": ["a", "b", "c"], "labels": ["X", "Y", "Z"]}),
        (2, {"tokens": ["d"], "labels": ["X"]}),
    ]


def test_columns(tmp_path):
    records = [{"tokens": ["EU", "New\u00a0York"], "reference": ["B-ORG", "O"], "labels": ["O", "O"]}]
    records += [{"tokens": [".", "?"], "reference": ["O", None], "labels": ["O", "O"]}]  # the last does not count
    write_conll(tmp_path / "out", records, ["tokens", "reference", "labels"])
    assert (tmp_path / "out").read_text("utf-8") == "EU B-ORG O\nNew_York O O\n\n. O O\n\n"
