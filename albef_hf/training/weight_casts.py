"""Weights of linear layers in the data type of autocast: cast once a step, those of a layer by one operation."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..encoders_albef import AlbefAttention


class _Group:
    """Layers whose weights of a name are joined; most groups have one layer.

    Args:
        layers: They have inputs of the same width.
        name: `weight` or `bias`.
        dtype: Of the cast.
    """

    def __init__(self, layers: list[nn.Linear], name: str, dtype: torch.dtype):
        self.layers = layers
        self.name = name
        self.rows = [len(weight) for weight in self.weights]
        shape = self.weights[0].shape[1:]
        # Kept from step to step: the host would take longer to allocate and to split it than to launch the cast.
        self.cast = self.weights[0].new_empty(sum(self.rows), *shape, dtype=dtype)
        self.parts = self.split(self.cast)
        self.cast_versions: dict[torch.Tensor, int] = {}  # of frozen weights, which are cast again when they change

    @property
    def weights(self) -> list[Any]:
        """Return the weights with which the layers compute at present."""
        return [layer._parameters[self.name] for layer in self.layers]

    @weights.setter
    def weights(self, weights: Sequence[torch.Tensor]) -> None:
        for layer, weight in zip(self.layers, weights, strict=True):
            layer._parameters[self.name] = weight  # type: ignore[assignment]

    @property
    def is_frozen(self) -> bool:
        """Return whether none of the weights is trained."""
        return not any(weight.requires_grad for weight in self.weights)

    @property
    def is_current(self) -> bool:
        """Return whether the weights are frozen, and the cast is of them as they are now."""
        return self.is_frozen and all(self.cast_versions.get(weight) == weight._version for weight in self.weights)

    def split(self, joined: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the rows of each layer."""
        return joined.split(self.rows) if len(self.rows) > 1 else [joined]

    def compute_with(self, cast: torch.Tensor) -> None:
        """Replace the weights by rows of a cast, each by itself: `split` would join the gradients of all."""
        self.weights = cast.tensor_split(list(accumulate(self.rows[:-1]))) if len(self.rows) > 1 else [cast]


class _Cast(torch.autograd.Function):
    """Cast the weights of groups by one operation; likewise their gradients."""

    @staticmethod
    def forward(ctx: Any, groups: list[_Group], *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.groups = groups
        ctx.dtype = weights[0].dtype
        torch._foreach_copy_([part for group in groups for part in group.parts], weights)
        for group in groups:
            # A fused optimizer does not count its changes, so what is trained has no version.
            group.cast_versions = {weight: weight._version for weight in group.weights} if group.is_frozen else {}
        casts = [group.cast.detach() for group in groups]
        ctx.mark_non_differentiable(*[cast for cast, group in zip(casts, groups, strict=True) if group.is_frozen])
        return tuple(casts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        present = [gradient for gradient in gradients if gradient is not None]
        casts = [torch.empty_like(gradient, dtype=ctx.dtype) for gradient in present]
        torch._foreach_copy_(casts, present)
        remaining = iter(casts)
        result: list[torch.Tensor | None] = []
        for group, gradient in zip(ctx.groups, gradients, strict=True):
            result += [None] * len(group.rows) if gradient is None else group.split(next(remaining))
        return None, *result


class WeightCasts:
    """Casts of a model's weights, which replace them during a step.

    Autocast would cast each weight on its own, and each gradient back. Here, the weights of an encoder's layer are
    cast together. Their gradients are complete when the layer's backward pass is, so that processes exchange them
    during that of the next layer. The weights of queries, keys and values become parts of one, which
    `linear_together` applies. Frozen weights are cast once, and again when they change, but not through `.data`.
    Quantized layers are left to autocast.

    Args:
        model: The model, on its device; its layers have to stay the same.
        dtype: What autocast computes in. The casts take 2 bytes for each weight.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self.blocks: list[list[_Group]] = []  # what is cast together: layers of the encoders, then the rest
        seen: set[nn.Module] = set()
        encoder_layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
        for block in [*encoder_layers, model]:
            groups: list[_Group] = []
            for part in block.modules():
                layers: list[Any] = part.joined_layers if isinstance(part, AlbefAttention) else [part]
                if layers and all(_is_cast(layer) for layer in layers) and not seen.intersection(layers):
                    seen.update(layers)
                    groups += [_Group(layers, name, dtype) for name, _ in layers[0].named_parameters()]
            if groups:
                self.blocks.append(groups)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights by casts, for a forward pass and its backward pass, which may run layers again."""
        originals = [[group.weights for group in groups] for groups in self.blocks]
        try:
            for groups in self.blocks:
                stale = [group for group in groups if not group.is_current]
                weights = chain.from_iterable(group.weights for group in stale)
                casts = dict(zip(stale, _Cast.apply(stale, *weights), strict=True)) if stale else {}
                for group in groups:
                    group.compute_with(casts.get(group, group.cast))
            yield
        finally:
            for group, original in zip(chain.from_iterable(self.blocks), chain.from_iterable(originals), strict=True):
                group.weights = original


def _is_cast(layer: nn.Module) -> bool:
    """Return whether autocast would cast a layer's weights, and the layer does nothing else."""
    return type(layer) is nn.Linear and all(
        type(weight) is nn.Parameter and weight.dtype == torch.float32 and not weight.is_meta
        for weight in layer.parameters()
    )
