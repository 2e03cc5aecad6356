"""Schedules of the learning rate and the distillation weight."""

import json

import pytest
from original import FIXTURES
from small_pretraining import records_of

from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.optimization import learning_rate_at


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
