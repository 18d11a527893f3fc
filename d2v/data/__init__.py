"""Data: loading any `datasets` source, collation, length-bucketed sampling, and the embedded demo sets."""
