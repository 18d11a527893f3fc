"""The modules of `evaluate`: equal to the plain functions, however examples are added; offline; in two processes."""

import ast
import math
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.errors import InputError
from d2v.metrics import modules
from d2v.metrics.asr import error_rates, normalized_error_rate
from d2v.metrics.classification import classification_metrics, ranked_accuracy, real_accuracy
from d2v.metrics.diarization import diarization_error, frame_f1
from d2v.metrics.language_modeling import language_modeling_metrics
from d2v.metrics.question_answering import squad, squad_v2
from d2v.metrics.segmentation import pixel_counts, segmentation_metrics
from d2v.metrics.token_classification import token_classification_metrics
from d2v.metrics.verification import verification_metrics

SEEDED = settings(derandomize=True, deadline=None, max_examples=30)
TEXTS = ["a B c", "d", "e f"], ["a b c", "d e", "f"]  # predictions, references
CLASSES = [0, 1, 1, 1], [1, 1, 0, 1]
NAMES = [["no", "yes"][i] for i in CLASSES[0]], [["no", "yes"][i] for i in CLASSES[1]]
SCORES = [[0.9, 0.2], [0.4, 0.7], [0.2, 0.6]], [[1, 0], [1, 1], [0, 0]]
VALUES = [0.125, 2.0, 3.0], [0.0, 2.0, 5.0]
GLUE = ["accuracy", "f1", "matthews_correlation"]
RANKED = [[3, 1, 2, 0, 4], [1, 0, 2, 3, 4]], [2, 1]
REAL = [1, 1, 3], [[1], [], [2, 0]]
TRIALS = [0.9, 0.1, 0.4, 0.3], [1, 0, 0, 1]
SEGMENTS = [[(0, 3.5, "1"), (3.5, 7.0, "2")], []], [[(0.0, 4.0, "anna"), (3.0, 6.0, "bert")], [(0.0, 1.0, "anna")]]
FRAMES = [[1, 0, 1, 0], [[1, 1], [1, 1]]], [[1, 1, 0, 0], [[True, False], [True, True]]]
MAPS = [[[0, 0, 1]], [[1, 1], [2, 0], [0, 0]]], [[[0, 1, 255]], [[1, 1], [2, 2], [0, 1]]]
ANSWERS = ["the Paris", "red car"], [["Paris"], ["x", "red house"]]
NBEST = [{"best": "Paris", "no_answer": 0.1, "start": 3}, {"best": "x", "no_answer": 0.8}], [["Paris", "in Paris"], []]
TAGS = [["B-A", "I-A", "O"], ["I-B"]], [["B-A", "O", "O"], ["B-B"]]
LOSSES = [2.5, 9.0], [2, 3]


def recordings(side):
    return {str(i): segments for i, segments in enumerate(side)}


def pixels(predictions, references, **options):
    pairs = zip(predictions, references, strict=True)
    counts = sum(pixel_counts(torch.tensor(a), torch.tensor(b), 4) for a, b in pairs)
    return segmentation_metrics(counts, **options)


def scored(predictions, references):
    return squad_v2(references, [row["best"] for row in predictions], [row["no_answer"] for row in predictions], 0.5)


MODULES = {  # how it is made, examples, and what the plain function says of them
    "word error rate": (modules.word_error_rate, TEXTS, lambda p, r: error_rates(r, p)),
    "normalised": (
        lambda **options: modules.word_error_rate(str.lower, **options),
        TEXTS,
        lambda p, r: error_rates(r, p) | normalized_error_rate(r, p, str.lower),
    ),
    "single-label": (
        modules.classification,
        CLASSES,
        lambda p, r: classification_metrics(["accuracy", "macro_f1"], "single_label", r, p),
    ),
    "names of classes": (
        lambda **options: modules.classification(names=GLUE, classes=["no", "yes"], **options),
        NAMES,
        lambda p, r: classification_metrics(GLUE, "single_label", r, p, ["no", "yes"]),
    ),
    "multi-label": (
        lambda **options: modules.classification("multi_label", **options),
        SCORES,
        lambda p, r: classification_metrics(["map", "micro_f1"], "multi_label", np.array(r), p),
    ),
    "regression": (
        lambda **options: modules.classification("regression", **options),
        VALUES,
        lambda p, r: classification_metrics(["pearson", "spearmanr"], "regression", r, p),
    ),
    "images": (modules.image_classification, RANKED, lambda p, r: ranked_accuracy(r, p)),
    "ReaL": (modules.real_labels, REAL, lambda p, r: {"accuracy_real": real_accuracy(r, p)}),
    "verification": (modules.verification, TRIALS, lambda p, r: verification_metrics(r, p)),
    "diarization": (
        modules.diarization,
        SEGMENTS,
        lambda p, r: diarization_error(recordings(r), recordings(p)),
    ),
    "collar": (
        lambda **options: modules.diarization(0.25, **options),
        SEGMENTS,
        lambda p, r: diarization_error(recordings(r), recordings(p), collar=0.25),
    ),
    "frames": (
        modules.frame_classification,
        FRAMES,
        lambda p, r: frame_f1([np.array(x) for x in r], [np.array(x) for x in p]),
    ),
    "segmentation": (lambda **options: modules.segmentation(4, **options), MAPS, pixels),
    "absent classes": (
        lambda **options: modules.segmentation(4, absent=0.0, **options),
        MAPS,
        lambda p, r: pixels(p, r, absent=0.0),
    ),
    "SQuAD 1.1": (modules.question_answering, ANSWERS, lambda p, r: squad(r, p)),
    "SQuAD 2.0": (lambda **options: modules.question_answering(0.5, **options), NBEST, scored),
    "chunks": (modules.token_classification, TAGS, lambda p, r: token_classification_metrics(r, p, chunks=True)),
    "words": (
        lambda **options: modules.token_classification(chunks=False, **options),
        TAGS,
        lambda p, r: token_classification_metrics(r, p, chunks=False),
    ),
    "perplexity": (modules.language_modeling, LOSSES, language_modeling_metrics),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whoever reaches for the network fails."""

    def refuse(*args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("case", MODULES)
def test_as_the_plain_function(case, tmp_path):
    make, (predictions, references), plain = MODULES[case]
    expected = plain(predictions, references)
    assert expected and not any(map(math.isnan, expected.values()))
    assert make(cache_dir=tmp_path).compute(predictions=predictions, references=references) == expected
    module = make(cache_dir=tmp_path, keep_in_memory=True)
    for _ in range(2):  # once computed, it begins anew
        module.add(prediction=predictions[0], reference=references[0])
        module.add_batch(predictions=predictions[1:], references=references[1:])
        assert module.compute() == expected
    assert all(file.suffix == ".lock" for file in tmp_path.rglob("*") if file.is_file())


ARRAYS = ("single-label", "multi-label", "regression", "images", "verification", "perplexity")


@pytest.mark.parametrize("case", ARRAYS)
@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_arrays_and_tensors(case, array, tmp_path):
    make, examples, plain = MODULES[case]
    module = make(cache_dir=tmp_path, keep_in_memory=True)
    predictions, references = map(array, examples)
    assert module.compute(predictions=predictions, references=references) == plain(*examples)
    module.add(prediction=predictions[0], reference=references[0])
    module.add_batch(predictions=predictions[1:], references=list(references[1:]))
    assert module.compute() == plain(*examples)


@pytest.mark.parametrize("case", ["frames", "segmentation"])
def test_recordings_and_images_of_any_size(case, tmp_path):
    make, examples, plain = MODULES[case]
    for array in (np.array, torch.tensor):
        predictions, references = ([array(row) for row in side] for side in examples)
        module = make(cache_dir=tmp_path, keep_in_memory=True)
        assert module.compute(predictions=predictions, references=references) == plain(*examples)


words = st.lists(st.sampled_from(["a", "bb", "c"]), min_size=1, max_size=4).map(" ".join)
batches = st.lists(st.lists(st.tuples(words, words), max_size=3), min_size=1, max_size=4)


@given(batches)
@SEEDED
def test_batches_of_any_size(tmp_path_factory, batches):
    module = modules.word_error_rate(cache_dir=tmp_path_factory.getbasetemp(), keep_in_memory=True)
    for batch in batches:
        module.add_batch(predictions=[p for p, _ in batch], references=[r for _, r in batch])
    pairs = [pair for batch in batches for pair in batch]
    if pairs:
        assert module.compute() == error_rates([r for _, r in pairs], [p for p, _ in pairs])


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 1)), min_size=2, max_size=20))
@SEEDED
def test_scores_keep_every_bit(tmp_path_factory, trials):
    scores, labels = ([*side] for side in zip(*trials, strict=True))
    module = modules.verification(cache_dir=tmp_path_factory.getbasetemp(), keep_in_memory=True)
    if len(set(labels)) == 2:
        assert module.compute(predictions=scores, references=labels) == verification_metrics(labels, scores)
    else:
        with pytest.raises(InputError, match="trials are labelled"):
            module.compute(predictions=scores, references=labels)


def test_what_compute_takes(tmp_path):
    module = modules.language_modeling(cache_dir=tmp_path, keep_in_memory=True)
    found = module.compute(predictions=LOSSES[0], references=LOSSES[1], characters=20, correct=[1, 3])
    assert found == language_modeling_metrics(*LOSSES, characters=20, correct=[1, 3])


def test_combined(tmp_path):
    from evaluate import combine

    options = {"cache_dir": tmp_path, "keep_in_memory": True}
    parts = [modules.classification(names=[name], **options) for name in ("accuracy", "matthews_correlation")]
    both = combine(parts)
    expected = classification_metrics(["accuracy", "matthews_correlation"], "single_label", *reversed(CLASSES))
    assert both.compute(predictions=CLASSES[0], references=CLASSES[1]) == expected
    for prediction, reference in zip(*CLASSES, strict=True):
        both.add(prediction, reference)
    assert both.compute() == expected
    named = combine({"one": modules.classification(**options), "other": modules.classification(**options)})
    named.add_batch(*CLASSES)
    assert set(named.compute()) == {"one_accuracy", "one_macro_f1", "other_accuracy", "other_macro_f1"}


def test_what_is_refused(tmp_path):
    options = {"cache_dir": tmp_path, "keep_in_memory": True}
    with pytest.raises(InputError, match="no reference has a word"):
        modules.word_error_rate(**options).compute(predictions=["a"], references=[""])
    with pytest.raises(ValueError, match="longer than argument 1"):
        modules.word_error_rate(**options).add_batch(predictions=["a"], references=["a", "b"])
    with pytest.raises(ValueError, match="don't match the expected format"):
        modules.word_error_rate(**options).compute(predictions=[["a"]], references=["a"])
    with pytest.raises(InputError, match="pearson is no metric of single_label"):
        modules.classification(names=["pearson"], **options)
    with pytest.raises(InputError, match="accuracy_top5 needs the scores of all classes"):
        modules.classification(names=["accuracy_top5"], **options)
    with pytest.raises(InputError, match="should be of one size"):
        modules.segmentation(2, **options).add(prediction=[[0, 1]], reference=[[0], [1]])


def test_examples_of_two_are_gathered(tmp_path):
    """In two threads, which meet in the same files as two processes, and find them locked by the other."""
    parts = [[side[:1] for side in TEXTS], [side[1:] for side in TEXTS]]

    def score(number):
        options = {"num_process": 2, "process_id": number, "experiment_id": "two", "cache_dir": tmp_path}
        module = modules.word_error_rate(**options)
        predictions, references = parts[number]
        module.add_batch(predictions=predictions, references=references)
        return module.compute()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(score, range(2))) == [error_rates(TEXTS[1], TEXTS[0]), None]


PROCESS = """
import sys
from d2v.metrics import modules
number, folder, *texts = sys.argv[1:]
options = {"num_process": 2, "process_id": int(number), "experiment_id": "two", "cache_dir": folder}
module = modules.word_error_rate(**options)
module.add_batch(predictions=texts[::2], references=texts[1::2])
print(module.compute())
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """The first process gets the metrics of both, the other nothing."""
    pairs = list(zip(*TEXTS, strict=True))
    texts = [[text for pair in part for text in pair] for part in (pairs[:1], pairs[1:])]
    commands = [[sys.executable, "-c", PROCESS, str(i), str(tmp_path), *texts[i]] for i in range(2)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    first, second = (ast.literal_eval(process.communicate(timeout=300)[0]) for process in processes)
    assert first == error_rates(TEXTS[1], TEXTS[0]) and second is None


@pytest.mark.parametrize(
    ("make", "predictions", "references", "message"),
    [
        (
            modules.classification,
            [0.7, 1.0],
            [0, 1],
            "predictions should be whole numbers, such as classes, not scores",
        ),
        (modules.classification, torch.tensor([0, 1]), np.array([0.2, 1.0]), "references should be whole numbers"),
        (modules.image_classification, [[0.9, 0.1]], [0], "predictions should be whole numbers"),
        (modules.verification, [0.1, 0.9], [0.5, 1], "references should be whole numbers"),
        (modules.frame_classification, [[0.3, 0.9]], [[0, 1]], "frames should be 0 or 1, or true or false, not scores"),
        (partial(modules.segmentation, 2), [[[0, -1]]], [[[0, 1]]], "whole numbers from 0 to 1; there are -1 to 0"),
        (partial(modules.segmentation, 2), [[[0, 1]]], [[[0, 5]]], "whole numbers from 0 to 1; there are 0 to 5"),
        (partial(modules.segmentation, 2), [[[0.2, 0.9]]], [[[0, 1]]], "there are 0.2 to 0.9"),
        (modules.word_error_rate, "a b", ["a b", "c", "d"], "predictions should be a list, not the text 'a b'"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(make, predictions, references, message):
    with pytest.raises(InputError, match=message):
        make().add_batch(predictions=predictions, references=references)


def test_whole_numbers_may_be_floats():
    assert modules.classification().compute(predictions=np.array([0.0, 1.0]), references=[0, 1])["accuracy"] == 1
    maps = {"predictions": [[[0.0, 255.0]]], "references": [[[0, 255]]]}
    assert modules.segmentation(2).compute(**maps)["mean_iou"] == 1
