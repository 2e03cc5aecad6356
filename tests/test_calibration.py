"""The probability of a match: of a calibrated model it is the same everywhere, of others that of the matching head."""

import json
import math

import pytest
import torch
from PIL import Image
from sharp_models import make
from task_rows import small
from test_model_card import metadata

from albef_hf import (
    AlbefConfig,
    AlbefForPreTraining,
    AlbefForRetrieval,
    ImageTextMatchingPipeline,
    ImageTextRetrievalPipeline,
)
from albef_hf.calibration_albef import MatchCalibration, matching_log_odds
from albef_hf.demo.assistant import Assistant
from albef_hf.model_card import model_card, read_card, save_card, updated_card
from albef_hf.retrieval_albef import score_all

CALIBRATION = {"scale": 0.7, "cosine_weight": 9.0, "bias": -1.5, "fitted_on": "4 images of validation.json"}
TEXTS = ["a red one", "two dogs in the snow", "green", "the sky above a house"]
COLORS = ("red", "green", "blue", "white")


@pytest.fixture
def images() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), color) for color in COLORS]


@pytest.fixture
def calibrated(config) -> AlbefForRetrieval:
    """A model whose order changes with the calibration."""
    model = make(AlbefForRetrieval, config, seed=1)
    model.config.match_calibration = CALIBRATION
    return model


def by_hand(outputs) -> list[float]:
    log_odds = outputs.itm_logits[:, 1] - outputs.itm_logits[:, 0]
    cosines = (outputs.text_embeds * outputs.image_embeds).sum(-1)
    return (0.7 * log_odds + 9 * cosines - 1.5).sigmoid().tolist()


@torch.no_grad()
def test_the_same_pair_has_the_same_probability_everywhere(calibrated, processor, images, tmp_path):
    search = pytest.importorskip("albef_hf.search.index", reason="faiss is not installed")
    index = search.ImageIndex.build(calibrated, processor, images, tmp_path / "index")
    match = ImageTextMatchingPipeline(calibrated, processor)
    retrieve = ImageTextRetrievalPipeline(calibrated, processor)
    assistant = Assistant(retrieve, index=index)
    scores = score_all(calibrated, processor, images, [[text] for text in TEXTS], rerank_k=4)
    ranking = scores.text_to_image
    evaluated = scores.calibration.probability(matching_log_odds(ranking.logits), ranking.similarities)
    orders = set()
    for number, text in enumerate(TEXTS):
        outputs = calibrated(**processor(images=images, text=[text] * 4, return_tensors="pt"))
        expected = by_hand(outputs)
        assert calibrated.match_probability(outputs).tolist() == pytest.approx(expected, abs=1e-5)
        assert [match(image, text)["score"] for image in images] == pytest.approx(expected, abs=1e-5)
        best = sorted(range(4), key=lambda image: -expected[image])
        retrieved = [(result["index"], result["score"]) for result in retrieve(text, candidate_images=images)]
        for found in (retrieved, [(hit.key, hit.match) for hit in index.search(text)]):
            assert [image for image, _ in found] == best
            assert [score for _, score in found] == pytest.approx([expected[image] for image in best], abs=1e-5)
        assert ranking.reranked(scores.calibration.itc_weight)[number].tolist() == best
        in_evaluation = dict(zip(ranking.indices[number].tolist(), evaluated[number].tolist(), strict=True))
        assert [in_evaluation[image] for image in range(4)] == pytest.approx(expected, abs=1e-5)
        in_demo = dict((caption, score) for caption, score, _ in assistant.score(images[0], TEXTS))
        assert in_demo[text] == pytest.approx(expected[0], abs=1e-5)
        items, keys = assistant.search(text, top_k=4)
        assert keys == best and items[0][1].startswith(f"match {expected[best[0]]:.0%}")
        orders.add(ranking.reranked()[number].tolist() == best)
    assert False in orders, "for some texts, the log-odds alone have another order"


def test_an_explicit_weight_decides_the_order_and_not_the_probability(calibrated, processor, images, tmp_path):
    search = pytest.importorskip("albef_hf.search.index", reason="faiss is not installed")
    index = search.ImageIndex.build(calibrated, processor, images, tmp_path / "index")
    default = index.search(TEXTS[0])
    explicit = index.search(TEXTS[0], itc_weight=0)
    assert {hit.key: hit.match for hit in default} == {hit.key: hit.match for hit in explicit}
    assert default == index.search(TEXTS[0], itc_weight=9 / 0.7)
    log_odds = {hit.key: hit.score for hit in explicit}
    for hit in default:
        assert hit.score == pytest.approx(log_odds[hit.key] + 9 / 0.7 * hit.similarity)
        logit = 0.7 * log_odds[hit.key] + 9 * hit.similarity - 1.5
        assert hit.match == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)


def test_the_page_of_a_search_says_whether_it_is_calibrated(calibrated, processor, images, tmp_path):
    search = pytest.importorskip("albef_hf.search.index", reason="faiss is not installed")
    from albef_hf.search.commands import results_page

    index = search.ImageIndex.build(calibrated, processor, images, tmp_path / "index")
    for calibration, weight, told in (
        (CALIBRATION, "12.8571", "the probability, calibrated on 4 images of validation.json"),
        (None, None, "the probability, not calibrated"),
    ):
        calibrated.config.match_calibration = calibration
        page = results_page(index, TEXTS[0], index.search(TEXTS[0], top_k=1))
        assert told in page and (weight is None or f"log-odds of a match (ITM) + {weight} × cosine (ITC)" in page)
        by_image = results_page(index, images[0], index.search(images[0], top_k=1))
        assert "calibrated" not in by_image, "which has no such probability"


@torch.no_grad()
def test_without_a_calibration_it_is_that_of_the_matching_head(config, processor, images):
    model = make(AlbefForPreTraining, config)
    outputs = model(**processor(images=images[0], text=TEXTS, return_tensors="pt"))
    expected = outputs.itm_logits.softmax(-1)[:, 1]
    assert torch.allclose(model.match_probability(outputs), expected, atol=1e-6)
    results = ImageTextRetrievalPipeline(model, processor)(images[0], candidate_texts=TEXTS)
    assert [result["index"] for result in results] == expected.argsort(descending=True).tolist()
    scores = score_all(model, processor, images, [[text] for text in TEXTS], rerank_k=4)
    assert not scores.calibration.is_fitted and not any("calibrated" in name for name in scores.metrics())


def test_pairs_that_were_not_matched_have_no_probability(config, processor, images):
    model = make(AlbefForRetrieval, config)
    outputs = model(**processor(images=images[:3], text=TEXTS, return_tensors="pt"))
    with pytest.raises(ValueError, match="no logit for each pair"):
        model.match_probability(outputs)


def test_it_is_saved_and_loaded_by_both_heads(config, tmp_path):
    AlbefForPreTraining(config).save_pretrained(tmp_path / "plain")
    config.match_calibration = CALIBRATION
    AlbefForPreTraining(config).save_pretrained(tmp_path / "calibrated")
    retrieval = AlbefForRetrieval.from_pretrained(tmp_path / "calibrated")
    assert MatchCalibration.from_config(retrieval.config) == MatchCalibration(**CALIBRATION)
    retrieval.save_pretrained(tmp_path / "again")
    assert AlbefConfig.from_pretrained(tmp_path / "again").match_calibration == CALIBRATION
    plain = (tmp_path / "plain" / "config.json").read_text()
    assert "match_calibration" not in plain
    settings = json.loads((tmp_path / "calibrated" / "config.json").read_text())
    assert settings.pop("match_calibration") == CALIBRATION
    assert json.dumps(settings, indent=2, sort_keys=True) + "\n" == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "scale of match_calibration is 0.0: it must be above 0"),
        ({"scale": -1}, "above 0"),
        ({"bias": math.nan}, "bias of match_calibration is nan: it must be a finite number"),
        ({"cosine_weight": "1"}, "cosine_weight of match_calibration is '1'"),
        ({"scale": True}, "scale of match_calibration is True"),
        ({"fitted_on": None}, "fitted_on of match_calibration is None: it must name the data in words"),
        ({"offset": 1}, "it must have scale, cosine_weight, bias, fitted_on"),
    ],
)
def test_invalid_calibrations_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        config.match_calibration = CALIBRATION | change
    with pytest.raises(ValueError, match=message):
        AlbefConfig(match_calibration=CALIBRATION | change)
    with pytest.raises(ValueError, match="it must have scale"):
        config.match_calibration = {"scale": 1.0}


def test_a_training_drops_it(run, pretrained, tmp_path, pretrain, capsys):
    path = pretrained / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"match_calibration": CALIBRATION}))
    for task in ("retrieval", "entailment"):
        run("finetune", task, *small(pretrained, tmp_path / task))
        assert "match_calibration" not in (tmp_path / task / "config.json").read_text()
        assert "the calibration of the initial model does not hold after further training" in capsys.readouterr().out
    assert "match_calibration" not in (pretrain("--model", pretrained) / "config.json").read_text()
    assert AlbefConfig.from_pretrained(pretrained).match_calibration == CALIBRATION


def test_the_card_says_what_was_fitted_on_what(config, processor, tmp_path):
    for part in (AlbefForRetrieval(config), processor):
        part.save_pretrained(tmp_path)
    plain = str(model_card(tmp_path, "you/albef"))
    assert "not calibrated." in plain and "## Calibration" not in plain and "match_probability" not in plain
    config.match_calibration = CALIBRATION
    AlbefForRetrieval(config).save_pretrained(tmp_path)
    card = model_card(tmp_path, "you/albef")
    assert "sigmoid(0.7 * log_odds + 9 * cosine -1.5)" in card.content
    assert "Fitted on: 4 images of validation.json." in card.content
    assert "only its probability of a match is calibrated" in card.content and metadata(card)["tags"]
    image = Image.new("RGB", (60, 40), "red")
    image.save(tmp_path / "image.jpg")
    snippet = card.content.split("```python\n")[1].split("```")[0]
    snippet = snippet.replace("you/albef", str(tmp_path)).replace("image.jpg", str(tmp_path / "image.jpg"))
    exec(snippet, {})  # noqa: S102


def test_sections_of_a_card_that_were_edited_stay(config, processor, tmp_path):
    for part in (AlbefForRetrieval(config), processor):
        part.save_pretrained(tmp_path)
    save_card(model_card(tmp_path, "you/albef"), tmp_path)
    edited = read_card(tmp_path).replace("for research on vision", "for research on dogs").replace("\n", "\r\n")
    (tmp_path / "README.md").write_bytes(edited.encode())
    for scale in (0.5, 0.25):
        with updated_card(tmp_path):
            config.match_calibration = CALIBRATION | {"scale": scale}
            AlbefForRetrieval(config).save_pretrained(tmp_path)
        card = read_card(tmp_path)
        assert card.count("## Calibration") == 1 and f"sigmoid({scale} * log_odds" in card
        assert card.index("## Use") < card.index("## Calibration") < card.index("## Intended use")
        assert "research on dogs" in card and "its scores are not calibrated" in card, "as it was edited"
        assert "match_probability" in card and "you/albef" in card
        assert "\n" not in card.replace("\r\n", "")
