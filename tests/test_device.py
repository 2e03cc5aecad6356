"""Inference on a virtual GPU has the results of the CPU: scores, search, pipelines, heat maps."""

from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from virtual_device import GPU, VirtualDevice

from albef_hf import (
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    pipeline_albef,
)
from albef_hf.data import Scenes
from albef_hf.heatmaps_albef import answer_heatmaps, contrastive_heatmaps, matching_heatmaps, overlay, score_boxes
from albef_hf.retrieval_albef import score_all

TEXTS = ["a red ball", "a blue star"]


@pytest.fixture
def images() -> list[Image.Image]:
    return [row["image"] for row in Scenes(6, 3)]


@pytest.fixture
def inputs(batch) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask")}


@contextmanager
def on_both_devices(head: type, config):
    """Return a model on the CPU, and the same one on a virtual GPU, which can be used in the context."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(head(config).eval())
    with VirtualDevice() as device:
        models[1].to(GPU)
        yield models
    assert not device.doubles, device.doubles


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), expected)


def test_scores_of_a_retrieval(config, processor, images):
    with on_both_devices(AlbefForRetrieval, config) as models:
        expected, found = (score_all(model, processor, images, [TEXTS] * 6, rerank_k=4) for model in models)
        assert found.metrics() == expected.metrics()
        assert_same(found.image_to_text.reranked(0.5), expected.image_to_text.reranked(0.5))


def test_an_index(config, processor, images, tmp_path):
    pytest.importorskip("faiss")
    from albef_hf.search.index import ImageIndex

    with on_both_devices(AlbefForRetrieval, config) as models:
        results = []
        for number, model in enumerate(models):
            index = ImageIndex.build(model, processor, images, tmp_path / f"{number}")
            results.append([index.search(query, top_k=4, rerank_k=3) for query in (TEXTS[0], images[2])])
        assert results[0] == results[1]


def test_ranked_and_written_answers(config, inputs):
    answers = torch.tensor([[101, 5, 102, 0], [101, 6, 7, 102], [101, 8, 102, 0]])
    with on_both_devices(AlbefForQuestionAnswering, config) as (model, moved):
        there = {name: value.to(GPU) for name, value in inputs.items()}
        expected = model.rank_answers(**inputs, answer_ids=answers, top_k=3)
        found = moved.rank_answers(**there, answer_ids=answers.to(GPU), top_k=3)
        assert_same(found[0], expected[0])
        for beams in (1, 3):
            settings = {"max_new_tokens": 4, "num_beams": beams}
            assert_same(moved.generate(**there, **settings), model.generate(**inputs, **settings))


def test_heat_maps(config, inputs, images):
    with on_both_devices(AlbefForRetrieval, config) as (model, moved):
        there = {name: value.to(GPU) for name, value in inputs.items()}
        heat = matching_heatmaps(moved, **there)
        assert_same(heat, matching_heatmaps(model, **inputs))
        assert_same(contrastive_heatmaps(moved, **there), contrastive_heatmaps(model, **inputs))
        score_boxes(heat[0].mean(0), [[0, 0, 10, 10]], (32, 32))
        overlay(images[0], heat[0].mean(0))
    with on_both_devices(AlbefForQuestionAnswering, config) as (model, moved):
        answers = torch.tensor(4 * [[101, 2000, 102]])
        expected = answer_heatmaps(model, **inputs, answer_ids=answers)
        found = answer_heatmaps(moved, **there, answer_ids=answers.to(GPU))
        assert_same(found, expected)


@pytest.mark.parametrize(
    ("name", "head", "text", "settings"),
    [
        ("ImageTextRetrieval", AlbefForRetrieval, None, {"candidate_texts": TEXTS}),
        ("ImageTextMatching", AlbefForRetrieval, TEXTS[0], {}),
        ("VisualQuestionAnswering", AlbefForQuestionAnswering, "what?", {"candidate_answers": ["yes", "no"]}),
        ("VisualQuestionAnswering", AlbefForQuestionAnswering, "what?", {}),
        ("VisualEntailment", AlbefForVisualEntailment, TEXTS[0], {}),
        ("VisualReasoning", AlbefForVisualReasoning, TEXTS[0], {}),
        ("VisualGrounding", AlbefForRetrieval, TEXTS[0], {"boxes": [[0, 0, 10, 10]]}),
    ],
)
def test_a_pipeline(name, head, text, settings, config, processor, images):
    image = images[:2] if head is AlbefForVisualReasoning else images[0]
    given = [image] if text is None else [image, text]
    pipeline = getattr(pipeline_albef, f"{name}Pipeline")
    with on_both_devices(head, config) as (model, moved):
        results = pipeline(moved, processor, device=GPU)(*given, **settings)
        expected = pipeline(model, processor, device="cpu")(*given, **settings)
    for result, other in zip(
        *([item] if isinstance(item, dict) else item for item in (results, expected)), strict=True
    ):
        assert result.keys() == other.keys()
        assert result.get("score") == pytest.approx(other.get("score"), abs=1e-5)
