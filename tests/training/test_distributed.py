"""Several processes, or accumulated batches, learn what one process learns from a large batch, where that is asked."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from distributed_contrast import hardest, one_step
from paths import TESTS

from albef_hf.training.trainer import TrainingOptions, check_pairing

SCRIPT = TESTS / "distributed_contrast.py"
PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def step_of_one(tmp_path, monkeypatch):
    """Runs a step in this process."""
    monkeypatch.setattr(torch, "multinomial", hardest)
    return partial(one_step, tmp_path)


@pytest.fixture(scope="module")
def steps_of_two(tmp_path_factory) -> list[dict]:
    """What both of two processes found in each case."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([*PROCESSES, str(SCRIPT), str(folder)], env=environment, check=True, timeout=300)
    return [torch.load(folder / f"process{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_same(found: dict, expected: dict, loss: int) -> None:
    """One of the losses, every gradient as a share of the largest of its weight, and the queue, in float64."""
    assert abs(found["losses"][loss] - expected["losses"][loss]) < 1e-12
    for name, gradient in expected["gradients"].items():
        error = (found["gradients"][name] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-3)
        assert error < 1e-12, name
    for name, value in expected["queue"].items():
        torch.testing.assert_close(found["queue"][name], value, rtol=0, atol=1e-12)


ITC = 1  # place of the loss


def test_accumulated_batches_contrast_like_one_where_keys_are_shared(step_of_one):
    whole = step_of_one("itc", 1)
    assert_same(step_of_one("itc", 2, "share_keys"), whole, ITC)
    assert_same(step_of_one("itc", 4, "share_keys"), whole, ITC)
    assert abs(step_of_one("itc", 2)["losses"][ITC] - whole["losses"][ITC]) > 1e-3  # the paper's does not


@pytest.mark.parametrize("case", ["keys", "keys, accumulated"])
def test_processes_contrast_like_one_where_keys_are_shared(step_of_one, steps_of_two, case):
    whole = step_of_one("itc", 1)
    for found in steps_of_two:
        assert found[case]["processes"] == 2
        assert_same(found[case], whole, ITC)


@pytest.mark.parametrize(("case", "head"), [("negatives", "all"), ("negatives of retrieval", "retrieval")])
def test_processes_draw_from_all_negatives_where_they_are_shared(step_of_one, steps_of_two, case, head):
    """With the hardest negative in place of a drawn one, all losses and gradients are those of one process."""
    whole = step_of_one(head, 1)
    for found in steps_of_two:
        for loss in range(len(whole["losses"])):
            assert_same(found[case], whole, loss)


def test_nothing_is_shared_by_a_head_that_contrasts_nothing(model):
    options = TrainingOptions(share_keys=True)
    for given in (options, TrainingOptions(negative_hardness=0.0)):
        with pytest.raises(ValueError, match="leave them out"):
            check_pairing(given, torch.nn.Linear(2, 2), None)
    with pytest.raises(ValueError, match="this training has none"):
        check_pairing(options, model, None)
