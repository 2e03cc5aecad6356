"""What the demo computes is what the package computes."""

import numpy as np
import pytest
import torch
from demo_fixtures import *  # noqa: F403
from PIL import Image
from sharp_models import make

from albef_hf import AlbefForRetrieval, ImageTextRetrievalPipeline
from albef_hf.demo.assistant import NUM_ANSWERS, NUM_CAPTIONS, WHOLE_TEXT, Assistant
from albef_hf.heatmaps_albef import (
    contrastive_heatmaps,
    match_probabilities,
    matching_heatmaps,
    overlay,
    overlays,
)


def test_captions_are_scored_as_the_model_does(assistant, image, processor):
    captions = ["a red ball", "two dogs in the snow", "a car"]
    inputs = processor(images=[image], text=captions, return_tensors="pt")
    with torch.no_grad():
        outputs = assistant.retrieval.model(**inputs)
    expected = outputs.itm_logits.softmax(-1)[:, 1]
    results = assistant.score(image, captions)
    assert [text for text, _, _ in results] == [captions[i] for i in expected.argsort(descending=True)]
    for text, score, cosine in results:
        index = captions.index(text)
        assert score == pytest.approx(expected[index].item(), abs=1e-5)
        assert cosine == pytest.approx((outputs.text_embeds[index] @ outputs.image_embeds[0]).item(), abs=1e-5)


def test_each_word_has_its_heat_map(assistant, image, processor):
    text = "a surfboarding dog"
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    maps = matching_heatmaps(assistant.retrieval.model, **inputs)[0]
    probability = match_probabilities(assistant.retrieval.model, **inputs).item()
    whole_title = f"{WHOLE_TEXT}, {probability:.0%} match"
    assert assistant.has_word_matching
    resized = image.resize((480, 320), Image.Resampling.BICUBIC)
    whole = overlay(resized, maps.mean(0), probability=probability)
    of_words = torch.stack([maps[1], maps[2:4].mean(0), maps[4]])
    for all_words, titles, drawn in (
        (False, ["surfboarding", "dog"], [1, 2]),
        (True, ["a", "surfboarding", "dog"], [0, 1, 2]),
    ):
        items = assistant.heatmaps(image, text, all_words)
        assert [title for _, title in items] == [whole_title, *titles]
        expected = [whole, *overlays(resized, of_words[drawn], probability=probability)]
        assert all(np.array_equal(shown, drawing) for (shown, _), drawing in zip(items, expected, strict=True))


def test_the_words_of_a_text_that_does_not_match_have_no_color(assistant, image):
    with torch.no_grad():
        assistant.retrieval.model.itm_head.bias.copy_(torch.tensor([900.0, -900.0]))
    items = assistant.heatmaps(image, "a surfboarding dog")
    gray = np.asarray(image.resize((480, 320), Image.Resampling.BICUBIC).convert("L").convert("RGB"))
    assert items[0][1] == f"{WHOLE_TEXT}, 0% match"
    assert all(np.array_equal(shown, gray) for shown, _ in items)


def test_with_one_multimodal_layer_each_word_is_compared_on_its_own(config, processor, image):
    config.text_config.num_hidden_layers = 3
    config.text_config.num_multimodal_layers = 1
    model = make(AlbefForRetrieval, config)
    assistant = Assistant(ImageTextRetrievalPipeline(model, processor))
    items = assistant.heatmaps(image, "a dog, a ball!", all_words=True)
    assert not assistant.has_word_matching
    assert [title for _, title in items[1:]] == ["a", "dog", "a", "ball"]
    items = assistant.heatmaps(image, "a dog, a ball!")
    assert [title for _, title in items[1:]] == ["dog", "ball"]
    maps = [
        contrastive_heatmaps(model, **processor(images=[image], text=[word], return_tensors="pt"))[0]
        for word in ("dog", "ball")
    ]
    probability = match_probabilities(model, **processor(images=[image], text=["a dog a ball"], return_tensors="pt"))
    resized = image.resize((480, 320), Image.Resampling.BICUBIC)
    # The demo computes them in a batch, which may change the rounding.
    for (shown, _), expected in zip(
        items[1:], overlays(resized, torch.stack(maps), probability=probability.item()), strict=True
    ):
        assert np.abs(np.asarray(shown, dtype=int) - np.asarray(expected)).max() <= 1


def test_questions_are_answered_freely_and_from_choices(assistant, image):
    expected = assistant.question_answering(image, "what is it", top_k=NUM_ANSWERS)
    answers, heatmap = assistant.answer(image, "what is it", [])
    assert answers == pytest.approx({result["answer"]: result["score"] for result in expected})
    chosen, other = assistant.answer(image, "what is it", ["yes", "no"])
    assert set(chosen) == {"yes", "no"} and sum(chosen.values()) == pytest.approx(1)
    assert heatmap.size == other.size == (480, 320) and not np.array_equal(heatmap, other)


def test_an_image_is_described_with_a_heat_map_of_each_word(assistant, image):
    expected = assistant.captioning(image, top_k=NUM_CAPTIONS)
    captions, items = assistant.describe(image)
    assert captions == pytest.approx({result["caption"]: result["score"] for result in expected})
    words = expected[0]["caption"].split()
    assert items and all(heatmap.size == (480, 320) for heatmap, _ in items)
    assert {title for _, title in items} <= set(words)
    assert not all(np.array_equal(items[0][0], heatmap) for heatmap, _ in items[1:]) or len(items) == 1


def test_an_index_is_searched_after_its_images_have_moved(assistant, image, tmp_path):
    pytest.importorskip("faiss")
    from albef_hf.search.index import ImageIndex

    model = assistant.retrieval.model
    processor = assistant.retrieval.processor
    (tmp_path / "before").mkdir()
    image.save(tmp_path / "before" / "a.png")
    image.rotate(90).save(tmp_path / "before" / "b.png")
    ImageIndex.build(model, processor, tmp_path / "before", tmp_path / "index")
    (tmp_path / "before").rename(tmp_path / "after")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    places = {"model": str(tmp_path / "model"), "index": str(tmp_path / "index")}
    loaded = Assistant.from_pretrained(**places, images=str(tmp_path / "after"))
    items, keys = loaded.search(image, 5)
    assert keys == ["a.png", "b.png"] and items[0][1] == "ITC +1.00"
    assert loaded.search("a red ball", 5)[0][0][1].count("%") == 1
    with pytest.raises(ValueError, match="have moved. Start the page with their folder as --images"):
        Assistant.from_pretrained(**places).search("a red ball", 5)
