"""With gather_keys and gather_negatives, processes and accumulated batches are equivalent to one large batch."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from distributed_contrast import hardest, one_step
from paths import TESTS

from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.run import check_contrastive_options

SCRIPT = TESTS / "distributed_contrast.py"


@pytest.fixture
def step_of_one(tmp_path, monkeypatch):
    """Run a step in this process."""
    monkeypatch.setattr("albef_hf.losses_albef.multinomial", hardest)
    return partial(one_step, tmp_path)


@pytest.fixture(scope="module")
def steps_of_two(tmp_path_factory) -> list[dict]:
    """Results of two processes in each case."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(folder)], env=environment, check=True, timeout=300)
    return [torch.load(folder / f"process{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_same(found: dict, expected: dict, loss: int) -> None:
    """Compare a loss, every gradient relative to the largest of its weight, and the queue, in float64."""
    assert abs(found["losses"][loss] - expected["losses"][loss]) < 1e-12
    for name, gradient in expected["gradients"].items():
        error = (found["gradients"][name] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-3)
        assert error < 1e-12, name
    for name, value in expected["queue"].items():
        torch.testing.assert_close(found["queue"][name], value, rtol=0, atol=1e-12)


ITC = 1  # place of the loss


def test_gathered_keys_make_accumulated_batches_equivalent_to_one(step_of_one):
    whole = step_of_one("itc", 1)
    assert_same(step_of_one("itc", 2, "gather_keys"), whole, ITC)
    assert_same(step_of_one("itc", 4, "gather_keys"), whole, ITC)
    assert abs(step_of_one("itc", 2)["losses"][ITC] - whole["losses"][ITC]) > 1e-3  # the paper's does not


@pytest.mark.parametrize("case", ["keys", "keys, accumulated"])
def test_gathered_keys_make_processes_equivalent_to_one(step_of_one, steps_of_two, case):
    whole = step_of_one("itc", 1)
    for found in steps_of_two:
        assert found[case]["processes"] == 2
        assert_same(found[case], whole, ITC)


@pytest.mark.parametrize(("case", "head"), [("negatives", "all"), ("negatives of retrieval", "retrieval")])
def test_gathered_negatives_make_processes_equivalent_to_one(step_of_one, steps_of_two, case, head):
    """With the hardest negative instead of a drawn one, all losses and gradients are those of one process."""
    whole = step_of_one(head, 1)
    for found in steps_of_two:
        for loss in range(len(whole["losses"])):
            assert_same(found[case], whole, loss)


def test_contrastive_options_are_refused_for_a_head_without_contrast(model):
    options = TrainingArguments(gather_keys=True)
    for given in (options, TrainingArguments(hardness_strength=0.0)):
        with pytest.raises(ValueError, match="Linear has no contrastive loss"):
            check_contrastive_options(given, torch.nn.Linear(2, 2), has_teacher=False)
    with pytest.raises(ValueError, match="which this training does not have"):
        check_contrastive_options(options, model, has_teacher=False)
    check_contrastive_options(options, model, has_teacher=True)
