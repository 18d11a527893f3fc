"""Fine-tuning of data2vec for speech: models, data, metrics and the loop that the scripts in `recipes/` share."""

__version__ = "0.1.0"
