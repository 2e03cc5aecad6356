"""The two sizes that benchmarks have: the paper's, and one that a processor takes a fraction of a second for."""

import torch

from albef_hf import AlbefConfig

SMALL = {
    "vision_config": {
        "image_size": 128,
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    },
    "text_config": {
        "hidden_size": 192,
        "num_hidden_layers": 3,
        "num_multimodal_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    },
}
SIZES = {"small": SMALL, "base": {}}
QUEUES = {"small": 1024, "base": 65536}


def make_config(size: str, attention: str = "sdpa") -> AlbefConfig:
    """The configuration of a size, with an implementation of attention."""
    config = AlbefConfig(**SIZES[size])
    config._attn_implementation = attention
    return config


def make_texts(count: int, shortest: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random texts with lengths from `shortest` to `longest`: ids and attention mask, each (count, tokens)."""
    lengths = torch.randint(shortest, longest + 1, (count,))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    input_ids = torch.randint(1000, 30000, mask.shape) * mask
    input_ids[:, 0] = 101
    return input_ids, mask
