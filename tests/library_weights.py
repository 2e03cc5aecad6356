"""Weights and inputs that depend on nothing but a name and a shape, so that fixtures need not store them."""

import zlib

import torch


def uniform(name: str, shape: list[int]) -> torch.Tensor:
    """Numbers between -1 and 1 in float64, from a hash of integers: the same on every machine and version of torch."""
    size = torch.Size(shape).numel()
    state = torch.arange(size) * 0x9E3779B1 + zlib.crc32(name.encode())
    for shift, factor in ((16, 0x85EBCA6B), (13, 0x45D9F3B), (16, 1)):
        state = state & 0xFFFFFFFF
        state = (state ^ (state >> shift)) * factor
    return (((state & 0xFFFFFFFF).double() / 2**31) - 1).view(shape)


def weight(name: str, shape: list[int]) -> torch.Tensor:
    """A weight of a size at which no layer saturates: near 1 for a normalization, otherwise near 0."""
    values = uniform(name, shape)
    if name.endswith("temp"):
        return values.abs() * 0.05 + 0.05
    if "queue" in name:
        return torch.nn.functional.normalize(values, dim=0)
    if len(shape) == 1 and name.endswith("weight"):
        return 1 + 0.2 * values
    return 0.3 * values


def state_dict(shapes: dict[str, list[int]], tied: dict[str, str], constants: dict[str, list]) -> dict:
    """A state dict of these shapes; `tied` has names that share the weight of another name."""
    state = {name: weight(tied.get(name, name), shape) for name, shape in shapes.items()}
    return state | {name: torch.tensor(value) for name, value in constants.items()}
