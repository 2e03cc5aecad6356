"""Operations, peaks and the distance of the teacher, compared with values by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from albef_hf import MomentumTeacher
from albef_hf.training.throughput import FlopCounter, peak_flops, relative_distance


class Product(torch.nn.Module):
    """A matrix product."""

    def __init__(self, width: int):
        super().__init__()
        self.layer = torch.nn.Linear(8, width, bias=False)
        self.calls = 0

    def forward(self, pixel_values, teacher_outputs=None, alpha=0.0):
        self.calls += 1
        return torch.nn.functional.dropout(self.layer(pixel_values), 0.5)


def test_operations_are_counted_once_for_each_shape_without_side_effects():
    student, teacher = Product(16), Product(4)
    counter, state = FlopCounter(student, teacher), torch.get_rng_state()
    for rows in (5, 7, 5):
        assert counter.count({"pixel_values": torch.ones(rows, 8)}) == 2 * rows * 8 * (4 + 3 * 16)
    assert (student.calls, teacher.calls) == (2, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert student.layer.weight.grad is None
    assert FlopCounter(student, None).count({"pixel_values": torch.ones(5, 8)}) == 2 * 5 * 8 * 3 * 16


def test_operations_of_pretraining_are_those_of_its_passes(model, batch):
    """A backward pass takes about two forward passes: pixels need no gradient, and attention takes a little more."""
    teacher = MomentumTeacher(model, queue_size=24)
    with FlopCounterMode(display=False) as both:
        model(**batch, teacher_outputs=teacher(**batch), alpha=0.4).loss.backward()
    assert FlopCounter(model, teacher).count(batch) == pytest.approx(both.get_total_flops(), rel=0.05)


def test_distance_of_the_teacher():
    student, teacher = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    whole = torch.cat([student.weight.flatten(), student.bias]).detach()
    other = torch.cat([teacher.weight.flatten(), teacher.bias]).detach()
    torch.testing.assert_close(relative_distance(student, teacher), (whole - other).norm() / whole.norm())
    assert relative_distance(student, student) == 0
    assert relative_distance(student.bfloat16(), teacher).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "half", "tf32", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12, 19.5e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12, 51e12),
        ("NVIDIA RTX A4000", 0, 0, 0),
        ("NVIDIA L40", 0, 0, 0),
    ],
)
def test_peaks_of_known_devices(monkeypatch, name, half, tf32, float32):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), "bf16") == half
    for allowed, peak in ((True, tf32), (False, float32)):  # which is the default
        torch.backends.cuda.matmul.allow_tf32 = allowed
        assert peak_flops(torch.device("cuda"), "no") == peak
    assert peak_flops(torch.device("cpu"), "bf16") == 0
