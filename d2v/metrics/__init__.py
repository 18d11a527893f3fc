"""Metrics: plain functions over all predictions and references, one file a family of tasks."""

LOWER = "wer cer der jer eer min_dcf miss false_alarm confusion loss perplexity rmse mae mse"
"""What the names of metrics begin with that are errors."""


def higher_is_better(metric: str) -> bool:
    """Whether a model is better whose metric of this name is higher, which errors and losses are not."""
    return not metric.startswith(tuple(LOWER.split()))
