"""Segments, frames and RTTM: hand-worked cases, round trips, what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from d2v.decode.diarization import (
    binarise,
    check_segments,
    frames_to_segments,
    hear_segments,
    median_filter,
    read_rttm,
    segments_to_frames,
    write_rttm,
)
from d2v.errors import InputError

SEEDED = settings(derandomize=True, deadline=None, max_examples=100)
activities = arrays(bool, st.tuples(st.integers(0, 30), st.integers(1, 3)))


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


@given(activities, st.sampled_from([0.02, 0.01, 320 / 16_000, 1 / 3]))
@SEEDED
def test_frames_to_segments_and_back(activity, hop):
    names = ["x", "y", "z"][: activity.shape[1]]
    segments = frames_to_segments(activity, hop, names)
    assert (segments_to_frames(segments, names, len(activity), hop) == activity).all()
    assert segments == sorted(segments) and check_segments(segments, len(activity) * hop) is None
    assert sum(end - start for start, end, _ in segments) == pytest.approx(activity.sum() * hop)
    runs = sum(int(column[0]) + (np.diff(column.astype(int)) == 1).sum() for column in activity.T if len(column))
    assert len(segments) == runs


def test_segments_by_hand():
    activity = np.array([[1, 0], [1, 1], [0, 1], [1, 1]])
    assert frames_to_segments(activity, 0.5, ["a", "b"]) == [(0.0, 1.0, "a"), (0.5, 2.0, "b"), (1.5, 2.0, "a")]


@given(activities, st.sampled_from([1, 3, 5, 11]))
@SEEDED
def test_the_median_is_the_majority(activity, size):
    half = size // 2
    padded = np.pad(activity, ((half, half), (0, 0)))  # nobody speaks outside
    expected = np.array([padded[t : t + size].sum(axis=0) > half for t in range(len(activity))])
    filtered = median_filter(activity, size)
    assert filtered.dtype == bool and (filtered == expected.reshape(activity.shape)).all()
    assert (median_filter(activity.astype(np.float32), size) == filtered).all()


def test_binarise():
    probabilities = np.array([[0.9, 0.4], [0.2, 0.5], [0.9, 0.51], [0.9, 0.9]])
    assert binarise(probabilities, 0.5, 1).tolist() == [[True, False], [False, False], [True, True], [True, True]]
    assert binarise(probabilities, 0.5, 3).T.tolist() == [[False, True, True, True], [False, False, True, True]]
    for size in (0, 2, -1):
        with pytest.raises(InputError, match=f"filter of {size} frames"):
            binarise(probabilities, 0.5, size)


def test_recordings_are_heard_with_one_threshold():
    heard = {"r": np.array([[0.9, 0.1], [0.9, 0.6]]), "s": np.zeros((0, 2))}
    assert hear_segments(heard, ["a", "b"], 0.5, 0.5, 1) == {"r": [(0.0, 1.0, "a"), (0.5, 1.0, "b")], "s": []}


RTTM = """\
;; made by hand
SPKR-INFO rec1 1 <NA> <NA> <NA> unknown anna <NA> <NA>
SPEAKER rec1 1 0.100 0.200 <NA> <NA> anna <NA> <NA>

SPEAKER rec2 1 0 0.5 <NA> <NA> carl <NA>
SPEAKER rec1 1 0.3 0.45 <NA> <NA> anna <NA> <NA>
"""


def test_read_rttm(tmp_path):
    (tmp_path / "a.rttm").write_text(RTTM)
    # 0.1 + 0.2 is more than 0.3 in binary, but these turns do not overlap
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


def test_write_rttm(tmp_path):
    segments = [(2.0, 3.25, "b"), (0.1, 1.3304, "a"), (5.0, 5.0004, "a"), (6.0004, 6.0006, "a")]
    write_rttm(tmp_path / "a.rttm", {"rec": segments, "silent": []})
    assert (tmp_path / "a.rttm").read_text().splitlines() == [
        "SPEAKER rec 1 0.100 1.230 <NA> <NA> a <NA> <NA>",
        "SPEAKER rec 1 2.000 1.250 <NA> <NA> b <NA> <NA>",
        "SPEAKER rec 1 6.000 0.001 <NA> <NA> a <NA> <NA>",
    ]
    for recordings in ({"two words": segments}, {"": segments}, {"rec": [(0.0, 1.0, "Anna B.")]}, {" r": segments}):
        with pytest.raises(InputError, match="should be one word"):
            write_rttm(tmp_path / "b.rttm", recordings)


times = st.tuples(st.floats(0, 5000), st.floats(0.001, 100), st.sampled_from("ab"))


@given(st.dictionaries(st.sampled_from(["r1", "r2"]), st.lists(times, min_size=1)))
@SEEDED
def test_rttm_and_back(tmp_path_factory, recordings):
    path = tmp_path_factory.mktemp("rttm") / "a.rttm"
    recordings = {name: sorted((s, s + d, speaker) for s, d, speaker in rows) for name, rows in recordings.items()}
    recordings = {name: rows for name, rows in recordings.items() if all(e - s > 0.0011 for s, e, _ in rows)}
    write_rttm(path, recordings)
    if not recordings:
        return
    again = read_rttm(path)
    assert again.keys() == recordings.keys()
    for name, rows in recordings.items():
        assert [speaker for *_, speaker in again[name]] == [speaker for *_, speaker in rows]
        np.testing.assert_allclose([r[:2] for r in again[name]], [r[:2] for r in rows], atol=0.00051)


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
