"""What the README shows runs, on a small model in place of the one that its first command leaves."""

import re
from pathlib import Path

import pytest
import torch

from albef_hf import MomentumTeacher

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def somewhere(model, processor, batch, tmp_path, monkeypatch) -> dict:
    """A folder with the models that the README speaks of, and the names that a reader has by then."""
    for folder in ("runs/scenes", "albef"):
        model.save_pretrained(tmp_path / folder)
        processor.save_pretrained(tmp_path / folder)
        MomentumTeacher(model, queue_size=8).save_pretrained(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    student = model.train()
    optimizer = torch.optim.AdamW(student.parameters())
    teacher = MomentumTeacher(student, queue_size=8)
    return {"student": student, "teacher": teacher, "optimizer": optimizer, "batch": batch}


def test_every_snippet_of_the_readme_runs(somewhere):
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) >= 4
    names: dict = {}
    for number, snippet in enumerate(snippets):
        names |= somewhere
        exec(compile(snippet, f"snippet {number} of the README", "exec"), names)  # noqa: S102
