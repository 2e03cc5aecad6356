"""The demo: what it computes is what the package does, what it refuses it says, and the page works in a browser."""

import configparser
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from paths import REPOSITORY
from PIL import Image
from sharp_models import make
from transformers import BlipImageProcessorPil

from albef_hf import (
    AlbefConfig,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefProcessor,
    ImageTextRetrievalPipeline,
    VisualQuestionAnsweringPipeline,
)
from albef_hf.data import Scenes, embedded_tokenizer
from albef_hf.heatmaps_albef import contrastive_heatmaps, matching_heatmaps, overlay
from albef_hf.search.index import PictureIndex

DEMO = REPOSITORY / "demo"
sys.path.insert(0, str(DEMO))

import assistant as work  # noqa: E402

LONG = "a red ball and a dog " * 20
installed = importlib.util.find_spec
needs_browser = pytest.mark.skipif(
    not (installed("gradio") and installed("selenium") and shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Gradio, selenium, chromium and chromedriver (Debian: chromium-driver): make demo-test",
)


@pytest.fixture
def assistant(config, processor) -> work.Assistant:
    retrieve = ImageTextRetrievalPipeline(make(AlbefForRetrieval, config), processor)
    answer = VisualQuestionAnsweringPipeline(make(AlbefForQuestionAnswering, config), processor)
    return work.Assistant(retrieve, answer)


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((90, 60), Image.Resampling.NEAREST)


def test_captions_are_scored_as_the_model_does(assistant, picture, processor):
    captions = ["a red ball", "two dogs in the snow", "a car"]
    inputs = processor(images=[picture], text=captions, return_tensors="pt")
    with torch.no_grad():
        outputs = assistant.retrieve.model(**inputs)
    expected = outputs.itm_logits.softmax(-1)[:, 1]
    found = assistant.score(picture, captions)
    assert [text for text, _, _ in found] == [captions[i] for i in expected.argsort(descending=True)]
    for text, score, similarity in found:
        number = captions.index(text)
        assert score == pytest.approx(expected[number].item(), abs=1e-5)
        assert similarity == pytest.approx((outputs.text_embeds[number] @ outputs.image_embeds[0]).item(), abs=1e-5)


def test_each_word_has_its_heat_map(assistant, picture, processor):
    text = "a surfboarding dog"
    inputs = processor(images=[picture], text=[text], return_tensors="pt")
    maps = matching_heatmaps(assistant.retrieve.model, **inputs)[0]
    panels = assistant.show(picture, text)
    assert assistant.shows_matching and [title for _, title in panels] == [work.WHOLE, "a", "surfboarding", "dog"]
    assert panels[0][0].size == (480, 320)
    shown = picture.resize((480, 320), Image.Resampling.BICUBIC)
    for (panel, _), heat in zip(panels, (maps.mean(0), maps[1], maps[2:4].mean(0), maps[4]), strict=True):
        assert np.array_equal(panel, overlay(shown, heat))


def test_of_a_model_with_one_multimodal_layer_words_are_contrasted_alone(config, processor, picture):
    config.text_config.num_hidden_layers = 3
    config.text_config.num_multimodal_layers = 1
    model = make(AlbefForRetrieval, config)
    assistant = work.Assistant(ImageTextRetrievalPipeline(model, processor))
    panels = assistant.show(picture, "a dog, a ball!")
    assert not assistant.shows_matching
    assert [title for _, title in panels] == [work.WHOLE, "a", "dog", "a", "ball"]
    dog = contrastive_heatmaps(model, **processor(images=[picture], text=["dog"], return_tensors="pt"))
    shown = overlay(picture.resize((480, 320), Image.Resampling.BICUBIC), dog[0])
    assert np.abs(np.asarray(panels[2][0], dtype=int) - np.asarray(shown)).max() <= 1  # computed beside others


def test_questions_are_answered_freely_and_from_choices(assistant, picture):
    expected = assistant.answer(picture, "what is it", top_k=work.ANSWERS)
    answers, heat = assistant.ask(picture, "what is it", [])
    assert answers == pytest.approx({result["answer"]: result["score"] for result in expected})
    chosen, other = assistant.ask(picture, "what is it", ["yes", "no"])
    assert set(chosen) == {"yes", "no"} and sum(chosen.values()) == pytest.approx(1)
    assert heat.size == other.size == (480, 320) and not np.array_equal(heat, other)


def test_an_index_is_searched_whose_pictures_have_moved(assistant, picture, tmp_path):
    model, processor = assistant.retrieve.model, assistant.retrieve.processor
    (tmp_path / "before").mkdir()
    picture.save(tmp_path / "before" / "a.png")
    picture.rotate(90).save(tmp_path / "before" / "b.png")
    PictureIndex.build(model, processor, tmp_path / "before", tmp_path / "index")
    (tmp_path / "before").rename(tmp_path / "after")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    places = [str(tmp_path / name) for name in ("index", "after")]
    loaded = work.Assistant.from_pretrained(str(tmp_path / "model"), None, *places)
    panels, keys = loaded.search(picture, 5)
    assert keys == ["a.png", "b.png"] and panels[0][1] == "ITC +1.00"
    assert loaded.search("a red ball", 5)[0][0][1].count("%") == 1
    lost = work.Assistant.from_pretrained(str(tmp_path / "model"), None, places[0])
    with pytest.raises(ValueError, match="not where they were: say with --pictures"):
        lost.search("a red ball", 5)


def test_what_the_model_does_not_read_is_known(processor):
    assert work.unread(processor, "a red ball") == ""
    end = work.unread(processor, LONG)
    assert end.startswith("dog a red ball") and len(LONG.split()) == 29 + len(end.split())  # 30 tokens with [CLS]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "There is no caption yet"),
        (" \n\t", "There is no caption yet"),
        ("?!", "There is no caption yet"),
        ("x" * 10_000, "may have 1,000 characters; this one has 10,000"),
        ("a\n" + "x" * 1_001, "this one has 1,001"),
        ("\n".join(map(str, range(101))), "There may be 100 lines"),
    ],
)
def test_texts_that_nobody_would_write_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        work.read_lines(text, "caption")


def test_lines_are_read_once_each():
    assert work.read_lines(" a dog\n\n a cat \na dog\r\n", "caption") == ["a dog", "a cat"]
    assert work.read_lines("a \ud800 dog", "caption") == ["a ? dog"]  # which JSON allows, and no answer could hold


def test_pictures_that_are_none_are_refused(tmp_path, picture):
    with pytest.raises(ValueError, match="no picture yet"):
        work.read_picture(None)
    picture.save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for content in (b"", b"no picture", whole[: len(whole) // 2]):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a picture"):
            work.read_picture(str(tmp_path / "broken.png"))
    Image.new("1", (5200, 5000)).save(tmp_path / "large.png")  # 26 megapixels in 16 kB
    with pytest.raises(ValueError, match="too large: it has 26,000,000 pixels; at most 25,000,000 are read"):
        work.read_picture(str(tmp_path / "large.png"))
    picture.save(tmp_path / "other.ico")
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        work.read_picture(str(tmp_path / "other.ico"))
    assert work.read_picture(str(tmp_path / "whole.png")).size == (90, 60)
    turned = picture.getexif()
    turned[274] = 6  # a camera held upright
    picture.save(tmp_path / "turned.jpg", exif=turned)
    assert work.read_picture(str(tmp_path / "turned.jpg")).size == (60, 90)


def test_without_gradio_the_remedy_is_named(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, str(DEMO / "app.py")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and ended.stderr == 'error: the demo needs Gradio: pip install -e ".[demo]"\n'


def test_the_space_installs_what_the_package_and_the_demo_need():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    (gradio,) = [line for line in settings["options.extras_require"]["demo"].split() if line.startswith("gradio")]
    card = SpaceCard((DEMO / "README.md").read_text(encoding="utf-8"))
    assert Requirement(gradio).specifier.contains(card.data.sdk_version)  # which the Space brings along
    needed = settings["options"]["install_requires"] + settings["options.extras_require"]["search"]
    assert (DEMO / "requirements.txt").read_text(encoding="utf-8").split() == needed.split()


# ---------------------------------------------------------------------------------------------------------------------
# The Space, pushed as its README says to a Hub on the loopback
# ---------------------------------------------------------------------------------------------------------------------


def run_shell(hub: HubServer, commands: str, folder: Path) -> None:
    """Type commands, with a Hub that they talk to."""
    environment = hub.environment(folder / "home")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", "-ec", commands]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[HubServer]:
    """A Hub with the Space."""
    text = (DEMO / "README.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"```bash\n(hf repos create .*?)```", text, re.DOTALL)
    with HubServer() as hub:
        run_shell(hub, commands.replace("you/", "owner/"), tmp_path_factory.mktemp("owner"))
        yield hub


@pytest.fixture(scope="module")
def space(hub, tmp_path_factory) -> Path:
    """The files of the Space, as the Hub would start it."""
    folder = tmp_path_factory.mktemp("space")
    for name, content in hub.files("owner/albef-demo", kind="spaces").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_space_arrives_whole(space):
    program = "import assistant, albef_hf; print(albef_hf.__file__); albef_hf.data.embedded_tokenizer()"
    ended = subprocess.run([sys.executable, "-c", program], cwd=space, capture_output=True, text=True, timeout=300)
    assert Path(ended.stdout.strip()) == space / "albef_hf" / "__init__.py", ended.stderr[-3000:]
    card = SpaceCard((space / "README.md").read_text(encoding="utf-8"))
    assert card.data.sdk == "gradio" and (space / card.data.app_file).exists()
    assert len(card.data.short_description) <= 60  # the Hub takes no more


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # where uploads are
    pytest.importorskip("gradio", reason='pip install -e ".[demo]"')
    import app

    return app


@pytest.fixture
def page(app, assistant):
    return app.Page(assistant, [])


@pytest.fixture
def upload(picture, tmp_path) -> dict[str, str]:
    picture.save(tmp_path / "picture.png")
    return {"path": str(tmp_path / "picture.png")}


def test_the_options_explain_themselves_and_a_missing_model_is_told_of(app, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALBEF_INDEX", "pictures.index")
    with pytest.raises(SystemExit, match="0"):
        app.main(["--help"])
    shown = capsys.readouterr().out
    assert "python demo/app.py --model runs/scenes" in shown and "ALBEF_QUESTION_MODEL" in shown
    assert app.read_options([]).index == "pictures.index" and app.read_options(["--index", "a"]).index == "a"
    with pytest.raises(SystemExit, match="error: there is no runs/scenes, which `make pretrain` writes"):
        app.main([])
    with pytest.raises(SystemExit, match="error: .*nothing_here"):
        app.main(["--model", str(tmp_path / "nothing_here")])


def test_a_caption_is_shown_as_it_is_and_not_as_html(page, upload):
    table = page.score(upload, "a <b>red</b> ball\na cat")
    assert "a &lt;b&gt;red&lt;/b&gt; ball" in table and "<b>red" not in table
    (score, similarity), *others = re.findall(r"<div>(\d+\.\d)%.*?<div>([+-]\d\.\d\d)</div>", table)
    assert float(score) >= float(others[0][0]) and -1 <= float(similarity) <= 1


def test_the_page_says_what_is_missing(app, page, upload, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = {"path": str(tmp_path / "broken.png")}
    for call, arguments, said in (
        (page.score, (None, "a dog"), "no picture yet"),
        (page.score, (broken, "a dog"), "cannot be read as a picture"),
        (page.score, (upload, ""), "no caption yet"),
        (page.look, (upload, " "), "no text yet"),
        (page.look, (upload, "x" * 10_000), "this one has 10,000"),
        (page.ask, (upload, "", ""), "no question yet"),
        (page.search, ("",), "no text yet"),
        (page.search_similar, (None,), "no picture yet"),
    ):
        with pytest.raises(app.gr.Error) as raised:
            call(*arguments)
        assert said in raised.value.message and not raised.value.print_exception


def test_what_was_not_read_is_told_of(page, app, upload, monkeypatch):
    told = []
    monkeypatch.setattr(app.gr, "Warning", told.append)
    page.look(upload, "a red ball")
    assert not told
    panels = page.look(upload, LONG)
    assert len(panels) == 30 and "has not read the end: “dog a red ball" in told[0]


@pytest.fixture
def found(page, processor, tmp_path):
    """The page with an index of some pictures."""
    (tmp_path / "photographs").mkdir()
    for number, scene in enumerate(Scenes(14, seed=3)):
        scene["image"].save(tmp_path / "photographs" / f"{number:02}.png")
    model = page.assistant.retrieve.model
    page.assistant.index = PictureIndex.build(model, processor, tmp_path / "photographs", tmp_path / "index")
    return page


def test_what_is_found_can_be_taken_into_the_hand(app, found, tmp_path):
    panels, kept = found.search("a red ball")
    hits = found.assistant.index.search("a red ball", k=app.FOUND)
    assert kept == ("a red ball", [hit.key for hit in hits]) and len(hits) == 12
    assert [below for _, below in panels] == [f"ITM {hit.match:.0%}, ITC {hit.similarity:+.2f}" for hit in hits]
    click = app.gr.SelectData(None, {"index": 2, "value": None})
    picture, query, maps, tabs = found.take(kept, click)
    assert np.array_equal(picture, Image.open(tmp_path / "photographs" / hits[2].key))
    assert query == "a red ball" and [word for _, word in maps] == [work.WHOLE, "a", "red", "ball"]
    panels, kept = found.search_similar({"path": str(tmp_path / "photographs" / "05.png")})
    assert kept[0] == "" and kept[1][0] == "05.png" and panels[0][1] == "ITC +1.00"
    assert all(part == app.gr.skip() for part in found.take(kept, click)[1:])
    (tmp_path / "photographs" / kept[1][2]).unlink()
    with pytest.raises(app.gr.Error, match="cannot be read any more"):
        found.take(kept, click)
    (tmp_path / "photographs" / kept[1][3]).write_bytes(b"broken since")
    panels, again = found.search_similar({"path": str(tmp_path / "photographs" / "05.png")})
    (gone,) = [below for _, below in panels if work.UNREADABLE in below]
    assert len(panels) == len(again[1]) >= 11 and re.fullmatch(r"not readable any more, ITC [+-]\d\.\d\d", gone)


@pytest.fixture
def visit(found, app, monkeypatch) -> Iterator[Callable]:
    """Calls an endpoint of the running page as a client does, and returns what it answers."""
    monkeypatch.setattr(app, "JOB_SECONDS", 20)
    blocks = found.build()
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, server_name="127.0.0.1")

    def ask(path: str, body: dict | None = None) -> str:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address + path, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    def call(name: str, *data: Any) -> str:
        event = json.loads(ask(f"gradio_api/call/{name}", {"data": data}))["event_id"]
        return ask(f"gradio_api/call/{name}/{event}")

    call.endpoints = json.loads(ask("gradio_api/info"))["named_endpoints"]
    yield call
    blocks.close(verbose=False)


def test_no_endpoint_reads_what_nobody_has_uploaded(visit, tmp_path, tmp_path_factory, upload):
    outside = tmp_path_factory.mktemp("private")
    Image.new("RGB", (30, 20), (12, 200, 34)).save(outside / "private.png")
    (tmp_path / "link.png").symlink_to(outside / "private.png")
    os.mkfifo(tmp_path / "pipe.png")
    paths = [str(outside / "private.png"), f"{tmp_path}/../{outside.name}/private.png", str(tmp_path / "link.png")]
    paths += ["/dev/ptmx", "/dev/zero", "/etc/passwd", "/root", "/no/such", "a\0b", str(tmp_path / "pipe.png"), "demo"]
    others = {"score": ["a ball"], "look": ["a ball"], "ask": ["what?", "yes\nno"], "search_similar": []}
    assert others.keys() | {"search"} <= {name.strip("/") for name in visit.endpoints}
    for name, more in others.items():
        for path in [*paths, 7, None, ["a"]]:
            for file in ({"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}):
                if path in paths or "meta" not in file:
                    answer = visit(name, file, *more)
                    assert "event: error" in answer and "event: complete" not in answer, (name, file, answer)
        for file in ("text", 7, [], {"url": "http://127.0.0.1/"}):
            assert "event: error" in visit(name, file, *more)
        assert "event: complete" in visit(name, upload, *more), "the next visitor waits in vain"
    for name, more in others.items():
        for wrong in (None, 7, ["a"]):
            answer = visit(name, upload, *[wrong] * len(more))
            assert not more or "event: error" in answer
    assert "event: error" in visit("search", {"path": "/etc/passwd"})
    for found in (None, 7, ["a", [["b"]]], ["a", ["/etc/passwd"]], [7, ["00.png"]]):
        assert "event: error" in visit("take", found)


def test_a_job_that_hangs_stops_nobody_else(page, app, upload, monkeypatch):
    hanging, score = threading.Event(), page.assistant.score
    monkeypatch.setattr(app, "JOB_SECONDS", 0.2)
    page.assistant.score = lambda *arguments: hanging.wait(60)
    for said in [*["took more than 0.2 seconds"] * app.LATE_JOBS, "The page is busy"]:
        with pytest.raises(app.gr.Error, match=said):
            page.score(upload, "a dog")
    hanging.set()
    page.assistant.score = score
    monkeypatch.setattr(app, "JOB_SECONDS", 60)
    for thread in page.late_jobs:
        thread.join()
    assert "a dog" in page.score(upload, "a dog")


def test_how_many_are_matched_is_said(app, found):
    shown = found.build().get_config_file()["components"]
    said = " ".join(str(part["props"].get("value")) for part in shown if part["type"] == "markdown")
    assert f"The {work.RERANKED} pictures of the highest cosine are matched" in said and "matches 128" in said


def test_a_tab_without_its_model_says_what_to_give(app, assistant):
    bare = app.Page(work.Assistant(assistant.retrieve), []).build().get_config_file()
    said = " ".join(str(part["props"].get("value")) for part in bare["components"] if part["type"] == "markdown")
    assert "`--question_model`" in said and "`--index`" in said
    ids = {part["props"].get("elem_id") for part in bare["components"]}
    assert "score" in ids and not ids & {"ask", "search"}


# ---------------------------------------------------------------------------------------------------------------------
# In a browser
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(hub, tmp_path_factory) -> dict[str, object]:
    """Pipelines of the small models on the Hub."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {**sizes, "num_multimodal_layers": 2, "max_position_embeddings": 40}
    processor = AlbefProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), embedded_tokenizer())
    made = {}
    for name, kind in (("albef", AlbefForRetrieval), ("albef-vqa", AlbefForQuestionAnswering)):
        config = AlbefConfig(projection_dim=16, vision_config={**sizes, "image_size": 32}, text_config=text)
        folder = tmp_path_factory.mktemp(name)
        model = make(kind, config)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        run_shell(hub, f"hf upload owner/{name} {folder}", tmp_path_factory.mktemp("owner"))
        made[name] = model
    return {
        "retrieve": ImageTextRetrievalPipeline(made["albef"], processor),
        "answer": VisualQuestionAnsweringPipeline(made["albef-vqa"], processor),
    }


@pytest.fixture(scope="module")
def photographs_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number, scene in enumerate(Scenes(14, seed=3)):
        scene["image"].resize((120, 90)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def index(models, photographs_folder, tmp_path_factory) -> PictureIndex:
    """Some pictures that can be searched."""
    model, processor = models["retrieve"].model, models["retrieve"].processor
    return PictureIndex.build(model, processor, photographs_folder, tmp_path_factory.mktemp("pictures") / "index")


@pytest.fixture(scope="module")
def address(hub, space, index, photographs_folder, tmp_path_factory) -> Iterator[str]:
    """Where the Space answers, which was started without arguments."""
    shutil.copytree(index.store.folder, space / "index")
    shutil.copytree(photographs_folder, space / "pictures")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = hub.environment(
        tmp_path_factory.mktemp("cache"),
        ALBEF_MODEL="owner/albef",
        ALBEF_QUESTION_MODEL="owner/albef-vqa",
        ALBEF_INDEX="index",
        ALBEF_PICTURES="pictures",
        GRADIO_SERVER_PORT=str(port),
    )
    environment.pop("PYTHONPATH", None)
    log = tmp_path_factory.mktemp("log") / "log.txt"
    with log.open("w") as lines:
        server = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stdout=lines, stderr=lines)
    try:
        deadline = time.monotonic() + 180
        while "Running on" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
    finally:
        server.terminate()
        server.wait(30)


class Visitor:
    """Somebody with a browser, who waits for what is to come."""

    def __init__(self, browser, address: str):
        self.browser, self.address = browser, address
        browser.get(address)
        self.find("#score")

    def all(self, selector: str) -> list:
        """What is there and can be seen."""
        return [part for part in self.browser.find_elements("css selector", selector) if part.is_displayed()]

    def find(self, selector: str):
        """The first of that kind, as soon as it is there."""
        return self.until(lambda: self.all(selector), selector)[0]

    def until(self, there: Callable, what: str) -> Any:
        deadline = time.monotonic() + 60
        while not (found := there()):
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.told()}"
            time.sleep(0.1)
        return found

    def click(self, selector: str) -> None:
        part = self.find(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", part)
        part.click()

    def open(self, tab: str) -> None:
        (button,) = [part for part in self.all("button[role=tab]") if part.text == tab]
        button.click()

    def write(self, selector: str, text: str) -> None:
        field = self.find(f"{selector} textarea, {selector} input")
        field.clear()
        field.click()
        self.browser.execute_cdp_cmd("Input.insertText", {"text": text})

    def upload(self, path: Path) -> None:
        for close in self.all("#picture button[aria-label='Clear'], #picture button[aria-label='Remove Image']"):
            close.click()
        self.until(lambda: self.browser.find_elements("css selector", "#picture input[type=file]"), "the field")[
            0
        ].send_keys(str(path))
        self.find("#picture img")

    def pictures(self, selector: str) -> list[str]:
        """What is written below the pictures of a gallery, once all have come."""
        look = """
            const items = [...document.querySelectorAll(arguments[0] + " .grid-container button")];
            items.forEach(item => item.scrollIntoView());
            const loaded = items.every(item => item.querySelector("img").naturalWidth > 1);
            return loaded ? items.map(item => item.innerText.trim()) : [];
        """
        return self.until(lambda: self.browser.execute_script(look, selector), selector)

    def hidden(self, gallery: str) -> list[str]:
        """What one has to scroll for in a gallery, or cannot see at all."""
        look = """
            const gallery = document.querySelector(arguments[0]), hidden = [];
            const sides = (style, names) => names.reduce((sum, n) => sum + parseFloat(style[`border${n}Width`]), 0);
            for (const part of [gallery, ...gallery.querySelectorAll("*")]) {
                const style = getComputedStyle(part), name = part.className + ": " + part.innerText;
                const bars = part.clientWidth && (
                    part.offsetWidth - part.clientWidth > sides(style, ["Left", "Right"]) + 1 ||
                    part.offsetHeight - part.clientHeight > sides(style, ["Top", "Bottom"]) + 1);
                const cut = style.textOverflow == "ellipsis" && part.scrollWidth > part.clientWidth;
                const outside = part.getBoundingClientRect().right > gallery.getBoundingClientRect().right + 1;
                if (bars || cut || outside) hidden.push(name);
            }
            return hidden;
        """
        return self.browser.execute_script(look, gallery)

    def told(self) -> str:
        """The messages that there are."""
        return " ".join(part.text for part in self.all("[data-testid=toast-body]"))


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield browser
    browser.quit()


@pytest.fixture
def visitor(browser, address) -> Visitor:
    return Visitor(browser, address)


@needs_browser
def test_somebody_scores_captions(visitor, models, photographs_folder):
    visitor.upload(photographs_folder / "03.png")
    captions = ["a red ball", "two dogs in the snow", "a star"]
    visitor.write("#captions", "\n".join(captions))
    visitor.click("#score")
    shown = visitor.find("#scores .scores").text.split("\n")
    expected = models["retrieve"](str(photographs_folder / "03.png"), candidate_texts=captions)
    lines = [[row["text"], f"{row['score']:.1%}", f"{row['similarity']:+.2f}"] for row in expected]
    assert shown == ["Caption", "Match", "Cosine", *sum(lines, [])]


@needs_browser
def test_somebody_picks_an_example_and_looks_at_its_words(visitor):
    visitor.click(".gallery-item")
    visitor.open("Words")
    visitor.until(lambda: "a yellow circle" in visitor.find("#text textarea").get_attribute("value"), "the caption")
    visitor.write("#text", "a surfboarding dog, a ball")
    visitor.click("#look")
    assert visitor.pictures("#maps") == [work.WHOLE, "a", "surfboarding", "dog", "a", "ball"]


@needs_browser
def test_somebody_asks_a_question(visitor, models, photographs_folder):
    visitor.upload(photographs_folder / "05.png")
    visitor.open("Question")
    visitor.write("#question", "what is it?")
    visitor.write("#choices", "yes\nno")
    visitor.click("#ask")
    expected = models["answer"](str(photographs_folder / "05.png"), "what is it?", candidate_answers=["yes", "no"])
    assert visitor.find("#answers h2").text == expected[0]["answer"]
    visitor.find("#where img")


@needs_browser
def test_somebody_searches_and_takes_what_is_found(visitor, index, photographs_folder):
    visitor.open("Search")
    visitor.write("#query", "a red ball")
    visitor.click("#search")
    hits = index.search("a red ball", k=12)
    expected = [f"ITM {hit.match:.0%}, ITC {hit.similarity:+.2f}" for hit in hits]
    assert visitor.pictures("#found") == expected
    visitor.click("#found .grid-container button")
    assert visitor.pictures("#maps") == [work.WHOLE, "a", "red", "ball"]
    assert visitor.find("#text textarea").get_attribute("value") == "a red ball"
    visitor.find("#picture img")
    visitor.upload(photographs_folder / "07.png")
    visitor.open("Search")
    visitor.click("#similar")
    visitor.until(lambda: visitor.pictures("#found")[0] == "ITC +1.00", "the picture itself")


@needs_browser
@pytest.mark.parametrize("width", [390, 960, 1280])
def test_a_gallery_is_seen_as_a_whole(visitor, width):
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    visitor.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        visitor.open("Search")
        visitor.write("#query", "a red ball")
        visitor.click("#search")
        assert len(visitor.pictures("#found")) == 12 and not visitor.hidden("#found")
        visitor.click("#found .grid-container button")
        assert len(visitor.pictures("#maps")) == 4 and not visitor.hidden("#maps")
    finally:
        visitor.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_somebody_is_told_what_is_wrong(visitor, photographs_folder, tmp_path):
    visitor.click("#score")
    visitor.until(lambda: "There is no picture yet" in visitor.told(), "a message")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    visitor.upload(tmp_path / "broken.png")
    visitor.write("#captions", "a dog")
    visitor.click("#score")
    visitor.until(lambda: "cannot be read as a picture" in visitor.told(), "a message")
    visitor.browser.refresh()
    visitor.upload(photographs_folder / "00.png")
    visitor.click("#score")
    visitor.until(lambda: "There is no caption yet" in visitor.told(), "a message")
    visitor.write("#captions", "x" * 10_000)
    visitor.click("#score")
    visitor.until(lambda: "this one has 10,000" in visitor.told(), "a message")
    visitor.write("#captions", LONG)
    visitor.click("#score")
    visitor.until(lambda: "has not read the end" in visitor.told(), "a message")
    visitor.find("#scores .scores")
    assert "Traceback" not in visitor.browser.page_source


@needs_browser
def test_the_page_asks_nothing_of_others_and_fits_a_phone(visitor):
    browser = visitor.browser
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        browser.refresh()
        visitor.find("#score")
        for tab in ("Captions", "Words", "Question", "Search"):
            visitor.open(tab)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, tab
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert any(url.startswith(visitor.address) for url in asked)
    assert not [url for url in asked if not url.startswith((visitor.address, "data:", "blob:"))]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
