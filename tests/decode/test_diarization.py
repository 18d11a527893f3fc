"""From frames to segments and RTTM files: hand-worked cases, round trips, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from d2v.data.diarization import SegmentData, check_segments, segments_to_frames
from d2v.data.rttm import read_rttm
from d2v.decode.diarization import (
    DECISION,
    binarise,
    decode_segments,
    frames_to_segments,
    median_filter,
    read_decision,
    segment_records,
    segment_windows,
    write_arrays,
    write_rttm,
)
from d2v.decode.windows import windowed_logits
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from tests.tiny import TINY_AUDIO

SEEDED = settings(derandomize=True, deadline=None, max_examples=100)
activities = arrays(bool, st.tuples(st.integers(0, 30), st.integers(1, 3)))


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


def test_recordings_are_decoded_with_one_threshold():
    probabilities = {"r": np.array([[0.9, 0.1], [0.9, 0.6]]), "s": np.zeros((0, 2))}
    assert decode_segments(probabilities, ["a", "b"], 0.5, 0.5, 1) == {"r": [(0.0, 1.0, "a"), (0.5, 1.0, "b")], "s": []}


def test_write_rttm(tmp_path):
    segments = [(2.0, 3.25, "b"), (0.1, 1.3304, "a"), (5.0, 5.0004, "a"), (6.0004, 6.0006, "a")]
    write_rttm(tmp_path / "a.rttm", {"rec": segments, "silent": []})
    assert (tmp_path / "a.rttm").read_text().splitlines() == [
        "SPEAKER rec 1 0.100 1.230 <NA> <NA> a <NA> <NA>",
        "SPEAKER rec 1 2.000 1.250 <NA> <NA> b <NA> <NA>",
        "SPEAKER rec 1 6.000 0.001 <NA> <NA> a <NA> <NA>",
    ]
    for recordings in ({"two words": segments}, {"": segments}, {" r": segments}):
        with pytest.raises(InputError, match="should be one word"):
            write_rttm(tmp_path / "b.rttm", recordings)
    write_rttm(tmp_path / "b.rttm", {"rec": [(0.0, 1.0, "Anna B.")]})
    assert (tmp_path / "b.rttm").read_text().split()[7] == "Anna_B."


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


def test_the_decision_lies_beside_the_model(tmp_path):
    assert read_decision(tmp_path) == {}
    (tmp_path / DECISION).write_text('{"threshold": 0.3, "filter": 1}')
    assert read_decision(tmp_path) == {"threshold": 0.3, "filter": 1}


def test_records_and_arrays(tmp_path):
    records = segment_records(
        {"a": [(0.0, 1 / 3, "x")], "c": []}, {"a": {"id": "a b.wav"}, "c": {"id": "c", "group": "g"}}
    )
    assert records == [
        {"id": "a b.wav", "segments": [{"start": 0.0, "end": 0.333, "speaker": "x"}]},
        {"id": "c", "group": "g", "segments": []},
    ]
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    for _ in range(2):  # a run that is repeated writes over it
        write_arrays(tmp_path / "arrays", {"a": values})
    assert np.array_equal(np.load(tmp_path / "arrays/a.npy"), values)


def conversation(frames):
    """Logits of three speakers who take turns of 20 frames and sometimes talk at once."""
    turns = np.arange(frames) // 20
    active = np.stack([turns % 3 == 0, turns % 3 == 1, (turns % 3 == 2) | (turns % 5 == 0)], axis=1)
    return torch.from_numpy(np.where(active, 3.0, -3.0)).float()


class Shuffled(torch.nn.Module):
    """Hears `conversation` in a recording of numbered samples, its speakers in another order each time."""

    def __init__(self, config, frames):
        super().__init__()
        self.config, self.logits, self.calls = config, conversation(frames), 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, values, mask=None):
        rows = []
        for clip in values:
            first, count = int(clip[0]) // 320, self.config.frames(len(clip))
            order = [(i + self.calls) % 3 for i in range(3)]
            rows.append(self.logits[first : first + count][:, order])
            self.calls += 1
        return SimpleNamespace(logits=torch.stack(rows))


@pytest.mark.parametrize("frames", [30, 150, 151, 500])
def test_speakers_of_windows_are_matched(frames):
    config = Data2VecAudioConfig(**TINY_AUDIO, frame_loss="pit_bce", id2label={0: "0", 1: "1", 2: "2"})
    recording = np.arange((frames - 1) * 320 + config.shortest_clip, dtype=np.float32)
    assert config.frames(len(recording)) == frames
    data = SegmentData(chunk_seconds=2.0, stride_seconds=0.5)
    model = Shuffled(config, frames)
    logits, (count,) = segment_windows(data, config, 16_000)(model, [recording])
    assert count == frames and torch.equal(logits[0], model.logits[:, :])
    assert model.calls > 1 or frames <= 100
    unmatched, _ = windowed_logits(config, 16_000, 2.0, 0.5, 100)(Shuffled(config, frames), [recording])
    assert torch.equal(unmatched[0], model.logits) == (frames <= 100)
    assert segment_windows(SegmentData(), config, 16_000) is None
    with pytest.raises(InputError, match="a sixth of the window, should be more than a frame of 0.02: the speakers"):
        segment_windows(SegmentData(chunk_seconds=2.0, stride_seconds=0.0), config, 16_000)
