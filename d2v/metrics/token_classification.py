"""Labels of words: chunks such as names by seqeval, whose rules are conlleval's; parts of speech by accuracy."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from d2v.errors import InputError
from d2v.metrics.classification import accuracy_and_f1

if TYPE_CHECKING:
    from seqeval.scheme import Token

Labels = Sequence[Sequence[str]]
# B begins, I or M goes on, E or L ends, and S, U or W is all of a chunk; its type may follow, or there is only one.
CHUNK = re.compile(r"O|([BIESLUMW])([-_].+)?", re.DOTALL)
IOBES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
ONE_TYPE = "chunk"


def are_chunks(classes: Sequence[str]) -> bool:
    """Whether the classes say where chunks of words begin and go on: O, and others with a prefix such as B- and I-."""
    return {"O"} < set(classes) and all(CHUNK.fullmatch(name) for name in classes)


def as_iobes(label: str) -> str:
    """A label of `are_chunks` by the letters of IOBES, and with a type."""
    if label == "O":
        return label
    return f"{IOBES[label[0]]}-{label[2:] or ONE_TYPE}"


def token_classification_metrics(
    references: Sequence[Sequence[str | None]], predictions: Labels, *, chunks: bool
) -> dict[str, float]:
    """The metrics of labelled words.

    Args:
        references: the labels of each sentence's words; a word whose label is None does not count.
        predictions: the same shape.
        chunks: as `are_chunks` says of all classes.

    Returns:
        `chunk_metrics`, or else `accuracy` and `macro_f1` of the words.
    """
    sides = scored_words(references, predictions)
    if chunks:
        return chunk_metrics(*sides)
    return accuracy_and_f1(*([label for labels in side for label in labels] for side in sides))


def scored_words(
    references: Sequence[Sequence[str | None]], predictions: Labels
) -> tuple[list[list[str]], list[list[str]]]:
    """The labels and predictions of the words that count, by sentence: those whose label is not None."""
    pairs = [
        [(reference, label) for reference, label in zip(*rows, strict=True) if reference is not None]
        for rows in zip(references, predictions, strict=True)
    ]
    return [[pair[0] for pair in row] for row in pairs], [[pair[1] for pair in row] for row in pairs]


def chunk_metrics(references: Labels, predictions: Labels) -> dict[str, float]:
    """`precision`, `recall` and `f1` of all chunks together, `f1_strict`, and the `accuracy` of the labels, O counted.

    As in conlleval a chunk need not begin with B-: an I- that follows on nothing of its type begins one. `f1_strict`
    takes that for no chunk, unless the references have such chunks themselves (IOB1, as CoNLL-2003 was published).

    Args:
        references: the labels of each sentence's words: IOBES, or BILOU, if an end or a single occurs, else IOB2 or
            IOB1.
        predictions: the same shape.

    Raises:
        InputError: no words.
    """
    from seqeval.metrics.sequence_labeling import accuracy_score, f1_score, precision_recall_fscore_support

    references, predictions = ([list(map(as_iobes, labels)) for labels in side] for side in (references, predictions))
    if not any(references):
        raise InputError("no word to score; a metric needs at least one")
    options = {"average": "micro", "zero_division": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(references, predictions, **options)
    scheme = strict_scheme(references, predictions)
    strict = f1_score(references, predictions, mode="strict", scheme=scheme, **options) if scheme else f1
    metrics = {"precision": precision, "recall": recall, "f1": f1, "f1_strict": strict}
    metrics["accuracy"] = accuracy_score(references, predictions)
    return {key: float(value) for key, value in metrics.items()}


def strict_scheme(references: Labels, predictions: Labels) -> "type[Token] | None":
    """The scheme by which a strict metric takes chunks, of labels by `as_iobes`; None where all chunks count, in IOB1.

    The references alone say which it is: in IOB1 most chunks begin with an I- that follows on nothing of its type.
    """
    from seqeval.scheme import IOB2, IOBES

    if any(label[0] in "ES" for side in (references, predictions) for labels in side for label in labels):
        return IOBES
    pairs = [pair for labels in references for pair in pairwise(["O", *labels])]
    inside = sum(label[0] == "I" and before[1:] != label[1:] for before, label in pairs)
    return None if inside > sum(label[0] == "B" for _, label in pairs) else IOB2
