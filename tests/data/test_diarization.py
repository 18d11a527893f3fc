"""Segments from rows and from RTTM files."""

import pytest

from d2v.data.diarization import one_word, read_turns, recording_name, recording_names, turn_classes, turn_problem
from d2v.errors import InputError

TURNS = [{"start": 0.5, "end": 1, "what": "dog  bark"}, {"start": 0.0, "end": 0.7, "what": 3}]


def read(row, key="what", recordings=None):
    return read_turns(row, "audio", "turns", key, recordings)


def test_a_column_of_segments():
    assert read({"turns": TURNS}) == [(0.5, 1, "dog_bark"), (0.0, 0.7, "3")]
    assert read({"turns": TURNS}, key=None) == [(0.5, 1, "speech"), (0.0, 0.7, "speech")]
    assert read({"turns": []}) == []


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (None, "turns is None; should be a list of segments with start, end, what"),
        ({"start": [0.0]}, "turns is {'start': .*; should be a list"),
        ([[0.0, 1.0, "a"]], "a segment has start, end, what"),
        ([{"start": 0.0, "end": 1.0}], "a segment has start, end, what"),
        ([{"start": 0.0, "end": 1.0, "what": ""}], "a segment has"),
        ([{"start": 0.0, "end": None, "what": "a"}], "a segment has"),
    ],
)
def test_what_is_no_list_of_segments(turns, message):
    with pytest.raises(InputError, match=message):
        read({"turns": turns})


def test_an_rttm_file_is_looked_up_by_id_or_file():
    recordings = {"rec.1": [(0.0, 1.0, "anna")], "b": []}
    assert read({"id": "rec.1"} | {"audio": None}, recordings=recordings) == [(0.0, 1.0, "anna")]
    assert read({"audio": {"path": "folder/rec.1.WAV"}}, recordings=recordings) == [(0.0, 1.0, "anna")]
    assert read({"audio": "folder/rec.1.flac"}, key=None, recordings=recordings) == [(0.0, 1.0, "speech")]
    with pytest.raises(InputError, match=r"data.rttm has no recording 'c'; it has rec.1, b"):
        read({"audio": "c.wav"}, recordings=recordings)


def test_names_of_recordings():
    assert recording_name("a/b c.flac") == "b_c" and recording_name("EN2002a.Mix-Headset") == "EN2002a.Mix-Headset"
    assert recording_names(["x/1.wav", "y/2.wav"], "test") == ["1", "2"]
    with pytest.raises(InputError, match=r"test: 1.wav and 1.flac are both called 1; names should differ"):
        recording_names(["1.wav", "1.flac"], "test")
    assert one_word(" a\tb ") == "a_b"


def test_classes_are_what_can_be_read():
    rows = [{"turns": TURNS}, {"turns": None}, {"turns": [TURNS[0] | {"what": "cat"}]}]
    assert turn_classes(rows, read) == ["3", "cat", "dog_bark"]
    with pytest.raises(InputError, match="train: has no segment"):
        turn_classes(rows[1:2], read)


def test_two_of_a_class_may_be_heard_at_once_but_no_speaker_twice():
    row = {"turns": [{"start": 0.0, "end": 1.0, "what": "a"}, {"start": 0.5, "end": 2.0, "what": "a"}]}
    assert turn_problem(row, 2.0, read, {"a": 0}) is None
    assert turn_problem(row, 2.0, read, {"b": 0}) == "segment 'a' is not one of the classes b"
    assert "two segments of speaker a overlap" in turn_problem(row, 2.0, read)
    assert "the clip ends at 1.5 s" in turn_problem(row, 1.5, read, {"a": 0})
    row["turns"][1]["what"] = "b"
    assert turn_problem(row, 2.0, read) is None and turn_problem(row, 2.0, read, most=2) is None
    assert turn_problem(row, 2.0, read, most=1) == "2 speakers; the model has 1 (arch.num_labels)"
    assert turn_problem({"turns": 5}, 2.0, read).startswith("turns is 5; should be a list")
