"""Accuracy of visual entailment, as in SNLI-VE."""
