"""Compiling: whole models in one graph, few shapes, and what is said about it."""

import pytest
import torch
from small_pretraining import TINY_MODEL

from albef_hf import (
    AlbefConfig,
    AlbefForImageCaptioning,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    MomentumTeacher,
)
from albef_hf.data import PretrainingCollator, embedded_tokenizer
from albef_hf.tasks.arguments import CaptioningArguments, VqaArguments
from albef_hf.tasks.captioning import Captioning
from albef_hf.tasks.vqa import VisualQuestionAnswering
from albef_hf.training.arguments import PretrainingArguments
from albef_hf.training.compilation import compile_plugin, report_recompile_limit

CAPTIONS = ["a red star", "a red star left of a large blue ball", "two balls", "a", "a very small green box"]


@pytest.fixture
def model() -> AlbefForPreTraining:
    torch.manual_seed(0)
    return AlbefForPreTraining(AlbefConfig(**TINY_MODEL)).eval()


def batch_of(captions: list[str], pad_to_multiple_of: int | None, max_length: int = 25) -> dict[str, torch.Tensor]:
    collate = PretrainingCollator(embedded_tokenizer(), max_length, pad_to_multiple_of=pad_to_multiple_of)
    pixels = torch.rand(len(captions), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    samples = [
        {"caption": caption, "pixel_values": image, "seed": 0, "issues": []}
        for caption, image in zip(captions, pixels, strict=True)
    ]
    batch = collate(samples)
    del batch["issues"]
    return batch


def test_padded_batches_have_few_shapes_and_the_same_loss(model):
    teacher = MomentumTeacher(model, queue_size=8).eval()
    losses = []
    for multiple in (None, 8, 25):
        batch = batch_of(CAPTIONS, multiple)
        torch.manual_seed(0)
        losses.append(model(**batch, teacher_outputs=teacher(**batch), alpha=0.4).loss.item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    shapes = {
        (batch["labels"].shape, batch["target_positions"].shape)
        for count in range(1, 9)
        for batch in [batch_of([" ".join(["star"] * count)] * 4, 8)]
    }
    assert shapes == {((4, 8), (5,)), ((4, 16), (10,))}  # [CLS] and 7, or 15 words; 15 % of 32 and 64 tokens
    assert batch_of(CAPTIONS, 8, max_length=6)["labels"].shape == (5, 6)  # not beyond max_length


def test_student_and_teacher_are_one_graph_each(model):
    batch = batch_of(CAPTIONS[:3], 8)
    teacher = MomentumTeacher(model, queue_size=8)
    targets = teacher(**batch)
    model.train()
    torch._dynamo.reset()
    torch.compile(teacher, backend="aot_eager", fullgraph=True)(**batch, alpha=0.4)
    student = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.isfinite(student(**batch, teacher_outputs=targets, alpha=0.4).loss)
    torch._dynamo.reset()


def test_texts_are_padded_when_models_are_compiled():
    compiled = {"torch_compile": True}
    multiples = [
        PretrainingArguments(**settings).text_multiple
        for settings in ({}, compiled, {**compiled, "max_tokens": 50}, {**compiled, "pad_to_multiple_of": 8})
    ]
    assert multiples == [None, 25, 32, 8]


def test_padded_answers_have_few_shapes_and_the_same_loss(processor):
    torch.manual_seed(0)
    model = AlbefForQuestionAnswering(AlbefConfig(**TINY_MODEL)).eval()
    teacher = MomentumTeacher(model).eval()
    samples = [
        {"question": "how many", "answers": {"two": 1.0}, "issues": []},
        {
            "question": "which",
            "answers": {"a red star": 0.5, "blue": 0.3, "a very small green box": 0.2},
            "issues": [],
        },
    ]
    images = torch.rand(2, 3, 32, 32)
    samples = [{**sample, "pixel_values": image} for sample, image in zip(samples, images, strict=True)]
    losses = []
    for settings in ({}, {"pad_to_multiple_of": 25}):
        batch = VisualQuestionAnswering(VqaArguments(model="unused", **settings), processor).collate(samples)
        del batch["issues"]
        losses.append(model(**batch, teacher_outputs=teacher(**batch), alpha=0.4).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert batch["labels"].shape == (6, 8) and batch["answer_counts"].tolist() == [1, 5]
    assert batch["target_positions"].shape == (18,)  # 2 + 4 + 2 + 5 tokens, and 5 more


def test_padded_captions_have_few_shapes_and_the_same_loss(processor, monkeypatch):
    monkeypatch.setattr("albef_hf.tasks.captioning.import_scorers", lambda: None)
    torch.manual_seed(0)
    model = AlbefForImageCaptioning(AlbefConfig(**TINY_MODEL)).eval()
    teacher = MomentumTeacher(model).eval()
    pixels = torch.rand(5, 3, 32, 32)
    samples = [
        {"caption": caption, "pixel_values": image, "issues": []}
        for caption, image in zip(CAPTIONS, pixels, strict=True)
    ]

    def batch_of(samples: list[dict], **settings: int) -> dict[str, torch.Tensor]:
        args = CaptioningArguments(model="unused", prompt="", **settings)
        batch = Captioning(args, processor).collate(samples)
        del batch["issues"]
        return batch

    for some in (samples[1:], samples[:1]):
        losses = []
        for settings in ({}, {"pad_to_multiple_of": 8}):
            batch = batch_of(some, **settings)
            losses.append(model(**batch, teacher_outputs=teacher(**batch), alpha=0.4, smoothing=0.1).loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    counts = [batch_of(samples[first:], pad_to_multiple_of=16)["target_positions"].shape for first in (1, 2)]
    assert counts == [(24,), (12,)]  # multiples of 4 and 3: 10 + 3 + 2 + 6 tokens with [SEP], and 3 + 2 + 6


def test_modes_that_replay_cuda_graphs_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "reduce-overhead")
    with pytest.raises(ValueError, match="replays CUDA graphs"):
        compile_plugin()


def test_the_limit_of_recompilations_is_reported_once():
    torch._dynamo.reset()
    said = []
    with torch._dynamo.config.patch(recompile_limit=1), report_recompile_limit(said.append):
        double = torch.compile(lambda tensor: tensor * 2, backend="eager", dynamic=False)
        for length in range(2, 6):
            double(torch.ones(length))
    assert len(said) == 1 and "pad_to_multiple_of" in said[0]
    torch._dynamo.reset()
