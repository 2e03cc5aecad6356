"""Recall of the right candidates among the best of a ranking."""
