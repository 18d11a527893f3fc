"""The metrics as modules of Hugging Face's `evaluate`, for your own loop; nothing is downloaded.

    from d2v.metrics import modules

    metric = modules.word_error_rate()
    for batch in batches:
        metric.add_batch(predictions=transcribe(batch), references=batch["text"])
    metric.compute()  # {"wer": 0.04, "cer": 0.01}

A module takes examples by `add` and `add_batch`, or all at once by `compute(predictions=..., references=...)`; lists,
arrays and tensors alike. `evaluate.combine` takes several modules. If several processes evaluate, each makes the module
with `num_process`, its own `process_id` and the same `experiment_id`, and process 0 gets the metrics of all examples.
These and `cache_dir` and `keep_in_memory` are options of `evaluate.Metric`, which every function here hands on.

Shapes: T frames, C speakers or classes, H and W height and width in pixels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from d2v.data.diarization import Segment
from d2v.errors import InputError
from d2v.metrics.asr import error_rates, normalized_error_rate
from d2v.metrics.classification import TOP5, classification_metrics, known_metrics, ranked_accuracy, real_accuracy
from d2v.metrics.diarization import diarization_error, frame_f1
from d2v.metrics.language_modeling import language_modeling_metrics
from d2v.metrics.question_answering import squad, squad_v2
from d2v.metrics.segmentation import pixel_counts, segmentation_metrics
from d2v.metrics.token_classification import token_classification_metrics
from d2v.metrics.verification import verification_metrics
from d2v.processors.image import IGNORED

if TYPE_CHECKING:
    from evaluate import Metric


def word_error_rate(normalize: Callable[[str], str] | None = None, **options) -> "Metric":
    """`wer` and `cer` of texts, see `error_rates`; with `normalize` also `wer_normalized`."""

    def compute(references: list[str], predictions: list[str]) -> dict[str, float]:
        errors = error_rates(references, predictions)
        return errors | normalized_error_rate(references, predictions, normalize) if normalize else errors

    return new_module("word_error_rate", ("string", "string"), compute, **options)


def classification(
    problem_type: Literal["single_label", "multi_label", "regression"] = "single_label",
    names: Sequence[str] = (),
    classes: Sequence[int | str] = (0, 1),
    **options,
) -> "Metric":
    """Metrics by name, see `classification_metrics`; those of GLUE's tasks are among them.

    Args:
        problem_type: for `single_label` predictions are classes; for `multi_label` rows with one score per class, and
            references rows of zeros and ones; for `regression` both are values.
        names: of metrics; by default accuracy and macro_f1, map and micro_f1, or pearson and spearmanr.
        classes: numbers or names, in order; f1 is that of the second of two classes.
        options: of `evaluate.Metric`.
    """
    if TOP5 in names:
        raise InputError(f"{TOP5} needs the scores of all classes; d2v.metrics.modules.image_classification has it")
    chosen, label = known_metrics(names, problem_type), "string" if isinstance(classes[0], str) else "int64"
    types = {"single_label": (label, label), "multi_label": (["float64"], ["int64"]), "regression": ("float64",) * 2}

    def compute(references: list, predictions: list) -> dict[str, float]:
        targets = np.array(references) if problem_type == "multi_label" else references
        return classification_metrics(chosen, problem_type, targets, predictions, classes)

    return new_module("classification", types[problem_type], compute, **options)


def image_classification(**options) -> "Metric":
    """`accuracy` and `accuracy_top5`, see `ranked_accuracy`; predictions are lists of class numbers, best first."""
    return new_module("image_classification", (["int64"], "int64"), ranked_accuracy, **options)


def real_labels(**options) -> "Metric":
    """`accuracy_real` of class numbers, see `real_accuracy`; references are lists of an image's labels."""
    return new_module(
        "real_labels", ("int64", ["int64"]), lambda *sides: {"accuracy_real": real_accuracy(*sides)}, **options
    )


def verification(**options) -> "Metric":
    """`eer`, `min_dcf_001` and `min_dcf_005` of trials' scores and labels, see `verification_metrics`."""
    return new_module("verification", ("float64", "int64"), verification_metrics, **options)


def diarization(collar: float = 0.0, **options) -> "Metric":
    """`der` and its parts, see `diarization_error`; an example is a recording, a list of (start, end, speaker)."""
    segment = {"start": "float64", "end": "float64", "speaker": "string"}

    def store(*sides: Sequence[Segment]) -> list[list[dict]]:
        return [[dict(zip(segment, row, strict=True)) for row in side] for side in sides]

    def compute(*sides: list[list[dict]]) -> dict[str, float]:
        recordings = ({str(i): [tuple(row.values()) for row in rows] for i, rows in enumerate(side)} for side in sides)
        return diarization_error(*recordings, collar=collar)

    return new_module("diarization", ([segment], [segment]), compute, store, **options)


def frame_classification(**options) -> "Metric":
    """`frame_f1` of recordings' active frames, (T,) or (T, C), see `frame_f1`."""

    def store(*sides: Any) -> list[list[int]]:
        frames = np.stack([np.asarray(as_lists(side)) for side in sides]).reshape(2, -1)
        if not np.isin(frames, (0, 1)).all():
            raise InputError("frames should be 0 or 1, or true or false, not scores")
        return frames.astype(int).tolist()

    return new_module("frame_classification", (["int8"], ["int8"]), frame_f1, store, **options)


def segmentation(classes: int, absent: float = float("nan"), **options) -> "Metric":
    """`mean_iou` and more of label maps; each pair (H, W) may have another size; see `segmentation_metrics`.

    Only pixel counts per class are kept, counted when a map is added.

    Args:
        classes: number of classes.
        absent: IoU of a class that is neither predicted nor in the reference; by default it is left out.
        options: of `evaluate.Metric`.
    """

    def store(prediction: Any, reference: Any) -> tuple[list, list]:
        prediction = torch.as_tensor(prediction)
        reference = torch.as_tensor(reference, device=prediction.device)
        counted = reference != IGNORED
        for side in (prediction, reference) if prediction.shape == reference.shape else ():
            numbers = side[counted].double()
            if not ((numbers >= 0) & (numbers < classes) & (numbers == numbers.round())).all():
                there = f"{numbers.min():g} to {numbers.max():g}"
                raise InputError(f"label maps should have whole numbers from 0 to {classes - 1}; there are {there}")
        counts = pixel_counts(prediction, reference, classes)  # (3, C)
        return counts[:2].tolist(), counts[2].tolist()

    def compute(references: list, predictions: list) -> dict[str, float]:
        counts = [*torch.tensor(predictions).sum(0), torch.tensor(references).sum(0)]
        return segmentation_metrics(torch.stack(counts), absent=absent)

    return new_module("segmentation", ([["int64"]], ["int64"]), compute, store, **options)


def question_answering(threshold: float | None = None, **options) -> "Metric":
    """`exact_match` and `f1` of answers, see `squad` and `squad_v2`; references are lists of the right answers.

    Args:
        threshold: None for SQuAD 1.1, where predictions are texts. Else that of SQuAD 2.0, where they are dicts of
            `best`, a text, and `no_answer`, as from `d2v.decode.question_answering.answer`.
        options: of `evaluate.Metric`.
    """
    if threshold is None:
        return new_module("question_answering", ("string", ["string"]), squad, **options)
    keys = {"best": "string", "no_answer": "float64"}

    def compute(references: list[list[str]], predictions: list[dict]) -> dict[str, float]:
        best, no_answer = ([row[key] for row in predictions] for key in keys)
        return squad_v2(references, best, no_answer, threshold)

    def store(prediction: dict, reference: list[str]) -> tuple[dict, list[str]]:
        return {key: prediction[key] for key in keys}, reference

    return new_module("question_answering", (keys, ["string"]), compute, store, **options)


def token_classification(chunks: bool = True, **options) -> "Metric":
    """Metrics of sentences, lists of labels, by chunks or by words, see `token_classification_metrics`."""
    compute = partial(token_classification_metrics, chunks=chunks)
    return new_module("token_classification", (["string"], ["string"]), compute, **options)


def language_modeling(**options) -> "Metric":
    """`loss` and `perplexity`, see `language_modeling_metrics`.

    Predictions are the summed losses of pieces of text in nats, references their numbers of tokens; `compute` takes
    `characters` and `correct`.
    """

    def compute(tokens: list[int], losses: list[float], **sums) -> dict[str, float]:
        return language_modeling_metrics(losses, tokens, **sums)

    return new_module("language_modeling", ("float64", "int64"), compute, **options)


def new_module(
    name: str, types: tuple[Any, Any], compute: Callable, store: Callable | None = None, **options
) -> "Metric":
    """A module of `evaluate`.

    Args:
        name: prefix that `evaluate.combine` puts before metrics of one name.
        types: of an example's stored prediction and reference: Arrow's names, in lists and dicts.
        compute: returns the metrics, from all stored references and predictions.
        store: makes the stored values of an example's prediction and reference; by default both as they are.
        options: of `evaluate.Metric`.
    """
    import evaluate
    from datasets import Features

    features = Features(dict(zip(("predictions", "references"), map(as_feature, types), strict=True)))

    class Module(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(description=name, citation="", features=features)

        def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
            """Add examples: as many predictions as references; class numbers have to be whole."""
            for side, values, kind in zip(("predictions", "references"), (predictions, references), types, strict=True):
                if isinstance(values, str):
                    raise InputError(f"{side} should be a list, not the text {values!r:.40}")
                if store is None and not are_whole(values, kind):
                    raise InputError(f"{side} should be whole numbers, such as classes, not scores")
            pairs = zip(predictions, references, strict=True)
            stored = [store(*pair) if store else map(as_lists, pair) for pair in pairs]
            predictions, references = map(list, zip(*stored, strict=True)) if stored else ([], [])
            super().add_batch(predictions=predictions, references=references)

        def add(self, *, prediction: Any = None, reference: Any = None, **example: Any) -> None:
            """Add an example."""
            # `evaluate.combine` names the two predictions and references here too.
            example = {"predictions": prediction, "references": reference} | example
            self.add_batch(**{side: [value] for side, value in example.items()})

        def _compute(self, *, predictions: list, references: list, **arguments) -> dict[str, float]:
            return compute(references, predictions, **arguments)

    Module.__name__ = name
    return Module(**options)


def are_whole(values: Sequence[Any], kind: Any) -> bool:
    """Whether values are whole numbers if their type (Arrow's name, perhaps in lists) requires it."""
    leaf = kind[0] if isinstance(kind, list) else kind
    arrays = (np.asarray(as_lists(value)) for value in values if leaf == "int64")
    return all(np.array_equal(array, np.rint(array)) for array in arrays if array.dtype.kind == "f")


def as_feature(kind: str | list | dict) -> Any:
    """The column type of `datasets` for Arrow's name of a type, in lists and dicts."""
    from datasets import List, Value

    if isinstance(kind, dict):
        return {key: as_feature(value) for key, value in kind.items()}
    return List(as_feature(kind[0])) if isinstance(kind, list) else Value(kind)


def as_lists(value: Any) -> Any:
    """Arrays, tensors and their numbers as Python objects; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value
