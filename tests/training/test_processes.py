"""Faults of one process among several, which end with equal weights on all or with an error, but never hang."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.utils import DDPCommunicationHookType
from paths import TESTS

from albef_hf.training import distributed
from albef_hf.training.arguments import PretrainingArguments, TrainingArguments
from albef_hf.training.distributed import check_comm_hook, make_accelerator


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """Run every scenario of `distributed_processes.py`; return the folder of the results."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    script = TESTS / "distributed_processes.py"
    done = subprocess.run([sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def outcome(folder: Path, scenario: str) -> tuple[list[int | None], float, list[str]]:
    """Return exit codes, seconds and what each process printed."""
    result = json.loads((folder / "results.json").read_text())[scenario]
    printed = [(folder / scenario / f"process{rank}.txt").read_text() for rank in range(len(result["codes"]))]
    return result["codes"], result["seconds"], printed


def test_a_step_that_is_not_finite_on_one_process_is_skipped_on_all_of_four(ended):
    codes, _, printed = outcome(ended, "nan")
    assert codes == [0] * 4, printed
    assert "equal on 4 processes, 1 steps skipped" in printed[0]
    assert "of 8 rows: 2 on each of 4 process(es)" in printed[0] and "3 steps (1.5 epochs)" in printed[0]


def test_three_processes_end_when_the_fourth_is_killed(ended):
    codes, seconds, printed = outcome(ended, "killed")
    assert codes == [1, 1, 1, -9] and seconds < 60, printed
    assert all("remote worker" in text for text in printed[:3])


def test_different_options_of_processes_are_refused_by_both(ended):
    codes, _, printed = outcome(ended, "options")
    assert codes == [1, 1]
    for text in printed:
        assert "Processes 0 and 1 have different options (per_device_train_batch_size 2 and 3)" in text


def test_a_batch_that_is_smaller_than_those_of_others_ends_the_training(ended):
    codes, seconds, printed = outcome(ended, "short")
    assert codes == [1, 1] and seconds < 60, printed
    assert "Process 1 received a batch of 1 rows, but per_device_train_batch_size is 2" in printed[1]


def test_hidden_states_and_gradients_are_exchanged_in_bfloat16(ended):
    """The scenario asserts values, gradients, dtypes, the timeout and what DDP is set to."""
    codes, _, printed = outcome(ended, "exchange")
    assert codes == [0, 0], printed


def test_a_hook_without_effect_is_refused(tmp_path):
    accelerator = make_accelerator(TrainingArguments(output_dir=str(tmp_path), report_to=["none"]))
    assert accelerator.ddp_handler.comm_hook == DDPCommunicationHookType.NO
    with pytest.raises(ValueError, match="no effect on a single process"):
        check_comm_hook(TrainingArguments(ddp_comm_hook="bf16"), accelerator)


def test_texts_lists_and_absent_options_of_processes_are_compared_and_paths_are_not(monkeypatch):
    def options_of_both(own):
        return [*own, {**own[0], "pad_to_multiple_of": 8, "freeze": ["text_encoder"], "attn_implementation": "eager"}]

    monkeypatch.setattr(distributed, "gather_object", options_of_both)
    args = PretrainingArguments(output_dir="a", image_root="b")
    with pytest.raises(ValueError, match="Processes 0 and 1 have different options") as error:
        distributed.check_same_options(args, accelerator=None)
    assert all(name in str(error.value) for name in ("pad_to_multiple_of None and 8", "freeze", "attn_implementation"))
    monkeypatch.setattr(distributed, "gather_object", lambda own: [*own, own[0]])
    distributed.check_same_options(args, accelerator=None)
    assert {"output_dir", "image_root"} <= {*distributed.LOCAL_OPTIONS}
