"""Accuracy of answers to questions about images, as in VQA v2."""
