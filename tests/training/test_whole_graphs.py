"""Trainings with compiled models: student and teacher of every task have no graph breaks.

ALBEF_LONG=1 runs them; tracing takes half a minute each.
"""

import os
from pathlib import Path

import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from small_pretraining import records_of, small_run
from task_rows import TASKS, small

from albef_hf.training import distributed

pytestmark = pytest.mark.skipif(not os.environ.get("ALBEF_LONG"), reason="takes long: ALBEF_LONG=1 runs it")
COMMON = ["--pad_to_multiple_of", "25", "--logging_steps", "1", "--report_to", "none"]


@pytest.fixture(autouse=True)
def whole_graphs(monkeypatch):
    """A graph break is an error; kernels stay those of eager mode, which takes seconds."""
    plugin = TorchDynamoPlugin(backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(distributed, "compile_plugin", lambda: plugin)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def losses_of(folder: Path) -> list[float]:
    return [record["loss"] for record in records_of(folder) if "loss" in record]


def assert_same_losses(run, command: list[object], folder: Path) -> None:
    """A training with compiled models has the losses of one without."""
    losses = []
    for flags in ([], ["--torch_compile"]):
        run(*command, *COMMON, "--overwrite_output_dir", *flags)
        losses.append(losses_of(folder))
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains(run, pretrained, tmp_path, task):
    options = {"max_steps": 3, "alpha": 0.0 if task == "text_assignment" else 0.4}
    assert_same_losses(run, ["finetune", task, *small(pretrained, tmp_path / "out", **options)], tmp_path / "out")


@pytest.mark.parametrize(
    "flags", [[], ["--itm_negatives", "2", "--itm_contrast_weight", "1", "--hardness_strength", "0.5"]]
)
def test_pretraining_trains(run, tmp_path, flags):
    assert_same_losses(run, ["pretrain", *small_run(tmp_path / "out", 3), *flags], tmp_path / "out")
