"""Uploads are removed when the page ends, and no endpoint reads a file that was not uploaded."""

import json
import os
import signal
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_fixtures import *  # noqa: F403
from demo_fixtures import serve
from paths import REPOSITORY
from PIL import Image
from sharp_models import make

from albef_hf import AlbefForRetrieval
from albef_hf.data import Scenes

pytest.importorskip("gradio", reason='the demo needs pip install "albef_hf[demo]"')

from albef_hf.demo.page import Page


@pytest.fixture
def page_environment(tmp_path) -> dict[str, str]:
    """Return an environment whose temporary files are in `tmp_path / "temporary"`."""
    (tmp_path / "temporary").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ALBEF_", "GRADIO_"))}
    return environment | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(REPOSITORY)}


def upload_file(address: str, path: Path) -> Path:
    """Upload a file as a browser does, and return where the page keeps it."""
    boundary = uuid.uuid4().hex
    lines = [f"--{boundary}", f'Content-Disposition: form-data; name="files"; filename="{path.name}"']
    lines += ["Content-Type: image/png", "", ""]
    body = "\r\n".join(lines).encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{address}/gradio_api/upload", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        (kept,) = json.loads(answer.read())
    return Path(kept)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a program can handle")
def test_uploads_are_removed_on_sigterm(config, processor, image, page_environment, tmp_path):
    make(AlbefForRetrieval, config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    image.save(tmp_path / "private.png")
    command = [sys.executable, "-m", "albef_hf", "demo", "--model", "model"]
    with serve(command, tmp_path, page_environment, tmp_path / "log.txt") as (server, address):
        kept = upload_file(address, tmp_path / "private.png")
        assert kept.read_bytes() == (tmp_path / "private.png").read_bytes()
        assert kept.is_relative_to(tmp_path / "temporary")
        server.terminate()
        exit_code = server.wait(60)
    assert not kept.exists()
    assert not list((tmp_path / "temporary").rglob("*.png")), "an upload or an example was left behind"
    assert exit_code == 128 + signal.SIGTERM


@pytest.fixture
def call(handlers, tmp_path) -> Iterator[Callable[..., str]]:
    """Serve a page that can search, and return a function that calls an endpoint as a client does."""
    pytest.importorskip("faiss")
    from albef_hf.search.index import ImageIndex

    (tmp_path / "photographs").mkdir()
    for index, scene in enumerate(Scenes(4, seed=3)):
        scene["image"].save(tmp_path / "photographs" / f"{index:02}.png")
    retrieval = handlers.assistant.retrieval
    handlers.assistant.index = ImageIndex.build(
        retrieval.model, retrieval.processor, tmp_path / "photographs", tmp_path / "index"
    )
    handlers.jobs.seconds = 20
    blocks = Page(handlers).build()
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, server_name="127.0.0.1")

    def request(path: str, body: dict | None = None) -> str:
        content = None if body is None else json.dumps(body).encode()
        message = urllib.request.Request(address + path, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(message, timeout=30) as answer:
            return answer.read().decode()

    def call_endpoint(name: str, *data: Any) -> str:
        event = json.loads(request(f"gradio_api/call/{name}", {"data": data}))["event_id"]
        return request(f"gradio_api/call/{name}/{event}")

    call_endpoint.names = {name.strip("/") for name in json.loads(request("gradio_api/info"))["named_endpoints"]}
    yield call_endpoint
    blocks.close(verbose=False)


def test_no_endpoint_reads_a_file_that_was_not_uploaded(call, tmp_path, tmp_path_factory, upload):
    outside = tmp_path_factory.mktemp("private")
    Image.new("RGB", (30, 20), (12, 200, 34)).save(outside / "private.png")
    (tmp_path / "link.png").symlink_to(outside / "private.png")
    os.mkfifo(tmp_path / "pipe.png")
    paths = [str(outside / "private.png"), f"{tmp_path}/../{outside.name}/private.png", str(tmp_path / "link.png")]
    paths += ["/dev/ptmx", "/dev/zero", "/etc/passwd", "/root", "/no/such", "a\0b", str(tmp_path / "pipe.png"), "demo"]
    endpoints = {
        "score": ["a ball"],
        "heatmaps": ["a ball", False],
        "answer": ["what?", "yes\nno"],
        "describe": [],
        "search_similar": [],
    }
    assert endpoints.keys() | {"search", "select"} == call.names
    for name, others in endpoints.items():
        for path in [*paths, 7, None, ["a"]]:
            for file in ({"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}):
                if path in paths or "meta" not in file:
                    answer = call(name, file, *others)
                    assert "event: error" in answer and "event: complete" not in answer, (name, file, answer)
        for file in ("text", 7, [], {"url": "http://127.0.0.1/"}):
            assert "event: error" in call(name, file, *others)
        assert "event: complete" in call(name, upload, *others), "the next visitor gets no answer"


def test_no_endpoint_accepts_data_of_another_kind(call, upload):
    for wrong in (None, 7, ["a"]):
        for name, num_texts in (("score", 1), ("heatmaps", 2), ("answer", 2)):
            assert "event: error" in call(name, upload, *[wrong] * num_texts)
    assert "event: error" in call("search", {"path": "/etc/passwd"})
    for results in (None, 7, ["a", [["b"]]], ["a", ["/etc/passwd"]], [7, ["00.png"]]):
        assert "event: error" in call("select", results, False)
