"""Training and evaluation of every task on a virtual GPU: nothing mixes devices, and a step keeps to its budget."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from small_pretraining import records_of, small_run
from task_rows import small
from virtual_device import GPU, VirtualDevice, device_of

from albef_hf.training.trainer import Trainer

# Upper limits of one optimizer step, from one batch to the next: how often the host waits for the device, and how many
# operations it dispatches there. Lower them when a step needs less; the test prints what it found.
STEP_BUDGET = {  # task and precision: (waits, operations)
    ("pretraining", "no"): (1, 3350),
    ("pretraining", "bf16"): (1, 3500),
    ("retrieval", "bf16"): (1, 4100),
    ("grounding", "bf16"): (1, 4100),
    ("vqa", "bf16"): (1, 4700),
    ("entailment", "bf16"): (1, 3050),
    ("nlvr2", "bf16"): (1, 4350),
    ("text_assignment", "bf16"): (1, 2300),
}
# The DataLoader finds no accelerator that memory could be pinned for.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
COMMON = {"report_to": "none", "logging_steps": 100, "eval_steps": 4}


@pytest.fixture
def train(run, pretrained, tmp_path):
    """Train a task for four steps; return the directory of the run."""

    def start(task: str, *flags: str, **options: object) -> Path:
        folder = tmp_path / "out"
        if task == "pretraining":
            command = ["pretrain", *small_run(folder, 4, None), "--model", pretrained]
        else:
            command = ["finetune", task, *small(pretrained, folder, max_steps=4)]
        settings = COMMON | options
        run(*command, *[part for name, value in settings.items() for part in (f"--{name}", value)], *flags)
        return folder

    return start


@pytest.fixture
def costs(monkeypatch) -> list[tuple[Counter, Counter]]:
    """Waits and operations that a run on a virtual device has taken before each step."""
    step = Trainer.training_step
    taken = []

    def measured(trainer: Trainer, batch: dict[str, torch.Tensor]) -> bool:
        device = VirtualDevice.current
        taken.append((device.waits.copy(), device.operations.copy()))
        assert all(device_of(weight) == GPU for weight in trainer.student.parameters())
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "training_step", measured)
    return taken


@pytest.mark.parametrize(("task", "precision"), STEP_BUDGET)
def test_a_task_keeps_to_its_device_and_a_step_to_its_budget(train, costs, task, precision):
    with VirtualDevice() as device:
        train(task, mixed_precision=precision)
    # The third of four steps: before it, some work is done for the first time, and after it, the model is evaluated.
    waits, operations = (after - before for before, after in zip(costs[1], costs[2], strict=True))
    most_waits, most_operations = STEP_BUDGET[task, precision]
    found = f"{waits.total()} waits of {most_waits}, {operations.total()} operations of {most_operations}"
    lines = "\n".join(f"{count:4d} {kind:8s} {line}" for (kind, line), count in waits.most_common())
    print(f"{task}, {precision}: {found}\n{lines}")
    assert waits.total() <= most_waits and operations.total() <= most_operations, f"{found}\n{lines}"
    assert not device.doubles, device.doubles


@pytest.mark.parametrize(
    "flags",
    [
        ["--gradient_checkpointing", "--attn_implementation", "eager", "--max_grad_norm", "1"],
        ["--gather_keys", "--gradient_accumulation_steps", "2", "--alpha", "0", "--no_teacher_dropout"],
        ["--gather_negatives", "--itm_negatives", "3", "--itm_contrast_weight", "1", "--hardness_strength", "0.5"],
        ["--freeze", "image_encoder", "--lora_rank", "2"],
    ],
    ids=lambda flags: flags[0],
)
def test_other_options_keep_to_the_device(train, flags):
    with VirtualDevice() as device:
        train("pretraining", *flags, mixed_precision="bf16", validation_size=0)
    assert not device.doubles, device.doubles


def losses_of(folder: Path) -> list[float]:
    return [record["loss"] for record in records_of(folder) if "loss" in record]


def test_a_checkpoint_returns_to_the_device(train, costs):
    """The last step is run again from the checkpoint of the third."""
    with VirtualDevice():
        folder = train("pretraining", validation_size=0, save_steps=3, logging_steps=1)
        losses = losses_of(folder)
        (folder / "checkpoints" / "step_4").rename(folder / "unused")
        train("pretraining", "--resume_from_checkpoint", validation_size=0, save_steps=3, logging_steps=1)
    assert len(costs) == 5
    assert losses_of(folder) == losses
