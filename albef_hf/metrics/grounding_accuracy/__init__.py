"""Accuracy of the boxes that expressions refer to, as in RefCOCO+."""
