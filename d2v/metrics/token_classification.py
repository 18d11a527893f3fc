"""Metrics of labelled words: chunks such as names by seqeval, by conlleval's rules; parts of speech by accuracy."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from d2v.errors import InputError
from d2v.metrics.classification import accuracy_and_f1

if TYPE_CHECKING:
    from seqeval.scheme import Token

Labels = Sequence[Sequence[str]]
# B begins a chunk, I or M continues it, E or L ends it, and S, U or W is a whole chunk; a type may follow.
CHUNK = re.compile(r"O|([BIESLUMW])([-_].+)?", re.DOTALL)
IOBES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
ONE_TYPE = "chunk"


def are_chunks(classes: Sequence[str]) -> bool:
    """Whether the classes mark chunks of words: O, and others with a prefix such as B- and I-."""
    return {"O"} < set(classes) and all(CHUNK.fullmatch(name) for name in classes)


def as_iobes(label: str) -> str:
    """A chunk label in IOBES, and with a type."""
    if label == "O":
        return label
    return f"{IOBES[label[0]]}-{label[2:] or ONE_TYPE}"


def token_classification_metrics(
    references: Sequence[Sequence[str | None]], predictions: Labels, *, chunks: bool
) -> dict[str, float]:
    """The metrics of labelled words.

    Args:
        references: the labels of each sentence's words; a word whose label is None is ignored.
        predictions: the same shape.
        chunks: the result of `are_chunks` for all classes.

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
    """The labels and predictions of the words whose label is not None, by sentence."""
    pairs = [
        [(reference, label) for reference, label in zip(*rows, strict=True) if reference is not None]
        for rows in zip(references, predictions, strict=True)
    ]
    return [[pair[0] for pair in row] for row in pairs], [[pair[1] for pair in row] for row in pairs]


def chunk_metrics(references: Labels, predictions: Labels) -> dict[str, float]:
    """`precision`, `recall` and `f1` over all chunks, `f1_strict`, and the `accuracy` of the labels, O included.

    As in conlleval a chunk need not begin with B-: an I- that does not follow its own type begins one. `f1_strict`
    does not count such chunks, unless the references have them too (IOB1, as CoNLL-2003 was published).

    Args:
        references: the labels of each sentence's words: IOBES or BILOU if ends or single words are marked, else IOB2 or
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
    """The scheme of chunks for a strict metric, for labels from `as_iobes`; None for IOB1, where all chunks count.

    Only the references decide: in IOB1 most chunks begin with an I- that does not follow its own type.
    """
    from seqeval.scheme import IOB2, IOBES

    if any(label[0] in "ES" for side in (references, predictions) for labels in side for label in labels):
        return IOBES
    pairs = [pair for labels in references for pair in pairwise(["O", *labels])]
    inside = sum(label[0] == "I" and before[1:] != label[1:] for before, label in pairs)
    return None if inside > sum(label[0] == "B" for _, label in pairs) else IOB2
