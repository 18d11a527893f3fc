"""Rows and batches: any `datasets` source, its splits, labels and lengths, and the loaders."""
