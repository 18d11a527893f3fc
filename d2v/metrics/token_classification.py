"""Labels of words: chunks such as names by seqeval, whose rules are conlleval's; parts of speech by accuracy."""

import re
from collections.abc import Sequence

from d2v.errors import InputError
from d2v.metrics.classification import accuracy_and_f1

Labels = Sequence[Sequence[str]]
CHUNK = re.compile(r"O|[BIES]-.+", re.DOTALL)


def are_chunks(classes: Sequence[str]) -> bool:
    """Whether the classes say where chunks of words begin and go on: O, and others with a prefix such as B- and I-."""
    return "O" in classes and len(classes) > 1 and all(CHUNK.fullmatch(name) for name in classes)


def token_classification_metrics(references: Labels, predictions: Labels, *, chunks: bool) -> dict[str, float]:
    """The metrics of labelled words.

    Args:
        references: the labels of each sentence's words.
        predictions: the same shape.
        chunks: as `are_chunks` says of all classes.

    Returns:
        `chunk_metrics`, or else `accuracy` and `macro_f1` of the words.
    """
    if chunks:
        return chunk_metrics(references, predictions)
    return accuracy_and_f1(*([label for labels in side for label in labels] for side in (references, predictions)))


def chunk_metrics(references: Labels, predictions: Labels) -> dict[str, float]:
    """`precision`, `recall` and `f1` of all chunks together, `f1_strict`, and the `accuracy` of the labels, O counted.

    As in conlleval a chunk need not begin with B-: an I- that follows on nothing of its type begins one. `f1_strict`
    takes that for no chunk.

    Args:
        references: the labels of each sentence's words: IOBES if E- or S- occurs, else IOB2.
        predictions: the same shape.

    Raises:
        InputError: no words.
    """
    from seqeval.metrics.sequence_labeling import accuracy_score, f1_score, precision_recall_fscore_support
    from seqeval.scheme import IOB2, IOBES

    references, predictions = [list(labels) for labels in references], [list(labels) for labels in predictions]
    prefixes = {label[0] for side in (references, predictions) for labels in side for label in labels}
    if not prefixes:
        raise InputError("no word to score; a metric needs at least one")
    scheme = IOBES if prefixes & {"E", "S"} else IOB2
    options = {"average": "micro", "zero_division": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(references, predictions, **options)
    strict = f1_score(references, predictions, mode="strict", scheme=scheme, **options)
    metrics = {"precision": precision, "recall": recall, "f1": f1, "f1_strict": strict}
    metrics["accuracy"] = accuracy_score(references, predictions)
    return {key: float(value) for key, value in metrics.items()}
