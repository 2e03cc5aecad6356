"""Evaluation of trained models: the command, baselines, and what a model reaches without the right image."""
