"""Weights that are cast together once a step: fewer operations than autocast's, and the same numbers."""

from collections import Counter

import pytest
import torch
from operations import Operations
from torch import nn

from albef_hf import AlbefForPreTraining
from albef_hf.compatibility_albef import enable_activation_checkpointing
from albef_hf.training.weight_casts import WeightCasts


def step(model: AlbefForPreTraining, batch: dict, casts: WeightCasts | None) -> tuple[torch.Tensor, dict, Counter]:
    """Return the loss, the gradients and the operations of a step under autocast."""
    torch.manual_seed(0)
    model.zero_grad()
    with Operations() as operations:
        if casts is None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
        else:
            with casts.applied():
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(**batch).loss
                loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss, gradients, operations.counts


@pytest.mark.parametrize("checkpointing", [False, True])
def test_numbers_are_those_of_autocast(model, batch, checkpointing):
    if checkpointing:
        enable_activation_checkpointing(model)
    model.train()
    loss, gradients, operations = step(model, batch, None)
    found_loss, found, fewer = step(model, batch, WeightCasts(model, torch.bfloat16))
    assert torch.equal(found_loss, loss) and found.keys() == gradients.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        if "multimodal" in name and any(part in name for part in ("self_attn.q", "self_attn.k", "self_attn.v")):
            # Sums over several calls, in bfloat16 as autocast forms those of all other weights.
            distance = (gradient - gradients[name]).norm() / gradients[name].norm()
            assert distance < 0.01
        else:
            assert torch.equal(gradient, gradients[name]), name
    assert fewer["_to_copy"] < operations["_to_copy"] - 100
    assert fewer["_foreach_copy_"] == 2 * 7  # three encoders of two layers, and the heads, forward and backward


def test_weights_return_even_after_an_error(model):
    weights = dict(model.named_parameters())
    casts = WeightCasts(model, torch.bfloat16)
    with pytest.raises(RuntimeError, match="broken"), casts.applied():
        layer = model.albef.vision_model.layers[0]
        assert layer.mlp.fc1.weight.dtype == layer.self_attn.q_proj.bias.dtype == torch.bfloat16
        assert layer.mlp_norm.weight.dtype == model.get_input_embeddings().weight.dtype == torch.float32
        raise RuntimeError("broken")
    assert all(weight is weights[name] for name, weight in model.named_parameters())


def test_a_later_step_casts_the_weights_of_its_time(model, batch):
    casts = WeightCasts(model, torch.bfloat16)
    step(model, batch, casts)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    model.albef.text_model.requires_grad_(False)
    loss, gradients, _ = step(model, batch, None)
    found_loss, found, _ = step(model, batch, casts)
    assert torch.equal(found_loss, loss) and found.keys() == gradients.keys()


def test_for_frozen_weights_nothing_is_computed():
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
    layers[2].requires_grad_(False)
    with WeightCasts(layers, torch.bfloat16).applied():
        assert layers[1].weight.requires_grad and not layers[2].weight.requires_grad
        with Operations() as operations:
            layers[2](torch.randn(2, 8, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
            layers[1](torch.randn(2, 8, dtype=torch.bfloat16)).sum().backward()
    assert layers[1].weight.grad.dtype == torch.float32
    assert all(weight.grad is None for layer in (layers[0], layers[2]) for weight in layer.parameters())
    assert operations.counts["mm"] == 3  # forward without a bias, and two gradients


def test_other_layers_keep_their_weights():
    class Adapted(nn.Linear):
        """What an adapter may make of a layer."""

    layers = nn.ModuleList([nn.Linear(8, 8), Adapted(8, 8), nn.Linear(8, 8, dtype=torch.bfloat16), nn.LayerNorm(8)])
    before = [layer.weight for layer in layers]
    with WeightCasts(layers, torch.bfloat16).applied():
        is_cast = [layer.weight is not weight for layer, weight in zip(layers, before, strict=True)]
    assert is_cast == [True, False, False, False]


def test_frozen_weights_are_cast_again_only_when_they_change():
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
    layers[0].requires_grad_(True)
    casts = WeightCasts(layers, torch.bfloat16)

    def copied() -> int:
        """Return how many weights a step casts; those that it computes with have to be the present ones."""
        expected = [weight.to(torch.bfloat16) for weight in layers.parameters()]
        with torch.profiler.profile() as profile, casts.applied():
            assert all(map(torch.equal, layers.parameters(), expected))
        return sum(event.count for event in profile.key_averages() if event.key == "aten::copy_")

    assert [copied(), copied()] == [4, 2]
    with torch.no_grad():
        layers[1].weight.mul_(2)
    assert copied() == 3  # the bias is a group of its own
    other = nn.Parameter(torch.ones(8, 8), requires_grad=False)
    while other._version < layers[1].weight._version:  # which does not tell them apart
        other.mul_(2)
    layers[1].weight = other
    assert [copied(), copied()] == [3, 2]
    layers[1].requires_grad_(True)
    assert [copied(), copied()] == [4, 4]
    optimizer = torch.optim.AdamW(layers[1].parameters(), fused=True)  # does not count its changes as versions
    for weight in layers[1].parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    layers[1].requires_grad_(False)
    assert [copied(), copied()] == [4, 2]
