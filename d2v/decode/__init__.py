"""From a model's outputs to predictions, one file per task."""
