"""Labels of words: of a sentence's windows together, and as CoNLL's columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2v.data.rows import Rows
from d2v.data.windows import group_windows


def join_windows(rows: Rows, predictions: Sequence[tuple[int, list[str]]]) -> list[tuple[int, dict[str, Any]]]:
    """The words of each sentence, `tokens`, and their `labels`, from its windows; under the number of the first window.

    Args:
        rows: windows, from `d2v.data.token_classification.encode_words`.
        predictions: the labels of the words that count in each.
    """
    return [
        (number, {"tokens": windows[0][0]["tokens"], "labels": [label for _, labels in windows for label in labels]})
        for number, windows in group_windows(rows, predictions)
    ]


def write_conll(path: Path, sentences: Sequence[Sequence[str]], *columns: Sequence[Sequence[str]]) -> None:
    """Write a word a line, its labels behind it, and a blank line after each sentence, as conlleval reads it.

    Args:
        path: file to write.
        sentences: words; white space within one becomes an underscore.
        columns: labels of all words; conlleval compares the last two.
    """
    with path.open("w", encoding="utf-8") as file:
        for words, *labels in zip(sentences, *columns, strict=True):
            file.writelines(
                f"{' '.join(('_'.join(word.split()), *rest))}\n" for word, *rest in zip(words, *labels, strict=True)
            )
            file.write("\n")
