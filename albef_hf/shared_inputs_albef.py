"""Linear layers that read the same states, which are cast once, like the weights, instead of for each layer."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def autocast_dtype(states: torch.Tensor) -> torch.dtype:
    """Return the data type that a linear layer computes in: that of autocast for float32 states, else their own."""
    if states.is_meta:
        return states.dtype
    device = states.device.type
    if states.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return states.dtype


class _JoinedWeights(torch.autograd.Function):
    """Cast weights and biases into one weight and one bias, with one operation; likewise the gradients."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(tensors) // 2
        ctx.rows = [len(bias) for bias in tensors[count:]]
        ctx.dtype = tensors[0].dtype
        weight = tensors[0].new_empty(sum(ctx.rows), tensors[0].shape[1], dtype=dtype)
        bias = tensors[0].new_empty(sum(ctx.rows), dtype=dtype)
        torch._foreach_copy_([*weight.split(ctx.rows), *bias.split(ctx.rows)], list(tensors))
        return weight, bias

    @staticmethod
    def backward(ctx: Any, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weights, biases = (gradient.to(ctx.dtype).split(ctx.rows) for gradient in (weight, bias))
        return None, *weights, *biases


def _is_plain(layer: nn.Module, states: torch.Tensor) -> bool:
    """Return whether a layer multiplies by its weight and adds its bias, and does nothing else."""
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks or states.is_meta:
        return False
    return layer.bias is not None and layer.weight.device == states.device


def _can_join(layer: nn.Module, states: torch.Tensor) -> bool:
    """Return whether autocast would cast the weight of a plain layer."""
    is_cast = layer.weight.dtype != states.dtype and torch.is_autocast_enabled(states.device.type)
    return is_cast and type(layer.weight) is nn.Parameter


def _neighbors(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return parts as one tensor if they are consecutive rows of one; else None."""
    whole = parts[0]._base
    if whole is None or whole.shape[1:] != parts[0].shape[1:]:
        return None
    if any(part._base is not whole or not part.is_contiguous() for part in parts):
        return None
    first_rows = [part.storage_offset() // whole.stride(0) for part in parts]
    *expected, end = itertools.accumulate((len(part) for part in parts), initial=first_rows[0])
    if first_rows != expected:
        return None
    return whole if end - first_rows[0] == len(whole) else whole[first_rows[0] : end]


def linear_together(layers: Sequence[nn.Module], states: torch.Tensor) -> Sequence[torch.Tensor]:
    """Apply several linear layers to the same (..., width) states.

    Under autocast, the states are cast once, and the weights are joined while they are cast: one product is computed
    instead of several. Without autocast the layers stay separate, because sums of gradients would be rounded
    differently. Layers that are quantized, adapted, offloaded or hooked are applied one by one.

    A training loop may have joined weights before, and split them into those of the layers.

    Args:
        layers: `nn.Linear` or what replaces them.
        states: The input of each.

    Returns:
        The output of each.
    """
    dtype = autocast_dtype(states)
    states = states.to(dtype)
    if not all(_is_plain(layer, states) for layer in layers):
        return [layer(states) for layer in layers]
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers]
    weight, bias = _neighbors(weights), _neighbors(biases)
    if weight is None or bias is None:
        if not all(_can_join(layer, states) for layer in layers):
            return [layer(states) for layer in layers]
        weight, bias = _JoinedWeights.apply(dtype, *weights, *biases)
    return F.linear(states, weight, bias).split([layer.out_features for layer in layers], dim=-1)


__all__ = ["autocast_dtype", "linear_together"]
