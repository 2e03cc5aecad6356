"""Masks of attention as transformers makes them, without waiting for a device, and converted once for all layers."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from .compatibility_albef import CACHE_NAME
from .shared_inputs_albef import autocast_dtype

# Arguments of masks that forbid transformers to read whether anything is padded; it may not have them.
_UNREAD = {
    create_mask: {name: False for name in inspect.signature(create_mask).parameters if name.endswith("_skip")}
    for create_mask in (create_bidirectional_mask, create_causal_mask)
}


def bidirectional_mask(
    config: PreTrainedConfig,
    queries: torch.Tensor,
    attention_mask: torch.Tensor | None,
    context: torch.Tensor | None = None,
) -> Any:
    """Return the mask as the attention function takes it.

    Args:
        config: Configuration of the encoder.
        queries: (batch, tokens, width).
        attention_mask: (batch, context tokens), 1 for tokens and 0 for padding; None if nothing is padded.
        context: (batch, context tokens, width), if it has other tokens than the queries.
    """
    is_padding = attention_mask is not None and attention_mask.ndim == 2 and not _can_read(attention_mask)
    if is_padding and config._attn_implementation == "sdpa":
        # What transformers returns, without its twelve operations for masks of any pattern.
        mask = attention_mask[:, None, None].to(queries.device, torch.bool)
        return additive_mask(mask.expand(-1, -1, queries.shape[1], -1), queries)
    mask = create_bidirectional_mask(
        config=config,
        inputs_embeds=queries,
        attention_mask=attention_mask,
        encoder_hidden_states=context,
        **_without_reading(create_bidirectional_mask, attention_mask),
    )
    return additive_mask(mask, queries)


def causal_mask(
    config: PreTrainedConfig, queries: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None
) -> Any:
    """Return the mask as `bidirectional_mask` does, for tokens that attend to those before them, cached ones too."""
    mask = create_causal_mask(
        config=config,
        inputs_embeds=queries,
        attention_mask=attention_mask,
        **{CACHE_NAME: cache},
        **_without_reading(create_causal_mask, attention_mask),
    )
    return additive_mask(mask, queries)


def _without_reading(create_mask: Callable, attention_mask: torch.Tensor | None) -> dict[str, bool]:
    """Return arguments by which a mask is applied as it is, unless it can be read without waiting for a device.

    transformers drops a mask that masks nothing. On a GPU, the host would have to wait for all that it has launched.
    """
    return {} if _can_read(attention_mask) else _UNREAD[create_mask]


def _can_read(attention_mask: torch.Tensor | None) -> bool:
    return attention_mask is None or attention_mask.device.type == "cpu"


def additive_mask(mask: Any, states: torch.Tensor) -> Any:
    """Return a boolean mask of attention as numbers to add to its scores, which SDPA would convert in every layer.

    Args:
        mask: (batch, 1, tokens, context tokens), True where a token attends. What other implementations of attention
            take is returned as it is.
        states: Input of the layers, whose data type decides.
    """
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.ndim != 4:
        return mask
    return mask.to(autocast_dtype(states)).log()  # of 1 is 0, of 0 is minus infinity


__all__ = ["additive_mask", "bidirectional_mask", "causal_mask"]
