"""Run the snippets of the README, with small models in place of those that it names, against a Hub on loopback."""

import importlib.util
import re
import subprocess
import sys

import torch
from hub_server import HubServer
from paths import REPOSITORY

from albef_hf import MomentumTeacher

# What the snippet of the training step needs.
BATCH = """
import torch
from albef_hf import AlbefForPreTraining, MomentumTeacher
student = AlbefForPreTraining.from_pretrained("albef").train()
teacher, optimizer = MomentumTeacher(student, queue_size=8), torch.optim.AdamW(student.parameters())
batch = torch.load("batch.pt")
"""


def test_every_snippet_of_the_readme_runs(model, processor, batch, tmp_path):
    for folder in ("runs/scenes", "albef"):
        for part in (model, processor, MomentumTeacher(model, queue_size=8)):
            part.save_pretrained(tmp_path / folder)
    torch.save(batch, tmp_path / "batch.pt")
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    snippets = [s.replace("you/", "owner/") for s in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    snippets = [s for s in snippets if "onnxruntime" not in s]  # see test_export.py
    snippets = [s for s in snippets if "mteb" not in s]  # its data sets are on the Hub; see test_mteb_models.py
    if importlib.util.find_spec("sentence_transformers") is None:
        snippets = [s for s in snippets if "sentence_transformers" not in s]
    assert len(snippets) >= 6
    program = "\n".join(BATCH + snippet if "teacher(**batch)" in snippet else snippet for snippet in snippets)
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home", PYTHONPATH=str(REPOSITORY))
        ended = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "matching tensor" in ended.stdout
