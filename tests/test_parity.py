"""The pretraining step computes what the original code computed, in float64."""

import pytest
import torch
from original import FIXTURES, ImposedNegatives, assert_close, student_and_teacher, to_ours

LOSSES = ("loss_mlm", "loss_itc", "loss_itm")


@pytest.fixture
def golden() -> dict:
    return torch.load(FIXTURES / "pretrain_tiny.pt", weights_only=True)


def batch_of(inputs: dict, mlm_input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "pixel_values": inputs["image"].double(),
        "mlm_input_ids": mlm_input_ids,
        "labels": labels,
    }


def mask_as(tape: list, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replay the original's masking from its raw random draws: 15 % of the tokens, 80/10/10."""
    draws = [value for kind, value in tape if kind != "multinomial"]
    masked = draws[0].bool() & (input_ids != 0) & (input_ids != 101)
    replaced = draws[1].bool() & masked
    random = draws[2].bool() & masked & ~replaced
    mlm_input_ids = torch.where(random, draws[3], input_ids.masked_fill(replaced, 103))
    return mlm_input_ids, input_ids.masked_fill(~masked, -100)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_losses_gradients_and_weights_of_the_draw(golden, alpha, monkeypatch):
    run = golden["runs"][f"fp64_alpha{alpha:g}"]
    student, teacher = student_and_teacher(golden)
    negatives = ImposedNegatives(golden["rng"]["tape"], monkeypatch)
    batch = batch_of(golden["inputs"], golden["rng"]["mlm_input_ids"], golden["rng"]["mlm_labels"])

    targets = teacher(**batch)
    outputs = student(**batch, teacher_outputs=targets, alpha=alpha)
    outputs.loss.backward()

    for ours, theirs in zip(("loss", *LOSSES), ("loss", "loss_mlm", "loss_ita", "loss_itm"), strict=True):
        assert_close(outputs[ours].detach(), run[theirs], 1e-9, ours)
    # The original asks for the images of the texts first; rows are compared as `multinomial` sees them, normalised.
    assert not negatives.drawn
    weights = torch.cat(negatives.weights)
    assert_close(weights / weights.sum(1, keepdim=True),
                 run["multinomial_weights"] / run["multinomial_weights"].sum(1, keepdim=True), 1e-9, "weights")
    assert_close(outputs.itm_logits.detach(), run["locals"]["vl_output"], 1e-9, "itm_logits")

    expected = to_ours(run["grads"], golden["bert_config"]["fusion_layer"])
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    if alpha:
        assert expected.keys() == gradients.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert_close(gradients[name], gradient, 1e-9, name) if gradient.abs().max() > 1e-12 * largest else None
        assert (gradients[name] - gradient).abs().max() <= 1e-9 * largest, name


def test_teacher_and_queue_after_the_step(golden):
    run = golden["runs"]["fp64_alpha0.4"]
    student, teacher = student_and_teacher(golden)
    batch = batch_of(golden["inputs"], golden["rng"]["mlm_input_ids"], golden["rng"]["mlm_labels"])
    targets = teacher(**batch)
    teacher.enqueue(targets.image_embeds, targets.text_embeds)

    expected = to_ours(run["after"], golden["bert_config"]["fusion_layer"], teacher=True)
    weights = teacher.model.state_dict()
    assert len(expected) > 140
    for name, weight in expected.items():
        assert_close(weights[name], weight, 1e-12, name)
    assert_close(teacher.queue.image_features, run["after"]["image_queue"].T, 1e-9, "image queue")
    assert_close(teacher.queue.text_features, run["after"]["text_queue"].T, 1e-9, "text queue")
    assert teacher.queue.pointer == run["after"]["queue_ptr"][0]


def test_temperature_is_clamped_as_in_the_original(golden, monkeypatch):
    clamp = golden["temp_clamp"]
    student, teacher = student_and_teacher(golden)
    with torch.no_grad():
        student.contrastive_head.temperature.fill_(clamp["temp_in"])
    student.clamp_temperature()
    assert student.contrastive_head.temperature.item() == clamp["temp_after"].item() == 0.5
    ImposedNegatives(golden["rng"]["tape"], monkeypatch)
    batch = batch_of(golden["inputs"], golden["rng"]["mlm_input_ids"], golden["rng"]["mlm_labels"])
    outputs = student(**batch, teacher_outputs=teacher(**batch), alpha=0.4)
    for loss, expected in zip(LOSSES, clamp["losses_mlm_ita_itm"], strict=True):
        assert_close(outputs[loss].detach(), expected, 1e-9, loss)
