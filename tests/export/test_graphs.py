"""The graphs that are exported compute in torch what the models do; `tests/test_export.py` runs them as ONNX."""

import sys

import pytest
import torch
from sharp_models import make

from albef_hf import (
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    cli,
)
from albef_hf.export.graphs import GRAPHS, random_inputs
from albef_hf.modeling_albef import MODEL_CLASSES


def graphs_of(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {name: kind(model).eval() for name, kind in GRAPHS[type(model).__name__].items()}


def test_every_head_but_text_assignment_is_exported():
    assert GRAPHS.keys() == MODEL_CLASSES.keys() - {AlbefForTextAssignment.__name__}


def test_random_inputs_are_of_the_asked_size_and_padded(config):
    graph = graphs_of(make(AlbefForVisualReasoning, config))["classifier"]
    inputs = random_inputs(graph, (6, 7))
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "pixel_values": (6, 2, 3, 32, 32),
        "input_ids": (6, 7),
        "attention_mask": (6, 7),
    }
    assert 0 < inputs["attention_mask"][:, -1].sum() < 6 == inputs["attention_mask"][:, 0].sum()
    assert random_inputs(graph, (2, 900))["input_ids"].shape == (2, config.text.max_tokens)


@torch.no_grad()
def test_graphs_of_retrieval(config, batch):
    model = make(AlbefForRetrieval, config)
    pixels, ids, mask = batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
    graphs = graphs_of(model)
    image_embeds, image_states = graphs["image_encoder"](pixels)
    text_embeds, text_states = graphs["text_encoder"](ids, mask)
    expected = model(ids, pixels, mask)
    assert torch.equal(image_embeds, expected.image_embeds) and torch.equal(text_embeds, expected.text_embeds)
    for row, logits in enumerate(expected.itm_logits):
        (of_texts,) = graphs["match_texts"](image_states[row : row + 1], text_states, mask)
        (of_images,) = graphs["match_images"](image_states, text_states[row : row + 1, : mask[row].sum()])
        assert torch.allclose(of_texts[row], logits, atol=1e-5) and torch.allclose(of_images[row], logits, atol=1e-5)
    assert expected.itm_logits.std(0).min() > 0.01


@torch.no_grad()
def test_graphs_of_question_answering(config, batch):
    model = make(AlbefForQuestionAnswering, config)
    pixels, ids, mask = batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
    answers = ids[:, :5]
    graphs = graphs_of(model)
    (logits,) = graphs["answer_decoder"](answers, graphs["question_encoder"](pixels, ids, mask)[0], mask)
    expected = model(ids, pixels, mask, decoder_input_ids=answers).logits
    assert torch.allclose(logits, expected, atol=1e-5) and expected.std() > 0.01


@torch.no_grad()
def test_graph_of_classification(config, batch):
    model = make(AlbefForVisualEntailment, config)
    (logits,) = graphs_of(model)["classifier"](batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
    expected = model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"]).logits
    assert torch.equal(logits, expected) and expected.std() > 0.01


def test_a_missing_library_is_named_with_its_extra(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delenv(cli.TRACEBACK)
    with pytest.raises(SystemExit, match=r'error: onnx is not installed: pip install "albef_hf\[export\]"'):
        run("export", tmp_path, tmp_path / "onnx")
