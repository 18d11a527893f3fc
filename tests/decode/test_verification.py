"""Scores of trials: files, cosines, score normalisation."""

import numpy as np
import pytest

from d2v.data.verification import all_trials, sample_trials
from d2v.decode.verification import (
    cosine_scores,
    read_cohort,
    s_norm,
    score_trials,
    speaker_means,
    trial_records,
    write_cohort,
    write_scores,
)
from d2v.errors import InputError
from d2v.metrics.verification import equal_error_rate

TRIALS = [(1, "a/1.wav", "a/2.wav"), (0, "a/1.wav", "b/1.wav")]


def test_score_file(tmp_path):
    write_scores(tmp_path / "scores.txt", TRIALS, [np.float32(1.0000001), -0.5])
    assert (tmp_path / "scores.txt").read_text() == "1.00000000 a/1.wav a/2.wav\n0.25000000 a/1.wav b/1.wav\n"
    write_scores(tmp_path / "scores.txt", [(1, "my talk.wav", "b"), *TRIALS], [45.0, 21.0, -45.0])  # beyond cosines
    lines = (tmp_path / "scores.txt").read_text().splitlines()
    assert [line.split() for line in lines[:2]] == [["1.00000000", "my_talk.wav", "b"], ["0.73333333", *TRIALS[0][1:]]]
    assert lines[2].startswith("0.00000000 ")
    with pytest.raises(ValueError):
        write_scores(tmp_path / "scores.txt", TRIALS, [0.0])


def test_records_of_trials():
    trials = [(1, "a", "b"), (None, "a", "c")]
    records = trial_records(trials, np.array([0.5, -1.0], np.float32))
    first = {"enrol": "a", "test": "b", "score": 0.5, "label": 1}
    assert records == [first, {"enrol": "a", "test": "c", "score": -1.0}]
    with pytest.raises(ValueError):
        trial_records(trials, [0.5])


def test_cosines():
    embeddings = {"p": np.array([3.0, 4.0]), "q": np.array([4.0, 3.0]), "r": np.array([-3.0, -4.0])}
    trials = [(1, "p", "q"), (0, "p", "r"), (1, "q", "p"), (1, "p", "p")]
    np.testing.assert_allclose(cosine_scores(embeddings, trials), [0.96, -1, 0.96, 1])
    # Less (3, 3): p is (0, 1), q is (1, 0), r is (-6, -7).
    centred = cosine_scores(embeddings, trials, mean=np.array([3.0, 3.0]))
    np.testing.assert_allclose(centred, [0, -7 / np.sqrt(85), 0, 1], atol=1e-12)
    numbered = cosine_scores(np.stack(list(embeddings.values())), [(1, 0, 1), (0, 0, 2)])
    np.testing.assert_allclose(numbered, [0.96, -1])
    assert cosine_scores({"p": np.zeros(2), "q": np.ones(2)}, [(1, "p", "q")]) == [0]
    for missing, of in (("s", embeddings), (7, np.eye(2))):
        with pytest.raises(InputError, match=f"no embedding .*{missing}"):
            cosine_scores(of, [(1, missing, missing)])


def test_s_norm_by_hand():
    embeddings = {"p": np.array([1.0, 0.0]), "q": np.array([0.6, 0.8])}
    cohort = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    # p scores 1, 0, -1 with the cohort, its best two 1 and 0: mean 0.5, deviation 0.5.
    # q scores 0.6, 0.8, -0.6, its best two 0.8 and 0.6: mean 0.7, deviation 0.1.
    trials = [(1, "p", "q"), (1, "q", "p")]
    scores = cosine_scores(embeddings, trials)
    expected = ((0.6 - 0.5) / 0.5 + (0.6 - 0.7) / 0.1) / 2
    np.testing.assert_allclose(s_norm(scores, embeddings, trials, cohort, top=2), [expected] * 2)
    # All three: deviations are those of the population.
    p, q = np.array([1, 0, -1]), np.array([0.6, 0.8, -0.6])
    expected = np.mean([(0.6 - scores.mean()) / scores.std() for scores in (p, q)])
    np.testing.assert_allclose(s_norm(scores, embeddings, trials, cohort), [expected] * 2)
    with pytest.raises(InputError, match="a cohort of 1"):
        s_norm(scores, embeddings, trials, cohort[:1])


def test_scores_relative_to_a_cohort(tmp_path):
    embeddings = np.array([[3.0, 4.0], [4.0, 3.0], [0.0, 1.0]])
    trials, cohort = all_trials(3), np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.5]], dtype=np.float32)
    assert [pair for _, *pair in trials] == [[0, 1], [0, 2], [1, 2]]
    plain = cosine_scores(embeddings, trials)
    np.testing.assert_array_equal(score_trials(embeddings, trials, None, center=False, top=0), plain)
    mean = cohort.mean(axis=0)
    centred = cosine_scores(embeddings, trials, mean=mean)
    np.testing.assert_array_equal(score_trials(embeddings, trials, cohort, center=True, top=0), centred)
    for center, scores, options in ((False, plain, {}), (True, centred, {"mean": mean})):
        expected = s_norm(scores, embeddings, trials, cohort, top=2, **options)
        np.testing.assert_array_equal(score_trials(embeddings, trials, cohort, center=center, top=2), expected)
    write_cohort(tmp_path, cohort)
    np.testing.assert_array_equal(read_cohort(tmp_path, 2), cohort)
    with pytest.raises(InputError, match=r"cohort\.safetensors: should hold embeddings of shape \(speakers, 3\)"):
        read_cohort(tmp_path, 3)
    (tmp_path / "cohort.safetensors").unlink()
    with pytest.raises(InputError, match=r"no cohort\.safetensors"):
        read_cohort(tmp_path, 2)


def test_speaker_means():
    speakers = ["x", "y", "x", "x", "z", "y"]
    embeddings = np.arange(12.0).reshape(6, 2)
    means = [(embeddings[0] + embeddings[2] + embeddings[3]) / 3, (embeddings[1] + embeddings[5]) / 2, embeddings[4]]
    np.testing.assert_allclose(speaker_means(speakers, list(embeddings)), means)


def test_s_norm_helps_where_speakers_crowd():
    # Half of the speakers lie close together, so that two of them score as high as two clips of one of the others.
    generator = np.random.default_rng(0)

    def voices(number):
        crowd = generator.normal(0, 0.6, (number // 2, 16)) + np.eye(16)[0] * 3
        return np.concatenate([crowd, generator.normal(0, 1, (number // 2, 16))])

    speakers = np.repeat(np.arange(40), 5)
    embeddings = voices(40)[speakers] + generator.normal(0, 0.35, (200, 16))
    trials = sample_trials(speakers.tolist(), 800, seed=0)
    labels = [label for label, _, _ in trials]
    scores = cosine_scores(embeddings, trials)
    normalised = s_norm(scores, embeddings, trials, voices(200), top=50)
    assert equal_error_rate(labels, normalised) < 0.8 * equal_error_rate(labels, scores)
