"""A resumed run is bit-identical to an uninterrupted one."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from paths import TESTS
from safetensors.torch import load_file
from small_pretraining import TINY_MODEL, records_of, small_run
from task_rows import results_of, small
from two_processes import run_on_two_processes

from albef_hf.tasks import find_task
from albef_hf.training import checkpointing
from albef_hf.training.checkpointing import list_steps
from albef_hf.training.signals import TrainingInterrupted
from albef_hf.training.trainer import Trainer
from albef_hf.utils.renamed_options import RENAMED_OPTIONS

TIMES = ("seconds", "pairs_per_second", "data_wait_share", "tflops_per_second")


def trained(folder: Path) -> list[dict]:
    """Return the log without values that depend on the clock."""
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records_of(folder)]


def state_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Return student, teacher, queues, optimizer and random states of a checkpoint."""
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
    """Compare the logs, and the content of the last checkpoint."""
    assert trained(folder) == trained(other)
    state, expected = state_of(folder, step), state_of(other, step)
    assert state.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(state[name], expected[name])]
    assert not different, different


@pytest.fixture
def stop_at(monkeypatch):
    """Send a signal in the middle of a step, once, to this process and its DataLoader workers, as Slurm does."""

    def arrange(step: int, number: signal.Signals = signal.SIGTERM) -> None:
        teacher_forward = Trainer._teacher_forward

        def watched(self, batch):
            targets = teacher_forward(self, batch)
            if self.state.step == step - 1 and not self.signals.received:
                for process in (os.getpid(), *(worker.pid for worker in multiprocessing.active_children())):
                    os.kill(process, number)
            return targets

        monkeypatch.setattr(Trainer, "_teacher_forward", watched)
        arrange.undo = lambda: monkeypatch.setattr(Trainer, "_teacher_forward", teacher_forward)

    return arrange


def stopped_and_resumed(pretrain, tmp_path: Path, stop_at, step: int, arguments: list[str], steps: int, *then) -> None:
    pretrain(*arguments, steps=steps).rename(tmp_path / "whole")
    stop_at(step)
    with pytest.raises(TrainingInterrupted) as stopped:
        pretrain(*arguments, steps=steps)
    assert stopped.value.code == 143
    assert max(list_steps(tmp_path / "out" / "checkpoints")) == step
    stop_at.undo()
    pretrain(*arguments, *then, "--resume_from_checkpoint", "--overwrite_output_dir", "false", steps=steps)
    assert_same(tmp_path / "out", tmp_path / "whole", steps)


@pytest.mark.parametrize(
    ("step", "arguments"),
    [
        (2, ["--eval_steps", "3"]),
        # 11 batches an epoch, so that a step of two goes across its end, and this one is when more are being loaded
        (7, ["--dataloader_num_workers", "2", "--gradient_accumulation_steps", "2", "--scenes", "88"]),
        (5, ["--mixed_precision", "bf16", "--attn_implementation", "eager", "--logging_steps", "4"]),
        (6, ["--no_teacher_dropout", "--eval_steps", "6", "--max_grad_norm", "1"]),  # where an evaluation is due
        (3, ["--freeze", "text_encoder", "--image_encoder_learning_rate", "1e-3", "--layer_decay", "0.5"]),
    ],
    ids=["mid-epoch", "workers-accumulation", "bf16-end-of-epoch", "evaluation-due", "frozen-rates"],
)
def test_a_run_resumed_after_sigterm_is_bit_identical(pretrain, stop_at, tmp_path, step, arguments):
    stopped_and_resumed(pretrain, tmp_path, stop_at, step, arguments, 8)


def test_a_run_from_states_of_images_is_bit_identical(pretrain, stop_at, tmp_path):
    options = ["--freeze", "image_encoder", "--cache_image_states", str(tmp_path / "states")]
    stopped_and_resumed(pretrain, tmp_path, stop_at, 2, options, 4)


def test_a_run_with_lora_is_bit_identical(pretrain, stop_at, tmp_path):
    pytest.importorskip("peft", reason='peft is not installed: pip install "albef_hf[lora]"')
    stopped_and_resumed(pretrain, tmp_path, stop_at, 3, ["--lora_rank", "4"], 4)


def test_a_stream_is_resumed_at_its_position(pretrain, stop_at, scene_images, tmp_path):
    """Twenty rows, shuffled; the run stops in the third pass over them."""
    rows = json.loads((scene_images / "train.json").read_text())
    lines = [json.dumps({"file_name": row["image"], "caption": row["caption"][0]}) for row in rows]
    (scene_images / "metadata.jsonl").write_text("\n".join(lines))
    (scene_images / "train.json").unlink()
    arguments = ["--dataset", str(scene_images), "--streaming", "--validation_size", "0", "--logging_steps", "1"]
    stopped_and_resumed(pretrain, tmp_path, stop_at, 6, arguments, 8)


@pytest.fixture
def shards(run, scene_images, tmp_path) -> Path:
    """Three shards of twenty rows."""
    source = ["--train_files", scene_images / "train.json", "--image_root", scene_images]
    run("shards", "--output_dir", tmp_path / "shards", *source, "--rows_per_shard", 8, "--num_workers", 0)
    return tmp_path / "shards"


def test_shards_are_resumed_at_their_position(pretrain, stop_at, shards, tmp_path, capsys):
    """In the middle of the second epoch, with a truncated shard, and then with another number of workers."""
    with (shards / "00001.tar").open("r+b") as shard:
        shard.truncate(3000)  # bytes, into the second of its eight pairs
    arguments = [
        "--shards",
        str(shards),
        "--dataloader_num_workers",
        "2",
        "--logging_steps",
        "1",
        "--per_device_train_batch_size",
        "4",
    ]
    stopped_and_resumed(
        pretrain, tmp_path, stop_at, 6, [*arguments, "--max_skipped_share", "0.9"], 8, "--dataloader_num_workers", "1"
    )
    assert [record for record in trained(tmp_path / "out") if "loss" in record][-1]["shard_damaged"] > 7
    assert "00001.tar has 3000 bytes instead of" in "".join(capsys.readouterr())


def make_former(checkpoint: Path) -> None:
    """Rewrite a checkpoint as version 0.1 wrote it: with the former names of options, and `keeper`."""
    progress = json.loads((checkpoint / "progress.json").read_text())
    former = {name: old for old, name in RENAMED_OPTIONS.items()}
    options = {former.get(name, name): value for name, value in progress["options"].items()}
    assert {"batch_size", "log_every", "resume"} <= set(options)
    best = progress.pop("saved_model")
    progress |= {"keeper": best, "options": options | {"max_steps": max(options["max_steps"], 0)}}
    (checkpoint / "progress.json").write_text(json.dumps(progress))
    (checkpoint / checkpointing.MANIFEST).unlink()
    checkpointing.write_manifest(checkpoint, progress["step"], processes=1)


@pytest.mark.parametrize("version", ["0.1", "present"])
def test_fine_tuning_is_resumed_with_its_best_model(run, stop_at, pretrained, tmp_path, monkeypatch, capsys, version):
    """The first evaluation is the best, and comes before the signal."""
    accuracies = {2: 70.0, 4: 60.0}
    evaluated = lambda *_: ({"accuracy": accuracies[evaluated.trainer.state.step]}, [])  # noqa: E731
    initialize = Trainer.__init__

    def noted(self, *arguments):
        evaluated.trainer = self
        initialize(self, *arguments)

    monkeypatch.setattr(Trainer, "__init__", noted)
    monkeypatch.setattr(find_task("entailment"), "evaluate", evaluated)
    options = {"dataloader_num_workers": 2, "alpha": 0.4}
    run("finetune", "entailment", *small(pretrained, tmp_path / "whole", **options))
    stop_at(3)
    with pytest.raises(TrainingInterrupted):
        run("finetune", "entailment", *small(pretrained, tmp_path / "out", **options))
    stop_at.undo()
    if version == "0.1":
        make_former(tmp_path / "out" / "checkpoints" / "step_3")
    capsys.readouterr()
    run("finetune", "entailment", *small(pretrained, tmp_path / "out", **options), "--resume_from_checkpoint")
    said = "".join(capsys.readouterr())
    assert "resumed from" in said and "with other options" not in said
    assert_same(tmp_path / "out", tmp_path / "whole", 4)
    metrics, expected = (results_of(tmp_path / name)[0] for name in ("out", "whole"))
    assert metrics == expected and metrics["step"] == 2
    for name in ("model.safetensors", "last/model.safetensors"):
        best, other = load_file(tmp_path / "out" / name), load_file(tmp_path / "whole" / name)
        assert all(torch.equal(best[key], weight) for key, weight in other.items())


def two_processes_stop_and_resume(tmp_path: Path, *arguments: str) -> None:
    """`distributed_resume.py` asserts the exit code of SIGUSR1, and that there are two processes."""
    options = [*small_run(tmp_path, 5), *arguments]
    options += ["--gradient_accumulation_steps", "2", "--validation_size", "0", "--logging_steps", "2"]
    printed = run_on_two_processes(TESTS / "distributed_resume.py", *options, folder=tmp_path)
    assert "step 3: stopped by SIGUSR1; the checkpoint is written" in printed
    assert_same(tmp_path / "out", tmp_path / "whole", 5)
    state = state_of(tmp_path / "out", 5)
    assert not torch.equal(state["process_0.pt"], state["process_1.pt"])


def test_two_processes_stop_and_resume_together_though_only_one_receives_the_signal(tmp_path):
    two_processes_stop_and_resume(tmp_path, "--scenes", "90")  # 5 batches of an epoch on each process


@pytest.mark.skipif(not os.environ.get("ALBEF_LONG"), reason="takes long: ALBEF_LONG=1 runs it")
def test_two_processes_resume_at_their_positions_in_shards(shards, tmp_path):
    arguments = [
        "--shards",
        str(shards),
        "--per_device_train_batch_size",
        "3",
        "--dataloader_num_workers",
        "1",
    ]  # 3 batches on each process
    two_processes_stop_and_resume(tmp_path, *arguments)


def test_a_damaged_checkpoint_is_skipped_and_the_one_before_it_is_used(pretrain, tmp_path, capsys):
    arguments = ["--save_steps", "2", "--eval_steps", "10"]
    pretrain(*arguments, steps=6).rename(tmp_path / "whole")
    with pytest.raises(TrainingInterrupted):  # a run of six steps that is stopped in its fourth
        stop(pretrain, *arguments, steps=6)
    weights = tmp_path / "out" / "checkpoints" / "step_4" / "teacher.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    pretrain(*arguments, "--resume_from_checkpoint", steps=6)
    said = "".join(capsys.readouterr())
    assert "skipped a damaged checkpoint" in said and "teacher.safetensors has changed since it was written" in said
    assert "resumed from" in said and "step_2" in said
    assert_same(tmp_path / "out", tmp_path / "whole", 6)


def stop(pretrain, *arguments: str, steps: int) -> None:
    """Stop a run at its fourth step."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        training_step = Trainer.training_step

        def watched(self, batch):
            if self.state.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return training_step(self, batch)

        monkeypatch.setattr(Trainer, "training_step", watched)
        pretrain(*arguments, steps=steps)


def test_a_checkpoint_that_does_not_fit_is_refused(pretrain, tmp_path):
    folder = pretrain("--save_steps", "2", steps=2)
    with pytest.raises(ValueError, match="already holds a model"):
        pretrain("--overwrite_output_dir", "false")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "log.jsonl").write_text("as it was")
    with pytest.raises(ValueError, match="holds checkpoints of a run; resume_from_checkpoint continues it"):
        pretrain("--overwrite_output_dir", "false")
    with pytest.raises(ValueError, match="5 batches per process and epoch, but this one has 10"):
        pretrain("--resume_from_checkpoint", "--per_device_train_batch_size", "4")
    wider = TINY_MODEL | {"projection_dim": 8}
    with pytest.raises(ValueError, match="(?s)does not fit this model .* use the options that the run began with"):
        pretrain("--resume_from_checkpoint", "--model_config", json.dumps(wider))
    manifest = folder / "checkpoints" / "step_2" / checkpointing.MANIFEST
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"processes": 8}))
    with pytest.raises(ValueError, match=r"written by 8 process\(es\), but this run has 1.*Launch 8"):
        pretrain("--resume_from_checkpoint")
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(ValueError, match="No checkpoint in .* is complete .*manifest.json.*Remove that folder"):
        pretrain("--resume_from_checkpoint")
    assert not list(folder.glob("*.safetensors")), "a run that could not be resumed has saved its initial model"
    assert (folder / "log.jsonl").read_text() == "as it was"
