"""In ONNX the encoders and the matching model compute what they do in torch, for any number of images and texts.

It needs onnxscript and onnxruntime, which `make common` installs; torch.export alone is in test_transformers.py.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPOSITORY
from PIL import Image
from torch import nn
from transformers.utils import ModelOutput

from albef_hf import AlbefConfig, AlbefForRetrieval, AlbefVisionModel

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Tensors = dict[str, torch.Tensor]
SHAPES = {
    "input_ids": {0: "pairs", 1: "tokens"},
    "attention_mask": {0: "pairs", 1: "tokens"},
    "pixel_values": {0: "pairs"},
}


class TextFeatures(nn.Module):
    """`get_text_features` as a model of its own."""

    def __init__(self, model: AlbefForRetrieval):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> ModelOutput:
        return self.model.get_text_features(input_ids, attention_mask)


@pytest.fixture
def sharp(config) -> AlbefConfig:
    """Weights at which different texts and images give different numbers."""
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.2
    torch.manual_seed(0)
    return config


def pairs(number: int, tokens: int, padded: int) -> Tensors:
    """Random images and texts; every other text has padding."""
    mask = torch.ones(number, tokens, dtype=torch.long)
    mask[1::2, tokens - padded :] = 0
    ids = torch.randint(1000, 30000, (number, tokens))
    return {"input_ids": ids * mask, "attention_mask": mask, "pixel_values": torch.randn(number, 3, 32, 32)}


def exported(model: nn.Module, inputs: Tensors, folder: Path) -> Callable[[Tensors], list[np.ndarray]]:
    """The model in onnxruntime."""
    shapes = {name: SHAPES[name] for name in inputs}
    torch.onnx.export(model, (), folder / "model.onnx", kwargs=inputs, dynamic_shapes=shapes, dynamo=True)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return lambda others: session.run(None, {name: tensor.numpy() for name, tensor in others.items()})


@torch.no_grad()
def assert_the_same(model: nn.Module, names: tuple[str, ...], folder: Path) -> None:
    """Exported with two pairs without padding, it is run with others: their padding must not be taken for words."""
    run = exported(model, {name: pairs(2, 7, 0)[name] for name in names}, folder)
    for number, tokens, padded in ((2, 7, 0), (5, 9, 4), (1, 3, 0), (8, 30, 11)):
        inputs = {name: pairs(number, tokens, padded)[name] for name in names}
        for actual, (name, expected) in zip(run(inputs), model(**inputs).items(), strict=True):
            assert np.isfinite(actual).all() and actual.shape == expected.shape, name
            np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-4, err_msg=name)
            assert number == 1 or expected.std(0).max() > 0.01, name  # equal numbers mean something


def test_image_encoder(sharp, tmp_path):
    assert_the_same(AlbefVisionModel(sharp.vision_config).eval(), ("pixel_values",), tmp_path)


@pytest.mark.parametrize(("pooling", "offset"), [("cls", 0), ("mean", 2)])
def test_text_features(sharp, tmp_path, pooling, offset):
    sharp.text_pooling, sharp.text.position_offset = pooling, offset
    assert_the_same(TextFeatures(AlbefForRetrieval(sharp)).eval(), ("input_ids", "attention_mask"), tmp_path)


def test_matching_model(sharp, tmp_path):
    assert_the_same(AlbefForRetrieval(sharp).eval(), tuple(SHAPES), tmp_path)


def test_the_snippet_of_the_readme_runs(sharp, processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in (AlbefForRetrieval(sharp), processor):
        part.save_pretrained("you/albef")
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (snippet,) = [s for s in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in s]
    known = {"image": Image.new("RGB", (50, 40), "red")}
    exec(snippet, known)  # noqa: S102
    with torch.no_grad():
        expected = known["model"].eval()(**known["inputs"]).itm_logits
    assert np.allclose(known["logits"], expected.numpy(), atol=1e-4)
