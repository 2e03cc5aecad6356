"""Tests of the HTML page of search results."""

from pathlib import Path

import torch
from PIL import Image
from search_fixtures import *  # noqa: F403
from search_fixtures import noise

from albef_hf.search.html_report import html_report, word_maps


def test_images_of_any_shape_and_empty_heat_maps_have_a_place_on_the_page(model, processor, monkeypatch):
    images = [noise(1), Image.new("RGB", (3000, 2), "red"), Image.new("RGB", (1, 3000)), Image.new("L", (1, 1))]
    results = [(str(number), {}, image) for number, image in enumerate(images)]
    page = html_report("a red ball", results, "", model, processor)
    assert page.count("<li>") == 4 and page.count("<img") == 4 * (1 + 3)
    assert html_report(images[1], results, "", model, processor).count("<img") == 1 + 4
    heat = torch.zeros(1, 5, 2, 2).index_fill(1, torch.tensor([0]), 1.0)  # [CLS] alone, of whatever image
    monkeypatch.setattr(
        "albef_hf.search.html_report.matching_heatmaps", lambda model, input_ids, **others: heat[:, :4]
    )
    words, maps = word_maps(model, processor, "a red ball", images[0])
    assert words == ["a", "red", "ball"] and not maps.any()
    assert html_report("a red ball", results, "", model, processor).count("<img") == 4 * (1 + 3)


def test_unreadable_images_have_a_place_on_the_page(command, album):
    command("index", "build", album, "--model", "../model")
    (album / "00.PNG").write_bytes(b"broken since")
    for words in (["red"], ["--image", album / "02.PNG"]):
        command("search", *words, "--rerank_k", 0, "--top_k", 12, "--html", "page.html")
        page = Path("page.html").read_text(encoding="utf-8")
        (place,) = [part for part in page.split("<li>") if "This image cannot be read any more." in part]
        assert page.count("<li>") == 12 and "<figcaption>00.PNG</figcaption>" in place and "<img" not in place
        assert "<dt>cosine (ITC)</dt>" in place and str(album) not in page
