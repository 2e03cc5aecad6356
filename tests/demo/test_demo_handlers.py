"""What the buttons show, what they refuse, and what the page explains."""

import re
import threading

import numpy as np
import pytest
from demo_fixtures import *  # noqa: F403
from demo_fixtures import LONG_TEXT
from PIL import Image

from albef_hf.data import Scenes
from albef_hf.demo.assistant import RERANK_K, UNREADABLE, WHOLE_TEXT, Assistant
from albef_hf.demo.jobs import JobRunner

pytest.importorskip("gradio", reason='the demo needs pip install "albef_hf[demo]"')

import gradio as gr

from albef_hf.demo.examples import Example
from albef_hf.demo.handlers import TOP_K, Handlers
from albef_hf.demo.page import Page


def test_captions_are_shown_as_text_and_not_as_html(handlers, upload):
    table = handlers.score(upload, "a <b>red</b> ball\na cat")
    assert "a &lt;b&gt;red&lt;/b&gt; ball" in table and "<b>red" not in table
    (score, cosine), *others = re.findall(r"<div>(\d+\.\d)%.*?<div>([+-]\d\.\d\d)</div>", table)
    assert float(score) >= float(others[0][0]) and -1 <= float(cosine) <= 1


def test_the_page_says_what_is_missing(handlers, upload, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    broken = {"path": str(tmp_path / "broken.png")}
    for handler, arguments, message in (
        (handlers.score, (None, "a dog"), "There is no image yet"),
        (handlers.score, (broken, "a dog"), "cannot be read as an image"),
        (handlers.score, ({"path": "/etc/passwd"}, "a dog"), "was not uploaded here"),
        (handlers.score, (upload, ""), "There is no caption yet"),
        (handlers.heatmaps, (upload, " "), "There is no text yet"),
        (handlers.heatmaps, (upload, "x" * 10_000), "this one has 10,000"),
        (handlers.answer, (upload, "", ""), "There is no question yet"),
        (handlers.describe, (None,), "There is no image yet"),
        (handlers.search, ("",), "There is no text yet"),
        (handlers.search, ("a dog",), "no images to search"),
        (handlers.search_similar, (None,), "There is no image yet"),
    ):
        with pytest.raises(gr.Error) as raised:
            handler(*arguments)
        assert message in raised.value.message and not raised.value.print_exception


def test_visitors_are_warned_of_truncated_texts(handlers, upload, monkeypatch):
    warnings = []
    monkeypatch.setattr(gr, "Warning", warnings.append)
    assert len(handlers.heatmaps(upload, "a red ball")) == 1 + 2
    assert len(handlers.heatmaps(upload, "a red ball", True)) == 1 + 3
    assert not warnings
    items = handlers.heatmaps(upload, LONG_TEXT)
    assert len(items) == 15 and "did not read its end: “dog a red ball" in warnings[0]


@pytest.fixture
def searching_handlers(handlers, processor, tmp_path):
    """Return the handlers of a page with an index of 14 images."""
    pytest.importorskip("faiss")
    from albef_hf.search.index import ImageIndex

    (tmp_path / "photographs").mkdir()
    for index, scene in enumerate(Scenes(14, seed=3)):
        scene["image"].save(tmp_path / "photographs" / f"{index:02}.png")
    model = handlers.assistant.retrieval.model
    handlers.assistant.index = ImageIndex.build(model, processor, tmp_path / "photographs", tmp_path / "index")
    return handlers


def test_a_search_result_can_be_selected(searching_handlers, tmp_path):
    items, results = searching_handlers.search("a red ball")
    hits = searching_handlers.assistant.index.search("a red ball", top_k=TOP_K)
    assert results == ("a red ball", [hit.key for hit in hits]) and len(hits) == 12
    assert [caption for _, caption in items] == [f"match {hit.match:.0%}, ITC {hit.similarity:+.2f}" for hit in hits]
    click = gr.SelectData(None, {"index": 2, "value": None})
    for all_words, words in ((False, ["red", "ball"]), (True, ["a", "red", "ball"])):
        image, text, heatmaps, tabs = searching_handlers.select(results, all_words, click)
        assert np.array_equal(image, Image.open(tmp_path / "photographs" / hits[2].key))
        assert text == "a red ball" and [word for _, word in heatmaps[1:]] == words
        assert heatmaps[0][1].startswith(WHOLE_TEXT)


def test_results_that_can_no_longer_be_read_keep_their_place(searching_handlers, tmp_path):
    folder = tmp_path / "photographs"
    query = {"path": str(folder / "05.png")}
    click = gr.SelectData(None, {"index": 2, "value": None})
    items, results = searching_handlers.search_similar(query)
    assert results[0] == "" and results[1][0] == "05.png" and items[0][1] == "ITC +1.00"
    assert all(part == gr.skip() for part in searching_handlers.select(results, False, click)[1:])
    (folder / results[1][2]).unlink()
    with pytest.raises(gr.Error, match="cannot be read any more"):
        searching_handlers.select(results, False, click)
    (folder / results[1][3]).write_bytes(b"broken since")
    items, again = searching_handlers.search_similar(query)
    (unreadable,) = [caption for _, caption in items if UNREADABLE in caption]
    assert len(items) == len(again[1]) >= 11
    assert re.fullmatch(r"can no longer be read, ITC [+-]\d\.\d\d", unreadable)


def test_a_job_that_hangs_does_not_block_the_page(handlers, upload):
    hanging = threading.Event()
    score = handlers.assistant.score
    handlers.jobs = JobRunner(seconds=0.2, max_overdue=4)
    handlers.assistant.score = lambda *arguments: hanging.wait(60)
    for message in [*["took more than 0.2 seconds"] * 4, "The page is busy"]:
        with pytest.raises(gr.Error, match=message):
            handlers.score(upload, "a dog")
    hanging.set()
    handlers.assistant.score = score
    handlers.jobs.seconds = 60
    for thread in handlers.jobs.overdue:
        thread.join()
    assert "a dog" in handlers.score(upload, "a dog")


def markdown(config: dict) -> str:
    """Return what a page explains."""
    return " ".join(part["props"].get("value") for part in config["components"] if part["type"] == "markdown")


def test_the_page_says_how_many_images_are_reranked(searching_handlers):
    explained = markdown(Page(searching_handlers).build().get_config_file())
    assert f"only the {RERANK_K} images with the highest cosine" in explained


def test_the_page_says_whether_probabilities_are_calibrated(searching_handlers):
    assert markdown(Page(searching_handlers).build().get_config_file()).count("The probability is not calibrated") == 2
    searching_handlers.assistant.retrieval.model.config.match_calibration = {
        "scale": 1.0,
        "cosine_weight": 2.0,
        "bias": 0.0,
        "fitted_on": "9 images of x.json",
    }
    explained = markdown(Page(searching_handlers).build().get_config_file())
    assert explained.count("The probability is calibrated on 9 images of x.json.") == 2
    assert "not calibrated" not in explained


def test_the_page_says_what_decides_the_order(searching_handlers, monkeypatch):
    assert "match, which decides the order, and the" in markdown(Page(searching_handlers).build().get_config_file())
    monkeypatch.setattr(type(searching_handlers.assistant.index), "is_normalized", True)
    explained = markdown(Page(searching_handlers).build().get_config_file())
    assert "decides the order together with how well the image matches other texts, and the cosine" in explained


def test_a_page_without_models_and_index_has_no_tabs_for_them(assistant, handlers):
    config = Page(Handlers(Assistant(assistant.retrieval))).build().get_config_file()
    tabs = [part["props"]["label"] for part in config["components"] if part["type"] == "tabitem"]
    assert tabs == ["Captions", "Words"]
    ids = {part["props"].get("elem_id") for part in config["components"]}
    assert "score" in ids and not ids & {"ask", "write", "search"}
    assert "--" not in markdown(config) and "albef " not in markdown(config)  # what only its owner can do
    complete = Page(handlers).build().get_config_file()
    tabs = [part["props"]["label"] for part in complete["components"] if part["type"] == "tabitem"]
    assert tabs == ["Captions", "Words", "Question", "Describe"]


def opened(page: Page) -> dict:
    """Return the values of a new page by the ids of their parts."""
    config = page.build().get_config_file()
    return {part["props"].get("elem_id"): part["props"].get("value") for part in config["components"]}


def test_the_page_opens_with_the_first_example_and_its_results(searching_handlers, image, tmp_path):
    image.save(tmp_path / "first.png")
    first = Example(str(tmp_path / "first.png"), "a red ball\na dog", text="a red ball", question="what is it?")
    handlers = Handlers(searching_handlers.assistant, [first])
    values = opened(Page(handlers, [first]))
    assert (values["captions"], values["text"], values["query"]) == (first.captions, first.text, first.text)
    assert np.array_equal(Image.open(values["image"]["path"]), image)
    assert values["scores"] == handlers.score({"path": first.path}, first.captions)
    assert [item["caption"] for item in values["heatmaps"]][1:] == ["red", "ball"]
    answers, _ = handlers.answer({"path": first.path}, "what is it?")
    assert values["answers"]["label"] == max(answers, key=lambda answer: answers[answer])
    assert [item["caption"] for item in values["found"]] == [item[1] for item in handlers.search("a red ball")[0]]
    assert values["written_captions"]["label"] and values["caption_heatmaps"] and values["answer_heatmap"]


def test_the_page_opens_with_an_example_that_has_no_texts(searching_handlers, image, tmp_path):
    image.save(tmp_path / "first.png")
    first = Example(str(tmp_path / "first.png"))
    values = opened(Page(Handlers(searching_handlers.assistant, [first]), [first]))
    assert not values["captions"] and not values["scores"] and not values["heatmaps"] and not values["answers"]
    assert values["found"][0]["caption"].startswith("ITC") and values["written_captions"]["label"]  # by the image


def test_a_first_example_that_cannot_be_read_is_named(handlers, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    broken = Example(str(tmp_path / "broken.png"))
    with pytest.raises(ValueError, match="The first example, .*broken.png, cannot be shown: .*damaged"):
        Page(Handlers(handlers.assistant, [broken]), [broken]).build()


def failing(error: Exception):
    def fail(*arguments):
        raise error

    return fail


def test_results_that_fail_are_empty_when_the_page_opens(searching_handlers, image, tmp_path, caplog):
    image.save(tmp_path / "first.png")
    first = Example(str(tmp_path / "first.png"), "a dog", text="a dog", question="what is it?")
    handlers = Handlers(searching_handlers.assistant, [first])
    (tmp_path / "photographs").rename(tmp_path / "moved")
    handlers.assistant.answer = failing(ValueError('no "answer"'))
    handlers.assistant.describe = failing(RuntimeError("out of memory"))
    values = opened(Page(handlers, [first]))
    assert values["scores"] and values["heatmaps"]
    assert not values["answers"] and not values["written_captions"] and not values["found"]
    messages = dict(re.findall("The page opens without the result of `(.*)`: (.*)", caplog.text))
    assert messages.pop("search").startswith("The images of the index have moved")
    assert messages == {"answer": 'no "answer"', "describe": "out of memory"}


def test_an_example_without_texts_clears_the_results_of_the_previous_image(assistant, upload):
    example = Example(upload["path"])
    blocks = Page(Handlers(Assistant(assistant.retrieval), [example]), [example]).build()
    (examples,) = [block for block in blocks.blocks.values() if isinstance(block, gr.Dataset)]
    clicked = [event for event in blocks.fns.values() if (examples._id, "click") in event.targets]
    cleared = {block.elem_id for event in clicked if not event.inputs for block in event.outputs}
    assert cleared == {"scores", "heatmaps"}
    after = [event for event in blocks.fns.values() if event.trigger_after in [event._id for event in clicked]]
    assert [event.outputs[0].elem_id for event in after] == ["scores", "heatmaps"]
    score, locate = [event.fn for event in after]
    assert score(upload, "") is None and locate(upload, "", False) is None
    assert "a dog" in score(upload, "a dog") and len(locate(upload, "a dog", True)) == 3
