"""Metrics: plain functions over all predictions and references, one file a family of tasks."""
