"""A run that is stopped and goes on is, bit for bit, the run that was never stopped."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from paths import TESTS
from safetensors.torch import load_file, save_file
from small_pretraining import records_of, small_run
from task_rows import load_script, results_of, small
from tqdm import tqdm

from albef_hf import MomentumTeacher
from albef_hf.tasks import find_task
from albef_hf.tasks.base import write_results
from albef_hf.training import checkpointing
from albef_hf.training.checkpointing import Checkpoints, fault_of, random_state, restore_random_state, steps_of
from albef_hf.training.logging import RunLog
from albef_hf.training.signals import EXIT_CODES, Stopped, StopRequest, chosen, end_with_launcher, start_undisturbed
from albef_hf.training.trainer import LOCK, MomentumTraining, TrainingOptions, save_model_folder, start_trackers
from albef_hf.utils.files import UnfailingStream, is_write_error, locked, write_errors_named
from albef_hf.utils.options import redact

TIMES = ("seconds", "pairs_per_second", "data_wait_share", "tflops_per_second")


def trained(folder: Path) -> list[dict]:
    """The log, but for what depends on the clock."""
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records_of(folder)]


def state_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Student, teacher, queues, optimizer and random states of a checkpoint, side by side."""
    folder = folder / "checkpoints" / f"step_{step}"
    state = {}
    for name in ("student", "teacher"):
        if (folder / f"{name}.safetensors").exists():
            state |= {f"{name}.{key}": value for key, value in load_file(folder / f"{name}.safetensors").items()}
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    for number, moments in optimizer["optimizer"]["state"].items():
        state |= {f"optimizer.{number}.{key}": value for key, value in moments.items()}
    state["learning_rate"] = torch.tensor(optimizer["scheduler"]["_last_lr"], dtype=torch.float64)
    for path in folder.glob("process_*.pt"):
        state[path.name] = torch.load(path, weights_only=True)["random"]["torch"]
    assert len(state) > 50 and any(key.startswith("optimizer.") for key in state)
    return state


def assert_same(folder: Path, other: Path, step: int) -> None:
    """Logs, and all that is in the last checkpoint."""
    assert trained(folder) == trained(other)
    state, expected = state_of(folder, step), state_of(other, step)
    assert state.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(state[name], expected[name])]
    assert not different, different


@pytest.fixture
def stop_at(monkeypatch):
    """Sends a signal in the middle of a step, once, to this process and to those that load its data, as Slurm does."""

    def arrange(step: int, number: signal.Signals = signal.SIGTERM) -> None:
        forward = MomentumTraining._forward_backward

        def watched(self, *heard):
            forward(self, *heard)
            if self.step == step - 1 and not self.stop.noted:
                for process in (os.getpid(), *(worker.pid for worker in multiprocessing.active_children())):
                    os.kill(process, number)

        monkeypatch.setattr(MomentumTraining, "_forward_backward", watched)
        arrange.undo = lambda: monkeypatch.setattr(MomentumTraining, "_forward_backward", forward)

    return arrange


def stopped_and_resumed(train, tmp_path: Path, stop_at, step: int, arguments: list[str], steps: int, *then) -> None:  # noqa: F811
    train(*arguments, steps=steps).rename(tmp_path / "whole")
    stop_at(step)
    with pytest.raises(Stopped) as stopped:
        train(*arguments, steps=steps)
    assert stopped.value.code == 143
    assert max(steps_of(tmp_path / "out" / "checkpoints")) == step
    stop_at.undo()
    train(*arguments, *then, "--resume", "--overwrite_output_dir", "false", steps=steps)
    assert_same(tmp_path / "out", tmp_path / "whole", steps)


@pytest.mark.parametrize(
    ("step", "arguments"),
    [
        (2, ["--eval_every", "3"]),
        # 11 batches an epoch, so that a step of two goes across its end, and this one is when more are being loaded
        (7, ["--num_workers", "2", "--gradient_accumulation_steps", "2", "--scenes", "88"]),
        (5, ["--mixed_precision", "bf16", "--attention", "eager", "--log_every", "4"]),
        (6, ["--no_teacher_dropout", "--eval_every", "6", "--max_grad_norm", "1"]),  # where an evaluation is due
    ],
    ids=["mid-epoch", "workers-accumulation", "bf16-end-of-epoch", "evaluation-due"],
)
def test_stopped_by_sigterm_and_resumed_is_never_stopped(train, stop_at, tmp_path, step, arguments):  # noqa: F811
    stopped_and_resumed(train, tmp_path, stop_at, step, arguments, 8)


def test_a_stream_goes_on_at_its_place(train, stop_at, scene_images, tmp_path):  # noqa: F811
    """Twenty rows, shuffled, that are read again and again; its place is in the third pass."""
    rows = json.loads((scene_images / "train.json").read_text())
    lines = [json.dumps({"file_name": row["image"], "caption": row["caption"][0]}) for row in rows]
    (scene_images / "metadata.jsonl").write_text("\n".join(lines))
    (scene_images / "train.json").unlink()
    arguments = ["--dataset", str(scene_images), "--streaming", "--validation_size", "0", "--log_every", "1"]
    stopped_and_resumed(train, tmp_path, stop_at, 6, arguments, 8)


def write_shards(scene_images: Path, folder: Path) -> Path:  # noqa: F811
    """Three of them, of twenty rows."""
    source = ["--train_files", str(scene_images / "train.json"), "--image_root", str(scene_images)]
    settings = ["--rows_per_shard", "8", "--num_workers", "0"]
    load_script("prepare_shards").main(["--output_dir", str(folder), *source, *settings])
    return folder


def test_shards_go_on_at_their_place(train, stop_at, scene_images, tmp_path, capsys):  # noqa: F811
    """In the middle of the second epoch, with a hole in a shard, and then with another number of loading processes."""
    write_shards(scene_images, tmp_path / "shards")
    with (tmp_path / "shards" / "00001.tar").open("r+b") as shard:
        shard.truncate(3000)  # bytes, into the second of its eight pairs
    arguments = ["--shards", str(tmp_path / "shards"), "--num_workers", "2", "--log_every", "1", "--batch_size", "4"]
    stopped_and_resumed(
        train, tmp_path, stop_at, 6, [*arguments, "--max_skipped_share", "0.9"], 8, "--num_workers", "1"
    )
    assert [record for record in trained(tmp_path / "out") if "loss" in record][-1]["shard_damaged"] > 7
    assert "00001.tar has 3000 bytes instead of" in "".join(capsys.readouterr())


def test_fine_tuning_goes_on_with_its_best(run, stop_at, pretrained, tmp_path, monkeypatch):
    """The first evaluation is the best, and lies before the stop."""
    accuracies = {2: 70.0, 4: 60.0}
    evaluated = lambda *_: ({"accuracy": accuracies[evaluated.training.step]}, [])  # noqa: E731
    initialize = MomentumTraining.__init__

    def noted(self, *arguments):
        evaluated.training = self
        initialize(self, *arguments)

    monkeypatch.setattr(MomentumTraining, "__init__", noted)
    monkeypatch.setattr(find_task("entailment"), "evaluate", evaluated)
    options = {"num_workers": 2, "alpha": 0.4}
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "whole", **options))
    stop_at(3)
    with pytest.raises(Stopped):
        run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "out", **options))
    stop_at.undo()
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "out", **options), "--resume")
    assert_same(tmp_path / "out", tmp_path / "whole", 4)
    metrics, expected = (results_of(tmp_path / name)[0] for name in ("out", "whole"))
    assert metrics == expected and metrics["step"] == 2
    for name in ("model.safetensors", "last/model.safetensors"):
        best, other = load_file(tmp_path / "out" / name), load_file(tmp_path / "whole" / name)
        assert all(torch.equal(best[key], weight) for key, weight in other.items())


def two_processes_stop_and_go_on(tmp_path: Path, *arguments: str) -> None:
    """`distributed_resume.py` asserts the exit code of SIGUSR1, and that there are two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(TESTS / "distributed_resume.py"), *small_run(tmp_path, 5), *arguments]
    command += ["--gradient_accumulation_steps", "2", "--validation_size", "0", "--log_every", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "step 3: stopped by SIGUSR1; the checkpoint is written" in run.stdout + run.stderr
    assert_same(tmp_path / "out", tmp_path / "whole", 5)
    state = state_of(tmp_path / "out", 5)
    assert not torch.equal(state["process_0.pt"], state["process_1.pt"])


def test_two_processes_of_which_one_gets_a_signal_stop_and_go_on_together(tmp_path):
    two_processes_stop_and_go_on(tmp_path, "--scenes", "90")  # 5 batches of an epoch on each process


@pytest.mark.skipif(not os.environ.get("ALBEF_LONG"), reason="takes long: ALBEF_LONG=1 runs it")
def test_two_processes_go_on_at_their_places_in_shards(scene_images, tmp_path):  # noqa: F811
    shards = write_shards(scene_images, tmp_path / "shards")
    arguments = ["--shards", str(shards), "--batch_size", "3", "--num_workers", "1"]  # 3 batches on each process
    two_processes_stop_and_go_on(tmp_path, *arguments)


def test_a_damaged_checkpoint_is_skipped_and_the_one_before_it_is_used(train, tmp_path, capsys):  # noqa: F811
    arguments = ["--save_every", "2", "--eval_every", "10"]
    train(*arguments, steps=6).rename(tmp_path / "whole")
    with pytest.raises(Stopped):  # a run of six steps that is stopped in its fourth
        stop(train, *arguments, steps=6)
    weights = tmp_path / "out" / "checkpoints" / "step_4" / "teacher.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    train(*arguments, "--resume", steps=6)
    said = "".join(capsys.readouterr())
    assert "skipped a damaged checkpoint" in said and "teacher.safetensors is not what was written" in said
    assert "goes on from" in said and "step_2" in said
    assert_same(tmp_path / "out", tmp_path / "whole", 6)


def stop(train, *arguments: str, steps: int) -> None:  # noqa: F811
    """Stop a run at its fourth step."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        learn = MomentumTraining.learn

        def watched(self, *heard):
            if self.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return learn(self, *heard)

        monkeypatch.setattr(MomentumTraining, "learn", watched)
        train(*arguments, steps=steps)


def test_what_does_not_fit_is_refused(train, tmp_path):  # noqa: F811
    folder = train("--save_every", "2", steps=2)
    with pytest.raises(ValueError, match="holds a model already"):
        train("--overwrite_output_dir", "false")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "log.jsonl").write_text("as it was")
    with pytest.raises(ValueError, match="holds checkpoints of a run: resume goes on with it"):
        train("--overwrite_output_dir", "false")
    with pytest.raises(ValueError, match="5 batches per process and epoch, this one has 10"):
        train("--resume", "--batch_size", "4")
    wider = json.loads(small_run(folder, 2)[small_run(folder, 2).index("--model_config") + 1]) | {"projection_dim": 8}
    with pytest.raises(ValueError, match="(?s)does not fit this model .* give the options that the run began with"):
        train("--resume", "--model_config", json.dumps(wider))
    manifest = folder / "checkpoints" / "step_2" / checkpointing.MANIFEST
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"processes": 8}))
    with pytest.raises(ValueError, match=r"written by 8 process\(es\), and this run has 1.*Launch it with 8"):
        train("--resume")
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(ValueError, match="No checkpoint in .* is whole .*manifest.json.*Remove that folder"):
        train("--resume")
    assert not list(folder.glob("*.safetensors")), "a run that could not go on has saved what it began with"
    assert (folder / "log.jsonl").read_text() == "as it was"


@pytest.fixture
def checkpoints(tmp_path):
    said = []
    made = Checkpoints(Accelerator(cpu=True), tmp_path, 2, 0, said.append)
    made.said = said
    return made


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 50_000)


def test_only_the_newest_are_kept_and_those_of_each_so_many_steps(checkpoints):
    checkpoints.keep_every = 4
    for step in range(1, 8):
        assert checkpoints.save(step, write, {})
    assert sorted(steps_of(checkpoints.folder)) == [4, 6, 7]
    checkpoints.total_limit, checkpoints.keep_every = 1, 0
    checkpoints.save(3, write, {})  # where a run that had to go back has got to
    assert steps_of(checkpoints.folder) == [3]
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_3"]


def linked(path: Path, far: Path) -> Path:
    """Move a folder to a larger disk, as it were, and link to it."""
    path.rename(far)
    path.symlink_to(far)
    return far


def test_links_and_strays_stop_no_checkpoint(checkpoints, tmp_path):
    """Three are written beside what people and other programs leave; the two newest stay, and what is not ours."""
    folder = checkpoints.folder
    checkpoints.save(1, write, {})
    far = linked(folder / "step_1", tmp_path / "far")
    (folder / "step_007").mkdir()
    assert steps_of(folder) == [1]
    (folder / "step_3").write_text("a file")
    (folder / "step_4").symlink_to("step_4")  # in a circle
    (folder / "step_9").symlink_to(tmp_path / "nowhere")
    (folder / ".step_8.removed.unfinished").symlink_to(far)  # which an earlier version left
    assert checkpoints.newest().name == "step_1"
    assert [checkpoints.save(step, write, {}) for step in (2, 3, 4)] == [True] * 3
    assert {path.name for path in folder.iterdir()} == {"step_007", "step_3", "step_4", "step_9"}
    assert fault_of(folder / "step_3") is None and checkpoints.newest().name == "step_4"
    assert sorted(path.name for path in far.iterdir()) == ["manifest.json", "process_0.pt", "weights"]


def test_checkpoints_on_another_disk_are_cleared_there(checkpoints, tmp_path):
    """Or a later resume would continue from those of another run."""
    checkpoints.save(1, write, {})
    far = linked(checkpoints.folder, tmp_path / "far")
    checkpoints.clear()
    assert checkpoints.folder.is_symlink() and not list(far.iterdir())
    assert checkpoints.save(2, write, {}) and steps_of(far) == [2]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "manifest.json").write_text('{"step": 2, "fil'), "manifest.json or a file"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json or a file"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "manifest.json or a file"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "weights").write_bytes(b"w" * 49_999), "weights has 49999 bytes instead of 50000"),
        (lambda folder: (folder / "weights").write_bytes(b"v" * 50_000), "the content of weights is not"),
    ],
    ids=["manifest-cut", "manifest-other", "manifest-deep", "manifest-gone", "file-gone", "file-cut", "file-changed"],
)
def test_every_damage_is_found_and_told(checkpoints, damage, fault):
    for step in (1, 2):
        checkpoints.save(step, write, {})
    damage(checkpoints.folder / "step_2")
    (checkpoints.folder / ".step_3.unfinished").mkdir()
    assert checkpoints.newest().name == "step_1"
    assert len(checkpoints.said) == 1 and fault in checkpoints.said[0]
    checkpoints.save(2, write, {})  # in its place
    assert checkpoints.newest().name == "step_2"
    assert {path.name for path in checkpoints.folder.iterdir()} == {"step_1", "step_2"}


def test_a_full_disk_costs_no_old_checkpoint_and_training_goes_on(train, capsys, monkeypatch):  # noqa: F811
    saves, save_state = [], checkpointing.save_state

    def full(state, path):
        saves.append(path)
        if len(saves) == 2:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_state(state, path)

    monkeypatch.setattr(checkpointing, "save_state", full)
    folder = train("--save_every", "1", "--save_total_limit", "1", "--eval_every", "9", steps=2)
    said = "".join(capsys.readouterr())
    assert "step 2: no checkpoint could be written (OSError: [Errno 28] No space left on device)" in said
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_1"]
    assert fault_of(folder / "checkpoints" / "step_1") is None
    assert records_of(folder)[-1]["step"] == 2 and (folder / "metrics.json").exists()


@contextlib.contextmanager
def files_up_to(size: int):
    """The system refuses files above that many bytes, as it refuses any on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


TENSORBOARD = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its own thread
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
def test_a_disk_that_fills_up_ends_no_run(train, tmp_path, monkeypatch, capsys, size, lost):  # noqa: F811
    """From its third step on; what the first evaluation has written stays, and a model that is lost is an error."""
    learn, full, folder = MomentumTraining.learn, contextlib.ExitStack(), tmp_path / "out"

    def watched(self, *heard):
        if self.step == 2:
            full.enter_context(files_up_to(size))
        return learn(self, *heard)

    monkeypatch.setattr(MomentumTraining, "learn", watched)
    error = pytest.raises(OSError, match="training has ended") if "the model" in lost else contextlib.nullcontext()
    with full, error as caught:
        train("--eval_every", "2")
    said = "".join(capsys.readouterr()) if caught is None else str(caught.value)
    assert "step 4: retrieval among 6" in said or caught, "it has not come to its end"
    told = said.split("this could not be written: ")[1]
    assert {name for name in WEIGHTS | REST if f"{name} (" in told} == lost
    assert [record["step"] for record in records_of(folder)] == [2, 2, *([4, 4] if size else [])]
    assert steps_of(folder / "checkpoints") == [2] and fault_of(folder / "checkpoints" / "step_2") is None
    weights = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "momentum")}
    assert weights["momentum"]["queue.pointer"] == (16 if caught else 32) % 24, "the teacher of another step"
    assert not list(folder.rglob("*.unfinished"))


@TENSORBOARD
def test_the_best_is_what_is_on_the_disk(run, pretrained, tmp_path, monkeypatch, capsys):
    """Fine-tuning whose better model, of its last step, could not be written."""
    accuracies, full = iter((60.0, 70.0)), contextlib.ExitStack()

    def evaluated(*_):
        accuracy = next(accuracies)
        if accuracy == 70:
            full.enter_context(files_up_to(1000))
        return {"accuracy": accuracy}, []

    monkeypatch.setattr(find_task("entailment"), "evaluate", evaluated)
    with full, pytest.raises(OSError, match="could not be written: .*the model .*out keeps what it held.*--resume"):
        run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "out"))
    assert results_of(tmp_path / "out")[0]["step"] == 2
    files = ("model.safetensors", "checkpoints/step_2/student.safetensors")
    best, second = (load_file(tmp_path / "out" / file)["classifier.dense.bias"] for file in files)
    assert torch.equal(best, second)


def test_all_processes_agree_on_the_best_where_it_cannot_be_written(tmp_path):
    """Or one of them would skip an evaluation that the others wait in, for ever."""
    forks, port = multiprocessing.get_context("fork"), socket.create_server(("127.0.0.1", 0)).getsockname()[1]

    def evaluate(rank: int, end) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == 2
        options = TrainingOptions(output_dir=str(tmp_path))
        task = Mock(metric="accuracy", options=options, findings="")
        task.evaluate.return_value = {"accuracy": 60.0}, []
        task.evaluate_exchanged.return_value = {}
        task.processor.save_pretrained.side_effect = OSError(errno.ENOSPC, "full")
        student, log = Mock(), RunLog(accelerator, tmp_path, 1, 1)
        keeper = load_script("finetune").Keeper(task, [], {}, student, None, accelerator, log, None)
        student.save_pretrained.side_effect = OSError(errno.ENOSPC, "full")
        keeper.evaluate(1)
        end.send(keeper.best)
        os._exit(0)

    ends = []
    for rank in range(2):
        pipe, other_end = forks.Pipe(duplex=False)
        forks.Process(target=evaluate, args=(rank, other_end), daemon=True).start()
        other_end.close()
        ends.append(pipe)
    assert all(pipe.poll(30) for pipe in ends)
    assert [pipe.recv() for pipe in ends] == [{}, {}]


def test_without_room_for_all_files_together_the_model_is_written_first(tmp_path):
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
    settings = (tmp_path / "out", TrainingOptions())
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


def test_a_teacher_of_an_older_step_is_not_left_as_if_it_belonged_to_the_model(model, tmp_path, monkeypatch):
    log, teacher = RunLog(Accelerator(cpu=True), tmp_path, 1, 1), MomentumTeacher(model, queue_size=4)
    settings = (tmp_path, TrainingOptions(), [model, teacher], log)
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


def test_records_wait_for_room_in_the_log(tmp_path, capsys):
    log = RunLog(Accelerator(cpu=True), tmp_path, 3, 1)
    log.begin()
    log.write(1, {"loss": 1.0})
    whole = (tmp_path / "log.jsonl").read_bytes()
    with files_up_to(len(whole) + 5):  # which leaves a part of the next line
        log.write(2, {"loss": 2.0})
        log.write(3, {"loss": 3.0})
    assert (tmp_path / "log.jsonl").read_bytes() == whole
    log.write(4, {"loss": 4.0})
    assert [record["loss"] for record in records_of(tmp_path)] == [1, 2, 3, 4] and not log.writer.failed
    log.begin(records=2)
    assert [record["loss"] for record in records_of(tmp_path)] == [1, 2]


def test_a_lock_and_results_do_without_room_on_the_disk(tmp_path):
    write_results(tmp_path, {"accuracy": 50.0}, [{"row": 1}])
    with files_up_to(0):
        with locked(tmp_path / LOCK):
            pass
        start_trackers(TrainingOptions(output_dir=str(tmp_path), report_to=["none"]), Accelerator(cpu=True))
        with pytest.raises(OSError, match="could not be written: .*I/O error"), write_errors_named(tmp_path / "a"):
            save_file({"a": torch.zeros(9)}, tmp_path / "a")
    with files_up_to(100), pytest.raises(OSError):
        write_results(tmp_path, {"accuracy": 60.0}, [{"row": 1}] * 99)
    assert results_of(tmp_path) == ({"accuracy": 50.0}, [{"row": 1}])


def test_an_error_of_the_device_is_no_full_disk():
    assert is_write_error(RuntimeError("[enforce fail at inline_container.cc:858] . unexpected pos 64 vs 0"))
    assert not is_write_error(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("me/hf_photographs2", "me/hf_photographs2"),
        ("https://h/a?monkey=1&keywords=cat", "https://h/a?monkey=1&keywords=cat"),
        ("https://h:80/a@b", "https://h:80/a@b"),
        ("https://u:p/w@h/x", "https://***@h/x"),
        ("https://h/x?access_token=abc&x=1", "https://h/x?access_token=***&x=1"),
        (f"hf_{'a' * 34}", "hf_***"),
    ],
)
def test_secrets_are_hidden_and_ordinary_names_are_not(text, shown):
    assert redact(text) == shown


def test_output_that_cannot_be_written_is_dropped():
    full = open("/dev/full", "w")  # noqa: SIM115 (it cannot be closed without an error)
    stream = UnfailingStream(full)
    for _ in tqdm(range(3), file=stream):
        print("longer than its buffer" * 1000, file=stream, flush=True)
    with pytest.raises(OSError):
        full.close()


def hold(folder: Path, pipe) -> None:
    """Hold the lock of a folder until killed."""
    with locked(folder / LOCK):
        pipe.send("held")
        time.sleep(60)


def test_a_second_training_in_a_folder_is_refused_until_the_first_is_gone(train, tmp_path):  # noqa: F811
    (tmp_path / "out").mkdir()
    forks = multiprocessing.get_context("fork")
    pipe, other_end = forks.Pipe(duplex=False)
    first = forks.Process(target=hold, args=(tmp_path / "out", other_end))
    first.start()
    assert pipe.recv() == "held"
    with pytest.raises(ValueError, match=f"in use by process {first.pid} on .*stop it, or set another output_dir"):
        train()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    first.kill()
    first.join()
    train(steps=2)
    assert records_of(tmp_path / "out")[-1]["step"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's end")
@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND", None])
def test_a_process_hears_of_the_end_of_its_launcher(monkeypatch, launcher):
    """As of a SIGTERM, by which it writes a checkpoint; the end of a shell is none of a launcher."""
    for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    if launcher:
        monkeypatch.setenv(launcher, "1")
    forks = multiprocessing.get_context("fork")
    pipe, other_end = forks.Pipe(duplex=False)

    def rank() -> None:
        end_with_launcher(os.getppid())
        with StopRequest() as stop:
            other_end.send(os.getpid())
            deadline = time.monotonic() + (10 if launcher else 1)
            while not any(stop.votes()) and time.monotonic() < deadline:
                time.sleep(0.01)
            other_end.send(stop.votes())

    def launch() -> None:
        forks.Process(target=rank).start()
        time.sleep(60)

    started = forks.Process(target=launch)
    started.start()
    assert pipe.recv() != started.pid
    started.kill()
    assert pipe.recv() == ([1, 0] if launcher else [0, 0])
    started.join()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's end")
@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_a_process_ends_whose_launcher_has_ended_during_its_imports(monkeypatch, name):
    loaded = load_script(name)

    def start() -> None:
        monkeypatch.setattr(os, "getppid", lambda: 1)
        with pytest.raises(SystemExit) as stopped:
            loaded.main(["--help"])
        os._exit(stopped.value.code)

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    process = multiprocessing.get_context("fork").Process(target=start, daemon=True)
    process.start()  # as the signal that a parent's end sends is set for good
    process.join(10)
    assert process.exitcode == 143


@pytest.mark.parametrize("name", ["write_manifest", "flush"])
def test_the_old_one_stays_until_the_new_one_is_whole(checkpoints, monkeypatch, name):
    """The only one that is kept, when the last files of the next one cannot be written or flushed."""
    checkpoints.total_limit = 1
    assert checkpoints.save(1, write, {})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpointing, name, full)
        assert not checkpoints.save(2, write, {})
    assert checkpoints.newest().name == "step_1"

    def refused(self, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refused)
        assert not checkpoints.save(3, write, {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_1"]
    assert len(checkpoints.said) == 2


@pytest.mark.parametrize("writer", ["torch", "safetensors"])
def test_what_the_libraries_raise_when_a_file_cannot_grow(checkpoints, writer):
    large = {"large": torch.zeros(100_000)}
    write_large = {
        "torch": lambda folder: checkpointing.save_state(large, folder / "large.pt"),
        "safetensors": lambda folder: save_file(large, folder / "large.safetensors"),
    }[writer]
    assert checkpoints.save(1, write, {})
    with files_up_to(100_000):
        assert not checkpoints.save(2, write_large, {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_1"]
    assert "step 2: no checkpoint could be written" in checkpoints.said[0]
    assert checkpoints.save(2, write_large, {}) and checkpoints.newest().name == "step_2"


def save_for_ever(checkpoints: Checkpoints, pipe) -> None:
    """Go on from the newest checkpoint and write one after the other, telling when each is there."""
    newest = checkpoints.newest()
    step = int(newest.name[5:]) if newest else 0
    pipe.send(step)
    weights = {"weights": torch.arange(500_000)}
    while True:
        step += 1
        checkpoints.save(step, lambda folder: checkpointing.save_state(weights, folder / "weights.pt"), {"step": step})
        pipe.send(step)


def test_killed_while_saving_it_goes_on_from_the_last_that_was_saved(checkpoints):
    """ALBEF_KILLS=100 tries that so many times; only one checkpoint is kept, so there is none to fall back on."""
    checkpoints.total_limit = 1
    saved, moments, forks = 0, random.Random(), multiprocessing.get_context("fork")
    unfinished = 0
    for _ in range(int(os.environ.get("ALBEF_KILLS", "5"))):
        pipe, other_end = forks.Pipe(duplex=False)
        process = forks.Process(target=save_for_ever, args=(checkpoints, other_end))
        process.start()
        other_end.close()
        found = pipe.recv()
        assert found in (saved, saved + 1)  # it may have been killed after the new name, before it could say so
        start = time.monotonic()
        saved = pipe.recv()
        # Some time in one of the next two, however fast the machine is.
        time.sleep(moments.uniform(0, 2) * (time.monotonic() - start))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL and saved == found + 1
        with contextlib.suppress(EOFError):
            while True:
                saved = pipe.recv()
        unfinished += bool(list(checkpoints.folder.glob(".step_*.unfinished")))
    print(f"killed in the middle of {unfinished}; {saved} were saved")
    assert unfinished


def test_a_request_to_stop_is_noted_while_it_is_listened_for():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert request.votes() == [0, 0] and chosen(request.votes()) is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.votes() == [0, 1]
        assert chosen([0, 3]) is signal.SIGUSR1 and chosen([1, 1]) is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert EXIT_CODES == {signal.SIGTERM: 143, signal.SIGUSR1: 75}


def test_signals_wait_until_the_processes_that_load_data_ignore_them():
    def held() -> set[int]:
        """What a process that this thread starts now would hold back."""
        return signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, signal.SIGUSR1}

    def batches():
        os.kill(os.getpid(), signal.SIGTERM)  # while they start
        yield held()
        yield held()

    with StopRequest() as request:
        assert list(start_undisturbed(batches())) == [{signal.SIGTERM, signal.SIGUSR1}, set()]
        deadline = time.monotonic() + 10  # another thread may have taken the signal, and this one hears of it later
        while not any(request.votes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert request.votes() == [1, 0], "it is not lost"
        assert list(start_undisturbed(iter([]))) == []
    assert not held()


def test_all_generators_go_on_where_they_were():
    state = random_state()
    first = (random.random(), np.random.rand(), torch.rand(1).item())
    restore_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


def test_no_pickled_code_is_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    torch.save({"random": Harmful()}, tmp_path / "process_0.pt")
    with pytest.raises(ValueError, match="process_0.pt holds more than tensors .*Weights only load failed"):
        checkpointing.load_state(tmp_path / "process_0.pt")
    assert not (tmp_path / "run").exists()
