"""Tests of search whose scores are normalized by reference texts."""

import json
import re

import pytest
import torch
from search_fixtures import *  # noqa: F403
from search_fixtures import TEXTS, assert_same, flip, keys, noise

from albef_hf import AlbefForPreTraining
from albef_hf.calibration_albef import MatchCalibration
from albef_hf.retrieval_albef import score_all
from albef_hf.search.index import ImageIndex

CALIBRATION = MatchCalibration(0.8, 2.0, -0.3, "noise", reference_weight=3.0, reference_scale=1.5)
REFERENCES = [f"{number} {noun} in the {place}" for number in range(3) for noun in ("dogs", "men") for place in "abcd"]


@pytest.fixture
def model(model) -> AlbefForPreTraining:
    model.config.match_calibration = CALIBRATION.to_dict()
    return model


@pytest.fixture
def normalized(model, processor, album, tmp_path) -> ImageIndex:
    return ImageIndex.build(model, processor, album, tmp_path / "normalized", batch_size=4, reference_texts=REFERENCES)


def test_search_finds_what_the_evaluation_finds(model, processor, images, tmp_path):
    captions = [[text] for text in TEXTS] + [["x"]] * 8
    others = [noise(100 + number) for number in range(2)]
    scores = score_all(
        model, processor, images, captions, rerank_k=6, references=(others, [REFERENCES[:9], REFERENCES[9:]])
    )
    index = ImageIndex.build(model, processor, images, tmp_path / "index", reference_texts=REFERENCES)
    plain = ImageIndex.build(model, processor, images, tmp_path / "plain")
    logits = scores.normalized(CALIBRATION)[1]
    expected = scores.text_to_image.ordered(logits)
    changed = 0
    for number, text in enumerate(TEXTS):
        found = index.search(text, top_k=6, rerank_k=6)
        assert keys(found) == expected[number].tolist()
        values = torch.tensor([hit.score for hit in found])
        torch.testing.assert_close(values, logits[number].sort(descending=True).values.float(), atol=1e-4, rtol=1e-4)
        without = plain.search(text, top_k=6, rerank_k=6)
        matches = {hit.key: hit.match for hit in without}
        assert all(hit.match == pytest.approx(matches[hit.key], abs=1e-6) for hit in found)  # the probability stays
        assert index.search(text, top_k=6, rerank_k=6, itc_weight=CALIBRATION.itc_weight) == without
        changed += keys(found) != keys(without)
    assert changed and index.is_normalized and not plain.is_normalized
    model.config.match_calibration = MatchCalibration(0.8, 2.0, -0.3, "noise").to_dict()  # fitted without references
    assert index.search(TEXTS[0]) == plain.search(TEXTS[0]) and not index.is_normalized


def test_an_index_keeps_its_references(normalized, model, processor, album, images, tmp_path):
    loaded = ImageIndex.load(tmp_path / "normalized", model, processor)
    loaded.remove(["00.PNG", "2019/03.PNG"])
    loaded.add([album / "00.PNG", album / "2019" / "03.PNG"])
    images[5].save(album / "02.PNG")  # another image
    updated = ImageIndex.build(model, processor, album, tmp_path / "normalized", batch_size=3)
    fresh = ImageIndex.build(model, processor, album, tmp_path / "fresh", reference_texts=iter(REFERENCES))
    for text in TEXTS:
        assert {hit.key: pytest.approx(hit.score, abs=1e-4) for hit in updated.search(text)} == {
            hit.key: hit.score for hit in fresh.search(text)
        }
    again = ImageIndex.build(model, processor, album, tmp_path / "normalized", reference_texts=REFERENCES)
    assert_same(again, updated)


def test_few_references_are_all_used(model, processor, album, tmp_path):
    index = ImageIndex.build(model, processor, album, tmp_path / "index", reference_texts=REFERENCES[:2])
    assert index.mapped.references(["00.PNG"]).shape == (1, 2, 2) and index.search("red")[0].match is not None


def test_other_references_are_refused(normalized, index, model, processor, album, tmp_path):
    for folder, built_with in (("normalized", "other"), ("index", "no")):
        with pytest.raises(ValueError, match=f"was built with {built_with} reference texts: choose another folder"):
            ImageIndex.build(model, processor, album, tmp_path / folder, reference_texts=REFERENCES[1:])
    for texts in ("one text", [], ["red", " "], [3]):
        with pytest.raises(ValueError, match="reference_texts must be a list of texts"):
            ImageIndex.build(model, processor, album, tmp_path / "other", reference_texts=texts)
    model.config.match_calibration = None
    with pytest.raises(ValueError, match="no weight for references: calibrate it .* --reference_files"):
        ImageIndex.build(model, processor, album, tmp_path / "other", reference_texts=REFERENCES)
    assert not (tmp_path / "other").exists()


def test_other_weights_of_matching_are_refused(normalized, index, model, processor, album, tmp_path):
    with torch.no_grad():
        model.itm_head.bias[0] += 1
    assert ImageIndex.load(tmp_path / "index", model, processor).search("red")  # which holds no scores of matching
    for use in (
        lambda: ImageIndex.load(tmp_path / "normalized", model, processor),
        lambda: ImageIndex.build(model, processor, album, tmp_path / "normalized"),
    ):
        with pytest.raises(ValueError, match="built with other weights .* load that one"):
            use()


def test_damaged_references_are_refused_and_repaired(normalized, model, processor, album, tmp_path):
    (path,) = (tmp_path / "normalized").glob("references_*.json")
    expected = json.loads(path.read_text())
    flip(path)
    noise(50).save(album / "new.png")
    for use in (lambda: normalized.add(album), lambda: ImageIndex.build(model, processor, album, path.parent)):
        with pytest.raises(ValueError, match="damaged: .* Build it again with the same reference texts"):
            use()
    repaired = ImageIndex.build(model, processor, album, path.parent, reference_texts=REFERENCES)
    assert repaired.store.reference_texts() == expected == REFERENCES and "new.png" in repaired.keys
    assert not path.exists() and repaired.search("red")[0].match is not None


def test_the_commands(model, command, album, tmp_path):
    rows = [
        {"image": f"other_{number}.jpg", "caption": REFERENCES[3 * number : 3 * number + 3]} for number in range(8)
    ]
    rows[1] = {"image": "elsewhere/03.PNG", "caption": "its own caption"}
    rows[2]["caption"] = " "
    (tmp_path / "train.json").write_text(json.dumps(rows))
    build = ("index", "build", album, "--model", "../model", "--reference_files", "../train.json")
    printed = command(*build, "--reference-size", 3)
    assert "reference texts: 9 of 3 images, 1 rows left out (indexed, too), 1 rows left out (caption_empty)" in printed
    assert "12 images in images.index" in printed
    assert "reference texts: 9\n" in command("index", "info")
    scores = [float(line.split()[0]) for line in command("search", "red", "--html", "page.html").splitlines()[1:-1]]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)
    page = (tmp_path / "here" / "page.html").read_text()
    assert "Score: calibrated logit of a match, normalized by reference texts. Match: the probability" in page
    command("search", "red", "--itc_weight", 0.5, "--html", "page.html")
    assert "+ 0.5 × cosine" in (tmp_path / "here" / "page.html").read_text()
    for words, message in (
        (("--reference_size", 7), "reference_size has no effect without reference_files"),
        (("--reference_files", "../train.json"), "was built with other reference texts"),
        (("--reference_files", "../none.json"), "none.json"),
    ):
        with pytest.raises(SystemExit, match=re.escape(message)):
            command("index", "build", album, "--model", "../model", *words)
