"""Tests of the HTML page of search results."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from search_fixtures import *  # noqa: F403
from search_fixtures import noise

from albef_hf.heatmaps_albef import matching_heatmaps, word_heatmaps
from albef_hf.search.html_report import html_report, word_maps


def test_images_of_any_shape_and_empty_heat_maps_have_a_place_on_the_page(model, processor, monkeypatch):
    images = [noise(1), Image.new("RGB", (3000, 2), "red"), Image.new("RGB", (1, 3000)), Image.new("L", (1, 1))]
    results = [(str(number), {}, image) for number, image in enumerate(images)]
    page = html_report("a red ball", results, "", model, processor)
    assert page.count("<li>") == 4 and page.count("<img") == 4 * (1 + 2) and 'class="legend"' in page
    assert html_report("a red ball", results, "", model, processor, all_words=True).count("<img") == 4 * (1 + 3)
    of_image = html_report(images[1], results, "", model, processor)
    assert of_image.count("<img") == 1 + 4 and 'class="legend"' not in of_image
    heat = torch.zeros(1, 5, 2, 2).index_fill(1, torch.tensor([0]), 1.0)  # [CLS] alone, of whatever image
    monkeypatch.setattr(
        "albef_hf.search.html_report.matching_heatmaps", lambda model, input_ids, **others: heat[:, :4]
    )
    words, maps = word_maps(model, processor, "a red ball", images[0])
    assert words == ["red", "ball"] and not maps.any()
    assert html_report("a red ball", results, "", model, processor).count("<img") == 4 * (1 + 2)


def test_words_are_those_of_the_plain_functions(model, processor):
    inputs = processor(images=[noise(1)], text=["a red ball on it"], return_tensors="pt")
    maps = matching_heatmaps(model, **inputs)[0]
    expected = word_heatmaps(processor.tokenizer, inputs["input_ids"][0], maps)
    for all_words, chosen in ((True, [0, 1, 2, 3, 4]), (False, [1, 2])):
        words, found = word_maps(model, processor, "a red ball on it", noise(1), all_words)
        assert words == [expected[0][index] for index in chosen] and torch.equal(found, expected[1][chosen])
    assert word_maps(model, processor, "it is a", noise(1))[0] == ["it", "is", "a"]


def shown_colors(page: str) -> list[int]:
    """Return how far the images of the words on a page are from gray."""
    images = re.findall(r'base64,([^"]+)" alt="(?:red|ball)"', page)
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image))), dtype=int) for image in images]
    return [int((values.max(-1) - values.min(-1)).max()) for values in pixels]


def test_words_of_a_text_that_does_not_match_have_no_color(model, processor):
    for bias, match in ((60.0, "100.0%"), (-60.0, "0.0%")):
        with torch.no_grad():
            model.itm_head.bias.copy_(torch.tensor([-bias, bias]))
        page = html_report("a red ball", [("1", {"cosine (ITC)": "+0.1"}, noise(1))], "", model, processor)
        assert f"<dt>match</dt><dd>{match}</dd>" in page
        colors = shown_colors(page)
        assert len(colors) == 2 and (max(colors) > 60 if bias > 0 else max(colors) < 10)  # of JPEG
    known = html_report("a red ball", [("1", {"match": "12.3%"}, noise(1))], "", model, processor)
    assert known.count("<dt>match</dt>") == 1 and "12.3%" in known


def test_unreadable_images_have_a_place_on_the_page(command, album):
    command("index", "build", album, "--model", "../model")
    (album / "00.PNG").write_bytes(b"broken since")
    for words in (["red"], ["--image", album / "02.PNG"]):
        command("search", *words, "--rerank_k", 0, "--top_k", 12, "--html", "page.html")
        page = Path("page.html").read_text(encoding="utf-8")
        (place,) = [part for part in page.split("<li>") if "This image cannot be read any more." in part]
        assert page.count("<li>") == 12 and "<figcaption>00.PNG</figcaption>" in place and "<img" not in place
        assert "<dt>cosine (ITC)</dt>" in place and str(album) not in page
