"""Accuracy and consistency of judgements on pairs of images, as in NLVR2."""
