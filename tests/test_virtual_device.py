"""The virtual device refuses what a GPU refuses, and counts what a host waits for."""

import pytest
import torch
from virtual_device import CPU, GPU, VirtualDevice, device_of


def test_tensors_know_their_device():
    with VirtualDevice():
        there = torch.ones(3, device="cuda")
        assert there.is_cuda and there.device == GPU and (there * 2)[1:].device == GPU
        assert there.cpu().device == CPU and torch.ones(3).to(there).is_cuda and there.new_zeros(2).is_cuda
        assert (there + torch.tensor(1.0)).is_cuda  # a scalar of the host is accepted
        layer = torch.nn.Linear(3, 4).to("cuda")
        layer(there).sum().backward()
        assert layer.weight.is_cuda and layer.weight.grad.is_cuda
    assert device_of(torch.ones(3)) == CPU


def test_two_devices_do_not_mix():
    with VirtualDevice():
        there = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.nn.functional.linear(there, torch.ones(2, 3))
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        ("read", lambda there: there.sum().item()),
        ("read", lambda there: bool(there.all())),
        ("read", lambda there: there.tolist()),
        ("read", lambda there: there.nonzero()),
        ("read", lambda there: there.repeat_interleave(there.long())),
        ("shape", lambda there: there[there > 0]),
        ("upload", lambda there: there[torch.tensor([0, 1])]),
        ("upload", lambda there: torch.ones(3).to("cuda")),
        ("upload", lambda there: torch.tensor([1.0], device="cuda")),
        ("upload", lambda there: there.new_tensor([1.0])),
        ("upload", lambda there: there.copy_(torch.zeros(3))),
        ("download", lambda there: there.cpu()),
        (None, lambda there: torch.ones(3).to("cuda", non_blocking=True)),
        (None, lambda there: there.repeat_interleave(there.long(), output_size=3)),
        (None, lambda there: there[there.argsort()]),
        (None, lambda there: torch.where(there > 0, there, 0.0)),
    ],
)
def test_what_the_host_waits_for_is_counted(kind, work):
    with VirtualDevice() as device:
        there = torch.ones(3, device="cuda")
        work(there)
    assert [found for found, _ in device.waits.elements()] == ([kind] if kind else []), device.report()


def test_float64_on_the_device_is_noted():
    with VirtualDevice() as device:
        torch.ones(3, device="cuda").float()
        assert not device.doubles
        torch.ones(3, device="cuda").double()
    assert device.doubles.total() == 1
