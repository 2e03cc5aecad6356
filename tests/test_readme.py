"""Run the Python of README and site, page by page, with small models and a Hub on loopback; compare what it prints.

What a small model prints has other digits and another order. `ALBEF_SCENES=runs/scenes pytest tests/test_readme.py`
takes the model of `make pretrain` instead, and compares everything; its digits are those of one machine.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from conftest import TINY
from hub_server import HubServer
from paths import REPOSITORY
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel

from albef_hf import AlbefForPreTraining, AlbefProcessor, MomentumTeacher

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SCENES = os.environ.get("ALBEF_SCENES")
# Pages whose Python other tests run: test_export.py, evaluation/test_mteb_models.py.
ELSEWHERE = {"export.md", "mteb.md"}
NEEDED = {"sentence_transformers.md": "sentence_transformers", "search.md": "faiss"}
# Run before a page, and in place of what would be large.
BEFORE = {"pretraining.md": "import torch; batch = torch.load('batch.pt')"}
SMALL = {"you/": "owner/", "vision_config=Dinov2Config()": "vision_config=Dinov2Config(**tiny), text_config=tiny"}
PROGRAM = """
import contextlib, io, json, pathlib
printed = {}
for page, snippets in json.loads(pathlib.Path("pages.json").read_text()).items():
    names = {"__name__": "__main__", "tiny": %s}
    for snippet in snippets:
        with contextlib.redirect_stdout(io.StringIO()) as lines:
            exec(compile(snippet, page, "exec"), names)
        printed.setdefault(page, []).append(lines.getvalue())
pathlib.Path("printed.json").write_text(json.dumps(printed))
"""


def python_of(page: Path) -> list[tuple[str, str | None]]:
    """Return the snippets of a page, each with the output that follows it."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```\n(?:```\n(.*?)```)?", text, re.DOTALL)


def is_run(page: Path) -> bool:
    needed = NEEDED.get(page.name)
    return page.name not in ELSEWHERE and (needed is None or importlib.util.find_spec(needed) is not None)


RUN = {page.name: python_of(page) for page in PAGES if python_of(page) and is_run(page)}


def save_models(folder: Path, model: AlbefForPreTraining, processor: AlbefProcessor) -> None:
    """Save small models under the names in the snippets."""
    for name in ("runs/scenes", "albef"):
        for part in (model, processor, MomentumTeacher(model, queue_size=8)):
            part.save_pretrained(folder / name)
    if SCENES:
        shutil.rmtree(folder / "runs/scenes")
        (folder / "runs/scenes").symlink_to(Path(SCENES).resolve())
    CLIPVisionModel(CLIPVisionConfig(**TINY, image_size=32)).save_pretrained(folder / "openai/clip-vit-base-patch16")
    bert = BertModel(BertConfig(**TINY | {"num_hidden_layers": 4}))
    bert.save_pretrained(folder / "google-bert/bert-base-uncased")


def small(snippet: str) -> str:
    """Return a snippet with what is small in place of what is large."""
    for large, replacement in SMALL.items():
        snippet = snippet.replace(large, replacement)
    return snippet


def form_of(text: str) -> list[str]:
    """Return the lines of an output in the order of the alphabet, without digits."""
    numbers = re.sub(r"[-+]?\d+(\.\d*)?(e[-+]\d+)?", "N", text)
    return sorted(re.sub(r"\s+", "", line) for line in numbers.splitlines())


def run_pages(folder: Path) -> dict[str, list[str]]:
    """Run all pages in one process, each with names of its own; return what each snippet prints."""
    pages = {name: [small(snippet) for snippet, _ in snippets] for name, snippets in RUN.items()}
    for name, before in BEFORE.items():
        pages[name][0] = f"{before}\n{pages[name][0]}"
    (folder / "pages.json").write_text(json.dumps(pages))
    with HubServer() as hub:
        environment = hub.environment(folder / "home", PYTHONPATH=str(REPOSITORY))
        command = [sys.executable, "-c", PROGRAM % TINY]
        ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((folder / "printed.json").read_text())


def test_every_page_runs_and_prints_what_it_shows(model, processor, batch, tmp_path):
    save_models(tmp_path, model, processor)
    torch.save(batch, tmp_path / "batch.pt")
    printed = run_pages(tmp_path)
    assert {"README.md", "getting_started.md", "hub.md", "heatmaps.md"} <= printed.keys() == RUN.keys()
    for name, snippets in RUN.items():
        for (_, shown), actual in zip(snippets, printed[name], strict=True):
            if shown and SCENES:
                assert actual.rstrip() == shown.rstrip(), name
            elif shown:
                assert form_of(actual) == form_of(shown), name
