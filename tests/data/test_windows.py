"""Windows of rows: each is called as its row is, and the predictions of a row's windows come together again."""

from d2v.data.windows import group_windows, window_rows
from tests.helpers import make_split

WINDOWS = [{"source": source, "ids": [0] * length} for source, length in ((0, 3), (1, 4), (1, 2), (2, 5))]


def test_windows_have_the_id_and_the_reference_of_their_row():
    rows = window_rows(make_split(id=["a", "b", "c"]), WINDOWS, ["x", "y", "z"])
    assert (rows.ids, rows.references, rows.lengths) == (["a", "b", "b", "c"], ["x", "y", "y", "z"], [3, 4, 2, 5])
    assert rows[2] == WINDOWS[2] | {"reference": "y"}
    rows = window_rows(make_split(text=["a", "b", "c"]).select([2, 0, 1]), WINDOWS)
    assert rows.ids == ["2", "0", "0", "1"] and rows[1] == WINDOWS[1]


def test_the_first_window_stands_for_its_row():
    rows = window_rows(make_split(id=["a", "b", "c"]), WINDOWS, ["x", "y", "z"])
    grouped = list(group_windows(rows, list(enumerate("pqrs"))))
    assert [number for number, _ in grouped] == [0, 1, 3]
    assert grouped[1][1] == [(WINDOWS[1], "q"), (WINDOWS[2], "r")]
    joined = [(number, "".join(value for _, value in windows)) for number, windows in grouped]
    assert rows.compare(joined) == (["x", "y", "z"], ["p", "qr", "s"])
    # A row that is missing is missing whole.
    assert [number for number, _ in group_windows(rows, [(0, "p"), (3, "s")])] == [0, 3]
