"""Models that have not been trained, and yet have something to say."""

import copy

import torch
from transformers import PreTrainedModel

from albef_hf import AlbefConfig


def make(kind: type[PreTrainedModel], config: AlbefConfig, seed: int = 0) -> PreTrainedModel:
    """A model whose scores differ well, and depend on images and on texts."""
    torch.manual_seed(seed)
    model = kind(copy.deepcopy(config)).eval()  # in which it is written as what it was saved
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embeddings" not in name:
                parameter.normal_(std=0.2)
    return model
