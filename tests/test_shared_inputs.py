"""Casts and masks that layers share: fewer operations, and the same numbers."""

import pytest
import torch
from operations import Operations
from torch import nn
from torch.nn import functional as F

from albef_hf import masks_albef
from albef_hf.masks_albef import additive_mask, bidirectional_mask
from albef_hf.shared_inputs_albef import _neighbors, linear_together


@pytest.fixture
def layers() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(32, 48)])


def gradients(outputs: list[torch.Tensor], layers: nn.ModuleList) -> list[torch.Tensor]:
    sum(output.float().square().sum() for output in outputs).backward()
    found = [weight.grad for weight in layers.parameters()]
    layers.zero_grad()
    return found


def test_under_autocast_layers_of_the_same_states_are_one_product(layers):
    states = torch.randn(4, 5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        separate = [layer(states) for layer in layers]
        with Operations() as forward:
            together = linear_together(layers, states)
    for output, other in zip(together, separate, strict=True):
        torch.testing.assert_close(output, other)
    expected = gradients(separate, layers)
    with Operations() as backward:
        found = gradients(together, layers)
    for gradient, other in zip(found, expected, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, other, rtol=2e-2, atol=2e-2)
    assert forward.counts["addmm"] == forward.counts["_to_copy"] == forward.counts["_foreach_copy_"] == 1
    assert backward.counts["mm"] == 1  # the states need no gradient


def test_weights_that_were_joined_before_are_one_product(layers):
    states = torch.randn(4, 5, 32)
    weight, bias = torch.randn(80, 32), torch.randn(80)
    expected = F.linear(states, weight, bias)
    for layer, part, own in zip(layers, weight.split([16, 16, 48]), bias.split([16, 16, 48]), strict=True):
        layer._parameters.update(weight=part, bias=own)
    for some, columns in ((layers, slice(None)), (layers[:2], slice(32)), (layers[1:], slice(16, None))):
        with Operations() as operations:
            together = linear_together(list(some), states)
        torch.testing.assert_close(torch.cat(together, -1), expected[..., columns])
        assert operations.counts["addmm"] == 1
    for some in ([layers[1], layers[0]], [layers[0], layers[2]]):  # not as they were joined
        with Operations() as operations:
            together = linear_together(some, states)
        assert all(torch.equal(output, layer(states)) for output, layer in zip(together, some, strict=True))
        assert operations.counts["addmm"] == 2


def test_parts_of_other_tensors_are_not_taken_for_joined_weights():
    whole = torch.randn(8, 8)
    assert _neighbors(whole.split([2, 6])) is whole
    assert torch.equal(_neighbors([whole[2:4], whole[4:7]]), whole[2:7])
    columns, every_second_row = [whole[:, :4]], [whole[::2], whole[4::2]]
    for parts in (
        columns,
        every_second_row,
        [whole.T],
        [whole[0]],
        [whole[:2], whole[3:]],
        [whole[:2], whole],
        [whole],
    ):
        assert _neighbors(parts) is None
    assert _neighbors([whole[:2], torch.randn(8, 8)[2:]]) is None


def test_without_autocast_and_in_layers_of_other_kinds_nothing_is_joined(layers):
    states = torch.randn(4, 5, 32)
    with Operations() as operations:
        together = linear_together(layers, states)
    assert operations.counts["addmm"] == 3
    assert all(torch.equal(output, layer(states)) for output, layer in zip(together, layers, strict=True))

    class Adapted(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states) + 1

    layers[1] = Adapted(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        together = linear_together(layers, states)
        assert all(torch.equal(output, layer(states)) for output, layer in zip(together, layers, strict=True))


def test_hooks_of_layers_run_and_shapes_are_computed_without_data():
    layers = [nn.Linear(32, 16), nn.Linear(32, 16)]
    called = []
    layers[0].register_forward_hook(lambda *_: called.append(True))
    with torch.autocast("cpu", torch.bfloat16):
        linear_together(layers, torch.randn(2, 32))
        assert called
        outputs = linear_together([layer.to("meta") for layer in layers], torch.randn(2, 32, device="meta"))
    assert all(output.shape == (2, 16) for output in outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_additive_mask_gives_the_same_attention(dtype):
    query, key, value = torch.randn(3, 2, 2, 5, 16).to(dtype)
    mask = (torch.rand(2, 1, 5, 5) < 0.5) | torch.eye(5, dtype=torch.bool)
    added = additive_mask(mask, query)
    assert added.dtype == dtype
    expected = F.scaled_dot_product_attention(query, key, value, mask)
    assert torch.equal(F.scaled_dot_product_attention(query, key, value, added), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_padding_is_masked_as_transformers_does(monkeypatch, config, dtype):
    padding = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    context = torch.randn(3, 4, 32, dtype=dtype)
    text_config = config.text_config
    text_config._attn_implementation = "sdpa"
    for queries in (context, context[:, :1]):
        expected = bidirectional_mask(text_config, queries, padding, context)
        with monkeypatch.context() as patch:
            patch.setattr(masks_albef, "_can_read", lambda mask: mask is None)
            with Operations() as operations:
                mask = bidirectional_mask(text_config, queries, padding, context)
            assert mask.stride() == expected.stride() and torch.equal(mask, expected)
            assert operations.counts["arange"] == operations.counts["all"] == 0
            assert bidirectional_mask(text_config, queries, padding[2:], context[2:]).eq(0).all()  # not read
            assert bidirectional_mask(text_config, queries, expected, context) is expected
            text_config._attn_implementation = "eager"
            assert bidirectional_mask(text_config, queries, padding, context).min() == torch.finfo(dtype).min
            text_config._attn_implementation = "sdpa"


def test_masks_of_other_implementations_stay():
    padding, additive = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 1, 5, 5)  # of flash and eager attention
    states = torch.randn(2, 5, 8)
    for mask in (None, padding, additive):
        assert additive_mask(mask, states) is mask
