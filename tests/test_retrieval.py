"""Retrieval: recalls worked out by hand, and matching scores that are those of the plain forward pass."""

import pytest
import torch
from PIL import Image

from albef_hf import AlbefForPreTraining
from albef_hf.retrieval import encode, match, recall, rerank_candidates, score_all


def test_recall_by_hand():
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3],  # right answer first
            [0.9, 0.8, 0.2, 0.3],  # second
            [0.9, 0.8, 0.1, 0.3],  # last
            [0.5, 0.5, 0.5, 0.5],  # a tie with three wrong answers counts as last
        ]
    )
    positives = torch.eye(4, dtype=torch.bool)
    assert recall(scores, positives, (1, 2, 3, 4)) == {1: 25.0, 2: 50.0, 3: 50.0, 4: 100.0}


def test_recall_with_several_right_answers_takes_the_best():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.2]])
    positives = torch.tensor([[True, False, True, False]])
    assert recall(scores, positives, (1, 2)) == {1: 0.0, 2: 100.0}


def test_candidates_are_the_best_of_each_side():
    similarities = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.95, 0.2]])
    of_image, of_text = rerank_candidates(similarities, 1)
    assert of_image.tolist() == [[True, False, False], [False, True, False]]
    assert of_text.tolist() == [[True, False, False], [False, True, True]]
    assert rerank_candidates(similarities, 99)[0].all()


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]


def test_matching_scores_are_those_of_the_forward(model, processor, pictures):
    texts = ["a red one", "green", "the blue one of all the pictures", "none"]
    features = encode(model, processor, pictures, texts, batch_size=2)
    wanted = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    scores = match(model, features, wanted, range(3), batch_size=2)
    for image, picture in enumerate(pictures):
        for text, caption in enumerate(texts):
            inputs = processor(images=picture, text=caption, return_tensors="pt")
            expected = model(**inputs).itm_logits[0, 1] if wanted[image, text] else torch.tensor(0.0)
            assert scores[image, text].item() == pytest.approx(expected.item(), abs=1e-5)


def test_metrics_do_not_depend_on_how_the_work_is_shared(model, processor, pictures):
    captions = [["red", "a red one"], ["green"], ["blue", "sky", "a blue one"]]
    alone = score_all(model, processor, pictures, captions, k=3).metrics()
    parts = []
    for rank in (0, 1):
        score_all(model, processor, pictures, captions, k=3, share=(rank, 2), reduce=lambda s: parts.append(s) or s)
    together = score_all(model, processor, pictures, captions, k=3, reduce=lambda s: parts[0] + parts[1]).metrics()
    assert together == alone
    assert set(alone) == {f"{a}_{b}_r{k}" for a in ("itc", "itm") for b in ("text", "image") for k in (1, 5, 10)}
    assert all(0 <= value <= 100 for value in alone.values())


def test_training_mode_is_left_as_it_was(model, processor, pictures):
    model.train()
    score_all(model, processor, pictures, [["a"], ["b"], ["c"]], k=2)
    assert model.training


def test_scores_that_are_no_numbers_find_nothing():
    assert recall(torch.full((3, 20), torch.nan), torch.eye(3, 20, dtype=torch.bool)) == {1: 0.0, 5: 0.0, 10: 0.0}


def test_similarities_stay_float32_under_bfloat16(model, processor, pictures):
    with torch.autocast("cpu", torch.bfloat16):
        features = encode(model, processor, pictures, ["red", "green"])
        similarities = features.similarities
    assert similarities.dtype == torch.float32
    assert torch.equal(similarities, features.image_embeds @ features.text_embeds.T)


def test_texts_are_cut_to_what_the_model_has_positions_for(config, processor, pictures):
    config.text_config.max_position_embeddings = 12
    features = encode(AlbefForPreTraining(config), processor, pictures, ["word " * 25])
    assert features.text_hidden_states.shape[1] == 12
