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
    """`loss` in nats a token and `perplexity`, its exponential.

    All tokens weigh the same. The mean of pieces' means, which is often reported, changes with how a text was cut.

    Args:
        losses: each piece's summed loss in nats.
        tokens: how many tokens each sum is over.
        characters: of the whole text as it was before tokenization; adds `loss_per_character`, in nats, which can be
            compared between tokenizers.
        correct: how many tokens of each piece were predicted right; adds `accuracy`.

    Raises:
        InputError: no token was predicted, so that no mean is defined.
    """
    total, count = math.fsum(losses), sum(tokens)
    if not count:
        raise InputError("no token to predict; a text needs at least one word")
    mean = total / count
    # exp overflows just above 709 nats a token
    metrics = {"loss": mean, "perplexity": math.exp(mean) if mean < 709 else math.inf}
    if characters is not None:
        metrics["loss_per_character"] = total / characters
    if correct is not None:
        metrics["accuracy"] = sum(correct) / count
    return metrics
