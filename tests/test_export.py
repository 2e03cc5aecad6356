"""Exported models compute by onnxruntime what they do in torch, for any number of images and texts.

It needs onnx, onnxscript and onnxruntime, which `make common` installs; `tests/export` runs without.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_colleagues_can_read
from paths import REPOSITORY
from PIL import Image
from safetensors.torch import load_file, save_file
from sharp_models import make
from transformers import PreTrainedModel

from albef_hf import (
    AlbefForImageCaptioning,
    AlbefForImageTextClassification,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefModel,
)
from albef_hf.modeling_albef import AlbefTwoImageModel

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from albef_hf.export import to_onnx
from albef_hf.export.graphs import TextEncoder
from albef_hf.export.runtime import OnnxCaptioning, OnnxModel, OnnxQuestionAnswering, OnnxRetrieval

TEXTS = ["a red ball", "two dogs in the white snow", "", "a green ring above a blue star"]
ANSWERS = ["yes", "no", "a red ball", "two", "two dogs", "in the snow"]
CALIBRATION = {"scale": 0.5, "cosine_weight": 3.0, "bias": -1.0, "fitted_on": "four images"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[tuple, Path]:
    """What was exported already, by the head and whether it is quantized."""
    return {}


@pytest.fixture
def export(folders, config, processor, run, tmp_path_factory, capsys):
    """Export a head once by the command; return it and the folder."""
    config.match_calibration = CALIBRATION

    def exported(kind: type[PreTrainedModel], *options: str) -> tuple[PreTrainedModel, Path]:
        model = make(kind, config)
        if (kind, options) not in folders:
            folder = tmp_path_factory.mktemp(kind.__name__)
            for part in (model, processor):
                part.save_pretrained(folder / "model")
            run("export", folder / "model", folder / "onnx", *options)
            print(capsys.readouterr().out)
            folders[kind, options] = folder / "onnx"
        return model, folders[kind, options]

    return exported


@pytest.fixture
def inputs(processor) -> dict[str, torch.Tensor]:
    """Four images and texts of different lengths."""
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in TEXTS]
    return dict(processor(images=images, text=TEXTS, return_tensors="pt"))


def arrays(inputs: dict[str, torch.Tensor], *names: str) -> list[np.ndarray]:
    return [inputs[name].numpy() for name in names]


def assert_close(actual: np.ndarray, expected: torch.Tensor, atol: float = 1e-4) -> None:
    assert np.isfinite(actual).all() and actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=atol)
    assert expected.numel() == 1 or expected.std() > 0.01  # equal numbers mean something


@torch.no_grad()
def assert_retrieves(model: AlbefForRetrieval, folder: Path, inputs: dict[str, torch.Tensor], atol: float) -> None:
    found = OnnxRetrieval(folder)
    image_embeds, image_states = found.encode_images(*arrays(inputs, "pixel_values"))
    text_embeds, text_states = found.encode_texts(*arrays(inputs, "input_ids", "attention_mask"))
    expected = model(**inputs)
    assert_close(image_embeds, expected.image_embeds, atol)
    assert_close(text_embeds, expected.text_embeds, atol)
    log_odds = np.stack([found.match_texts(states, text_states) for states in image_states])
    assert_close(log_odds.diagonal(), expected.itm_logits.diff()[:, 0], 20 * atol)
    for text, states in enumerate(text_states):
        assert_close(found.match_images(image_states, states), torch.tensor(log_odds[:, text]), 20 * atol)
    probability = found.probability(log_odds, image_embeds @ text_embeds.T)
    assert_close(probability.diagonal(), model.match_probability(expected), 5 * atol)


def test_both_stages_of_retrieval(export, inputs):
    model, folder = export(AlbefForRetrieval)
    assert_retrieves(model, folder, inputs, 1e-5)


def test_int8_is_small_and_close(export, inputs, capsys):
    model, folder = export(AlbefForRetrieval, "--int8")
    assert_retrieves(model, folder, inputs, 0.05)
    _, exact = export(AlbefForRetrieval)
    sizes = [sum(file.stat().st_size for file in path.glob("text_encoder*")) for path in (folder, exact)]
    assert sizes[0] < 0.4 * sizes[1]
    assert_colleagues_can_read(folder)
    assert "(int8)" in (folder / "README.md").read_text()


@torch.no_grad()
def test_answers(export, inputs, processor):
    model, folder = export(AlbefForQuestionAnswering)
    found = OnnxQuestionAnswering(folder)
    question = arrays(inputs, "pixel_values", "input_ids", "attention_mask")
    expected = model.generate(**inputs, max_new_tokens=5, num_beams=1, do_sample=False)
    assert np.array_equal(found.generate(*question, max_new_tokens=5), expected)
    answers = processor.encode_answers(ANSWERS)
    rows, probabilities = model.rank_answers(
        **inputs, answer_ids=answers["input_ids"], answer_attention_mask=answers["attention_mask"], top_k=4
    )
    for index in range(len(TEXTS)):
        one = [part[index : index + 1] for part in question]
        actual = found.rank_answers(*one, *arrays(answers, "input_ids", "attention_mask"), top_k=4)
        assert np.array_equal(actual[0], rows[index])
        assert_close(actual[1], probabilities[index])


@torch.no_grad()
def test_captions(export, inputs, processor):
    model, folder = export(AlbefForImageCaptioning)
    prompt = processor.encode_prompt("a photo of")
    expected = model.generate(
        pixel_values=inputs["pixel_values"],
        input_ids=torch.tensor([prompt] * len(TEXTS)),
        max_new_tokens=6,
        num_beams=1,
        do_sample=False,
    )
    written = OnnxCaptioning(folder).generate(inputs["pixel_values"].numpy(), prompt, max_new_tokens=6)
    assert np.array_equal(written, expected) and len(np.unique(written, axis=0)) > 1
    ended = [*prompt, processor.tokenizer.sep_token_id]
    assert np.array_equal(OnnxCaptioning(folder).generate(inputs["pixel_values"].numpy(), ended, 6), expected)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (AlbefForImageTextClassification, "classifier"),
        (AlbefForVisualEntailment, "classifier"),
        (AlbefForVisualReasoning, "classifier"),
        (AlbefModel, "fusion"),
        (AlbefTwoImageModel, "fusion"),
    ],
)
@torch.no_grad()
def test_other_heads(kind, file, export, inputs):
    model, folder = export(kind)
    if "second_layers" in str(model):
        inputs["pixel_values"] = torch.stack([inputs["pixel_values"], inputs["pixel_values"].flip(0)], dim=1)
    for count in (1, 4):
        some = {name: value[:count] for name, value in inputs.items()}
        outputs = OnnxModel(folder).run(file, *arrays(some, "pixel_values", "input_ids", "attention_mask"))
        expected = model(**some)
        if file == "classifier":
            assert_close(outputs, expected.logits)
        else:
            real = some["attention_mask"] == 1  # states of padding differ, and nothing reads them
            assert_close(outputs[0][real], expected.last_hidden_state[real])
            assert_close(outputs[1], expected.image_hidden_states)


def test_mean_pooling_and_shifted_positions(config, tmp_path):
    config.text_pooling, config.text.position_offset = "mean", 2
    exported = to_onnx.export_graph(TextEncoder(make(AlbefForRetrieval, config)).eval(), tmp_path / "text.onnx")
    assert exported.differences["float32"] < 1e-5


def test_a_pretrained_model_has_the_graphs_of_retrieval(model, processor, tmp_path, monkeypatch):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    assert isinstance(to_onnx.load_model(tmp_path / "model"), AlbefForPreTraining)
    monkeypatch.setattr(to_onnx, "_trace", lambda graph, path: None)
    monkeypatch.setattr(to_onnx, "_difference", lambda graph, path: 1e-6)
    exported = to_onnx.export_model(tmp_path / "model", tmp_path / "onnx")
    names = [graph.name for graph in exported]
    assert names == ["image_encoder.onnx", "text_encoder.onnx", "match_texts.onnx", "match_images.onnx"]


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_a_graph_that_differs_is_refused(difference, model, processor, tmp_path, monkeypatch):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(to_onnx, "_trace", lambda graph, path: path.write_bytes(b"..."))
    monkeypatch.setattr(to_onnx, "_difference", lambda graph, path: difference)
    with pytest.raises(ValueError, match="image_encoder.onnx differs from torch by .* nothing was written"):
        to_onnx.export_model(tmp_path / "model", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_what_is_not_exported_is_refused(config, model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    make(AlbefForTextAssignment, config).save_pretrained(tmp_path / "assignment")
    with pytest.raises(ValueError, match="AlbefForTextAssignment, which is not exported. Choose"):
        to_onnx.load_model(tmp_path / "assignment")
    weights = load_file(saved := tmp_path / "model" / "model.safetensors")
    del weights["itm_head.bias"]
    save_file(weights, saved, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no itm_head.bias: save"):
        to_onnx.load_model(tmp_path / "model")
    with pytest.raises(ValueError, match="is not empty. Remove it or choose another folder"):
        to_onnx.export_model(tmp_path / "model", tmp_path)


def test_int8_that_is_not_finite_is_refused(model, tmp_path, monkeypatch):
    differences = iter([1e-6, float("nan")])
    for name in ("_trace", "quantize_dynamic", "_stacked_products"):
        monkeypatch.setattr(to_onnx, name, lambda *args, **settings: None)
    monkeypatch.setattr(to_onnx, "_difference", lambda graph, path: next(differences))
    with pytest.raises(ValueError, match="not finite: export it without --int8"):
        to_onnx.export_graph(TextEncoder(model), tmp_path / "text_encoder.onnx", int8=True)


@torch.no_grad()
def test_adapters_are_merged(config, batch, tmp_path):
    pytest.importorskip("peft")
    config.lora_config = {"r": 2, "lora_alpha": 4, "target_modules": r"text_model\..*q_proj"}
    adapted = make(AlbefForRetrieval, config)
    adapted.save_pretrained(tmp_path)
    merged = to_onnx.load_model(tmp_path)
    assert merged.config.lora_config is None and not any("lora" in name for name, _ in merged.named_parameters())
    texts = batch["input_ids"], batch["attention_mask"]
    expected = adapted.get_text_features(*texts).pooler_output
    torch.testing.assert_close(merged.get_text_features(*texts).pooler_output, expected)
    for name, weight in adapted.named_parameters():
        weight.mul_("lora_B" not in name)
    assert not torch.allclose(adapted.get_text_features(*texts).pooler_output, expected)


def test_the_snippet_of_the_page_runs(export, tmp_path, monkeypatch):
    _, folder = export(AlbefForRetrieval)
    monkeypatch.chdir(tmp_path)
    Path("albef-onnx").symlink_to(folder)
    Image.new("RGB", (50, 40), "red").save("photo.jpg")
    text = (REPOSITORY / "docs/guides/export.md").read_text(encoding="utf-8")
    (snippet,) = [s for s in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Onnx" in s]
    known = {"paths": ["photo.jpg"] * 3}
    exec(snippet, known)  # noqa: S102
    assert known["log_odds"].shape == (3,)


def test_exported_models_run_without_torch():
    program = "import sys\nsys.modules['torch'] = None\nimport albef_hf.export.runtime"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
