"""Segments from rows and from RTTM files, and the frames that a model learns."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.diarization import (
    SegmentData,
    check_segments,
    frame_head,
    frame_labels,
    one_word,
    parse_segments,
    read_segments,
    recording_name,
    recording_names,
    segment_problem,
    segment_rows,
    segments_of,
    segments_to_frames,
    settle_segments,
)
from d2v.data.frame_classes import matched_segments, segment_classes
from d2v.data.rows import Split
from d2v.data.rttm import read_rttm
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from tests.helpers import make_job, make_split
from tests.tiny import flac

SEEDED = settings(derandomize=True, deadline=None, max_examples=100)
SEGMENTS = [{"start": 0.5, "end": 1, "what": "dog  bark"}, {"start": 0.0, "end": 0.7, "what": 3}]


def read(value, key="what"):
    return parse_segments(value, "segments", key)


def test_a_column_of_segments():
    assert read(SEGMENTS) == [(0.5, 1, "dog_bark"), (0.0, 0.7, "3")]
    assert read(SEGMENTS, key=None) == [(0.5, 1, "speech"), (0.0, 0.7, "speech")]
    assert read([]) == []
    assert read([{"start": "0.5", "end": "1", "what": "a"}]) == [(0.5, 1.0, "a")]  # numbers as text
    assert read([{"start": "now", "end": 1, "what": "a"}]) == [("now", 1, "a")]  # which `check_segments` names


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (None, "segments is None; should be a list of segments with start, end, what"),
        ({"start": 0.0}, "segments is {'start': .*; should be a list"),
        ({"start": [0.0]}, "a segment has start, end, what"),
        ({"start": [0.0], "end": [1.0, 2.0]}, "segments is {'start': .*; should be a list"),
        ([[0.0, 1.0, "a"]], "a segment has start, end, what"),
        ([{"start": 0.0, "end": 1.0}], "a segment has start, end, what"),
        ([{"start": 0.0, "end": 1.0, "what": ""}], "a segment has"),
        ([{"start": 0.0, "end": None, "what": "a"}], "a segment has"),
    ],
)
def test_what_is_no_list_of_segments(segments, message):
    assert re.search(message, read(segments))


def test_segments_as_datasets_stores_them():
    """Its `Sequence` of dictionaries is a dictionary of lists, and a `ClassLabel` in either has names."""
    import datasets

    assert read({"start": [0.5, 0.0], "end": [1, 0.7], "what": ["dog  bark", 3]}) == read(SEGMENTS)
    keys = {"start": datasets.Value("float64"), "end": datasets.Value("float64")}
    keys |= {"what": datasets.ClassLabel(names=["dog", "cat"])}
    rows = [[{"start": 0.0, "end": 1.0, "what": 1}, {"start": 2.0, "end": 3.0, "what": 0}]]
    for kind in (datasets.List(keys), datasets.Sequence(keys)):
        values = rows if isinstance(kind, datasets.List) else [{"start": [0.0, 2.0], "end": [1.0, 3.0], "what": [1, 0]}]
        table = datasets.Dataset.from_dict({"turns": values}, features=datasets.Features({"turns": kind}))
        split = Split("train", table, np.arange(1), (("train", 1),))
        segments = read_segments(make_job(SegmentData(label_key="what")), {"train": split})
        assert segments == {"train": [[(0.0, 1.0, "cat"), (2.0, 3.0, "dog")]]}
    assert "there are 2 names" in parse_segments([rows[0][0] | {"what": 2}], "turns", "what", ["dog", "cat"])


def test_two_files_of_one_recording_are_named(tmp_path):
    for name, end in (("ref", 2), ("hyp", 3)):
        (tmp_path / f"{name}.rttm").write_text(f"SPEAKER a 1 0 {end} <NA> <NA> {name} <NA> <NA>\n")
    job = make_job(SegmentData(rttm=str(tmp_path)))
    (segments,) = read_segments(job, {"train": make_split(audio=["a.wav"])})["train"]
    assert len(segments) == 2
    (fact,) = job.facts
    assert "1 recordings have segments in several files, which are added together; the first is a, in" in fact["line"]


def test_an_rttm_file_is_looked_up_by_id_or_file():
    recordings = {"rec.1": {Path("x"): [(0.0, 1.0, "anna")]}, "b": {Path("x"): []}}
    assert segments_of(recordings, "rec.1", None, "speaker") == [(0.0, 1.0, "anna")]
    assert segments_of(recordings, "folder/rec.1.WAV", "folder/rec.1.WAV", "speaker") == [(0.0, 1.0, "anna")]
    assert segments_of(recordings, "folder/rec.1.flac", None, None) == [(0.0, 1.0, "speech")]
    assert segments_of(recordings, "c.wav", None, None) == "data.rttm has no recording 'c'; it has rec.1, b, ..."


def test_segments_are_read_split_by_split(tmp_path):
    one, two = ([{"start": 0.0, "end": end, "speaker": "anna"}] for end in (1.0, 2.0))
    audio = [{"bytes": b"", "path": f"x/{name}.wav"} for name in ("one", "two", "gone")]
    splits = {"train": make_split(audio=audio, turns=[one, two, None]).select([2, 1])}
    splits["test"] = make_split("test", id=["two.wav"], audio=audio[:1], turns=[one])
    wrong = "turns is None; should be a list of segments with start, end, speaker"
    job = make_job(SegmentData())
    assert read_segments(job, splits) == {"train": [wrong, [(0.0, 2.0, "anna")]], "test": [[(0.0, 1.0, "anna")]]}
    (tmp_path / "a.rttm").write_text("SPEAKER one 1 0 1 <NA> <NA> carl <NA>\nSPEAKER two 1 0 3 <NA> <NA> carl <NA>\n")
    job = make_job(SegmentData(rttm=str(tmp_path / "a.rttm")))
    assert read_segments(job, splits) == {"train": [[], [(0.0, 3.0, "carl")]], "test": [[(0.0, 3.0, "carl")]]}
    line, other = [fact["line"] for fact in job.facts]
    assert other.endswith("the first is two, of x/two.wav and x/one.wav")
    assert line.startswith(f"train: 1 of 2 recordings have no line in {tmp_path / 'a.rttm'} and count as silence")
    assert line.endswith("; the first is train, row 2: gone; names there that are of no sound: 1, such as one")
    (tmp_path / "a.rttm").write_text("SPEAKER other 1 0 1 <NA> <NA> carl <NA>\n")
    assert read_segments(job, splits)["train"][1] == "data.rttm has no recording 'two'; it has other, ..."
    assert read_segments(make_job(SegmentData(), mode="predict"), splits) == {}


def test_names_of_recordings():
    assert recording_name("a/b c.flac") == "b_c" and recording_name("EN2002a.Mix-Headset") == "EN2002a.Mix-Headset"
    assert recording_names(["x/1.wav", "y/2.wav"], "test") == ["1", "2"]
    with pytest.raises(InputError, match=r"test: 1.wav and 1.flac are both called 1; names should differ"):
        recording_names(["1.wav", "1.flac"], "test")
    assert one_word(" a\tb ") == "a_b"


def test_classes_are_what_can_be_read():
    recordings = [read(SEGMENTS), read(None), read([SEGMENTS[0] | {"what": "cat"}])]
    assert segment_classes(recordings) == ["3", "cat", "dog_bark"]
    assert frame_head(recordings) == {"frame_loss": "cross_entropy", "id2label": {0: "3", 1: "cat", 2: "dog_bark"}}
    assert frame_head() == {"frame_loss": "pit_bce"}
    with pytest.raises(InputError, match="train: has no segment; data.segments_column, data.label_key and data.rttm"):
        segment_classes(recordings[1:2])


def test_segments_of_one_class_may_overlap_but_not_those_of_one_speaker():
    segments = [(0.0, 1.0, "a"), (0.5, 2.0, "a")]
    assert segment_problem(segments, 2.0, {"a": 0}) is None
    assert segment_problem(segments, 2.0, {"b": 0}) == "segment 'a' is not one of the classes b (see data.match)"
    assert "two segments of speaker a overlap" in segment_problem(segments, 2.0)
    assert "the clip ends at 1.5 s" in segment_problem(segments, 1.5, {"a": 0})
    segments[1] = (0.5, 2.0, "b")
    assert segment_problem(segments, 2.0) is None and segment_problem(segments, 2.0, most=2) is None
    assert segment_problem(segments, 2.0, most=1) == "2 speakers; the model has 1 (arch.num_labels)"
    assert segment_problem(read(5), 2.0).startswith("segments is 5; should be a list")


@pytest.mark.parametrize(
    ("match", "labels", "renamed"),
    [
        ("name", ["dog", "cat"], ["dog", "cat"]),
        ("number", ["1", "0"], ["cat", "dog"]),
        ("order", ["b", "a"], ["cat", "dog"]),  # in the order of the alphabet
    ],
)
def test_labels_of_segments_are_a_model_s_classes_by_name_number_or_order(match, labels, renamed):
    job = make_job(SegmentData(match=match), "evaluate")
    segments = {"test": [[(0.0, 1.0, labels[0]), (1.0, 2.0, labels[1])], "not readable"]}
    found = matched_segments(job, segments, ["dog", "cat"])
    assert found == {"test": [[(0.0, 1.0, renamed[0]), (1.0, 2.0, renamed[1])], "not readable"]}
    assert len(job.facts) == (match != "name")
    silent = {"test": [[], []]}
    assert matched_segments(job, silent, ["dog", "cat"]) == silent


@pytest.mark.parametrize("loss", ["pit_bce", "cross_entropy"])
def test_the_labels_of_parts_of_recordings(loss):
    """Frames of 20 ms; the second part begins a second later and is shorter by ten frames."""
    config = Data2VecAudioConfig(frame_loss=loss, id2label={0: "x", 1: "y", 2: "z"})
    reference = [(1.0, 1.5, "x"), (0.0, 0.5, "z")]  # z speaks first
    rows, lengths = [{"reference": reference}] * 2, [16_000, 12_800]
    labels = frame_labels(rows, lengths, [0, 16_000], config, 16_000)  # (2, 49, 3)
    assert labels.shape == (2, 49, 3) and labels.dtype == torch.float32
    x, z = (1, 0) if loss == "pit_bce" else (0, 2)  # in the order in which they speak, or of the classes
    assert labels[0, :, z].tolist() == [1] * 25 + [0] * 24 and labels[0].sum() == 25
    assert labels[1, :39, x].tolist() == [1] * 25 + [0] * 14 and labels[1, :39].sum() == 25
    assert (labels[1, 39:] == -100).all()
    if loss == "pit_bce":  # a recording of validation with a speaker more than the model has can be scored, but no loss
        more = [{"reference": [(0.0, 0.5, name) for name in "abcd"]}, rows[1]]
        ignored, kept = frame_labels(more, lengths, [0, 16_000], config, 16_000)
        assert (ignored == -100).all() and torch.equal(kept, labels[1])


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


@pytest.mark.parametrize(
    ("segments", "settled", "done"),
    [
        ([(0.0, 1.0, "a"), (0.5, 2.0, "b")], None, {}),
        ([(0.0, 2.02, "a")], [(0.0, 2.0, "a")], {"segments cut at the recording's end": 1}),
        ([(0.0, 2.009, "a"), (0.5, 0.509, "b")], None, {}),  # rounded to 10 ms
        ([(0.0, 1.0, "a"), (0.4, 1.5, "a")], [(0.0, 1.5, "a")], {"overlapping segments of one speaker merged": 1}),
        (
            [(1.0, 1.2, "a"), (0.0, 1.1, "a"), (0.5, 0.6, "a"), (0.2, 1.9, "b"), (1.15, 2.5, "a")],
            [(0.0, 2.0, "a"), (0.2, 1.9, "b")],
            {"overlapping segments of one speaker merged": 3, "segments cut at the recording's end": 1},
        ),
        ([(1.0, 2.0, "a"), (0.0, 1.0, "a")], None, {}),  # they touch
        ([(0.5, 0.5, "a"), (0.0, 1.0, "a")], [(0.0, 1.0, "a")], {"segments without a length left out": 1}),
        ([], None, {}),
        ([(2.5, 3.0, "a")], None, {}),  # these are named as they are
        ([(0.0, None, "a")], None, {}),
        ([(-1.0, 1.0, "a")], None, {}),
        ([(0.0, float("inf"), "a")], None, {}),
        ("what is wrong", None, {}),
    ],
)
def test_segments_are_cut_and_merged_and_counted(segments, settled, done):
    found = settle_segments(segments, 2.0, None, merge=True)
    assert found == (segments if settled is None else settled, done)
    if settled is not None:
        assert check_segments(found[0], 2.0) is None


def test_segments_of_a_part_begin_with_it():
    segments = [(0.0, 1.0, "a"), (10.5, 11.0, "a"), (9.0, 10.2, "b"), (11.5, 14.0, "b"), (12.0, 13.0, "a")]
    settled = [(0.5, 1.0, "a"), (0.0, 0.2, "b"), (1.5, 2.0, "b")]
    assert settle_segments(segments, 2.0, (10.0, 12.0), merge=True) == (settled, {})
    wrong = [(11.0, 10.5, "a"), (10.5, 11.0, "b")]  # ends before it begins: named, and not left out
    assert "should begin at 0" in check_segments(settle_segments(wrong, 2.0, (10.0, 12.0), merge=True)[0], 2.0)
    settled = settle_segments([(11.0, 11.0, "a")], 2.0, (10.0, 12.0), merge=True)
    assert settled == ([], {"segments without a length left out": 1})


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60), st.sampled_from("ab")), max_size=8),
    st.integers(1, 250),
)
@SEEDED
def test_settled_segments_speak_in_the_same_frames(segments, hundredths):
    seconds = hundredths / 100
    segments = [(start / 100, (start + length) / 100, who) for start, length, who in segments if start < hundredths]
    settled, _ = settle_segments(segments, seconds, None, merge=True)
    frames = [segments_to_frames(each, ["a", "b"], hundredths, 0.01) for each in (segments, settled)]
    assert check_segments(settled, seconds) is None and np.array_equal(*frames)


@pytest.mark.parametrize("loss", ["pit_bce", "cross_entropy"])
def test_rows_of_segments_say_what_was_done(loss, capsys):
    config = Data2VecAudioConfig(frame_loss=loss, id2label={0: "x", 1: "y"})
    clip = flac(np.zeros(32_000, np.float32))
    split = make_split("train", audio=[{"bytes": clip, "path": f"{i}.wav"} for i in range(4)])
    segments = [[(0.0, 2.02, "x")], [], [(0.0, 1.5, "x"), (1.0, 2.0, "x"), (0.0, 2.5, "y")], [(0.0, 1.0, "y")]]
    job = make_job(SegmentData())
    rows = segment_rows(job, {"train": split}, 16_000, config, {"train": segments})["train"]
    said = {fact["fact"]: (fact["count"], fact["rows"]) for fact in job.facts}
    assert said["segments cut at the recording's end"] == (2, 2) and rows.references[0] == [(0.0, 2.0, "x")]
    assert ("overlapping segments of one speaker merged" in said) == (loss == "pit_bce")
    line = "train: segments cut at the recording's end, 2 in 2 of 4 rows; the first in train, row 0"
    assert line in capsys.readouterr().out.splitlines()


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


# files, who they say speaks -> whom each sound has
NEAR = [
    ({"train/all": "A", "dev/all": "B"}, {"train/m.wav": "A", "dev/m.wav": "B"}),
    ({"rttm/train/m": "A", "rttm/dev/m": "B"}, {"wav/train/m.wav": "A", "wav/dev/m.wav": "B"}),
    ({"all": "A", "dev/all": "B"}, {"train/m.wav": "A", "dev/m.wav": "B"}),
    ({"all": "A"}, {"x/m.wav": "A", "y/m.wav": "A"}),
    ({"one/m": "A", "two/m": "B"}, {"wav/m.wav": None}),
]


@pytest.mark.parametrize(("files", "expected"), NEAR)
def test_an_rttm_file_is_first_of_the_sounds_near_it(files, expected, tmp_path):
    for name, speaker in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.rttm").write_text(f"SPEAKER m 1 0 1 <NA> <NA> {speaker} <NA> <NA>\n")
    for name in [*expected, "README.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    job = make_job(SegmentData(path=str(tmp_path)))
    segments = read_segments(job, {"train": make_split(audio=[str(tmp_path / name) for name in expected])})["train"]
    for found, speaker in zip(segments, expected.values(), strict=True):
        if speaker is None:
            assert "has 'm' in" in found and "neither is nearer" in found
        else:
            assert found == [(0.0, 1.0, speaker)]
    twice = len(set(expected.values())) < len(expected)
    assert [fact["fact"] for fact in job.facts] == ["recordings of one name"] * twice


@pytest.mark.parametrize(("channel", "said"), [(None, "AB"), (1, "A"), (2, "B")])
def test_segments_of_other_channels_do_not_count(channel, said, tmp_path):
    lines = [f"SPEAKER call {i} 0 1 <NA> <NA> {speaker} <NA> <NA>\n" for i, speaker in ((1, "A"), (2, "B"))]
    (tmp_path / "a.rttm").write_text("".join(lines))
    job = make_job(SegmentData(rttm=str(tmp_path / "a.rttm"), channel=channel))
    (segments,) = read_segments(job, {"train": make_split(audio=["call.wav"])})["train"]
    assert "".join(speaker for *_, speaker in segments) == said
    assert [fact["line"].partition(": ")[2] for fact in job.facts] == (
        ["1 segments of other channels passed over"] if channel else []
    )
    (tmp_path / "a.rttm").write_text(lines[0])  # of what has one channel all lines say 1, whatever was recorded
    assert read_segments(job, {"train": make_split(audio=["call.wav"])})["train"] == [[(0.0, 1.0, "A")]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rttm_as_others_write_it(encoding, tmp_path):
    """With a mark of byte order, eight fields, other types of lines, and segments of no length."""
    lines = ["# made by hand", "speaker a 1 0.0 1.0 <NA> <NA> ann", "SPEAKER a 1 0.5 0.00 <NA> <NA> bob <NA> <NA>"]
    lines += [
        "NOSCORE a 1 3 1 <NA> <NA> <NA> <NA>",
        "LEXEME a 1 3 1 hello lex ann <NA>",
        "SEGMENT c 1 0 9 <NA> eval <NA>",
    ]
    (tmp_path / "a.rttm").write_text("\r\n".join(lines), encoding)
    job = make_job()
    assert read_rttm(tmp_path / "a.rttm", job) == {"a": [(0.0, 1.0, "ann")], "c": []}
    assert [fact["line"].partition(": ")[2] for fact in job.facts] == [
        "1 segments without a length passed over",
        "1 lines of type NOSCORE passed over",
        "1 lines of type LEXEME passed over",
        "1 lines of type SEGMENT passed over",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SPEAKER rec 1 0.0 1.0 <NA> a", "should be SPEAKER <recording>"),
        ("SPEKER rec 1 0.0 1.0 <NA> <NA> a <NA> <NA>", "should be SPEAKER <recording>"),
        ("SPEAKER rec 1 -0.1 1.0 <NA> <NA> a <NA> <NA>", r"onset -0\.1, duration 1\.0"),
        ("SPEAKER rec 1 0.0 -2 <NA> <NA> a <NA> <NA>", "duration -2"),
        ("SPEAKER rec 1 zero 1.0 <NA> <NA> a <NA> <NA>", "onset zero"),
        ("SPEAKER rec 1 0.0 nan <NA> <NA> a <NA> <NA>", "duration nan"),
        ("SPEAKER rec 1 inf 1 <NA> <NA> a <NA> <NA>", "onset inf"),
        ("SPEAKER rec 1 0 1 <NA> <NA> Bob Smith <NA> <NA>", "it has 11 fields, and names have no blanks"),
        ("SPEAKER talk 0 1 0.1 1.0 <NA> <NA> ann <NA> <NA>", "it has 11 fields"),
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
