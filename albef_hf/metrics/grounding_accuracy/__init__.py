"""Accuracy of the predicted boxes of expressions, as in RefCOCO+."""
