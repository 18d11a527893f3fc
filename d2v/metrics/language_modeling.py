"""Perplexity, from the summed losses of any pieces of a text."""

import math
from collections.abc import Sequence

from d2v.errors import InputError


def language_modeling_metrics(
    losses: Sequence[float],
    tokens: Sequence[int],
    *,
    characters: int | None = None,
    correct: Sequence[int] | None = None,
) -> dict[str, float]:
    """`loss` in nats per token and `perplexity`, its exponential.

    All tokens have the same weight. The mean of pieces' means, which is often reported, depends on the cutting.

    Args:
        losses: each piece's summed loss in nats.
        tokens: number of tokens of each sum.
        characters: number of characters in the whole text before tokenization; adds `loss_per_character`, in nats,
            which can be compared between tokenizers.
        correct: number of rightly predicted tokens of each piece; adds `accuracy`.

    Raises:
        InputError: no token was predicted, so that no mean is defined.
    """
    total, count = math.fsum(losses), sum(tokens)
    if not count:
        raise InputError("no token to predict; a text needs at least one word")
    mean = total / count
    # exp overflows just above 709 nats per token
    metrics = {"loss": mean, "perplexity": math.exp(mean) if mean < 709 else math.inf}
    if characters is not None:
        metrics["loss_per_character"] = total / characters
    if correct is not None:
        metrics["accuracy"] = sum(correct) / count
    return metrics
