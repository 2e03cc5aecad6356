"""The best model is kept, and the last one beside it."""

import contextlib
import errno
import multiprocessing
import os
import socket
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from full_disk import TENSORBOARD, file_size_limit
from safetensors.torch import load_file
from task_rows import results_of, small

from albef_hf.tasks import find_task
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.logging import RunLog
from albef_hf.training.saved_model import BestModel


@TENSORBOARD
def test_the_best_model_is_the_one_on_the_disk(run, pretrained, tmp_path, monkeypatch, capsys):
    """Fine-tuning whose better model, of its last step, could not be written."""
    accuracies, full = iter((60.0, 70.0)), contextlib.ExitStack()

    def evaluated(*_):
        accuracy = next(accuracies)
        if accuracy == 70:
            full.enter_context(file_size_limit(1000))
        return {"accuracy": accuracy}, []

    monkeypatch.setattr(find_task("entailment"), "evaluate", evaluated)
    with (
        full,
        pytest.raises(OSError, match="could not be written: .*the model .*out keeps its former content.*--resume"),
    ):
        run("finetune", "entailment", *small(pretrained, tmp_path / "out"))
    assert results_of(tmp_path / "out")[0]["step"] == 2
    files = ("model.safetensors", "checkpoints/step_2/student.safetensors")
    best, second = (load_file(tmp_path / "out" / file)["classifier.dense.bias"] for file in files)
    assert torch.equal(best, second)


def test_all_processes_agree_on_the_best_model_if_it_cannot_be_written(tmp_path):
    """Otherwise one would skip an evaluation in which the others wait."""
    forks, port = multiprocessing.get_context("fork"), socket.create_server(("127.0.0.1", 0)).getsockname()[1]

    def evaluate(rank: int, end) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == 2
        options = TrainingArguments(output_dir=str(tmp_path))
        task = Mock(metric="accuracy", args=options, row_errors="")
        task.evaluate.return_value = {"accuracy": 60.0}, []
        task.evaluate_exchanged.return_value = {}
        task.processor.save_pretrained.side_effect = OSError(errno.ENOSPC, "full")
        student, log = Mock(), RunLog(accelerator, tmp_path, 1, 1)
        best = BestModel(task, [], {}, student, None, accelerator, log, None)
        student.save_pretrained.side_effect = OSError(errno.ENOSPC, "full")
        best.evaluate_and_save(1)
        end.send(best.metrics)
        os._exit(0)

    ends = []
    for rank in range(2):
        pipe, other_end = forks.Pipe(duplex=False)
        forks.Process(target=evaluate, args=(rank, other_end), daemon=True).start()
        other_end.close()
        ends.append(pipe)
    assert all(pipe.poll(30) for pipe in ends)
    assert [pipe.recv() for pipe in ends] == [{}, {}]


def test_the_best_model_is_kept_and_the_last_one_beside_it(run, pretrained, tmp_path, monkeypatch):
    accuracies = iter([70.0, 60.0])
    monkeypatch.setattr(find_task("entailment"), "evaluate", lambda *_: ({"accuracy": next(accuracies)}, []))
    run("finetune", "entailment", *small(pretrained, tmp_path / "tuned"))
    assert results_of(tmp_path / "tuned")[0] | {"accuracy": 70.0, "step": 2} == results_of(tmp_path / "tuned")[0]
    head = find_task("entailment").head
    best, last = (head.from_pretrained(tmp_path / "tuned" / part).state_dict() for part in ("", "last"))
    assert any(not torch.equal(best[name], last[name]) for name in best)
    assert (tmp_path / "tuned" / "last" / "momentum.safetensors").exists()

    # If the last model is the best, that of an earlier run is removed.
    accuracies = iter([60.0, 70.0])
    run("finetune", "entailment", *small(pretrained, tmp_path / "tuned", overwrite_output_dir=True))
    assert not (tmp_path / "tuned" / "last").exists()


def test_an_interrupted_run_saves_the_last_model(run, pretrained, tmp_path, monkeypatch):
    def interrupted(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(find_task("entailment"), "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("finetune", "entailment", *small(pretrained, tmp_path / "tuned"))
    assert find_task("entailment").head.from_pretrained(tmp_path / "tuned" / "last")
