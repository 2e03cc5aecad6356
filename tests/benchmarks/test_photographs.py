"""The benchmark on photographs: an image model of one's own, heat maps, and rows with exchanged photographs."""

import importlib
import json
import runpy
import sys

import pytest
import torch
from paths import REPOSITORY
from PIL import Image

from albef_hf import AlbefConfig, AlbefForRetrieval
from albef_hf.search.html_report import word_maps

FOLDER = REPOSITORY / "benchmarks" / "photographs"


@pytest.mark.parametrize("networks", [[0], [0, 2]])
def test_own_class_is_an_image_encoder(monkeypatch, tmp_path, networks):
    pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    monkeypatch.syspath_prepend(FOLDER)
    efficientnet_lite = importlib.import_module("efficientnet_lite")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_multimodal_layers": 1, "num_attention_heads": 2}
    vision = efficientnet_lite.EfficientNetLiteConfig(networks=networks, image_size=64)
    config = AlbefConfig(vision_config=vision, text_config=text | {"intermediate_size": 64}, projection_dim=16)
    model = AlbefForRetrieval(config).eval()
    weights = model.albef.vision_model.encoder.state_dict()
    assert networks != [0] or all(name.startswith("network.") for name in weights)  # as in folders saved before
    pixels = torch.randn(2, 3, 64, 64)
    states = model.albef.vision_model(pixels).last_hidden_state
    assert states.shape == (2, 1 + 2 * 2, 1280 * len(networks))
    for network, part in zip(model.albef.vision_model.encoder.networks, states[:, 1:].split(1280, dim=2), strict=True):
        torch.testing.assert_close(network.extract_features(pixels).flatten(2).transpose(1, 2), part)
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


def test_heat_maps_of_nouns_are_drawn(model, processor, monkeypatch, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    for index, size in enumerate([(40, 30), (30, 40), (3, 200)]):
        Image.effect_noise(size, 90).save(tmp_path / f"{index}.png")
    nouns = [["0.png", "A dog with a red ball.", "dog"], ["1.png", "a red Ball", "Ball"], ["2.png", "a car", "car"]]
    (tmp_path / "nouns.json").write_text(json.dumps(nouns))
    command = [
        str(FOLDER / "heatmaps.py"),
        str(tmp_path / "model"),
        str(tmp_path / "nouns.json"),
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--image_root", str(tmp_path), "--per_sheet", "2"])
    runpy.run_path(command[0], run_name="__main__")
    assert sorted(file.name for file in (tmp_path / "out").glob("*.png")) == ["sheet_00.png", "sheet_01.png"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "heatmaps.jsonl").read_text().splitlines()]
    assert [row["noun"] for row in rows] == ["dog", "Ball", "car"] and rows[2]["share"] == 1
    for row, (name, caption, noun) in zip(rows, nouns, strict=True):
        with Image.open(tmp_path / name) as image:
            words, maps = word_maps(model, processor, caption, image.convert("RGB"))
        heatmap = maps[words.index(noun.lower())]
        assert heatmap[row["row"], row["column"]] == heatmap.max() and row["heat"] == pytest.approx(
            heatmap.max().item()
        )
        assert row["share"] == pytest.approx((heatmap.max() / maps.max()).item())
        assert row["strength"] == pytest.approx(row["share"] * row["probability"]) and 0 < row["probability"] < 1
    (tmp_path / "nouns.json").write_text(json.dumps([["0.png", "a dog", "cat"]]))
    with pytest.raises(ValueError, match="'cat' is none of the content words that are read of 'a dog': dog"):
        runpy.run_path(command[0], run_name="__main__")
    (tmp_path / "nouns.json").write_text(json.dumps([["0.png", "a dog"]]))
    with pytest.raises(ValueError, match="write \\[image, caption, noun\\]"):
        runpy.run_path(command[0], run_name="__main__")


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
