"""The benchmark on photographs: an own image model as image encoder, and rows with exchanged photographs."""

import importlib
import sys

import pytest
import torch
from paths import REPOSITORY

from albef_hf import AlbefConfig, AlbefForRetrieval

FOLDER = REPOSITORY / "benchmarks" / "photographs"


def test_own_class_is_an_image_encoder(monkeypatch, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    monkeypatch.syspath_prepend(FOLDER)
    efficientnet_lite = importlib.import_module("efficientnet_lite")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_multimodal_layers": 1, "num_attention_heads": 2}
    vision = efficientnet_lite.EfficientNetLiteConfig(image_size=64)
    config = AlbefConfig(vision_config=vision, text_config=text | {"intermediate_size": 64}, projection_dim=16)
    model = AlbefForRetrieval(config).eval()
    pixels = torch.randn(2, 3, 64, 64)
    states = model.albef.vision_model(pixels).last_hidden_state
    assert states.shape == (2, 1 + 2 * 2, 1280)
    torch.testing.assert_close(states[:, 0], states[:, 1:].mean(1))  # what is contrasted
    model.save_pretrained(tmp_path)
    loaded = AlbefForRetrieval.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.albef.vision_model(pixels).last_hidden_state, states, rtol=0, atol=0)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "efficientnet_lite", raising=False)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # as if it were not installed
    with pytest.raises(SystemExit, match="error: run pip install efficientnet-lite-pytorch"):
        importlib.import_module("efficientnet_lite")


def test_exchanged_rows_contradict(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("exchanged_rows")
    monkeypatch.setattr(module, "COMMON_WORDS", 1)  # "a"
    captions = [
        {"image": "dog.jpg", "caption": ["A dog runs .", "A brown dog"]},
        {"image": "dogs.jpg", "caption": ["A dog sleeps ."]},
        {"image": "boat.jpg", "caption": ["A boat on a lake"]},
    ]
    rows = [
        {"image": "dog.jpg", "sentence": "A dog moves.", "label": "entailment"},
        {"image": "boat.jpg", "sentence": "A lake, a dog!", "label": "entailment"},  # no image without these words
        {"image": "dogs.jpg", "sentence": "A cat", "label": "contradiction"},
    ]
    assert module.exchanged_rows(rows, captions, seed=0) == [
        {"image": "boat.jpg", "sentence": "A dog moves.", "label": "contradiction"}
    ]
    with pytest.raises(ValueError, match=r"1 images have no captions, such as boat\.jpg"):
        module.exchanged_rows(rows, captions[:2], seed=0)
