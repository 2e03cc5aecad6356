"""Tests of search whose scores are normalized by reference texts."""

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from search_fixtures import *  # noqa: F403
from search_fixtures import TEXTS, assert_same, flip, keys, noise

from albef_hf import AlbefForPreTraining
from albef_hf.calibration_albef import MatchCalibration, texts_sha256
from albef_hf.retrieval_albef import encode_texts, score_all
from albef_hf.search import encoder
from albef_hf.search import index as index_module
from albef_hf.search.encoder import FeatureEncoder
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


def test_search_finds_what_the_evaluation_finds(model, processor, images, tmp_path, search_warnings):
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
    ImageIndex.load(tmp_path / "index", model, processor, images)
    assert "the model has no weight for them: scores are not normalized" in search_warnings[-1]


def test_an_index_keeps_its_references(normalized, model, processor, album, images, tmp_path):
    loaded = ImageIndex.load(tmp_path / "normalized", model, processor)
    loaded.remove(["00.PNG", "2019/03.PNG"])
    loaded.add([album / "00.PNG", album / "2019" / "03.PNG"])
    images[5].save(album / "02.PNG")  # another image
    updated = ImageIndex.build(model, processor, album, tmp_path / "normalized", batch_size=3)
    fresh = ImageIndex.build(model, processor, album, tmp_path / "fresh", reference_texts=iter(REFERENCES))
    for text in TEXTS:
        # All of them, since two are the same image: either may be the tenth.
        assert {hit.key: pytest.approx(hit.score, abs=1e-4) for hit in updated.search(text, top_k=13)} == {
            hit.key: hit.score for hit in fresh.search(text, top_k=13)
        }
    again = ImageIndex.build(model, processor, album, tmp_path / "normalized", reference_texts=REFERENCES)
    assert_same(again, updated)


def test_few_references_are_all_used(model, processor, album, tmp_path):
    index = ImageIndex.build(model, processor, album, tmp_path / "index", reference_texts=REFERENCES[:2])
    assert index.mapped.references(["00.PNG", "2019/01.PNG"]).shape == (2, 2, 2)
    hit = index.search("red", top_k=1)[0]
    texts = ["red", *REFERENCES[:2]]
    pairs = processor(images=[index.image(hit.key)] * 3, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**pairs)
    cosines = (outputs.image_embeds * outputs.text_embeds).sum(1)
    logits = CALIBRATION.logit(outputs.itm_logits.diff(dim=1)[:, 0], cosines)
    own, *others = (CALIBRATION.reference_scale * logits).exp().tolist()
    assert hit.score == pytest.approx(math.log(own / sum(others) ** CALIBRATION.reference_weight), abs=1e-3)


def test_an_interrupted_build_resumes_with_its_references(model, processor, album, tmp_path, monkeypatch):
    complete = ImageIndex.build(
        model, processor, album, tmp_path / "complete", batch_size=4, reference_texts=REFERENCES
    )
    match, left = FeatureEncoder.match_references, [2]

    def match_two_batches(*args) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return match(*args)

    monkeypatch.setattr(FeatureEncoder, "match_references", match_two_batches)
    with pytest.raises(KeyboardInterrupt):
        ImageIndex.build(model, processor, album, tmp_path / "index", batch_size=4, reference_texts=REFERENCES)
    left[0] = 1  # there is one batch left
    assert_same(ImageIndex.build(model, processor, album, tmp_path / "index", batch_size=4), complete)


def test_images_of_a_dataset_are_normalized_in_any_precision(model, processor, images, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    half = copy.deepcopy(model).bfloat16()
    index = ImageIndex.build(half, processor, rows, tmp_path / "index", reference_texts=REFERENCES)
    precise = ImageIndex.build(model, processor, rows, tmp_path / "precise", reference_texts=REFERENCES)
    expected = {hit.key: hit.score for hit in precise.search("red", top_k=12)}
    for one in (index, ImageIndex.load(tmp_path / "index", copy.deepcopy(half), processor, rows, dtype="float32")):
        found = one.search("red", top_k=12)
        assert {hit.key: pytest.approx(hit.score, abs=0.3) for hit in found} == expected


@pytest.mark.parametrize("moment", ["search", "match"])
def test_a_removal_does_not_disturb_a_search(normalized, monkeypatch, moment):
    owner = index_module if moment == "search" else normalized.reranker
    work = getattr(owner, moment)

    def work_while_another_thread_removes(*args) -> object:
        normalized.remove({"00.PNG"} & {*normalized.keys})
        return work(*args)

    expected = normalized.search("red", top_k=12)
    monkeypatch.setattr(owner, moment, work_while_another_thread_removes)
    assert normalized.search("red", top_k=12) == expected


def test_references_are_encoded_once_for_several_additions(normalized, album, monkeypatch):
    calls = []
    monkeypatch.setattr(encoder, "encode_texts", lambda *args: calls.append(args[3]) or encode_texts(*args))
    for number in (50, 51):
        noise(number).save(album / f"{number}.png")
        normalized.add([album / f"{number}.png"], batch_size=3)
    assert calls == [3] and len(normalized) == 14


def test_other_references_than_those_of_the_calibration_are_told(model, processor, album, tmp_path, search_warnings):
    known = replace(CALIBRATION, reference_texts_sha256=texts_sha256(REFERENCES))
    model.config.match_calibration = known.to_dict()
    index = ImageIndex.build(model, processor, album, tmp_path / "index", reference_texts=REFERENCES)
    ImageIndex.load(tmp_path / "index", model, processor)
    assert not search_warnings and index.is_normalized
    for use in (
        lambda: ImageIndex.build(model, processor, album, tmp_path / "other", reference_texts=REFERENCES[1:]),
        lambda: ImageIndex.load(tmp_path / "other", model, processor),
    ):
        use()
        assert "others than those that the model was calibrated with" in search_warnings.pop()
    model.config.match_calibration = replace(known, reference_weight=0.0).to_dict()
    assert not index.is_normalized and index.search("red")[0].match is not None


@pytest.mark.parametrize("texts", [None, REFERENCES[2:]], ids=["none", "others"])
def test_a_build_that_failed_leaves_no_references(model, processor, album, tmp_path, texts):
    for path in album.rglob("*.PNG"):
        path.rename(path.with_suffix(".unread"))
    with pytest.raises(ValueError, match="None of the .* images can be read"):
        ImageIndex.build(model, processor, album, tmp_path / "index", reference_texts=REFERENCES)
    for path in album.rglob("*.unread"):
        path.rename(path.with_suffix(".PNG"))
    with torch.no_grad():
        model.itm_head.bias[0] += 1  # trained meanwhile
    index = ImageIndex.build(model, processor, album, tmp_path / "index", reference_texts=texts)
    assert index.store.reference_texts() == (texts or []) and index.is_normalized == bool(texts)
    assert index.search("red") and len(index) == 12


def test_other_references_are_refused(normalized, index, model, processor, album, tmp_path):
    for folder, built_with in (("normalized", "other"), ("index", "no")):
        with pytest.raises(ValueError, match=f"was built with {built_with} reference texts: choose another folder"):
            ImageIndex.build(model, processor, album, tmp_path / folder, reference_texts=REFERENCES[1:])
    for texts in ("one text", [], ["red", " "], [3]):
        with pytest.raises(ValueError, match="reference_texts.* (must be a list of texts|are no texts with a word)"):
            ImageIndex.build(model, processor, album, tmp_path / "other", reference_texts=texts)
    for weight, told in ((None, "no weight"), (0.0, "a weight of 0")):
        model.config.match_calibration = replace(CALIBRATION, reference_weight=weight).to_dict()
        with pytest.raises(ValueError, match=f"{told} for references: calibrate it .* --reference_files"):
            ImageIndex.build(model, processor, album, tmp_path / "other", reference_texts=REFERENCES)
    assert not (tmp_path / "other").exists()


def test_scores_that_are_not_finite_are_refused(model, processor, album, tmp_path):
    model.itm_head.bias.data[0] = math.inf
    with pytest.raises(ValueError, match="reference texts are not finite: set dtype float32"):
        ImageIndex.build(model, processor, album, tmp_path / "index", reference_texts=REFERENCES)


def test_scores_without_references_are_damage(normalized, index, model, processor, tmp_path):
    matched, plain = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("normalized", "index"))
    plain |= {"reference_texts": matched["reference_texts"], "model": matched["model"]}
    (tmp_path / "index" / "manifest.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="damaged: its files do not belong together"):
        ImageIndex.load(tmp_path / "index", model, processor)


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


def test_the_commands(command, tmp_path, album):
    command("index", "build", album, "--model", "../model", "--index", "plain")
    (tmp_path / "texts.json").write_text(json.dumps(REFERENCES))
    build = ("index", "build", album, "--model", "../model", "--reference_texts")
    assert "12 images in images.index" in command(*build, "../texts.json")
    assert "reference texts: used\n" in command("index", "info")
    assert "reference texts: none\n" in command("index", "info", "--index", "plain")
    table, plain = (command("search", "red", "--html", "page.html", *index) for index in ((), ("--index", "plain")))
    assert table.split() != plain.split()
    command("search", "red", "--html", "page.html")
    page = (tmp_path / "here" / "page.html").read_text()
    assert "Score: calibrated logit of a match, normalized by reference texts. Match: the probability" in page
    weighted = ("search", "red", "--itc_weight", 2)
    assert command(*weighted) == command(*weighted, "--index", "plain")
    command("search", "red", "--itc_weight", 0.5, "--html", "page.html")
    assert "+ 0.5 × cosine" in (tmp_path / "here" / "page.html").read_text()
    for content, message in (
        (["red"], "was built with other reference texts"),
        ([], "must be a list of texts"),
        ({"a": 1}, "must be a list of texts"),
        (["red", 3], "1 of 2 are no texts with a word, such as 3"),
    ):
        (tmp_path / "here" / "other.json").write_text(json.dumps(content))
        with pytest.raises(SystemExit, match=re.escape(message)):
            command(*build, "other.json")
    with pytest.raises(SystemExit, match="none.json cannot be read .* Give the reference_texts.json that"):
        command(*build, "none.json")
    flip(next((tmp_path / "here" / "images.index").glob("references_*")))
    assert "damage: the content of images.index/references_" in command("index", "info")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings["match_calibration"] = None
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    assert "the model has no weight for them" in command("index", "info")
