"""Columns that say which part of a recording a row means: that part is heard, and nothing else."""

import json

import numpy as np
import pytest
import soundfile

from d2v.data.audio import AudioData, clip_batch, clip_rows
from d2v.data.parts import part_name, seconds_of
from d2v.errors import InputError
from d2v.processors.audio import AudioFeatureExtractor
from tests.helpers import make_job, make_split
from tests.tiny import flac

RATE = 16_000
STAIRS = np.repeat(np.arange(1, 11, dtype=np.float32) / 20, RATE // 10)  # 1 s, another value each tenth


def rows_of(name="train", clips=None, bad_rows="refuse", rate=RATE, data=None, **columns):
    """The rows of a split whose sounds are STAIRS, and the job that has its facts."""
    count = len(next(iter(columns.values())))
    audio = [{"bytes": flac(clip, rate), "path": "a.wav"} for clip in clips or [STAIRS] * count]
    job = make_job(AudioData(bad_rows=bad_rows, **(data or {})))
    split = make_split(name, audio=audio, **columns)
    return clip_rows(job, {name: split}, RATE, 400, {}, problem=lambda *_: None)[name], job


def heard(rows, i=0, **options):
    """The tenths of STAIRS that a row's batch holds."""
    extractor = AudioFeatureExtractor(do_normalize=False)
    _, batch = clip_batch([rows[i] | {"row": i}], extractor, AudioData(**options))
    values = batch["input_values"][0].numpy()
    return sorted(set((values * 20).round().astype(int).tolist())), len(values)


LAYOUTS = {
    "start and end": {"start": 0.2, "end": 0.5},
    "start_time and end_time": {"start_time": 0.2, "end_time": 0.5},
    "begin_time and end_time": {"begin_time": 0.2, "end_time": 0.5},
    "offset and duration": {"offset": 0.2, "duration": 0.3},
    "onset and offset": {"onset": 0.2, "offset": 0.5, "duration": 0.3},
    "onset and duration": {"onset": 0.2, "duration": 0.3},
    "segment_start, segment_end": {"segment_start": 0.2, "segment_end": 0.5},
    "units": {"start_s": 0.2, "end_s": 0.5},
    "units in words": {"Begin Time (s)": 0.2, "End Time (s)": 0.5},
    "camels": {"startTime": 0.2, "endTime": 0.5},
    "milliseconds": {"start_ms": 200, "end_ms": 500},
    "samples": {"start_sample": 3200, "end_sample": 8000},
    "text, as CSV has it": {"start": "0.2", "end": "0.50", "duration": "1"},
    "clock": {"start": "0:00:00.2", "end": "00:00,5"},
    "praat": {"tmin": 0.2, "tmax": 0.5},
    "from and to": {"from": 0.2, "to": 0.5},
    "t0 and t1": {"t0": 0.2, "t1": 0.5},
    "start_offset and end_offset": {"start_offset": 0.2, "end_offset": 0.5},
    "interval_start and length": {"interval_start": 0.2, "length": 0.3},
    "decimal commas": {"start": "0,2", "end": "0,5"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_that_part_is_heard(layout, split):
    rows, job = rows_of(split, **{name: [value] for name, value in LAYOUTS[layout].items()})
    assert heard(rows) == ([3, 4, 5], 4800)
    assert rows.lengths == pytest.approx([0.3]) and rows.ids == ["a.wav#t=0.2,0.5"]
    (fact,) = json.loads((job.out / "data.json").read_text("utf-8"))["facts"]
    assert (fact["fact"], fact["rows"], fact["split"]) == ("parts of recordings", 1, split)


def test_each_row_has_its_own_part():
    columns = {"start": [None, 0.9, 0.0, 0.4, None], "end": [0.1, None, 1.0, 0.5, None]}
    rows, _ = rows_of(**columns)
    assert [heard(rows, i)[0] for i in range(5)] == [[1], [10], list(range(1, 11)), [5], list(range(1, 11))]
    assert rows.ids == ["a.wav#t=0.0,0.1", "a.wav#t=0.9,1.0", "a.wav", "a.wav#t=0.4,0.5", "a.wav"]
    assert rows.lengths == pytest.approx([0.1, 0.1, 1, 0.1, 1])


def test_ids_of_parts_differ():
    """The id that a user gave stays as it is; one of the recording, which several rows have, gets the part."""
    times = {"start": [0.1, 0.3], "end": [0.2, 0.4]}
    assert rows_of(id=["x", "y"], **times)[0].ids == ["x", "y"]
    assert rows_of(id=["rec", "rec"], **times)[0].ids == ["rec#t=0.1,0.2", "rec#t=0.3,0.4"]


def test_one_time_alone():
    assert heard(rows_of(offset=[0.8])[0])[0] == [9, 10]
    rows, job = rows_of(end=[0.8])  # may be anything
    assert heard(rows)[1] == RATE and "recordings are heard whole, whatever end may say" in job.facts[0]["line"]
    rows, job = rows_of(duration=[0.1])
    assert heard(rows)[1] == RATE
    assert "duration says less than the recording lasts in 1 of 1 rows" in job.facts[0]["line"]
    assert heard(rows_of(duration=[0.1], data={"duration_column": "duration"})[0])[0] == [1]
    assert heard(rows_of(end=[0.3], data={"end_column": "end"})[0])[0] == [1, 2, 3]
    assert not rows_of(duration=[1.0])[1].facts


def test_columns_by_option():
    times = {"start": [0.1], "in": [0.5], "out": [0.7]}
    assert heard(rows_of(**times, data={"start_column": "in", "end_column": "out"})[0])[0] == [6, 7]
    rows, job = rows_of(**times, data={"start_column": None})
    assert heard(rows)[1] == RATE and not job.facts
    with pytest.raises(InputError, match="columns start, start_time; --data.start_column says which"):
        rows_of(start=[0.1], start_time=[0.2], end=[0.5])
    with pytest.raises(InputError, match=r"no column 'began' \(data.start_column\); there are audio, start"):
        rows_of(start=[0.1], end=[0.5], data={"start_column": "began"})


def test_what_is_no_time_is_not_used(capsys):
    for values in ([["a", "b"]], ["soon"], [[0.1, 0.2]]):
        rows, _ = rows_of(start=values, end=values)
        assert heard(rows)[1] == RATE
        assert "heard whole, whatever start, end may say" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.5, 0.5, "a part from 0.5 to 0.5 s; should begin at 0 or later, and end after that"),
        (-0.1, 0.5, "a part from -0.1 to 0.5 s; should begin"),
        (0.5, 1.3, "a part from 0.5 to 1.3 s; the recording ends at 1 s"),
        (200.0, 500.0, "start and end: a part from 200 to 500 s; the recording ends at 1 s"),
        (0.5, 0.51, "0.010 s of sound; a clip has 0.025"),
        (0.5, float("inf"), "a part from 0.5 to inf s"),
    ],
)
def test_parts_that_are_not_there(start, end, message):
    with pytest.raises(InputError, match=f"^train, row 1: .*{message}"):
        rows_of(start=[0.1, start], end=[0.2, end])
    rows, _ = rows_of(start=[0.1, start], end=[0.2, end], bad_rows="skip")
    assert rows.ids == ["a.wav#t=0.1,0.2"]


def test_a_word_among_times_is_a_bad_row():
    with pytest.raises(InputError, match="row 1: start is 'x', end is '0.3'; should be seconds"):
        rows_of(start=["0.1", "x"], end=["0.2", "0.3"])


def test_rounded_ends_are_cut_at_the_recordings():
    rows, _ = rows_of(start=[0.8], end=[1.04])
    assert heard(rows)[0] == [9, 10] and rows.lengths == pytest.approx([0.2])


def test_clips_that_are_the_part_already_are_heard_whole():
    """As data sets of the hub have them: the times say where a clip was cut from."""
    rows, job = rows_of(begin_time=[0.0, 12.3, 40.0], end_time=[1.0, 13.31, 41.0])
    assert [heard(rows, i)[1] for i in range(3)] == [RATE] * 3 and rows.ids == ["a.wav"] * 3
    assert job.facts[0]["line"].startswith(
        "train: 2 of 3 recordings last as long as the part from begin_time to end_time and are heard whole"
    )


@pytest.mark.parametrize("kind", ["path", "bytes", "array"])
def test_in_every_form_of_sound(kind, tmp_path):
    clip = np.repeat(np.arange(1, 11, dtype=np.float32) / 20, 4410)
    soundfile.write(tmp_path / "a.wav", clip, 44_100)
    forms = {"path": str(tmp_path / "a.wav"), "bytes": {"bytes": flac(clip, 44_100)}}
    forms["array"] = {"array": clip, "sampling_rate": 44_100}
    split = make_split("test", audio=[forms[kind]] * 2, start=[0.2, 0.3], duration=[0.3, 0.3])
    rows = clip_rows(make_job(AudioData()), {"test": split}, RATE, 400, {}, problem=lambda *_: None)["test"]
    assert rows.lengths == pytest.approx([0.3, 0.3])
    _, batch = clip_batch([rows[0] | {"row": 0}], AudioFeatureExtractor(do_normalize=False), AudioData())
    assert batch["input_values"].shape == (1, 4800)
    assert (batch["input_values"][0, [800, 2400, 4000]] * 20).numpy() == pytest.approx([3, 4, 5], abs=0.05)
    name = str(tmp_path / "a.wav") if kind == "path" else "0"
    assert rows.ids[0] == name + "#t=0.2,0.5"


def test_times():
    assert seconds_of("1:02:03.5", 1, RATE) == 3723.5 and seconds_of(" 4 ", 1, RATE) == 4
    assert seconds_of(None, 1, RATE) is seconds_of(" ", 1, RATE) is seconds_of(float("nan"), 1, RATE) is None
    assert part_name("a.wav", (1.5, None)) == "a.wav#t=1.5" and part_name("a", None) == "a"


def test_crops_are_of_the_part():
    rows, job = rows_of(start=[0.5], end=[0.9])
    row = rows[0] | {"row": 0, "seed": (0, 0, 0)}
    _, batch = clip_batch([row], AudioFeatureExtractor(do_normalize=False), job.config.data, crop_seconds=0.2)
    assert set((batch["input_values"][0] * 20).round().int().tolist()) <= {6, 7, 8, 9} and batch["lengths"] == [3200]


def test_seconds_from_a_column_leave_rates_and_channels_to_the_files():
    """22 050 samples are half a second at 44.1 kHz, whatever the model's rate is."""
    told = {"seconds_column": "length"}
    clip = np.zeros(44_100, np.float32)
    rows, job = rows_of(clips=[clip], rate=44_100, data=told, start_sample=[0], end_sample=[22_050], length=[1.0])
    assert rows.parts == [(0.0, 0.5)] and "headers are read" in {fact["fact"] for fact in job.facts}
    manifest = {"start": [0.0], "duration": [0.4]}  # whose duration is of the part, not of the recording
    rows, _ = rows_of(data={"seconds_column": "duration"}, **manifest)
    assert rows.parts == [(0.0, 0.4)] and heard(rows)[1] == 6400
    stereo = [np.stack((STAIRS, STAIRS), axis=1)]
    rows, job = rows_of(clips=stereo, data=told | {"channel": 2}, start=[0.2], end=[0.5], length=[1.0])
    assert rows.parts == [(0.2, 0.5)] and heard(rows, channel=2)[1] == 4800
    with pytest.raises(InputError, match=r"train, row 0: .*has no channel 3; it has 2"):
        heard(rows, channel=3)
