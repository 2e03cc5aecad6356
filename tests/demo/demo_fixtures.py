"""Fixtures and helpers of the tests of the demo."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from paths import REPOSITORY
from PIL import Image
from sharp_models import make

from albef_hf import (
    AlbefForImageCaptioning,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    ImageCaptioningPipeline,
    ImageTextRetrievalPipeline,
    VisualQuestionAnsweringPipeline,
)
from albef_hf.demo.assistant import Assistant

__all__ = ["assistant", "handlers", "hub", "image", "space", "upload"]  # the fixtures

DEMO = REPOSITORY / "demo"
LONG_TEXT = "a red ball and a dog " * 20


@pytest.fixture
def assistant(config, processor) -> Assistant:
    retrieval = ImageTextRetrievalPipeline(make(AlbefForRetrieval, config), processor)
    return Assistant(
        retrieval,
        VisualQuestionAnsweringPipeline(make(AlbefForQuestionAnswering, config), processor),
        captioning=ImageCaptioningPipeline(make(AlbefForImageCaptioning, config), processor),
    )


@pytest.fixture
def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((90, 60), Image.Resampling.NEAREST)


@pytest.fixture
def handlers(assistant, tmp_path, monkeypatch):
    """Return the handlers of a page without examples, which keeps uploads in `tmp_path`."""
    pytest.importorskip("gradio", reason='the demo needs pip install "albef_hf[demo]"')
    from albef_hf.demo.handlers import Handlers

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return Handlers(assistant)


@pytest.fixture
def upload(image, tmp_path) -> dict[str, str]:
    """Return an uploaded image as Gradio passes it to the handlers."""
    image.save(tmp_path / "image.png")
    return {"path": str(tmp_path / "image.png")}


def run_shell(hub: HubServer, commands: str, folder: Path) -> None:
    """Run commands in the repository, with a local Hub."""
    environment = hub.environment(folder / "home")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", "-ec", commands]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Iterator[HubServer]:
    """Serve a Hub to which the Space was pushed by the commands of its README."""
    text = (DEMO / "README.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"```bash\n(hf repos create .*?)```", text, re.DOTALL)
    with HubServer() as hub:
        run_shell(hub, commands.replace("you/", "owner/"), tmp_path_factory.mktemp("owner"))
        yield hub


@pytest.fixture(scope="session")
def space(hub, tmp_path_factory) -> Path:
    """Return a folder with the files of the Space, as the Hub starts it."""
    folder = tmp_path_factory.mktemp("space")
    for name, content in hub.files("owner/albef-demo", kind="spaces").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@contextlib.contextmanager
def serve(
    command: list[str], folder: Path, environment: dict[str, str], log: Path
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start a page in a folder, and yield its process and address when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = environment | {"GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as lines:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=lines, stderr=lines)
    try:
        deadline = time.monotonic() + 300
        while "Running on" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield server, f"http://127.0.0.1:{port}"
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
    finally:
        server.terminate()
        try:
            server.wait(30)
        finally:
            server.kill()
