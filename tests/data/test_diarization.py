"""Segments from rows and from RTTM files, and the frames that a model learns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.diarization import (
    check_segments,
    one_word,
    read_rttm,
    read_segments,
    recording_name,
    recording_names,
    segment_classes,
    segment_problem,
    segments_to_frames,
)
from d2v.errors import InputError

SEEDED = settings(derandomize=True, deadline=None, max_examples=100)
SEGMENTS = [{"start": 0.5, "end": 1, "what": "dog  bark"}, {"start": 0.0, "end": 0.7, "what": 3}]


def read(row, key="what", recordings=None):
    return read_segments(row, "audio", "segments", key, recordings)


def test_a_column_of_segments():
    assert read({"segments": SEGMENTS}) == [(0.5, 1, "dog_bark"), (0.0, 0.7, "3")]
    assert read({"segments": SEGMENTS}, key=None) == [(0.5, 1, "speech"), (0.0, 0.7, "speech")]
    assert read({"segments": []}) == []


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (None, "segments is None; should be a list of segments with start, end, what"),
        ({"start": [0.0]}, "segments is {'start': .*; should be a list"),
        ([[0.0, 1.0, "a"]], "a segment has start, end, what"),
        ([{"start": 0.0, "end": 1.0}], "a segment has start, end, what"),
        ([{"start": 0.0, "end": 1.0, "what": ""}], "a segment has"),
        ([{"start": 0.0, "end": None, "what": "a"}], "a segment has"),
    ],
)
def test_what_is_no_list_of_segments(segments, message):
    with pytest.raises(InputError, match=message):
        read({"segments": segments})


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
    rows = [{"segments": SEGMENTS}, {"segments": None}, {"segments": [SEGMENTS[0] | {"what": "cat"}]}]
    assert segment_classes(rows, read) == ["3", "cat", "dog_bark"]
    with pytest.raises(InputError, match="train: has no segment"):
        segment_classes(rows[1:2], read)


def test_segments_of_one_class_may_overlap_but_not_those_of_one_speaker():
    row = {"segments": [{"start": 0.0, "end": 1.0, "what": "a"}, {"start": 0.5, "end": 2.0, "what": "a"}]}
    assert segment_problem(row, 2.0, read, {"a": 0}) is None
    assert segment_problem(row, 2.0, read, {"b": 0}) == "segment 'a' is not one of the classes b"
    assert "two segments of speaker a overlap" in segment_problem(row, 2.0, read)
    assert "the clip ends at 1.5 s" in segment_problem(row, 1.5, read, {"a": 0})
    row["segments"][1]["what"] = "b"
    assert segment_problem(row, 2.0, read) is None and segment_problem(row, 2.0, read, most=2) is None
    assert segment_problem(row, 2.0, read, most=1) == "2 speakers; the model has 1 (arch.num_labels)"
    assert segment_problem({"segments": 5}, 2.0, read).startswith("segments is 5; should be a list")


def test_a_frame_is_labelled_by_its_centre():
    # Centres lie at 0.01, 0.03, 0.05, 0.07 and 0.09 s.
    segments = [(0.0, 0.029, "a"), (0.031, 0.05, "b"), (0.05, 9.0, "a"), (0.071, 0.089, "b")]
    activity = segments_to_frames(segments, ["a", "b"], 5, 0.02)
    assert activity.dtype == np.float32
    # b: 0.031-0.05 holds no centre, since the end does not belong to it; nor does 0.071-0.089.
    assert activity.T.tolist() == [[1, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert segments_to_frames([(-1.0, 0.01, "a"), (0.1, 2.0, "a")], ["a"], 5, 0.02).sum() == 0
    with pytest.raises(InputError, match="speaker is 'c'; should be one of a, b"):
        segments_to_frames([(0.0, 1.0, "c")], ["a", "b"], 5, 0.02)


@given(st.integers(0, 400), st.integers(1, 400))
@SEEDED
def test_against_the_definition(start, length):
    """Boundaries in milliseconds, which may lie on a centre: compared in whole numbers."""
    activity = segments_to_frames([(start / 1000, (start + length) / 1000, "a")], ["a"], 20, 0.02)
    assert activity[:, 0].tolist() == [start <= 20 * t + 10 < start + length for t in range(20)]


@given(st.integers(0, 400), st.integers(1, 400), st.integers(0, 16_000))
@SEEDED
def test_a_part_is_labelled_as_the_whole(start, length, first):
    """A part that begins with the sample `first`: the same as all segments that much earlier."""
    segments, begin = [(start / 1000, (start + length) / 1000, "a")], first / 16_000
    shifted = [(start - begin, end - begin, who) for start, end, who in segments]
    part = segments_to_frames(segments, ["a"], 20, 0.02, begin=begin)
    assert (part == segments_to_frames(shifted, ["a"], 20, 0.02)).all()
    whole = segments_to_frames(segments, ["a"], 80, 0.02)
    assert (segments_to_frames(segments, ["a"], 20, 0.02, begin=0.6) == whole[30:50]).all()


RTTM = """\
;; made by hand
SPKR-INFO rec1 1 <NA> <NA> <NA> unknown anna <NA> <NA>
SPEAKER rec1 1 0.100 0.200 <NA> <NA> anna <NA> <NA>

SPEAKER rec2 1 0 0.5 <NA> <NA> carl <NA>
SPEAKER rec1 1 0.3 0.45 <NA> <NA> anna <NA> <NA>
"""


def test_read_rttm(tmp_path):
    (tmp_path / "a.rttm").write_text(RTTM)
    # 0.1 + 0.2 is more than 0.3 in binary, but these segments do not overlap
    expected = {"rec1": [(0.1, 0.3, "anna"), (0.3, 0.75, "anna")], "rec2": [(0.0, 0.5, "carl")]}
    assert read_rttm(tmp_path / "a.rttm") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SPEAKER rec 1 0.0 1.0 <NA> <NA> a", "should be SPEAKER <recording>"),
        ("SPEKER rec 1 0.0 1.0 <NA> <NA> a <NA> <NA>", "should be SPEAKER <recording>"),
        ("SPEAKER rec 1 -0.1 1.0 <NA> <NA> a <NA> <NA>", r"onset -0\.1, duration 1\.0"),
        ("SPEAKER rec 1 0.0 0.000 <NA> <NA> a <NA> <NA>", r"onset 0\.0, duration 0\.000"),
        ("SPEAKER rec 1 0.0 -2 <NA> <NA> a <NA> <NA>", "duration -2"),
        ("SPEAKER rec 1 zero 1.0 <NA> <NA> a <NA> <NA>", "onset zero"),
        ("SPEAKER rec 1 0.0 nan <NA> <NA> a <NA> <NA>", "duration nan"),
        ("SPEAKER rec 1 inf 1 <NA> <NA> a <NA> <NA>", "onset inf"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "a.rttm").write_text(RTTM + line + "\n")
    with pytest.raises(InputError, match=r"a\.rttm, line 7: .*" + message):
        read_rttm(tmp_path / "a.rttm")


@pytest.mark.parametrize(
    ("segments", "problem"),
    [
        ([], None),
        ([(0.0, 1.0, "a"), (0.5, 2.0, "b"), (1.0, 2.0, "a")], None),  # two speakers may overlap
        ([(1.0, 2.009, "a"), (0.0, 1.009, "a")], None),  # rounded to 10 ms
        ([(-0.1, 1.0, "a")], "from -0.1 to 1.0 s"),
        ([(1.0, 1.0, "a")], "from 1.0 to 1.0 s"),
        ([(1.0, 0.5, "a")], "end after that"),
        ([(float("nan"), 0.5, "a")], "from nan"),
        ([(None, 0.5, "a")], "from None"),
        ([("0", 0.5, "a")], "from 0 to"),
        ([(1.0, 2.5, "a")], "the clip ends at 2 s"),
        ([(1.0, 2.0, "a"), (0.0, 1.1, "a")], "two segments of speaker a overlap at 1 s"),
        ([(0.0, 2.0, "a"), (0.5, 0.6, "a"), (1.0, 1.5, "a")], "overlap at 0.5 s"),
    ],
)
def test_references_that_cannot_be_used(segments, problem):
    found = check_segments(segments, 2.0)
    assert problem in found if problem else found is None
