"""Accuracy and consistency of judgments on pairs of images, as in NLVR2."""
