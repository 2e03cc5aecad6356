"""Operations, peaks and the distance of the teacher, compared with values by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from albef_hf import AlbefForPreTraining, AlbefForQuestionAnswering, MomentumTeacher
from albef_hf.training.throughput import COUNTED_SHAPES, FlopCounter, peak_flops, relative_distance


class Product(torch.nn.Module):
    """A matrix product."""

    def __init__(self, width: int):
        super().__init__()
        self.layer = torch.nn.Linear(8, width, bias=False)
        self.calls = 0

    def forward(self, pixel_values, teacher_outputs=None, alpha=0.0):
        self.calls += 1
        return torch.nn.functional.dropout(self.layer(pixel_values), 0.5)


def test_operations_of_the_first_shapes_are_counted_without_side_effects_and_those_of_others_estimated():
    student, teacher = Product(16), Product(4)
    counter, state = FlopCounter(student, teacher), torch.get_rng_state()
    for rows in (5, 7, 5, *range(10, 30)):
        assert counter.count({"pixel_values": torch.ones(rows, 8)}) == 2 * rows * 8 * (4 + 3 * 16)
    assert (student.calls, teacher.calls) == (COUNTED_SHAPES, COUNTED_SHAPES)
    assert torch.equal(torch.get_rng_state(), state)
    assert student.layer.weight.grad is None
    assert FlopCounter(student, None).count({"pixel_values": torch.ones(5, 8)}) == 2 * 5 * 8 * 3 * 16


def test_operations_of_pretraining_are_those_of_its_passes(model, batch):
    """A backward pass takes about two forward passes: pixels need no gradient, and attention takes a little more."""
    teacher = MomentumTeacher(model, queue_size=24)
    with FlopCounterMode(display=False) as both:
        model(**batch, teacher_outputs=teacher(**batch), alpha=0.4).loss.backward()
    assert FlopCounter(model, teacher).count(batch) == pytest.approx(both.get_total_flops(), rel=0.05)


def pretraining_batch(tokens: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Twelve pairs with one masked token in six, at random places."""
    input_ids = torch.randint(1000, 2000, (12, tokens), generator=generator)
    ranks = torch.rand(input_ids.numel(), generator=generator).argsort().argsort()
    is_masked = (ranks < input_ids.numel() // 6).view_as(input_ids)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mlm_input_ids": input_ids.masked_fill(is_masked, 103),
        "labels": input_ids.masked_fill(~is_masked, -100),
        "pixel_values": torch.zeros(12, 3, 32, 32),
    }


def question_batch(tokens: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Twelve questions with one to three answers."""
    counts = torch.randint(1, 4, (12,), generator=generator)
    lengths = torch.randint(3, 5, (int(counts.sum()), 1), generator=generator)
    labels = torch.randint(1000, 2000, (len(lengths), int(lengths.max())), generator=generator)
    labels[:, 0] = 101
    labels.scatter_(1, lengths - 1, 102)
    return {
        "input_ids": torch.randint(1000, 2000, (12, tokens), generator=generator),
        "pixel_values": torch.zeros(12, 3, 32, 32),
        "labels": labels.masked_fill(torch.arange(labels.shape[1]) >= lengths, -100),
        "answer_counts": counts,
        "answer_weights": torch.ones(len(labels)),
    }


@pytest.mark.parametrize(
    ("head", "make_batch"),
    [(AlbefForPreTraining, pretraining_batch), (AlbefForQuestionAnswering, question_batch)],
)
def test_estimated_operations_are_close_to_those_counted(head, make_batch, config):
    """Each batch within 4 %, their mean within 1 %."""
    config.text_config.vocab_size = 2000
    student = head(config).train()
    counter = FlopCounter(student, MomentumTeacher(student, queue_size=0))
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randperm(16, generator=generator) + 8
    batches = [make_batch(int(tokens), generator) for tokens in (*lengths, *lengths)]
    for batch in batches:
        counter.count(batch)
    assert len(counter.counted) == COUNTED_SHAPES
    estimated = [batch for batch in batches if tuple(v.shape for v in batch.values()) not in counter.counted]
    ratios = [counter.count(batch) / counter._count(batch) for batch in estimated]
    assert len(ratios) >= 8
    assert ratios == pytest.approx([1.0] * len(ratios), rel=0.04)
    assert sum(ratios) / len(ratios) == pytest.approx(1, rel=0.01)


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
