"""Published checkpoints are downloaded once, resumed, checked and recorded; tried with a server on the loopback."""

import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from original import random_state_dict
from paths import REPOSITORY

from albef_hf.conversion import download
from albef_hf.conversion.download import ADDRESS_VARIABLE, cached_checkpoint
from albef_hf.conversion.published import ADDRESS, PUBLISHED


def archive(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("data"), content)  # without the time of writing
    return file.getvalue()


CONTENT = archive(bytes(range(256)) * 100)
CHANGED = archive(bytes(range(256))[::-1] * 100)  # of the same size
PAGE = b"<!DOCTYPE html><html>Please log in</html>"


class FileServer:
    """Serves the files of a dictionary, with ETags and ranges.

    Attributes:
        files: Content by path.
        requests: (method, path, headers) of each request.
        cuts: After how many bytes the next answers end.
        announced: The size that HEAD says, if not the real one.
        before_get: Called between the answer to HEAD and that to GET.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cuts: list[int] = []
        self.announced: int | None = None
        self.before_get: Callable[[], None] = lambda: None
        self.has_etags = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                server.answer(self)

            def do_GET(self):
                server.before_get()
                server.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/ALBEF"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append((request.command, request.path, dict(request.headers)))
        content = self.files.get(request.path)
        if content is None:
            request.send_error(404)
            return
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        is_part = wanted and request.headers.get("If-Range", etag) == etag
        start = int(wanted[1]) if is_part else 0
        if start >= len(content):
            request.send_error(416)
            return
        rest = content[start:]
        request.send_response(206 if is_part else 200)
        size = self.announced if self.announced and request.command == "HEAD" else len(rest)
        request.send_header("Content-Length", str(size))
        if is_part:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.has_etags:
            request.send_header("ETag", etag)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(rest[: self.cuts.pop(0)] if self.cuts else rest)

    def methods(self) -> list[str]:
        return [method for method, _, _ in self.requests]

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for method, _, headers in self.requests if method == "GET"]


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = FileServer()
    server.files["/ALBEF/vqa.pth"] = CONTENT
    monkeypatch.setenv(ADDRESS_VARIABLE, server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # what an interruption loses at most
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "home" / "albef_hf"


def parts(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


def interrupt(server: FileServer) -> None:
    """Start a download that ends after 1,000 bytes, at every attempt."""
    server.cuts = [1000] + [0] * 20
    with pytest.raises(OSError, match="cannot be downloaded: peer closed connection"):
        cached_checkpoint("vqa.pth")
    server.cuts = []
    server.requests.clear()


def test_a_damaged_download_does_not_stay(server, folder):
    server.files["/ALBEF/vqa.pth"] = CONTENT.replace(bytes(range(256)), bytes(256), 1)
    with pytest.raises(OSError, match="is damaged and was removed"):
        cached_checkpoint("vqa.pth")
    assert not parts(folder) and not (folder / "vqa.pth").exists()


def test_without_etags_another_size_is_downloaded_again(server):
    server.has_etags = False
    cached_checkpoint("vqa.pth")
    server.files["/ALBEF/vqa.pth"] = archive(b"changed")
    assert cached_checkpoint("vqa.pth")[0].read_bytes() == archive(b"changed")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_name_is_downloaded_once_and_recorded(name, server, folder, monkeypatch):
    file = PUBLISHED[name].file
    server.files[f"/ALBEF/{file}"] = CONTENT + name.encode()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path, record = cached_checkpoint(file)
    assert path == folder / file and path.read_bytes() == CONTENT + name.encode()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.pop("etag") and record == {
        "url": f"{server.url}/{file}",
        "bytes": len(CONTENT + name.encode()),
        "sha256": sha256,
    }
    assert json.loads((folder / f"{file}.json").read_text())["sha256"] == sha256
    cached_checkpoint(file)
    assert server.methods() == ["HEAD", "GET", "HEAD"]
    assert not any("hf_secret" in str(headers) for _, _, headers in server.requests), "the token belongs to the Hub"
    assert not parts(folder)


def test_the_address_is_that_of_the_authors(monkeypatch, tmp_path):
    asked = []

    def metadata(url, token):
        asked.append(url)
        raise OSError("asked")

    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(download, "get_hf_file_metadata", metadata)
    with pytest.raises(OSError, match="cannot be downloaded: asked"):
        cached_checkpoint("flickr30k.pth")
    assert (
        asked
        == [f"{ADDRESS}/flickr30k.pth"]
        == ["https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/flickr30k.pth"]
    )


def test_a_cut_connection_is_resumed_at_once(server):
    server.cuts = [1000, 500]
    path, _ = cached_checkpoint("vqa.pth")
    assert path.read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=1000-", "bytes=1500-"]


def test_an_interrupted_download_continues_with_the_same_command(server, folder):
    server.cuts = [1000] + [0] * 20
    with pytest.raises(OSError, match="1,000 bytes have arrived: the same command continues behind them"):
        cached_checkpoint("vqa.pth")
    (part,) = parts(folder)
    assert part.stat().st_size == 1000 and not (folder / "vqa.pth").exists()
    server.cuts = []
    server.requests.clear()
    assert cached_checkpoint("vqa.pth")[0].read_bytes() == CONTENT
    assert server.ranges() == ["bytes=1000-"] and not parts(folder)


def test_a_file_that_changed_on_the_server_starts_again(server, folder):
    interrupt(server)
    server.files["/ALBEF/vqa.pth"] = CHANGED
    assert cached_checkpoint("vqa.pth")[0].read_bytes() == CHANGED
    assert server.ranges() == [None] and not parts(folder)
    server.files["/ALBEF/vqa.pth"] = CONTENT  # also when the old one is complete
    assert cached_checkpoint("vqa.pth")[0].read_bytes() == CONTENT


def test_a_file_that_changes_between_request_and_answer_is_sent_whole(server, folder):
    interrupt(server)
    server.before_get = lambda: server.files.update({"/ALBEF/vqa.pth": CHANGED})
    assert cached_checkpoint("vqa.pth")[0].read_bytes() == CHANGED


def test_without_etags_nothing_is_resumed(server):
    server.has_etags = False
    interrupt(server)
    assert cached_checkpoint("vqa.pth")[0].read_bytes() == CONTENT
    assert server.ranges() == [None]


def test_fewer_bytes_than_announced_are_refused(server, folder):
    server.announced = len(CONTENT) + 50
    with pytest.raises(OSError, match=f"should be of size {len(CONTENT) + 50} but has size {len(CONTENT)}"):
        cached_checkpoint("vqa.pth")
    assert not (folder / "vqa.pth").exists()
    with pytest.raises(OSError, match="answered 416"):
        cached_checkpoint("vqa.pth")
    server.announced = None
    assert cached_checkpoint("vqa.pth")[0].read_bytes() == CONTENT


def test_a_page_is_refused_and_not_kept(server, folder):
    server.files["/ALBEF/vqa.pth"] = PAGE
    with pytest.raises(OSError, match=r"not a checkpoint: the server sent 41 bytes that start with b'<!DOCTYPE html"):
        cached_checkpoint("vqa.pth")
    assert not parts(folder) and not (folder / "vqa.pth").exists()


def test_a_missing_file_is_named(server, folder):
    with pytest.raises(OSError, match=r"mscoco.pth cannot be downloaded: the server answered 404\. ALBEF_CHECKPOINTS"):
        cached_checkpoint("mscoco.pth")
    assert not parts(folder)


def test_without_the_server_the_file_in_the_cache_is_used(server, caplog):
    path, record = cached_checkpoint("vqa.pth")
    del server.files["/ALBEF/vqa.pth"]
    assert cached_checkpoint("vqa.pth") == (path, record)
    assert "The file in the cache" in caplog.text
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(OSError, match="answered 404"):
        cached_checkpoint("vqa.pth")
    server.files["/ALBEF/vqa.pth"] = CONTENT
    assert cached_checkpoint("vqa.pth")[0].read_bytes() == CONTENT
    assert "has changed since it was written (SHA-256): it is downloaded again" in caplog.text


def test_the_password_of_a_mirror_is_not_written_down(server, monkeypatch, caplog):
    monkeypatch.setenv(ADDRESS_VARIABLE, server.url.replace("http://", "http://me:secret@"))
    path, record = cached_checkpoint("vqa.pth")
    assert "://***@127.0.0.1" in record["url"] and "secret" not in path.with_name("vqa.pth.json").read_text()
    del server.files["/ALBEF/vqa.pth"]
    assert cached_checkpoint("vqa.pth") == (path, record)
    assert "***@" in caplog.text and "secret" not in caplog.text


def test_offline_mode_is_respected(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="cannot be downloaded: .*offline mode is enabled"):
        cached_checkpoint("vqa.pth")
    assert not server.requests


def test_two_processes_do_not_download_the_same_file(server, folder):
    folder.mkdir(parents=True)
    holder = "import fcntl, sys; file = open(sys.argv[1], 'a+'); fcntl.lockf(file, fcntl.LOCK_EX); "
    holder += "print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(folder / ".vqa.pth.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(BlockingIOError, match="is in use by another process"):
            cached_checkpoint("vqa.pth")
        process.stdin.close()
    assert not server.requests


# The command


def test_the_command_downloads_converts_and_says_what_to_expect(server, tmp_path, run, capsys):
    (tmp_path / "heads.json").write_text(
        json.dumps({part: {"num_attention_heads": 4} for part in ("vision_config", "text_config")})
    )
    torch.save({"model": random_state_dict("retrieval_tiny")}, tmp_path / "checkpoint.pth")
    server.files["/ALBEF/refcoco.pth"] = (tmp_path / "checkpoint.pth").read_bytes()
    run("convert", "refcoco", tmp_path / "out", "--config", tmp_path / "heads.json")
    printed = capsys.readouterr().out
    sha256 = hashlib.sha256(server.files["/ALBEF/refcoco.pth"]).hexdigest()
    assert f'AlbefForRetrieval.from_pretrained("{tmp_path / "out"}")' in printed
    for text in (sha256, "bytes", PUBLISHED["refcoco"].reported, "table 5 of the paper", "has not been measured"):
        assert text in printed, text
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert report["url"] == f"{server.url}/refcoco.pth" and report["sha256"] == sha256
    assert report["task"] == "retrieval" and report["bytes"] == len(server.files["/ALBEF/refcoco.pth"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert report["url"] in card and PUBLISHED["refcoco"].reported in card


def test_the_command_refuses_before_it_downloads(server, tmp_path, run):
    with pytest.raises(ValueError, match="vqa is for the task vqa, not for retrieval. Remove --task"):
        run("convert", "vqa", tmp_path / "out", "--task", "retrieval")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        run("convert", "vqa", tmp_path / "out")
    assert not server.requests


def test_a_file_of_that_name_comes_first(server, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vqa").write_bytes(PAGE)
    with pytest.raises(ValueError, match="vqa is not a torch checkpoint"):
        run("convert", "vqa", tmp_path / "out")
    assert not server.requests


def test_the_page_has_what_was_published():
    page = (REPOSITORY / "docs/guides/checkpoints.md").read_text()
    for name, published in PUBLISHED.items():
        assert f"| `{name}` | `{published.file}`" in page and published.reported in page, name
