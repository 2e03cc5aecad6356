"""The output directory of a run: its lock, what it may hold already, and how models are written."""

import contextlib
import errno
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from full_disk import TENSORBOARD, file_size_limit
from safetensors.torch import load_file, save_file
from small_pretraining import records_of
from task_rows import results_of

from albef_hf import MomentumTeacher
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.checkpointing import list_steps, verify
from albef_hf.training.logging import RunLog, start_trackers
from albef_hf.training.output_folder import LOCK, save_model_folder, write_results
from albef_hf.training.trainer import Trainer
from albef_hf.utils.files import is_write_error, locked, write_errors_named


def test_a_model_is_overwritten_only_on_request(pretrain):
    pretrain()
    with pytest.raises(ValueError, match="already holds a model"):
        pretrain("--overwrite_output_dir", "false")


def test_a_refused_run_keeps_the_checkpoints_of_an_earlier_one(pretrain):
    folder = pretrain()
    with pytest.raises(ValueError, match="cannot be read"):
        pretrain("--train_files", "nowhere.json")
    assert list((folder / "checkpoints").glob("step_*"))
    pretrain("--save_steps", "-1")
    assert not (folder / "checkpoints").exists()


WEIGHTS = {"checkpoints", "the model"}


REST = {"log.jsonl", "curves.png", "tensorboard"}


@TENSORBOARD
@pytest.mark.parametrize(
    ("size", "lost"),
    [
        (0, WEIGHTS | REST),
        (1_000_000, WEIGHTS),
        (6_000_000, {"checkpoints"}),  # which have the optimizer's moments
    ],
)
def test_a_disk_that_fills_up_does_not_end_a_run(pretrain, tmp_path, monkeypatch, capsys, size, lost):
    """From its third step on; what the first evaluation has written stays, and a model that is lost is an error."""
    training_step = Trainer.training_step
    full = contextlib.ExitStack()
    folder = tmp_path / "out"

    def watched(self, batch):
        if self.state.step == 2:
            full.enter_context(file_size_limit(size))
        return training_step(self, batch)

    monkeypatch.setattr(Trainer, "training_step", watched)
    error = pytest.raises(OSError, match="training has ended") if "the model" in lost else contextlib.nullcontext()
    with full, error as caught:
        pretrain("--eval_steps", "2")
    said = "".join(capsys.readouterr()) if caught is None else str(caught.value)
    assert "step 4: retrieval among 6" in said or caught, "the run did not end regularly"
    told = said.split("this could not be written: ")[1]
    assert {name for name in WEIGHTS | REST if f"{name} (" in told} == lost
    assert [record["step"] for record in records_of(folder)] == [2, 2, *([4, 4] if size else [])]
    assert list_steps(folder / "checkpoints") == [2] and verify(folder / "checkpoints" / "step_2") is None
    weights = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "momentum")}
    assert weights["momentum"]["queue.pointer"] == (16 if caught else 32) % 24, "the teacher of another step"
    assert not list(folder.rglob("*.unfinished"))


def test_without_room_for_all_files_the_model_is_written_first(tmp_path):
    class Part:
        def __init__(self, name: str, error: Exception | None = None):
            self.name, self.error = name, error

        def save_pretrained(self, folder: Path) -> None:
            (folder / self.name).write_text("new")
            if self.error:
                raise self.error

    class Teacher(Part): ...

    (tmp_path / "out").mkdir()
    for name in ("model", "teacher"):
        (tmp_path / "out" / name).write_text("old")
    log = RunLog(Accelerator(cpu=True), tmp_path, 1, 1)
    settings = (tmp_path / "out", TrainingArguments())
    full = OSError(errno.ENOSPC, "full")
    assert save_model_folder(*settings, [Part("model"), Teacher("teacher", full)], log)
    assert log.writer.failed == {"Teacher of the model": "OSError: [Errno 28] full"}
    assert [(tmp_path / "out" / name).read_text() for name in ("model", "teacher")] == ["new", "old"]
    log.report_failed_writes()
    assert not save_model_folder(*settings, [Part("model", Exception("tokenizers says so")), Teacher("teacher")], log)
    assert (tmp_path / "out" / "teacher").read_text() == "old"
    with pytest.raises(OSError, match="the model .*tokenizers says so.*out"):
        log.report_failed_writes()
    with pytest.raises(TypeError, match="a bug"):
        save_model_folder(*settings, [Part("model", TypeError("a bug"))], log)
    assert save_model_folder(*settings, [Part("model"), Teacher("teacher")], log) and not log.writer.failed
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_teacher_of_an_older_step_is_renamed(model, tmp_path, monkeypatch):
    log, teacher = RunLog(Accelerator(cpu=True), tmp_path, 1, 1), MomentumTeacher(model, queue_size=4)
    settings = (tmp_path, TrainingArguments(), [model, teacher], log)
    assert save_model_folder(*settings)
    old = (tmp_path / "momentum.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(teacher, "save_pretrained", full)
        assert save_model_folder(*settings)
    assert not (tmp_path / "momentum.safetensors").exists()
    assert (tmp_path / "older_momentum.safetensors").read_bytes() == old
    assert save_model_folder(*settings) and (tmp_path / "momentum.safetensors").exists()


def test_a_lock_needs_no_room_and_results_stay_on_a_full_disk(tmp_path):
    write_results(tmp_path, {"accuracy": 50.0}, [{"row": 1}])
    with file_size_limit(0):
        with locked(tmp_path / LOCK):
            pass
        start_trackers(TrainingArguments(output_dir=str(tmp_path), report_to=["none"]), Accelerator(cpu=True))
        with pytest.raises(OSError, match="could not be written: .*I/O error"), write_errors_named(tmp_path / "a"):
            save_file({"a": torch.zeros(9)}, tmp_path / "a")
    with file_size_limit(100), pytest.raises(OSError):
        write_results(tmp_path, {"accuracy": 60.0}, [{"row": 1}] * 99)
    assert results_of(tmp_path) == ({"accuracy": 50.0}, [{"row": 1}])


def test_a_device_error_is_not_a_write_error():
    assert is_write_error(RuntimeError("[enforce fail at inline_container.cc:858] . unexpected pos 64 vs 0"))
    assert not is_write_error(RuntimeError("CUDA error: an illegal memory access was encountered"))


def hold(folder: Path, pipe) -> None:
    """Hold the lock of a folder until killed."""
    with locked(folder / LOCK):
        pipe.send("held")
        time.sleep(60)


def test_a_second_training_in_a_directory_is_refused_until_the_first_ends(pretrain, tmp_path):
    (tmp_path / "out").mkdir()
    forks = multiprocessing.get_context("fork")
    pipe, other_end = forks.Pipe(duplex=False)
    first = forks.Process(target=hold, args=(tmp_path / "out", other_end))
    first.start()
    assert pipe.recv() == "held"
    with pytest.raises(ValueError, match=f"in use by process {first.pid} on .*stop it, or set another output_dir"):
        pretrain()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    first.kill()
    first.join()
    pretrain(steps=2)
    assert records_of(tmp_path / "out")[-1]["step"] == 2
