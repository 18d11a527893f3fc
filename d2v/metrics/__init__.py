"""Metrics: plain functions over all predictions and references, one file per family of tasks."""

LOWER = "wer cer der jer eer min_dcf miss false_alarm confusion loss perplexity rmse mae mse"
"""Prefixes of the names of metrics that are errors or losses."""


def higher_is_better(metric: str) -> bool:
    """Whether higher values of a metric are better, unlike those of errors and losses."""
    return not metric.startswith(tuple(LOWER.split()))
