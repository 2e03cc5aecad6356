"""The page in a browser, served as a Space."""

import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_fixtures import *  # noqa: F403
from demo_fixtures import LONG_TEXT, run_shell, serve
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
from albef_hf.demo.assistant import WHOLE_TEXT
from albef_hf.demo.examples import draw_scenes

pytest.importorskip("faiss", reason='the Space needs pip install "albef_hf[search]"')

from albef_hf.search.index import ImageIndex

INSTALLED = all(importlib.util.find_spec(name) for name in ("gradio", "selenium"))
pytestmark = pytest.mark.skipif(
    not (INSTALLED and shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Gradio, selenium, chromium and chromedriver (Debian: chromium-driver): make demo-test",
)


@pytest.fixture(scope="module")
def models(hub, tmp_path_factory) -> dict[str, Any]:
    """Return pipelines of small models, which are also on the Hub."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {**sizes, "num_multimodal_layers": 2, "max_position_embeddings": 40}
    processor = AlbefProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), embedded_tokenizer())
    models = {}
    for name, kind in (("albef", AlbefForRetrieval), ("albef-vqa", AlbefForQuestionAnswering)):
        config = AlbefConfig(projection_dim=16, vision_config={**sizes, "image_size": 32}, text_config=text)
        folder = tmp_path_factory.mktemp(name)
        models[name] = make(kind, config)
        models[name].save_pretrained(folder)
        processor.save_pretrained(folder)
        run_shell(hub, f"hf upload owner/{name} {folder}", tmp_path_factory.mktemp("owner"))
    return {
        "retrieval": ImageTextRetrievalPipeline(models["albef"], processor),
        "question_answering": VisualQuestionAnsweringPipeline(models["albef-vqa"], processor),
    }


@pytest.fixture(scope="module")
def images_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, scene in enumerate(Scenes(14, seed=3)):
        scene["image"].resize((120, 90)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def index(models, images_folder, tmp_path_factory) -> ImageIndex:
    retrieval = models["retrieval"]
    folder = tmp_path_factory.mktemp("built") / "index"
    return ImageIndex.build(retrieval.model, retrieval.processor, images_folder, folder)


@pytest.fixture(scope="module")
def address(hub, space, index, images_folder, tmp_path_factory) -> Iterator[str]:
    """Serve the Space, which is started without options, and return its address."""
    shutil.copytree(index.store.folder, space / "index")
    shutil.copytree(images_folder, space / "images")
    environment = hub.environment(
        tmp_path_factory.mktemp("cache"),
        ALBEF_MODEL="owner/albef",
        ALBEF_QUESTION_MODEL="owner/albef-vqa",
        ALBEF_INDEX="index",
        ALBEF_IMAGES="images",
    )
    environment.pop("PYTHONPATH", None)
    log = tmp_path_factory.mktemp("log") / "log.txt"
    with serve([sys.executable, "app.py"], space, environment, log) as (_, address):
        yield address


class Visitor:
    """Use the page in a browser, and wait for what is expected."""

    def __init__(self, browser, address: str):
        self.browser, self.address = browser, address
        browser.get(address)
        self.find("#score")

    def all(self, selector: str) -> list:
        """Return the visible elements."""
        return [part for part in self.browser.find_elements("css selector", selector) if part.is_displayed()]

    def find(self, selector: str):
        """Return the first visible element, as soon as there is one."""
        return self.until(lambda: self.all(selector), selector)[0]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Return the value of a condition as soon as it is true."""
        deadline = time.monotonic() + 60
        while not (value := condition()):
            assert time.monotonic() < deadline, f"no {what} appeared: {self.messages()}"
            time.sleep(0.1)
        return value

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
        for close in self.all("#image button[aria-label='Clear'], #image button[aria-label='Remove Image']"):
            close.click()
        fields = self.until(
            lambda: self.browser.find_elements("css selector", "#image input[type=file]"), "file field"
        )
        fields[0].send_keys(str(path))
        self.find("#image img")

    def gallery_captions(self, selector: str) -> list[str]:
        """Return the captions of a gallery, after all its images have been loaded."""
        script = """
            const items = [...document.querySelectorAll(arguments[0] + " .grid-container button")];
            items.forEach(item => item.scrollIntoView());
            const loaded = items.every(item => item.querySelector("img").naturalWidth > 1);
            return loaded ? items.map(item => item.innerText.trim()) : [];
        """
        return self.until(lambda: self.browser.execute_script(script, selector), selector)

    def hidden_parts(self, gallery: str) -> list[str]:
        """Return the parts of a gallery that are cut off, or visible only after scrolling."""
        script = """
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
        return self.browser.execute_script(script, gallery)

    def messages(self) -> str:
        """Return the text of all visible messages."""
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


def draw_captions() -> list[str]:
    """Return the captions of the examples."""
    with tempfile.TemporaryDirectory() as folder:
        return [example.text for example in draw_scenes(folder)]


def test_captions_are_scored(visitor, models, images_folder):
    visitor.upload(images_folder / "03.png")
    captions = ["a red ball", "two dogs in the snow", "a star"]
    visitor.write("#captions", "\n".join(captions))
    assert not visitor.all("#scores .scores")  # those of the example are gone
    visitor.click("#score")
    shown = visitor.find("#scores .scores").text.split("\n")
    expected = models["retrieval"](str(images_folder / "03.png"), candidate_texts=captions)
    lines = [[row["text"], f"{row['score']:.1%}", f"{row['similarity']:+.2f}"] for row in expected]
    assert shown == ["Caption", "Match", "Cosine", *sum(lines, [])]


def test_the_page_opens_with_an_example_and_shows_another_when_it_is_picked(visitor):
    (first, second, *_) = draw_captions()
    assert visitor.find("#scores .scores").text.split("\n").count(first) == 1
    visitor.open("Words")
    assert visitor.gallery_captions("#heatmaps")[-1] == first.split()[-1]
    visitor.all(".gallery-item")[1].click()
    visitor.until(lambda: visitor.gallery_captions("#heatmaps")[-1] == second.split()[-1], "words of the second")
    visitor.open("Captions")
    visitor.until(lambda: second in visitor.find("#scores .scores").text, "scores of the second")


def test_tabs_have_the_same_width(visitor):
    widths = set()
    for tab in ("Captions", "Words", "Question", "Search"):
        visitor.open(tab)
        widths.add(visitor.browser.execute_script("return document.querySelector('.tabs').offsetWidth"))
    assert len(widths) == 1


def test_words_of_an_example_are_located(visitor):
    visitor.open("Words")
    visitor.write("#text", "a surfboarding dog, a ball")
    visitor.click("#locate")
    words = ["surfboarding", "dog", "ball"]
    visitor.until(lambda: visitor.gallery_captions("#heatmaps")[1:] == words, "words of the text")
    whole = visitor.gallery_captions("#heatmaps")[0]
    assert whole.startswith(WHOLE_TEXT) and whole.endswith("% match")
    visitor.click("#all_words input")
    visitor.click("#locate")
    visitor.until(
        lambda: visitor.gallery_captions("#heatmaps")[1:] == ["a", "surfboarding", "dog", "a", "ball"], "all words"
    )


def test_a_question_is_answered(visitor, models, images_folder):
    visitor.upload(images_folder / "05.png")
    visitor.open("Question")
    visitor.write("#question", "what is it?")
    visitor.write("#choices", "yes\nno")
    visitor.click("#ask")
    expected = models["question_answering"](
        str(images_folder / "05.png"), "what is it?", candidate_answers=["yes", "no"]
    )
    assert visitor.find("#answers h2").text == expected[0]["answer"]
    visitor.find("#answer_heatmap img")


def test_search_results_are_shown_and_selected(visitor, index, images_folder):
    visitor.open("Search")
    visitor.write("#query", "a red ball")
    visitor.click("#search")
    hits = index.search("a red ball", top_k=12)
    expected = [f"match {hit.match:.0%}, ITC {hit.similarity:+.2f}" for hit in hits]
    visitor.until(lambda: visitor.gallery_captions("#found") == expected, "images of the text")
    visitor.click("#found .grid-container button")
    assert visitor.gallery_captions("#heatmaps")[1:] == ["red", "ball"]
    assert visitor.find("#text textarea").get_attribute("value") == "a red ball"
    visitor.find("#image img")
    visitor.upload(images_folder / "07.png")
    visitor.open("Search")
    visitor.click("#similar")
    visitor.until(lambda: visitor.gallery_captions("#found")[0] == "ITC +1.00", "the image itself")


@pytest.mark.parametrize("width", [390, 960, 1280])
def test_galleries_are_completely_visible(visitor, width):
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    visitor.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        visitor.open("Search")
        visitor.write("#query", "a red ball")
        visitor.click("#search")
        assert len(visitor.gallery_captions("#found")) == 12 and not visitor.hidden_parts("#found")
        visitor.click("#found .grid-container button")
        assert len(visitor.gallery_captions("#heatmaps")) == 3 and not visitor.hidden_parts("#heatmaps")
    finally:
        visitor.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_errors_are_shown(visitor, images_folder, tmp_path):
    visitor.click("#image button[aria-label='Clear'], #image button[aria-label='Remove Image']")
    visitor.click("#score")
    visitor.until(lambda: "There is no image yet" in visitor.messages(), "message")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    visitor.upload(tmp_path / "broken.png")
    visitor.write("#captions", "a dog")
    visitor.click("#score")
    visitor.until(lambda: "cannot be read as an image" in visitor.messages(), "message")
    visitor.browser.refresh()
    visitor.find("#score")
    visitor.upload(images_folder / "00.png")
    visitor.write("#captions", " ")
    visitor.click("#score")
    visitor.until(lambda: "There is no caption yet" in visitor.messages(), "message")
    visitor.write("#captions", "x" * 10_000)
    visitor.click("#score")
    visitor.until(lambda: "this one has 10,000" in visitor.messages(), "message")
    visitor.write("#captions", LONG_TEXT)
    visitor.click("#score")
    visitor.until(lambda: "did not read its end" in visitor.messages(), "message")
    visitor.find("#scores .scores")
    assert "Traceback" not in visitor.browser.page_source


def test_the_page_contacts_no_other_server_and_fits_a_phone(visitor):
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
    requested = {
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    }
    assert any(url.startswith(visitor.address) for url in requested)
    assert not [url for url in requested if not url.startswith((visitor.address, "data:", "blob:"))]
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe
