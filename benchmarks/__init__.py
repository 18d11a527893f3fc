"""d2v beside transformers on the same weights and data: how fast, how much memory. Run from the repository's root."""
