"""Trials: files, samples, and the clips that they name."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.verification import first_clips, number_clips, read_trials, sample_trials
from d2v.errors import InputError

TRIALS = [(1, "a/1.wav", "a/2.wav"), (0, "a/1.wav", "b/1.wav")]


def test_a_list_of_trials(tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text("1 a/1.wav a/2.wav\n\n0\ta/1.wav  b/1.wav\r\n")
    assert read_trials(path) == read_trials(path, {"a/1.wav", "a/2.wav", "b/1.wav"}) == TRIALS
    with pytest.raises(InputError, match=r"trials\.txt, line 3: there is no clip 'b/1\.wav'"):
        read_trials(path, {"a/1.wav", "a/2.wav"})
    path.write_text("a/1.wav a/2.wav\n1 b/1.wav\n")  # nobody knows the answers
    assert read_trials(path) == [(None, "a/1.wav", "a/2.wav"), (None, "1", "b/1.wav")]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("1 a.wav b.wav", "a.wav b.wav", "should be <1 or 0> <enrolment clip> <test clip>"),
        ("1 a.wav b.wav", "1 a.wav b.wav c.wav", "should be <1 or 0>"),
        ("1 a.wav b.wav", "target a.wav b.wav", "should be <1 or 0>"),
        ("1 a.wav b.wav", "2 a.wav b.wav", "should be <1 or 0>"),
        ("a.wav b.wav", "1 a.wav b.wav", "should be <enrolment clip> <test clip>"),
        ("a.wav b.wav", "a.wav", "should be <enrolment clip> <test clip>"),
    ],
)
def test_a_bad_trial_is_named(tmp_path, first, second, message):
    (tmp_path / "trials.txt").write_text(f"{first}\n{second}\n")
    with pytest.raises(InputError, match=rf"trials\.txt, line 2: {message}"):
        read_trials(tmp_path / "trials.txt")


def test_labels_may_be_needed(tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text("1 a/1.wav a/2.wav\n0 a/1.wav b/1.wav\n")
    assert read_trials(path, labelled=True) == TRIALS
    path.write_text("a/1.wav a/2.wav\n")
    with pytest.raises(InputError, match=r"trials\.txt, line 1: should be <1 or 0>"):
        read_trials(path, labelled=True)
    path.write_text("0 a/1.wav b/1.wav\n0 a/2.wav b/1.wav\n")
    with pytest.raises(InputError, match=r"trials\.txt: all trials are labelled 0"):
        read_trials(path, labelled=True)


def test_clips_go_by_the_ends_of_their_paths():
    numbers = number_clips(["/data/x/1.wav", "/data/y/1.wav", "/data/y/2.wav", "1.wav", "plain"])
    assert {clip: numbers.get(clip) for clip in ("x/1.wav", "y/1.wav", "2.wav", "data/y/2.wav", "plain")} == {
        "x/1.wav": 0,
        "y/1.wav": 1,
        "2.wav": 2,
        "data/y/2.wav": 2,
        "plain": 4,
    }
    assert numbers["1.wav"] == 3 and numbers["/data/x/1.wav"] == 0  # a whole name before an end
    assert "1.wav" not in number_clips(["x/1.wav", "y/1.wav"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not a readable text file"), (b"\xff", "not a readable text file"), (b"\n \n", "empty")],
)
def test_no_trials(tmp_path, content, message):
    if content:
        (tmp_path / "trials.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"trials\.txt: .*{message}"):
        read_trials(tmp_path / "trials.txt")


def kind(speakers, label):
    """All pairs of clips with that label."""
    pairs = combinations(range(len(speakers)), 2)
    return {pair for pair in pairs if (speakers[pair[0]] == speakers[pair[1]]) == label}


@given(st.lists(st.sampled_from("abcd"), max_size=14), st.integers(0, 60), st.integers(0, 9))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_sampled_trials(speakers, count, seed):
    targets, others = kind(speakers, True), kind(speakers, False)
    if not targets or not others:
        with pytest.raises(InputError, match="trials need two speakers"):
            sample_trials(speakers, count, seed)
        return
    trials = sample_trials(speakers, count, seed)
    pairs = [tuple(sorted(clips)) for _, *clips in trials]
    half = min(count // 2, len(targets), len(others))
    assert len(set(pairs)) == len(pairs) == 2 * half
    assert {pair for pair, (label, *_) in zip(pairs, trials, strict=True) if label} <= targets
    assert {pair for pair, (label, *_) in zip(pairs, trials, strict=True) if not label} <= others
    assert trials == sample_trials(speakers, count, seed)


def test_every_pair_is_sampled():
    speakers = ["x", "y", "x", "z", "y", "x"]
    seen = {(label, *sorted(clips)) for seed in range(300) for label, *clips in sample_trials(speakers, 2, seed)}
    assert seen == {(1, *pair) for pair in kind(speakers, True)} | {(0, *pair) for pair in kind(speakers, False)}
    assert sample_trials(speakers, 2, 0) != sample_trials(speakers, 2, 1)
    with pytest.raises(InputError, match="2 clips of 2 speakers"):
        sample_trials(["x", "y"], 10, 0)


def test_the_first_clips_of_each_speaker():
    assert first_clips(["x", "y", "x", "x", "z", "y"], most=2) == [0, 1, 2, 4, 5]
