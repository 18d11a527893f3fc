"""Word and character error rates, by jiwer: all edits in a set over all words or characters in it."""

from collections.abc import Callable

from d2v.errors import InputError


def error_rates(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """`wer` and `cer` of a set.

    Args:
        references: the right transcripts, normalised for the comparison; an empty one has only insertions.
        hypotheses: the recognised texts, in the same order.

    Raises:
        InputError: no reference has a word, so that no rate is defined.
    """
    import jiwer

    if not any(reference.strip() for reference in references):
        raise InputError("no reference has a word; an error rate needs at least one")
    return {"wer": jiwer.wer(references, hypotheses), "cer": jiwer.cer(references, hypotheses)}


def whisper_normalizer() -> Callable[[str], str]:
    """Whisper's normaliser of English text (Radford et al., 2022, arXiv 2212.04356, appendix C), from its own code.

    The Open ASR Leaderboard's is a fork that has since diverged: its error rates are close, but not equal.
    """
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise InputError(
            f'--data.normalizer whisper takes a package: pip install -e ".[whisper]" in the clone of d2v ({error})'
        ) from error
    return EnglishTextNormalizer()


def normalized_error_rate(
    references: list[str], hypotheses: list[str], normalize: Callable[[str], str]
) -> dict[str, float]:
    """`wer_normalized` of a set: over normalised texts, without references that become empty.

    Args:
        references: the right transcripts, as written.
        hypotheses: the recognised texts, in the same order.
        normalize: from `whisper_normalizer`.
    """
    pairs = [(normalize(reference), normalize(text)) for reference, text in zip(references, hypotheses, strict=True)]
    pairs = [pair for pair in pairs if pair[0].strip()]
    errors = error_rates([reference for reference, _ in pairs], [text for _, text in pairs])
    return {"wer_normalized": errors["wer"]}


def show_errors(references: list[str], hypotheses: list[str], most: int = 10) -> str:
    """The first pairs above one another, with S, D and I under substituted, deleted and inserted words."""
    import jiwer

    blocks = []
    for reference, hypothesis in list(zip(references, hypotheses, strict=True))[:most]:
        if not reference.strip():
            blocks.append(f"REF: (nothing)\nHYP: {hypothesis}")
            continue
        aligned = jiwer.process_words(reference, hypothesis)
        lines = jiwer.visualize_alignment(aligned, show_measures=False, skip_correct=False).splitlines()
        blocks.append(
            "\n".join(line.rstrip() for line in lines if line.startswith(("REF", "HYP", "   ")) and line.strip())
        )
    return "\n\n".join(blocks)


def transcript_metrics(references: list[str], predictions: list[dict[str, str]]) -> dict[str, float]:
    """`wer` and `cer` of predictions' `text`, and, if there is one, of `text_lm`, decoded with a language model."""
    metrics = error_rates(references, [row["text"] for row in predictions])
    if predictions and "text_lm" in predictions[0]:
        with_lm = error_rates(references, [row["text_lm"] for row in predictions])
        metrics |= {f"{name}_lm": value for name, value in with_lm.items()}
    return metrics
