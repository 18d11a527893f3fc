"""Statistics give each metric's own value, of resampled rows what the metric gives of them, and intervals that hold."""

import numpy as np
import pytest

from benchmarks import intervals as intervals_benchmark
from d2v.metrics import intervals as i
from d2v.metrics import statistics as s
from d2v.metrics.asr import transcript_metrics
from d2v.metrics.classification import classification_metrics
from d2v.metrics.diarization import diarization_metrics
from d2v.metrics.language_modeling import language_modeling_metrics
from d2v.metrics.question_answering import question_answering_metrics
from d2v.metrics.segmentation import segmentation_metrics
from d2v.metrics.token_classification import chunk_metrics
from d2v.metrics.verification import verification_metrics

NAMES = ["a", "b", "c"]
WORDS = ["one", "two", "three", "four", "five", "six"]


def transcripts(random, rows):
    references = [" ".join(random.choice(WORDS, random.integers(1, 6))) for _ in range(rows)]
    texts = [" ".join(word for word in text.split() if random.random() < 0.8) + " six" for text in references]
    rows = list(zip(references, [{"text": text, "text_lm": text[:9]} for text in texts], strict=True))
    return rows, s.transcript_statistics, lambda r, p: transcript_metrics(list(r), list(p))


def classes(random, rows):
    rows = list(zip(random.choice(NAMES, rows), random.choice(NAMES, rows), strict=True))
    names = ["accuracy", "macro_f1", "matthews_correlation"]
    return (
        rows,
        lambda r, p: s.class_statistics(list(r), list(p), NAMES),
        lambda r, p: classification_metrics(names, "single_label", list(r), list(p), NAMES),
    )


def two_classes(random, rows):
    rows = list(zip(random.choice(NAMES[:2], rows), random.choice(NAMES[:2], rows), strict=True))
    names = ["accuracy", "macro_f1", "matthews_correlation", "f1"]
    return (
        rows,
        lambda r, p: s.class_statistics(list(r), list(p), NAMES[:2]),
        lambda r, p: classification_metrics(names, "single_label", list(r), list(p), NAMES[:2]),
    )


def rankings(random, rows):
    reference = (random.random((rows, 3)) < 0.4).astype(int)
    scores = np.round((reference * 0.3 + random.random((rows, 3))) / 1.3, 1)  # many are equal
    return (
        list(zip(reference, scores, strict=True)),
        lambda r, p: {"rankings": {"reference": np.array(r), "scores": np.array(p)}},
        lambda r, p: classification_metrics(["map", "micro_f1"], "multi_label", np.array(r), np.array(p)),
    )


def values(random, rows):
    reference = np.round(random.random(rows) * 5, 1)
    return (
        list(zip(reference, np.round(reference + random.normal(size=rows), 1), strict=True)),
        lambda r, p: {"values": {"reference": np.array(r), "prediction": np.array(p)}},
        lambda r, p: classification_metrics(["pearson", "spearmanr"], "regression", r, p),
    )


def label_maps(random, rows):
    reference = random.integers(0, 50, (rows, 4))
    right = (reference * random.random((rows, 4))).astype(int)
    predicted = right + random.integers(0, 9, (rows, 4))
    counts = np.stack((right, predicted, reference), axis=1)

    def metrics(r, p):
        import torch

        return segmentation_metrics(torch.tensor(np.array(r)).sum(0))

    return [(row, None) for row in counts], lambda r, p: {"overlaps": {"counts": np.array(r)}}, metrics


def tags(random, rows):
    kinds = ["O", "B-X", "B-X", "I-X", "B-Y", "B-Y", "I-Y"]  # so many B- that any rows of them are IOB2
    pairs = []
    for _ in range(rows):
        reference = random.choice(kinds, random.integers(1, 9)).tolist()
        pairs.append((reference, [each if random.random() < 0.7 else str(random.choice(kinds)) for each in reference]))
    return pairs, s.chunk_statistics, chunk_metrics


def questions(random, rows):
    pairs = []
    for _ in range(rows):
        answers = [" ".join(random.choice(WORDS, 3)) for _ in range(random.integers(0, 3))]
        best = answers[0] if answers and random.random() < 0.5 else " ".join(random.choice(WORDS, 2))
        pairs.append((answers, {"best": best, "no_answer": float(random.random())}))

    def metrics(r, p):
        found = question_answering_metrics(r, p, 0.5)
        return {name: value for name, value in found.items() if not name.startswith("best_")}

    return pairs, lambda r, p: s.question_statistics(r, p, 0.5), metrics


def texts(random, rows):
    tokens = random.integers(1, 50, rows)
    pairs = list(zip(tokens * random.random(rows) * 4, tokens, strict=True))
    return (
        pairs,
        lambda r, p: s.loss_statistics([(0, {"loss": a, "tokens": b}) for a, b in zip(r, p, strict=True)]),
        language_modeling_metrics,
    )


CASES = [transcripts, classes, two_classes, rankings, values, label_maps, tags, questions, texts]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_metrics_of_resampled_rows(case):
    """Each row counted so often gives what the metric itself gives of the rows repeated so often."""
    random = np.random.default_rng(0)
    rows, statistics_of, metrics = case(random, 40)
    statistics = statistics_of(*zip(*rows, strict=True))
    counts = np.stack([np.ones(40), random.multinomial(40, [1 / 40] * 40), random.multinomial(40, [1 / 40] * 40)])
    found = i.metrics_of(statistics, counts.astype(float), np.arange(40))
    for n, count in enumerate(counts.astype(int)):
        repeated = [row for row, times in zip(rows, count, strict=True) for _ in range(times)]
        for name, value in metrics(*zip(*repeated, strict=True)).items():
            assert found[name][n] == pytest.approx(value, abs=1e-12), name


def test_words_belong_to_their_sentences():
    statistics = s.class_statistics([["a", "b"], ["a"], ["b"]], [["a", "a"], ["a"], ["b"]], NAMES)
    (found,) = i.metrics_of(statistics, np.array([[2.0, 0.0, 1.0]]), np.arange(3))["accuracy"]
    assert found == pytest.approx(3 / 5)


def test_trials_of_speakers_drawn_twice():
    """A speaker drawn twice is two: pairs with others count twice, and the two are not one another's targets."""
    random = np.random.default_rng(0)
    first, second = random.integers(0, 12, (2, 400))
    labels = (first == second).astype(int)
    scores = np.round(labels + random.normal(size=400), 1)
    arrays = {"label": labels, "score": scores, "first": first, "second": second, "clusters": np.arange(12)}
    counts = np.stack([np.ones(12), random.multinomial(12, [1 / 12] * 12)]).astype(float)
    found = i.metrics_of({"trials": arrays}, counts, np.arange(12))
    for n, count in enumerate(counts.astype(int)):
        times = np.where(first == second, count[first], count[first] * count[second])
        expected = verification_metrics(np.repeat(labels, times), np.repeat(scores, times))
        for name, value in expected.items():
            assert found[name][n] == pytest.approx(value, abs=1e-9), name


def test_seconds_of_recordings_add_up():
    references = {"x": [(0.0, 2.0, "a"), (1.0, 3.0, "b")], "y": [(0.5, 1.5, "a")], "z": []}
    hypotheses = {"x": [(0.0, 2.5, "s"), (2.5, 3.0, "t")], "y": [(0.0, 1.0, "s")], "z": [(0.0, 0.5, "s")]}
    frames = {"x": 30, "y": 15, "z": 10}
    statistics = s.diarization_statistics(
        references, hypotheses, {name: [0] * count for name, count in frames.items()}, 0.1, free_names=True
    )
    expected = diarization_metrics(references, hypotheses, frames, 0.1, free_names=True)
    found = i.metrics_of(statistics, np.ones((1, 3)), np.arange(3))
    assert {name: value for name, (value,) in found.items()} == pytest.approx(expected)


def test_intervals():
    random = np.random.default_rng(0)
    statistics = s.mean_statistics(accuracy=random.random(200) < 0.7)
    found = i.intervals(statistics, np.arange(200))
    mean = statistics["sums"]["accuracy"][:, 0].mean()
    assert found == i.intervals(statistics, np.arange(200)) and found["accuracy"][0] < mean < found["accuracy"][1]
    # As Kaldi's bootci: 1.96 standard deviations of the replications, here those of a proportion.
    half = (found["accuracy"][1] - found["accuracy"][0]) / 2
    assert half == pytest.approx(1.96 * np.sqrt(mean * (1 - mean) / 200), rel=0.05)
    # All rows of a cluster come or go together, so clusters of equal rows widen an interval.
    wide = i.intervals(s.mean_statistics(accuracy=np.repeat(random.random(20) < 0.7, 10)), np.repeat(np.arange(20), 10))
    assert wide["accuracy"][1] - wide["accuracy"][0] > 4 * half
    assert i.intervals(statistics, np.arange(200) % 5) == {"accuracy": None}
    assert i.intervals(statistics, np.arange(200), replications=0) == {"accuracy": None}
    assert i.intervals(s.mean_statistics(accuracy=np.ones(50)), np.arange(50)) == {"accuracy": None}


def test_the_interval_of_a_mean_over_runs():
    """Same rows are resampled alike, so rows that are hard for all runs count in full; other rows make up for some."""
    hard = np.random.default_rng(0).random(200) < 0.7

    def run(right, ids):
        return s.mean_statistics(accuracy=right), ids, ids

    same, other = list(map(str, range(200))), list(map(str, range(200, 400)))
    alone = i.intervals(run(hard, same)[0], same)["accuracy"]
    assert i.interval_of_mean([run(hard, same)] * 3, "accuracy") == pytest.approx(alone)
    apart = i.interval_of_mean([run(hard, same), run(hard, other)], "accuracy")
    assert (apart[1] - apart[0]) * np.sqrt(2) == pytest.approx(alone[1] - alone[0], rel=0.1)
    # What one run has wrong where the other is right does not move their mean.
    assert i.interval_of_mean([run(hard, same), run(~hard, same)], "accuracy") is None
    assert i.interval_of_mean([run(hard, same)], "wer") is None
    assert i.interval_of_mean([run(hard[:5], same[:5])], "accuracy") is None


def test_statistics_are_read_as_they_were_written(tmp_path):
    statistics = s.class_statistics(["a", "b"], ["b", "b"], NAMES) | s.mean_statistics(f1=[0.5, 1.0])
    i.save_statistics(tmp_path / "statistics.npz", statistics, ["x/1", "x/2"], ["x", "x"])
    found, ids, clusters = i.load_statistics(tmp_path / "statistics.npz")
    assert (ids, clusters) == (["x/1", "x/2"], ["x", "x"]) and found.keys() == statistics.keys()
    for kind, arrays in statistics.items():
        assert all(np.array_equal(found[kind][name], array) for name, array in arrays.items())


def covered(make, truth, *, sets: int = 500) -> dict[str, float]:
    """Share of simulated data sets whose interval holds the metric's true value."""
    hits: dict[str, list[bool]] = {}
    for seed in range(sets):
        statistics, groups = make(np.random.default_rng(seed))
        for name, bounds in i.intervals(statistics, groups, replications=400, seed=seed).items():
            if name in truth and bounds is not None:
                hits.setdefault(name, []).append(bounds[0] <= truth[name] <= bounds[1])
    return {name: float(np.mean(each)) for name, each in hits.items()}


def simulated_words(random, rows):
    """Transcripts whose words are wrong at a rate of their own."""
    words = random.integers(1, 5, rows)
    return {"sums": {"wer": np.stack((random.binomial(words, random.beta(1, 9, rows)), words), 1).astype(float)}}


def simulated_classes(random, rows):
    reference = random.integers(0, 4, rows)
    return {
        "classes": {"reference": reference, "prediction": np.where(random.random(rows) < 0.8, reference, 3 - reference)}
    }


def simulated_values(random, rows):
    reference = random.normal(size=rows)
    return {"values": {"reference": reference, "prediction": reference + random.normal(size=rows)}}


def simulated_trials(random, speakers, clips=6):
    """Embeddings of speakers around means of their own, and all pairs of their clips."""
    who = np.repeat(np.arange(speakers), clips)
    embeddings = random.normal(size=(speakers, 4))[who] + 0.6 * random.normal(size=(len(who), 4))
    first, second = np.triu_indices(len(who), 1)
    scores = -((embeddings[first] - embeddings[second]) ** 2).sum(1)
    same = who[first] == who[second]
    return {
        "trials": {
            "label": same.astype(int),
            "score": scores,
            "first": who[first],
            "second": who[second],
            "clusters": np.arange(speakers),
        }
    }


SIMULATED = [
    (simulated_words, ["wer"]),
    (simulated_classes, ["accuracy", "macro_f1", "matthews_correlation"]),
    (simulated_values, ["pearson", "spearmanr", "rmse"]),
]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [100, 150, 600])
@pytest.mark.parametrize(("make", "names"), SIMULATED, ids=lambda case: getattr(case, "__name__", ""))
def test_intervals_hold_the_truth(make, names, rows):
    whole = i.metrics_of(make(np.random.default_rng(10**6), 10**6), np.ones((1, 10**6)), np.arange(10**6))
    truth = {name: whole[name][0] for name in names}
    shares = covered(lambda random: (make(random, rows), np.arange(rows)), truth)
    assert shares.keys() == truth.keys() and all(0.92 <= share <= 0.98 for share in shares.values()), shares


@pytest.mark.slow
@pytest.mark.parametrize("speakers", [10, 20, 40])
def test_the_intervals_of_trials_hold(speakers):
    whole = i.metrics_of(
        {"trials": simulated_trials(np.random.default_rng(10**6), 600, 4)["trials"]}, np.ones((1, 600)), np.arange(600)
    )
    truth = {"eer": whole["eer"][0]}
    shares = covered(lambda random: (simulated_trials(random, speakers), np.arange(speakers)), truth)
    assert 0.92 <= shares["eer"] <= 0.98, (speakers, shares)


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_little_memory():
    """And little time, which `python -m benchmarks.intervals` prints: how much depends on the machine."""
    found = intervals_benchmark.main([])
    assert found.keys() == i.KINDS.keys() and all(megabytes < 500 for *_, megabytes in found.values()), found


def test_the_half_width_is_that_of_kaldi_s_bootci():
    """compute-wer-bootci: 1.96 standard deviations of the word error rate over resampled utterances, by hand."""
    random = np.random.default_rng(3)
    words = random.integers(2, 40, 300)
    errors = random.binomial(words, random.beta(1, 9, 300))
    rates = []
    for _ in range(5000):
        drawn = random.integers(300, size=300)
        rates.append(errors[drawn].sum() / words[drawn].sum())
    statistics = {"sums": {"wer": np.stack((errors, words), 1).astype(float)}}
    low, high = i.intervals(statistics, np.arange(300), replications=10_000)["wer"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(rates), rel=0.05)
    assert (high + low) / 2 == pytest.approx(np.mean(rates), rel=0.02)


def test_words_without_a_label_and_other_letters():
    """What does not count adds nothing, and BILOU or untyped chunks are those of IOBES."""
    rows = [{"labels": ["B-A", "E-A"]}, {"labels": ["O"]}]
    plain = s.word_statistics([["B-A", "E-A"], ["S-A"]], rows, [], chunks=True)
    rows = [{"labels": ["B", "O", "L"]}, {"labels": ["O", "U"]}]
    other = s.word_statistics([["B", None, "L"], ["U", None]], rows, [], chunks=True)
    assert all(np.array_equal(other["sums"][name], values) for name, values in plain["sums"].items())
    nothing = s.word_statistics([[None], ["O"]], [{"labels": ["B"]}, {"labels": ["O"]}], [], chunks=True)
    assert nothing["sums"]["accuracy"].tolist() == [[0, 0], [1, 1]]
    s.word_statistics([[None, "X"]], [{"labels": ["Y", "X"]}], ["X", "Y"], chunks=False)
