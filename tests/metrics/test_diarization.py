"""Diarization error: worked by hand, and against an exact sweep over all ways of matching speakers."""

import random
from itertools import pairwise, permutations

import numpy as np
import pytest

from d2v.data.diarization import segments_to_frames
from d2v.errors import InputError
from d2v.metrics.diarization import (
    baselines,
    choose_threshold,
    diarization_error,
    diarization_metrics,
    frame_f1,
    name_speakers,
    plot_timelines,
)


def active(segments, moment):
    return {speaker for start, end, speaker in segments if start <= moment < end}


def spans(reference, hypothesis, collar):
    """(seconds, reference speakers, hypothesis speakers) between all boundaries, outside the collars."""
    edges = [time for start, end, _ in merged(reference) for time in (start, end)]
    limits = {edge + shift for edge in edges for shift in (-collar, 0, collar)}
    limits |= {time for start, end, _ in hypothesis for time in (start, end)}
    for begin, end in pairwise(sorted(time for time in limits if time >= 0)):
        middle = (begin + end) / 2
        if all(abs(middle - edge) > collar for edge in edges):
            yield end - begin, active(reference, middle), active(hypothesis, middle)


def merged(segments):
    """Each speaker's segments, those that touch or overlap made one."""
    found = []
    for start, end, speaker in sorted(segments, key=lambda segment: (segment[2], segment[0])):
        if found and found[-1][2] == speaker and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]), speaker)
        else:
            found.append((start, end, speaker))
    return found


def sweep(references, hypotheses, collar=0.0):
    """The error by its definition (NIST): seconds over all recordings, each under its best one-to-one matching."""
    total, seconds = 0.0, np.zeros(3)
    for recording, reference in references.items():
        hypothesis = hypotheses.get(recording, [])
        parts = list(spans(reference, hypothesis, collar))
        total += sum(length * len(real) for length, real, _ in parts)
        names = sorted({speaker for _, _, speaker in reference})
        others = sorted({speaker for _, _, speaker in hypothesis})
        candidates = []
        for matching in permutations([*names, *[None] * len(others)], len(others)):
            match = dict(zip(others, matching, strict=True))
            errors = np.zeros(3)
            for length, real, found in parts:
                right = len(real & {match[speaker] for speaker in found})
                missed, extra = max(len(real) - len(found), 0), max(len(found) - len(real), 0)
                errors += length * np.array([missed, extra, min(len(real), len(found)) - right])
            candidates.append(errors)
        seconds += min(candidates, key=lambda errors: errors.sum())
    return dict(zip(("miss", "false_alarm", "confusion"), (seconds / total).tolist(), strict=True))


def conversation(generator, speakers):
    segments = []
    for speaker in speakers:
        time = generator.uniform(0, 2)
        for _ in range(generator.randint(1, 4)):
            end = time + generator.uniform(0.05, 3)
            segments.append((time, end, speaker))
            time = end + generator.choice([0, 0.1, generator.uniform(0, 2)])
    return segments


def test_by_hand():
    reference = [(0.0, 4.0, "anna"), (3.0, 6.0, "bert")]  # 7 s of speech, 1 s of it twice
    hypothesis = [(0.0, 3.5, "1"), (3.5, 7.0, "2")]
    # 1 is anna, 2 is bert. 3-3.5 bert missed, 3.5-4 anna missed, 6-7 false.
    found = diarization_error({"r": reference}, {"r": hypothesis})
    assert found == pytest.approx({"der": 2 / 7, "miss": 1 / 7, "false_alarm": 1 / 7, "confusion": 0})
    # The names mean nothing, even when they are the reference's.
    crossed = [(0.0, 3.5, "bert"), (3.5, 7.0, "anna")]
    assert diarization_error({"r": reference}, {"r": crossed}) == found
    # One speaker only: matched to anna (4 s rather than 2 s right); bert's 4-6 s is confused, his 3-4 s missed.
    found = diarization_error({"r": reference}, {"r": [(0.0, 6.0, "1")]})
    assert found == pytest.approx({"der": 3 / 7, "miss": 1 / 7, "false_alarm": 0, "confusion": 2 / 7})
    assert diarization_error({"r": reference}, {})["miss"] == 1.0


def test_the_collar_is_a_side():
    reference, hypothesis = {"r": [(1.0, 3.0, "a")]}, {"r": [(0.5, 3.2, "x")]}
    # Not scored: 0.75 to 1.25 and 2.75 to 3.25. What is left: 1.5 s of speech, 0.5 to 0.75 false.
    found = diarization_error(reference, hypothesis, collar=0.25)
    assert found == pytest.approx({"der": 0.25 / 1.5, "miss": 0, "false_alarm": 0.25 / 1.5, "confusion": 0})
    assert diarization_error(reference, hypothesis)["der"] == pytest.approx(0.7 / 2)
    # A segment cut in two where nothing changes has no boundary there.
    halves = {"r": [(1.0, 2.0, "a"), (2.0, 3.0, "a")]}
    assert diarization_error(halves, hypothesis, collar=0.25) == found


@pytest.mark.parametrize("collar", [0.0, 0.25])
def test_against_the_definition(collar):
    generator = random.Random(0)
    for _ in range(100):
        recordings = [f"r{i}" for i in range(generator.randint(1, 3))]
        speakers = [generator.randint(2, 3) for _ in recordings]
        references = {r: conversation(generator, "abc"[:n]) for r, n in zip(recordings, speakers, strict=True)}
        hypotheses = {r: conversation(generator, "123"[: generator.randint(1, 3)]) for r in recordings}
        found = diarization_error(references, hypotheses, collar=collar)
        expected = sweep(references, hypotheses, collar)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
        assert found["der"] == pytest.approx(sum(expected.values()), abs=1e-9)


def test_seconds_are_pooled_and_speakers_matched_for_each_recording():
    references = {"long": [(0.0, 9.0, "a")], "short": [(0.0, 1.0, "a")]}
    hypotheses = {"long": [(0.0, 9.0, "1")], "short": [(0.0, 0.5, "2")]}
    assert diarization_error(references, hypotheses)["der"] == pytest.approx(0.5 / 10)  # the mean of rates is 0.25


def test_silence():
    references = {"talk": [(0.0, 2.0, "a")], "silence": []}
    assert diarization_error(references, {"talk": [(0.0, 2.0, "1")]})["der"] == 0
    assert diarization_error(references, {"silence": [(0.0, 1.0, "1")]})["false_alarm"] == pytest.approx(0.5)
    for undefined in (
        diarization_error({"silence": []}, {"silence": [(0.0, 1.0, "1")]}),
        diarization_error({"r": [(1.0, 1.4, "a")]}, {}, collar=0.25),  # all of it within the collars
    ):
        assert len(undefined) == 4 and all(np.isnan(value) for value in undefined.values())
    with pytest.raises(InputError, match="recording 'tak' has no reference; there are talk, silence"):
        diarization_error(references, {"tak": []})


def test_a_metric_that_is_undefined_leaves_the_others():
    references, frames = {"r": [(1.0, 1.4, "a")], "silence": []}, {"r": 100, "silence": 50}
    hypotheses = {"r": [(1.0, 1.4, "1")], "silence": []}
    metrics = diarization_metrics(references, hypotheses, frames, 0.02, free_names=True)
    assert metrics["der"] == 0 and metrics["frame_f1"] == 1 and np.isnan(metrics["der_collar_025"])
    metrics = diarization_metrics(
        {"silence": []}, {"silence": [(0.0, 0.1, "1")]}, {"silence": 50}, 0.02, free_names=True
    )
    assert np.isnan(metrics["der"]) and metrics["frame_f1"] == 0
    assert np.isnan(baselines({"silence": []}, {"silence": 1.0})["always_one"])
    probabilities = {"silence": np.full((50, 2), 0.45, np.float32)}
    assert choose_threshold(probabilities, {"silence": [], "left out": [(0.0, 1.0, "a")]}, 0.02)[:2] == (0.3, 1)


def test_baselines():
    references = {"r": [(1.0, 3.0, "a"), (2.0, 4.0, "b")]}
    # One: 2 s of false alarm, b's or a's 1 s alone confused, 1 s of overlap missed. Two: 2 + 2 s false, 2 s extra.
    found = baselines(references, {"r": 6.0})
    assert found == pytest.approx({"always_one": (3 + 1 + 1) / 4, "always_both": (6 + 2) / 4})


def test_the_best_threshold():
    hop, generator = 0.02, np.random.default_rng(0)
    references = {"r": [(1.0, 2.0, "a"), (1.6, 3.0, "b")], "s": [(0.0, 1.0, "c")]}
    probabilities = {}
    for recording, names in (("r", "ab"), ("s", "cd")):
        truth = segments_to_frames(references[recording], list(names), 200, hop)
        probabilities[recording] = 0.28 + 0.4 * truth + generator.uniform(-0.05, 0.05, truth.shape)
        probabilities[recording][20::50] = 0.8 - 0.6 * truth[20::50]  # single frames that are wrong
    threshold, size, der = choose_threshold(probabilities, references, hop)
    assert (threshold, size) == (0.4, 11) and der == pytest.approx(0, abs=1e-9)
    # Without the filter the single frames count. Each is wrong for both speakers: twice where nobody talks, which it is
    # at 0.4 and 3.4 s of r and all but 0.4 s of s, and once where one does, who is then taken for the other.
    assert choose_threshold(probabilities, references, hop, filters=[1]) == (0.4, 1, pytest.approx(13 * hop / 3.4))


def test_frame_f1():
    references = [np.array([1, 1, 0, 0]), np.array([[True, False], [True, True]])]
    predictions = [np.array([1, 0, 1, 0]), np.array([[True, True], [True, True]])]
    assert frame_f1(references, predictions) == pytest.approx({"frame_f1": 2 * 4 / (5 + 6)})
    assert frame_f1([np.zeros(3)], [np.zeros(3)]) == {"frame_f1": 0.0}
    with pytest.raises(ValueError):
        frame_f1([np.ones(3)], [np.ones(2)])
    with pytest.raises(ValueError):
        frame_f1([np.ones(3)], [])


def test_speakers_get_the_names_they_are_scored_as():
    references = {"r": [(0.0, 4.0, "x"), (3.0, 6.0, "y")], "s": [(0.0, 1.0, "x")]}
    hypotheses = {"r": [(0.0, 3.0, "y"), (3.0, 7.0, "x")], "s": [(0.0, 0.9, "b"), (0.5, 2.0, "x")]}
    assert name_speakers(references, hypotheses) == {
        "r": [(0.0, 3.0, "x"), (3.0, 7.0, "y")],
        "s": [(0.0, 0.9, "x"), (0.5, 2.0, "x (nobody)")],  # not one with the x that b is taken for
    }


def test_metrics_of_segments():
    references = {"r": [(0.0, 4.0, "anna"), (3.0, 6.0, "bert")]}
    hypotheses = {"r": [(0.0, 3.5, "bert"), (3.5, 7.0, "anna")]}
    free = diarization_metrics(references, hypotheses, {"r": 16}, 0.5, free_names=True)
    assert free == pytest.approx(
        diarization_error(references, hypotheses)
        | {"der_collar_025": diarization_error(references, hypotheses, collar=0.25)["der"]}
        | {"frame_f1": 2 * 12 / (14 + 14)}  # half seconds: 7 of anna's 8 and 5 of bert's 6
    )
    # By name, all is wrong but bert from 3 to 3.5 s and anna from there to 4 s.
    fixed = diarization_metrics(references, hypotheses, {"r": 16}, 0.5, free_names=False)
    assert fixed == pytest.approx({"frame_f1": 2 * 2 / (14 + 14)})
    # A recording that was left out, since its sound is damaged, does not count.
    more = references | {"damaged": [(0.0, 9.0, "anna")]}
    assert diarization_metrics(more, hypotheses, {"r": 16}, 0.5, free_names=True) == free


def test_timelines_are_drawn(tmp_path):
    references = {"r": [(0.0, 4.0, "x"), (3.0, 6.0, "y")], "silent": []}
    plot_timelines(references, {"r": [(0.0, 3.0, "1")], "silent": []}, tmp_path / "a.png", free_names=True)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    plot_timelines(references, {"r": [(0.0, 3.0, "1")]}, tmp_path / "b.png", free_names=True)
    assert (tmp_path / "b.png").stat().st_size < (tmp_path / "a.png").stat().st_size  # one recording instead of two
