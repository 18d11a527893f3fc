"""Texts that may be longer than the model: several windows of a row, whose predictions become one again."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from d2v.data.rows import Rows, Split


def window_rows(split: Split, windows: list[dict[str, Any]], references: Sequence[Any] | None = None) -> Rows:
    """Windows as rows, each with the id and the reference of the row that it is a window of.

    Args:
        split: the rows that were cut.
        windows: `ids` (T,) and `source`, the number of the row in `split`, in order.
        references: of each row of `split`; None without labels.
    """
    ids, sources = split.ids(), [window["source"] for window in windows]
    return Rows(
        split=split,
        ids=[ids[source] for source in sources],
        lengths=[len(window["ids"]) for window in windows],
        references=None if references is None else [references[source] for source in sources],
        items=windows,
    )


def group_windows(
    rows: Rows, predictions: Sequence[tuple[int, Any]]
) -> Iterator[tuple[int, list[tuple[dict[str, Any], Any]]]]:
    """The windows of each row of the split together, each with its prediction; the first one's number stands for them.

    Args:
        rows: from `window_rows`.
        predictions: of windows, from `d2v.training.prediction.predict`.
    """
    windows = rows.items or ()
    for _, pairs in groupby(predictions, key=lambda pair: windows[pair[0]]["source"]):
        numbers, values = zip(*pairs, strict=True)
        yield numbers[0], [(windows[number], value) for number, value in zip(numbers, values, strict=True)]
