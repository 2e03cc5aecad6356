"""Recall at k of retrieval."""
