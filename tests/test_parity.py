"""The pretraining step computes what the original code computed, in float64."""

import pytest
import torch
from original import (
    FIXTURES,
    ImposedNegatives,
    assert_close,
    assert_gradients,
    config_of,
    load,
    student_and_teacher,
    to_ours,
)
from paths import TESTS
from two_processes import run_on_two_processes

from albef_hf.training.optimization import parameter_groups

LOSSES = ("loss_mlm", "loss_itc", "loss_itm")


@pytest.fixture
def golden() -> dict:
    return load("pretrain")


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
    # The original asks for the images of the texts first; rows are compared as `multinomial` sees them, normalized.
    assert not negatives.drawn
    weights = torch.cat(negatives.weights)
    assert_close(
        weights / weights.sum(1, keepdim=True),
        run["multinomial_weights"] / run["multinomial_weights"].sum(1, keepdim=True),
        1e-9,
        "weights",
    )
    assert_close(outputs.itm_logits.detach(), run["locals"]["vl_output"], 1e-9, "itm_logits")

    expected = to_ours(run["grads"], student.config)
    if alpha:
        assert expected.keys() == dict(student.named_parameters()).keys()
    assert_gradients(student, expected)


def test_teacher_and_queue_after_the_step(golden):
    run = golden["runs"]["fp64_alpha0.4"]
    student, teacher = student_and_teacher(golden)
    batch = batch_of(golden["inputs"], golden["rng"]["mlm_input_ids"], golden["rng"]["mlm_labels"])
    targets = teacher(**batch)
    teacher.enqueue(targets.image_embeds, targets.text_embeds)

    expected = to_ours(run["after"], student.config, teacher=True)
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


def test_four_steps_of_adamw(golden, monkeypatch):
    trajectory = golden["trajectory"]
    student, teacher = student_and_teacher(golden)
    optimizer = torch.optim.AdamW(parameter_groups(student, trajectory["weight_decay"]), lr=trajectory["lr"])
    for data, tape, expected in zip(
        trajectory["data"], trajectory["tapes"], trajectory["fp64"]["losses_mlm_ita_itm"], strict=True
    ):
        student.clamp_temperature()
        ImposedNegatives(tape, monkeypatch)
        batch = batch_of(data, *mask_as(tape, data["input_ids"]))
        targets = teacher(**batch)
        outputs = student(**batch, teacher_outputs=targets, alpha=data["alpha"])
        for loss, value in zip(LOSSES, expected, strict=True):
            assert_close(outputs[loss].detach(), value, 1e-9, loss)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        teacher.enqueue(targets.image_embeds, targets.text_embeds)
        last_teacher = {name: weight.clone() for name, weight in teacher.model.state_dict().items()}
        teacher.update(student)

    # The original's teacher is that of the last forward, before the update that follows the last step here.
    final = trajectory["fp64"]["final_state"]
    for weights, expected in (
        (student.state_dict(), to_ours(final, student.config)),
        (last_teacher, to_ours(final, student.config, teacher=True)),
    ):
        assert len(expected) > 30
        for name, weight in expected.items():
            assert_close(weights[name], weight, 1e-8, name)
    assert_close(teacher.queue.image_features, final["image_queue"].T, 1e-9, "image queue")
    assert_close(teacher.queue.text_features, final["text_queue"].T, 1e-9, "text queue")
    assert teacher.queue.pointer == final["queue_ptr"][0]


def test_masking_is_replayed_right(golden):
    """The replay that the trajectory relies on gives the masked ids that the golden file holds."""
    rng = golden["rng"]
    mlm_input_ids, labels = mask_as(rng["tape"], golden["inputs"]["input_ids"])
    assert torch.equal(mlm_input_ids, rng["mlm_input_ids"])
    assert torch.equal(labels, rng["mlm_labels"])


def test_two_processes_as_the_original(tmp_path):
    """Runs `distributed_step.py` under gloo: losses of both ranks, averaged gradients, queues."""
    run_on_two_processes(TESTS / "distributed_step.py", tmp_path, folder=tmp_path)
    expected = torch.load(FIXTURES / "dist2_pretrain_tiny.pt", weights_only=True)
    config = config_of(load("pretrain"))
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for ours, theirs in zip(ranks, expected["ranks"], strict=True):
        assert ours["processes"] == 2
        assert_close(ours["losses"], theirs["losses"], 1e-9, "losses")
        for name in ("image_queue", "text_queue"):
            assert_close(ours[name], theirs["after"][name].T, 1e-9, name)
        assert ours["pointer"] == theirs["after"]["queue_ptr"][0]
    gradients = to_ours(expected["ranks"][0]["ddp_grads"], config)
    assert len(gradients) == 18
    for name, gradient in gradients.items():
        if gradient.abs().max() > 1e-15:
            assert_close(ranks[0]["gradients"][name], gradient, 1e-9, name)
            assert_close(ranks[1]["gradients"][name], gradient, 1e-9, name)
