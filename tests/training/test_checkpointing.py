"""Checkpoints are complete or absent, and contain no code that is executed."""

import contextlib
import errno
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from full_disk import file_size_limit
from safetensors.torch import save_file
from small_pretraining import records_of

from albef_hf.training import checkpointing, run_checkpoint
from albef_hf.training.checkpointing import Checkpoints, list_steps, random_state, restore_random_state, verify


@pytest.fixture
def checkpoints(tmp_path):
    said = []
    made = Checkpoints(Accelerator(cpu=True), tmp_path, 2, 0, said.append)
    made.said = said
    return made


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 50_000)


def test_the_latest_checkpoints_and_those_of_keep_every_are_kept(checkpoints):
    checkpoints.keep_every = 4
    for step in range(1, 8):
        assert checkpoints.save(step, write, {})
    assert sorted(list_steps(checkpoints.folder)) == [4, 6, 7]
    checkpoints.total_limit, checkpoints.keep_every = 1, 0
    checkpoints.save(3, write, {})  # of a run that had to go back
    assert list_steps(checkpoints.folder) == [3]
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_3"]


def test_random_states_of_all_kinds_of_accelerators_are_saved_and_restored(monkeypatch):
    def state_of(generator: torch.Generator) -> dict:
        return {"get_rng_state": generator.get_state, "set_rng_state": generator.set_state}

    generators = {kind: torch.Generator() for kind in ("cuda", "xpu", "mps")}
    for kind, generator in generators.items():
        for name, function in state_of(generator).items():
            monkeypatch.setattr(getattr(torch, kind), name, function)
        if kind != "mps":
            monkeypatch.setattr(getattr(torch, kind), "is_initialized", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    state = random_state()
    drawn = [torch.rand(1, generator=generator) for generator in generators.values()]
    restore_random_state(state)
    assert drawn == [torch.rand(1, generator=generator) for generator in generators.values()]
    monkeypatch.undo()
    restore_random_state(state)  # on a machine without them
    restore_random_state(random_state() | {"cuda": None})  # of an earlier version


def linked(path: Path, far: Path) -> Path:
    """Move a folder elsewhere, and link to it."""
    path.rename(far)
    path.symlink_to(far)
    return far


def test_links_and_foreign_files_do_not_prevent_checkpoints(checkpoints, tmp_path):
    """Three are written beside what people and other programs leave; the two latest are kept, and the rest stays."""
    folder = checkpoints.folder
    checkpoints.save(1, write, {})
    far = linked(folder / "step_1", tmp_path / "far")
    (folder / "step_007").mkdir()
    assert list_steps(folder) == [1]
    (folder / "step_3").write_text("a file")
    (folder / "step_4").symlink_to("step_4")  # in a circle
    (folder / "step_9").symlink_to(tmp_path / "nowhere")
    (folder / ".step_8.removed.unfinished").symlink_to(far)  # which an earlier version left
    assert checkpoints.latest().name == "step_1"
    assert [checkpoints.save(step, write, {}) for step in (2, 3, 4)] == [True] * 3
    assert {path.name for path in folder.iterdir()} == {"step_007", "step_3", "step_4", "step_9"}
    assert verify(folder / "step_3") is None and checkpoints.latest().name == "step_4"
    assert sorted(path.name for path in far.iterdir()) == ["manifest.json", "process_0.pt", "weights"]


def test_checkpoints_on_another_disk_are_cleared_there(checkpoints, tmp_path):
    """Or a later resume would continue from those of another run."""
    checkpoints.save(1, write, {})
    far = linked(checkpoints.folder, tmp_path / "far")
    checkpoints.clear()
    assert checkpoints.folder.is_symlink() and not list(far.iterdir())
    assert checkpoints.save(2, write, {}) and list_steps(far) == [2]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "manifest.json").write_text('{"step": 2, "fil'), "manifest.json or a file"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json or a file"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "manifest.json or a file"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {}}'), "does not list"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {}, "processes": 1}'), "does not list"),
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "weights").write_bytes(b"w" * 49_999), "weights has 49999 bytes instead of 50000"),
        (lambda folder: (folder / "weights").write_bytes(b"v" * 50_000), "weights has changed since it was written"),
    ],
    ids=[
        "manifest-cut",
        "manifest-other",
        "manifest-deep",
        "manifest-gone",
        "manifest-short",
        "manifest-empty",
        "file-gone",
        "file-cut",
        "file-changed",
    ],
)
def test_every_damage_is_found_and_reported(checkpoints, damage, fault):
    for step in (1, 2):
        checkpoints.save(step, write, {})
    damage(checkpoints.folder / "step_2")
    (checkpoints.folder / ".step_3.unfinished").mkdir()
    assert checkpoints.latest().name == "step_1"
    assert len(checkpoints.said) == 1 and fault in checkpoints.said[0]
    checkpoints.save(2, write, {})  # in its place
    assert checkpoints.latest().name == "step_2"
    assert {path.name for path in checkpoints.folder.iterdir()} == {"step_1", "step_2"}


def test_a_full_disk_loses_no_old_checkpoint_and_training_continues(pretrain, capsys, monkeypatch):
    saves, save_state = [], checkpointing.save_state

    def full(state, path):
        saves.append(path)
        if len(saves) == 2:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_state(state, path)

    monkeypatch.setattr(run_checkpoint, "save_state", full)
    folder = pretrain("--save_steps", "1", "--save_total_limit", "1", "--eval_steps", "9", steps=2)
    said = "".join(capsys.readouterr())
    assert "step 2: no checkpoint could be written (OSError: [Errno 28] No space left on device)" in said
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_1"]
    assert verify(folder / "checkpoints" / "step_1") is None
    assert records_of(folder)[-1]["step"] == 2 and (folder / "metrics.json").exists()


@pytest.mark.parametrize("name", ["write_manifest", "fsync"])
def test_the_old_checkpoint_stays_until_the_new_one_is_complete(checkpoints, monkeypatch, name):
    """The only one that is kept, when the last files of the next one cannot be written or flushed."""
    checkpoints.total_limit = 1
    assert checkpoints.save(1, write, {})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpointing, name, full)
        assert not checkpoints.save(2, write, {})
    assert checkpoints.latest().name == "step_1"

    def refused(self, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refused)
        assert not checkpoints.save(3, write, {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_1"]
    assert len(checkpoints.said) == 2


@pytest.mark.parametrize("writer", ["torch", "safetensors"])
def test_errors_of_libraries_when_a_file_cannot_grow(checkpoints, writer):
    large = {"large": torch.zeros(100_000)}
    write_large = {
        "torch": lambda folder: checkpointing.save_state(large, folder / "large.pt"),
        "safetensors": lambda folder: save_file(large, folder / "large.safetensors"),
    }[writer]
    assert checkpoints.save(1, write, {})
    with file_size_limit(100_000):
        assert not checkpoints.save(2, write_large, {})
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_1"]
    assert "step 2: no checkpoint could be written" in checkpoints.said[0]
    assert checkpoints.save(2, write_large, {}) and checkpoints.latest().name == "step_2"


def save_for_ever(checkpoints: Checkpoints, pipe) -> None:
    """Resume from the latest checkpoint, write one after the other, and report each."""
    latest = checkpoints.latest()
    step = int(latest.name[5:]) if latest else 0
    pipe.send(step)
    weights = {"weights": torch.arange(500_000)}
    while True:
        step += 1
        checkpoints.save(step, lambda folder: checkpointing.save_state(weights, folder / "weights.pt"), {"step": step})
        pipe.send(step)


def test_a_run_killed_while_saving_resumes_from_the_last_saved_checkpoint(checkpoints):
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


def test_random_states_are_restored():
    state = random_state()
    first = (random.random(), np.random.rand(), torch.rand(1).item())
    restore_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


def test_no_pickled_code_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    torch.save({"random": Harmful()}, tmp_path / "process_0.pt")
    with pytest.raises(ValueError, match="process_0.pt contains more than tensors .*Weights only load failed"):
        checkpointing.load_state(tmp_path / "process_0.pt")
    assert not (tmp_path / "run").exists()
