"""Labels of words: joined over a sentence's windows, and written as CoNLL's columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2v.data.rows import Rows
from d2v.data.windows import group_windows


def join_windows(rows: Rows, predictions: Sequence[tuple[int, list[str]]]) -> list[tuple[int, dict[str, Any]]]:
    """The words of each sentence, `tokens`, and their `labels`, from its windows; numbered by the first window.

    Args:
        rows: windows, from `d2v.data.token_classification.word_windows`.
        predictions: the labels of the words scored in each.
    """
    return [
        (number, {"tokens": windows[0][0]["tokens"], "labels": [label for _, labels in windows for label in labels]})
        for number, windows in group_windows(rows, predictions)
    ]


def write_conll(path: Path, records: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Write one word per line, followed by its labels, and a blank line after each sentence, for conlleval.

    Args:
        path: file to write.
        records: sentences; white space within a word or label becomes an underscore, and words without a reference are
            left out.
        keys: of the words and of the columns of their labels; conlleval compares the last two.
    """
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            for word, *labels in zip(*(record[key] for key in keys), strict=True):
                if None not in labels:
                    file.write(" ".join("_".join(each.split()) for each in (word, *labels)) + "\n")
            file.write("\n")
