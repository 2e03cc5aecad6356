"""Tests of search results."""

import numpy as np
import pytest
import torch
from conftest import assert_colleagues_can_read
from PIL import Image
from search_fixtures import *  # noqa: F403
from search_fixtures import TEXTS, keys, noise

from albef_hf import AlbefForPreTraining
from albef_hf.retrieval_albef import encode_texts, match, match_images, score_all
from albef_hf.search import reranker
from albef_hf.search.index import ImageIndex


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_search_finds_what_the_evaluation_finds(model, processor, images, tmp_path, weight):
    scores = score_all(model, processor, images, [[text] for text in TEXTS] + [["x"]] * 8, k=5).text_to_image
    index = ImageIndex.build(model, processor, images, tmp_path / "index")
    for number, text in enumerate(TEXTS):
        found = index.search(text, rerank_k=0)
        assert keys(found) == scores.indices[number].tolist()
        assert torch.allclose(torch.tensor([hit.similarity for hit in found]), scores.similarities[number], atol=1e-6)
        assert all(hit.match is None and hit.score == hit.similarity for hit in found)
        found = index.search(text, top_k=5, rerank_k=5, itc_weight=weight)
        assert keys(found) == scores.reranked(weight)[number].tolist()
        expected = scores.scores(weight)[number].sort(descending=True).values
        assert torch.allclose(torch.tensor([hit.score for hit in found]), expected, atol=1e-5)
    assert len({hit.key for text in TEXTS for hit in index.search(text, top_k=1)}) > 1
    assert_colleagues_can_read(tmp_path / "index")


def test_probability_is_that_of_the_model(model, processor, index):
    hit = index.search(TEXTS[1], top_k=1)[0]
    inputs = processor(images=index.image(hit.key), text=TEXTS[1], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).itm_logits
    assert hit.match == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
    assert hit.score == pytest.approx((logits[0, 1] - logits[0, 0]).item(), abs=1e-5)


def test_hits_that_are_not_reranked_follow(index):
    found, by_cosine = index.search(TEXTS[0], top_k=12, rerank_k=3), index.search(TEXTS[0], top_k=12, rerank_k=0)
    assert [hit.match is None for hit in found] == [False] * 3 + [True] * 9
    assert set(keys(found)[:3]) == set(keys(by_cosine)[:3]) and keys(found)[3:] == keys(by_cosine)[3:]


def test_an_image_finds_itself_first(index, images):
    found = index.search(images[3].convert("RGBA"), top_k=3)
    assert found[0].key == "2019/03.PNG" and found[0].similarity == pytest.approx(1, abs=1e-5)
    assert found[0].match is None and found[0].similarity > found[1].similarity > found[2].similarity


def test_search_returns_at_most_all_images(index):
    assert len(index) == 12 == len(index.search("red", top_k=500)) == len(index.search("red", top_k=500, rerank_k=0))
    index.remove(index.keys[1:])
    assert len(index.search("red", top_k=5)) == 1
    index.remove(index.keys)
    assert index.search("red") == [] == index.search("red", rerank_k=0) and len(index) == 0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_matching_many_images_equals_matching_one_by_one(config, processor, images, layers):
    config.text_config.num_multimodal_layers = layers
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.2
    model = AlbefForPreTraining(config).eval().double()
    with torch.no_grad():
        for part in model.parameters():  # also biases, which are initialized with zero
            part.add_(0.1 * torch.randn_like(part))
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].double()
        states = model.get_image_features(pixels).last_hidden_state
    caption = "two dogs and an extraordinary cat"
    text = encode_texts(model, processor, [caption])
    one_by_one = torch.cat([match(model, one, text, torch.tensor([0])) for one in states.split(1)])
    assert torch.allclose(match_images(model, states, text), one_by_one, atol=1e-12)
    assert one_by_one.std(0).min() > 1e-3

    class Adapted(torch.nn.Linear):  # whose weight is not the effective weight
        def forward(self, states):
            return super().forward(states).tanh()

    multimodal = model.albef.multimodal_model
    for attention in (multimodal.layers[0].cross_attn, multimodal.layers[-1].self_attn):
        attention.k_proj.__class__ = Adapted
        text = encode_texts(model, processor, [caption])
        expected = model(
            **processor(text=[caption] * len(states), return_tensors="pt"), pixel_values=pixels
        ).itm_logits
        adapted = torch.cat([match(model, one, text, torch.tensor([0])) for one in states.split(1)])
        assert torch.allclose(adapted, expected, atol=1e-12)
        assert torch.allclose(match_images(model, states, text), expected, atol=1e-12)
        assert not torch.allclose(adapted, one_by_one)


def test_hidden_states_are_cached_within_the_memory_limit(index, encoded_sizes, monkeypatch):
    encoded_sizes.clear()
    plenty = index.search(TEXTS[0])
    assert sum(encoded_sizes) == 12 and index.search(TEXTS[0]) == plenty and sum(encoded_sizes) == 12
    index.reranker.cache.clear()
    monkeypatch.setattr(reranker, "MAX_CACHED_VALUES", 5 * (2 * 2 + 1) * 32)  # five images of four patches
    scarce = index.search(TEXTS[0])
    assert len(index.reranker.cache) == 5
    again = index.search(TEXTS[0])
    assert sum(encoded_sizes) == 12 + 12 + 7 and len(index.reranker.cache) == 5
    assert keys(plenty) == keys(scarce) == keys(again)
    assert [hit.score for hit in again] == pytest.approx([hit.score for hit in plenty], abs=1e-5)


def test_identical_images_are_all_found(model, processor, images, tmp_path):
    index = ImageIndex.build(model.train(), processor, [images[0], images[1], images[0]], tmp_path / "index")
    assert model.training  # although the features are computed without dropout
    found = index.search("red", top_k=3)
    assert sorted(keys(found)) == [0, 1, 2]
    scores = {hit.key: hit.score for hit in found}
    assert scores[0] == pytest.approx(scores[2], abs=1e-5) and abs(scores[0] - scores[1]) > 1e-3


def test_exif_orientation_is_applied(model, processor, tmp_path):
    image, exif = noise(1, (40, 60)), Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    (tmp_path / "album").mkdir()
    image.save(tmp_path / "album" / "turned.png", exif=exif)
    index = ImageIndex.build(model, processor, tmp_path / "album", tmp_path / "index")
    assert index.image("turned.png").size == (60, 40)
    assert index.search(image.transpose(Image.Transpose.ROTATE_270), top_k=1)[0].similarity == pytest.approx(
        1, abs=1e-5
    )


def test_copies_with_other_times_are_cached(index, model, processor, album, tmp_path, encoded_sizes):
    copies = tmp_path / "copies"
    for path in album.rglob("*"):
        if path.is_file():
            (copies / path.relative_to(album)).parent.mkdir(parents=True, exist_ok=True)
            (copies / path.relative_to(album)).write_bytes(path.read_bytes())
    moved = ImageIndex.load(index.store.folder, model, processor, copies)
    first = moved.search("red")
    encoded_sizes.clear()
    assert moved.search("red") == first and not encoded_sizes


def test_queries_are_checked(index, search_warnings):
    for query in ("", "   ", "?!.", "\n"):
        with pytest.raises(ValueError, match="has no word"):
            index.search(query)
    for query in (None, 3, ["red"], b"red"):
        with pytest.raises(ValueError, match="give a text or a PIL image"):
            index.search(query)
    for settings in (
        {"top_k": 0},
        {"top_k": 2.5},
        {"rerank_k": -1},
        {"rerank_k": None},
        {"top_k": np.int64(0)},
        {"top_k": "3"},
    ):
        with pytest.raises(ValueError, match="it must be an integer of at least"):
            index.search("red", **settings)
    for weight in (float("nan"), float("inf"), "1", torch.ones(2)):
        with pytest.raises(ValueError, match="itc_weight is .*give a finite number, such as 0 or 1"):
            index.search("red", itc_weight=weight)
    counted = index.search("red", top_k=np.int64(3), rerank_k=torch.tensor(5), itc_weight=np.float32(0.5))
    assert counted == index.search("red", top_k=3, rerank_k=5, itc_weight=0.5)
    index.search("red")  # now all images are cached, and later searches use the same batches
    assert not search_warnings
    long = "two dogs in the snow " * 500  # more than 10,000 characters
    assert index.search(long) == index.search(" ".join(long.split()[:29]))  # and [CLS]
    assert search_warnings == ["Only the first 30 of the 2501 tokens of the query are read."]
    assert len(index.search("x" * 10_000)) == 10
