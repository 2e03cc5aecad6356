"""Conversion and renewal on a full disk: nothing is lost or left behind, and the error says what to do."""

import json
from pathlib import Path

import pytest
import torch
from full_disk import file_size_limit
from original import random_state_dict
from test_hub import CODE

from albef_hf import AlbefForQuestionAnswering, AlbefForRetrieval
from albef_hf.conversion.code_renewal import renew_code
from albef_hf.conversion.from_original import convert_checkpoint
from albef_hf.conversion.to_original import revert_checkpoint

# The file that a limit makes fail: the first one, the code of the model, its weights, those of the teacher.
SIZES = [0, 2_000, 100_000, 600_000]
SETTINGS = {"vision_config": {"num_attention_heads": 4}, "text_config": {"num_attention_heads": 4}}
ADVICE = "could not be written: .*Free disk space"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.save({"model": random_state_dict("retrieval_tiny")}, tmp_path / "checkpoint.pth")
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    return tmp_path / "checkpoint.pth"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def convert(checkpoint: Path, folder: Path) -> None:
    convert_checkpoint(checkpoint, folder, task="retrieval", config=checkpoint.with_name("settings.json"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("existed", [False, True])
def test_a_conversion_that_fails_leaves_nothing_and_can_be_repeated(checkpoint, tmp_path, size, existed, capsys):
    folder = tmp_path / "converted"
    if existed:
        folder.mkdir()
    before = files_of(tmp_path)
    with file_size_limit(size), pytest.raises(OSError, match=f"{folder} {ADVICE}"):
        convert(checkpoint, folder)
    assert files_of(tmp_path) == before and folder.exists() == existed
    assert not existed or not any(folder.iterdir())
    convert(checkpoint, folder)
    AlbefForRetrieval.from_pretrained(folder)


@pytest.mark.parametrize("size", SIZES)
def test_a_conversion_back_that_fails_leaves_nothing(checkpoint, tmp_path, size, capsys):
    convert(checkpoint, tmp_path / "converted")
    with file_size_limit(size), pytest.raises(OSError, match=f"again.pth {ADVICE}"):
        revert_checkpoint(tmp_path / "converted", tmp_path / "again.pth")
    assert not list(tmp_path.glob("*again*"))
    revert_checkpoint(tmp_path / "converted", tmp_path / "again.pth")


@pytest.mark.parametrize("edited", ["modeling_albef.py", "configuration_albef.py"])
def test_a_renewal_that_fails_changes_nothing(config, tmp_path, edited, monkeypatch):
    """The limit is below the size of the new file, or of the edited one, which is copied to the backup."""
    folder = tmp_path / "model"
    AlbefForQuestionAnswering(config).save_pretrained(folder)
    renew_code(folder)
    (folder / edited).write_text("# edited\n" * 50_000)
    before = files_of(tmp_path)
    limit = 10_000 if edited == "modeling_albef.py" else 400_000
    # The code is collected in the temporary folder, which is on another disk.
    monkeypatch.setattr("albef_hf.conversion.code_renewal._code_files", lambda model: dict(CODE))
    with file_size_limit(limit), pytest.raises(OSError, match=f"model {ADVICE}"):
        renew_code(folder)
    assert files_of(tmp_path) == before
    assert renew_code(folder).files[edited] == "updated"
