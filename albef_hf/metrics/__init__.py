"""Metrics of the evaluations. Each folder is a self-contained module for `evaluate.load`."""
