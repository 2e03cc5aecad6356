"""Retrieval: recalls worked out by hand, and matching scores that are those of the plain forward pass."""

import pytest
import torch
from PIL import Image

from albef_hf import AlbefForPreTraining, retrieval_albef
from albef_hf.retrieval_albef import (
    ImageEncoder,
    Ranking,
    best_matches,
    encode_texts,
    evaluation_mode,
    match,
    recall,
    rerank,
    score_all,
)

CAPTIONS = [["red", "a red one"], ["green"], ["blue", "sky", "a blue one"]]


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


def test_a_query_without_a_right_candidate_finds_nothing():
    scores, positives = torch.tensor([[0.2, 0.1], [0.1, 0.2]]), torch.tensor([[False, False], [False, True]])
    assert recall(scores, positives, (1, 5)) == {1: 50.0, 5: 50.0}


def test_scores_that_are_no_numbers_find_nothing():
    assert recall(torch.full((3, 20), torch.nan), torch.eye(3, 20, dtype=torch.bool)) == {1: 0.0, 5: 0.0, 10: 0.0}


def test_best_matches_do_not_depend_on_the_blocks():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(7, 4, generator=generator), torch.randn(9, 4, generator=generator)
    similarities, numbers = best_matches(queries, keys, 3, block=2)
    assert torch.equal(numbers, (queries @ keys.T).argsort(1, descending=True)[:, :3])
    assert torch.allclose(similarities, (queries @ keys.T).gather(1, numbers))
    assert best_matches(queries, keys, 99)[1].shape == (7, 9)


def test_the_cosine_counts_as_far_as_it_is_wanted():
    ranking = Ranking(
        indices=torch.tensor([[4, 2, 9]]),
        similarities=torch.tensor([[0.9, 0.5, 0.1]]),
        logits=torch.tensor([[[2.0, 2.0], [-1.0, -0.7]]]),  # the third is not reranked
        positives=torch.tensor([[True, False, False]]),
    )
    assert ranking.reranked().tolist() == [[2, 4]]
    assert ranking.reranked(itc_weight=1.0).tolist() == [[4, 2]]
    assert torch.allclose(ranking.scores(itc_weight=2.0), torch.tensor([[1.8, 1.3]]))
    assert ranking.reranked(mismatch_weight=0.0).tolist() == [[4, 2]]  # the logit of a match alone


@pytest.fixture
def images() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]


def expected_logits(model, processor, image, caption) -> list[float]:
    return model(**processor(images=image, text=caption, return_tensors="pt")).itm_logits[0].tolist()


def test_matching_scores_are_those_of_the_forward(model, processor, images):
    texts = ["a red one", "green", "the blue one of all the images", "none"]
    encoder = ImageEncoder(model, processor, images, range(3), batch_size=2)
    features = encode_texts(model, processor, texts, batch_size=2)
    of_images = torch.tensor([[0, 2], [3, 1], [1, 2]])
    of_texts = torch.tensor([[0], [0], [2], [2]])
    image_logits, text_logits = rerank(model, encoder.hidden_states(), features, of_images, of_texts)
    for image, numbers in enumerate(of_images.tolist()):
        for place, text in enumerate(numbers):
            expected = expected_logits(model, processor, images[image], texts[text])
            assert image_logits[image, place].tolist() == pytest.approx(expected, abs=1e-5)
    for text, (image,) in enumerate(of_texts.tolist()):
        expected = expected_logits(model, processor, images[image], texts[text])
        assert text_logits[text, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_pair_that_both_directions_ask_for_is_scored_once(model, processor, images, monkeypatch):
    scored = []
    monkeypatch.setattr(retrieval_albef, "match", lambda *args: scored.append(len(args[3])) or match(*args))
    score_all(model, processor, images, CAPTIONS, rerank_k=6)
    assert scored == [6, 6, 6]


def test_images_are_encoded_again_where_memory_is_short(model, processor, images, monkeypatch):
    plenty = score_all(model, processor, images, CAPTIONS, rerank_k=3, batch_size=1)
    vision = model.config.vision_config
    values = ((vision.image_size // vision.patch_size) ** 2 + 1) * vision.hidden_size  # of one image
    encoded = []
    encode = ImageEncoder._encode
    monkeypatch.setattr(ImageEncoder, "_encode", lambda self, batch: encoded.extend(batch) or encode(self, batch))
    monkeypatch.setattr(retrieval_albef, "MAX_CACHED_VALUES", values)
    scarce = score_all(model, processor, images, CAPTIONS, rerank_k=3, batch_size=1)
    assert encoded == [0, 1, 2, 1, 2]
    assert torch.equal(scarce.image_to_text.logits, plenty.image_to_text.logits)


def test_some_images_are_asked_for_in_any_order(model, processor, images, monkeypatch):
    vision = model.config.vision_config
    monkeypatch.setattr(
        retrieval_albef, "MAX_CACHED_VALUES", ((vision.image_size // vision.patch_size) ** 2 + 1) * vision.hidden_size
    )
    encoder = ImageEncoder(model, processor, images, range(3), batch_size=1)
    encoder.embeds()
    everything = dict(encoder.hidden_states())
    numbers, states = zip(*encoder.hidden_states([2, 0, 1, 0]), strict=True)
    assert numbers == (2, 0, 1, 0) and list(encoder.cached) == [0]
    assert all(torch.equal(everything[number], one) for number, one in zip(numbers, states, strict=True))


def test_metrics_do_not_depend_on_how_the_work_is_shared(model, processor, images):
    alone = score_all(model, processor, images, CAPTIONS, rerank_k=3)
    # Each process hands over its features, and then its logits of both directions; what comes back are the sums.
    handed: list[list[torch.Tensor]] = [[], []]
    for rank in (0, 1):
        encoder = ImageEncoder(model, processor, images, range(rank, 3, 2))
        handed[rank].append(encoder.embeds())
    together = handed[0][0] + handed[1][0]
    assert torch.allclose(together.norm(dim=1), torch.ones(3))
    for rank in (0, 1):
        answers = iter([together])
        score_all(
            model,
            processor,
            images,
            CAPTIONS,
            rerank_k=3,
            rank=rank,
            world_size=2,
            all_reduce=lambda values, answers=answers, rank=rank: handed[rank].append(values) or next(answers, values),
        )
    assert torch.allclose(handed[0][-2] + handed[1][-2], alone.image_to_text.logits, atol=1e-6)
    assert torch.allclose(handed[0][-1] + handed[1][-1], alone.text_to_image.logits, atol=1e-6)
    assert not torch.equal(handed[0][-1], handed[1][-1])


def test_metrics_have_every_recall(model, processor, images):
    metrics = score_all(model, processor, images, CAPTIONS, rerank_k=3).metrics()
    assert set(metrics) == {f"{a}_{b}_r{k}" for a in ("itc", "itm") for b in ("text", "image") for k in (1, 5, 10)}
    assert all(0 <= value <= 100 for value in metrics.values())
    assert metrics["itc_text_r10"] == 100


def test_what_cannot_be_ranked_is_refused(model, processor, images):
    scores, right = torch.zeros(3, 3), torch.eye(3, dtype=torch.bool)
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"top_k is {k}: it must be an integer of at least 1"):
            best_matches(scores, scores, k)
        with pytest.raises(ValueError, match=f"k is {k}"):
            score_all(model, processor, images, CAPTIONS, rerank_k=k)
        with pytest.raises(ValueError, match=f"ranks is {k}"):
            recall(scores, right, (1, k))
    with pytest.raises(ValueError, match="number of queries is 0"):
        recall(scores[:0], right[:0])
    with pytest.raises(ValueError, match=r"scores are \(3, 3\) and positives \(1, 3\)"):  # which would be broadcast
        recall(scores, right[:1])
    with pytest.raises(ValueError, match="number of texts is 0"):
        encode_texts(model, processor, [])
    with pytest.raises(ValueError, match="number of texts is 0"):
        score_all(model, processor, images, [[], [], []])
    with pytest.raises(ValueError, match="3 images and 2 lists of captions"):
        score_all(model, processor, images, CAPTIONS[:2])
    with pytest.raises(ValueError, match="batch_size is 0"):
        score_all(model, processor, images, CAPTIONS, batch_size=0)


def test_training_mode_is_left_as_it_was(model, processor, images):
    """That of each part, also after an error; in between, texts are read without dropout."""
    model.train().albef.vision_model.eval()
    before = [part.training for part in model.modules()]
    score_all(model, processor, images, [["a"], ["b"], ["c"]], rerank_k=2)
    with pytest.raises(ValueError, match="string"):
        score_all(model, processor, images, [["a"], ["b"], [3]], rerank_k=2)
    texts = [encode_texts(model, processor, ["a dog"]) for _ in range(2)]
    assert torch.equal(texts[0].attended, texts[1].attended)
    encoder = ImageEncoder(model, processor, images, range(3))
    assert torch.equal(encoder.embeds(), encoder.embeds())
    assert [part.training for part in model.modules()] == before


def test_the_last_of_several_evaluations_puts_the_model_back(model):
    """As of threads that share it, whichever ends first."""
    model.train().albef.vision_model.eval()
    before = [part.training for part in model.modules()]
    first, second = evaluation_mode(model), evaluation_mode(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in model.modules())
    second.__exit__(None, None, None)
    assert [part.training for part in model.modules()] == before


def test_similarities_stay_float32_under_bfloat16(model, processor, images):
    with torch.autocast("cpu", torch.bfloat16):
        embeds = ImageEncoder(model, processor, images, range(3)).embeds()
        similarities, numbers = best_matches(embeds, encode_texts(model, processor, ["red", "green"]).embeds, 2)
    assert similarities.dtype == torch.float32
    texts = encode_texts(model, processor, ["red", "green"]).embeds
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(similarities, (embeds @ texts.T).gather(1, numbers).float())


def test_texts_are_cut_to_what_the_model_has_positions_for(config, processor):
    config.text_config.max_position_embeddings = 12
    features = encode_texts(AlbefForPreTraining(config), processor, ["word " * 25])
    assert features.attended.shape[1] == 12
