"""Schedules of the learning rate and the distillation weight."""

import json

import pytest
import torch
from accelerate import Accelerator
from original import FIXTURES
from small_pretraining import records_of

from albef_hf.training import optimization
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.optimization import layers_above, learning_rate_at, make_optimizer, make_scheduler


def test_schedules_are_the_papers(pretrain):
    options = ["--learning_rate", "1e-3", "--min_learning_rate", "1e-4", "--logging_steps", "1"]
    records = [r for r in records_of(pretrain(*options, "--alpha_ramp_steps", "4", steps=6)) if "loss" in r]
    rates = [record["learning_rate"] for record in records]
    assert rates[0] == pytest.approx(5e-4) and rates[1] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-4)
    assert rates[3] == pytest.approx((1e-3 + 1e-4) / 2)  # half-way down the cosine
    assert [record["alpha"] for record in records] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_learning_rates_are_those_of_the_original_scripts():
    """Every value that the original's loops set, replayed for its eight configurations."""
    for case in json.loads((FIXTURES / "misc.json").read_text())["lr"]:
        schedule, peak = case["schedular"], case["optimizer"]["lr"]
        options = TrainingArguments(
            learning_rate=peak,
            min_learning_rate=schedule["min_lr"],
            warmup_learning_rate=schedule["warmup_lr"],
            warmup_steps=100 * schedule["warmup_epochs"],
            staircase=True,
        )
        epoch_steps = 3000
        for epoch in case["log"]:
            changes = epoch["lr_changes_[iteration,lr]"]
            ends = [start for start, _ in changes[1:]] + [epoch_steps]
            for (start, expected), end in zip(changes, ends, strict=True):
                for step in (start, end - 1):
                    rate = learning_rate_at(
                        epoch["epoch"] * epoch_steps + step,
                        options,
                        epoch_steps,
                        epoch_steps * schedule["epochs"],
                    )
                    assert rate == pytest.approx(expected, rel=1e-12), (case["config"], epoch["epoch"], step)


CPU = torch.device("cpu")


def rates_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the present learning rate of each weight."""
    rates = {weight: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    return {name: rates[weight] for name, weight in model.named_parameters() if weight in rates}


def test_without_rates_of_encoders_there_are_the_two_groups_of_the_original(model):
    groups = make_optimizer(model, TrainingArguments(), CPU).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-4, 0.0), (1e-4, 0.02)]


def test_each_encoder_has_its_rate_all_the_way_down(model):
    args = TrainingArguments(
        learning_rate=1e-3,
        min_learning_rate=1e-4,
        warmup_steps=2,
        image_encoder_learning_rate=1e-5,
        text_encoder_learning_rate=2e-3,
    )
    optimizer = make_optimizer(model, args, CPU)
    scheduler = make_scheduler(optimizer, args, epoch_steps=10, total_steps=10)
    shares = {"albef.vision_model": 0.01, "albef.text_model": 2.0}
    for step in range(11):
        expected = learning_rate_at(step, args, 10, 10)
        for name, rate in rates_of(model, optimizer).items():
            share = next((share for part, share in shares.items() if name.startswith(part)), 1.0)
            assert rate == pytest.approx(expected * share), (step, name)
        optimizer.step()
        scheduler.step()
    decayed = {w for group in optimizer.param_groups if group["weight_decay"] for w in group["params"]}
    assert decayed == {w for n, w in model.named_parameters() if w.ndim != 1 and not n.endswith(".bias")}


def test_the_rate_decays_from_layer_to_layer(model):
    args = TrainingArguments(
        learning_rate=1e-3, min_learning_rate=0.0, layer_decay=0.5, text_encoder_learning_rate=1e-4
    )
    rates = rates_of(model, make_optimizer(model, args, CPU))
    expected = {
        "albef.vision_model.norm.weight": 1e-3,
        "albef.vision_model.layers.1.mlp.fc1.weight": 5e-4,
        "albef.vision_model.layers.0.self_attn_norm.bias": 2.5e-4,
        "albef.vision_model.embeddings.position_embeddings": 1.25e-4,
        "albef.text_model.layers.1.mlp.fc1.weight": 5e-5,
        "albef.text_model.embeddings.word_embeddings.weight": 1.25e-5,
        "albef.multimodal_model.layers.0.mlp.fc1.weight": 1e-3,
        "contrastive_head.temperature": 1e-3,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    assert len(rates) == len(list(model.named_parameters()))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cls", "patch.weight", "blocks.0.norm.weight", "blocks.1.mlp.0.weight", "norm.bias"], [3, 3, 2, 1, 0]),
        (["stem.0.weight", "layer1.0.conv.weight", "layer1.1.conv.weight", "layer2.0.conv.weight"], [4, 3, 2, 1]),
        (["embedder.weight", "stages.0.layers.0.w", "stages.0.layers.1.w", "stages.1.layers.0.w"], [3, 2, 2, 1]),
        (["weight"], [0]),
        ([], []),
    ],
    ids=["transformer", "timm-resnet", "stages", "no-layers", "nothing"],
)
def test_layers_are_found_by_their_numbers(names, expected):
    assert layers_above(names) == expected


def test_the_log_has_the_rates_of_the_encoders(pretrain):
    options = ["--learning_rate", "1e-3", "--image_encoder_learning_rate", "1e-4", "--layer_decay", "0.5"]
    record = [r for r in records_of(pretrain(*options, steps=2)) if "loss" in r][-1]
    assert record["image_encoder_learning_rate"] == pytest.approx(0.1 * record["learning_rate"])
    assert record["lowest_learning_rate"] == pytest.approx(0.1 * 0.5**2 * record["learning_rate"])
    assert "text_encoder_learning_rate" not in record


@pytest.mark.parametrize("devices", [optimization.CONDITIONAL_DEVICES, ()])
def test_a_step_is_taken_only_if_it_is_finite(devices, monkeypatch):
    """On a device whose kernels take the condition, and on one where the host has to read it."""
    monkeypatch.setattr(optimization, "CONDITIONAL_DEVICES", devices)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Accelerator(cpu=True).prepare(torch.optim.AdamW([weight], fused=True))
    weight.grad = torch.full((3,), torch.nan)
    optimization.step_if(optimizer, torch.tensor(False))
    assert torch.equal(weight, torch.ones(3))
    weight.grad = torch.ones(3)
    optimization.step_if(optimizer, torch.tensor(True))
    assert (weight < 1).all()
