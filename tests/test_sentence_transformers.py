"""sentence-transformers: one folder is a `SentenceTransformer` and a `CrossEncoder`, with the scores of the model."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import albef_hf
from albef_hf import AlbefForPreTraining, AlbefForRetrieval, AlbefForVisualEntailment
from albef_hf.conversion.code_renewal import renew_code

TRUST = {"trust_remote_code": True}  # for the module of CrossEncoder, which comes from the folder
TEXTS = ["a dog in the snow", "Two red cars!", "a cat", "many words " * 40]
CALIBRATION = {"scale": 0.5, "cosine_weight": 2.0, "bias": -0.25, "fitted_on": "a test"}
HEADS = (AlbefForRetrieval, AlbefForPreTraining)
OTHERS = [name for name in albef_hf.__all__ if name.startswith("AlbefFor") and getattr(albef_hf, name) not in HEADS]


@pytest.fixture
def library():
    """Skip the test without the library, which is optional."""
    return pytest.importorskip("sentence_transformers", reason="needs: pip install 'sentence-transformers>=6'")


@pytest.fixture
def save(config, processor, tmp_path):
    """Save a head whose scores differ between pairs, and return the folder and the head."""

    def save(head: type, **settings) -> tuple[str, torch.nn.Module]:
        torch.manual_seed(0)
        for name, value in settings.items():
            setattr(config, name, value)
        model = head(config).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        for part in (model, processor):
            part.save_pretrained(tmp_path / "albef")
        return str(tmp_path / "albef"), model

    return save


@pytest.fixture
def images(tmp_path) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3), dtype=np.uint8)
    images = [Image.fromarray(image) for image in noise]
    images[0].save(tmp_path / "image.png")
    return images


@torch.no_grad()
def outputs_of(model, processor, images):
    return model(**processor(images=images, text=TEXTS, return_tensors="pt"))


@pytest.mark.parametrize("head", HEADS)
def test_embeddings_are_the_features_of_the_model(library, save, processor, images, tmp_path, head):
    folder, model = save(head)
    expected = outputs_of(model, processor, images)
    embedder = library.SentenceTransformer(folder)  # AutoModel needs no trust, since the package is imported
    texts = embedder.encode(TEXTS, convert_to_tensor=True)
    assert torch.equal(texts, expected.text_embeds)
    mixed_sources = [str(tmp_path / "image.png"), np.asarray(images[1]), *images[2:]]
    assert torch.equal(embedder.encode(mixed_sources, convert_to_tensor=True), expected.image_embeds)
    by_two = embedder.encode(images, batch_size=2, convert_to_tensor=True)
    torch.testing.assert_close(by_two, expected.image_embeds)
    torch.testing.assert_close(embedder.similarity(texts, by_two), expected.text_embeds @ expected.image_embeds.T)
    assert embedder.get_embedding_dimension() == 16
    assert np.array_equal(embedder.encode("red cars", prompt="two "), embedder.encode("Two red cars."))
    with pytest.raises(ValueError, match="mixes multiple modalities"):
        embedder.encode([TEXTS[0], images[0]])


@pytest.mark.parametrize("head", HEADS)
def test_scores_are_those_of_the_matching_head(library, save, processor, images, tmp_path, head):
    folder, model = save(head)
    log_odds = outputs_of(model, processor, images).itm_logits.diff(dim=1).flatten()
    matcher = library.CrossEncoder(folder, **TRUST)
    pairs = list(zip(TEXTS, images, strict=True))
    scores = matcher.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    torch.testing.assert_close(scores, log_odds)  # not equal on all processors: images are encoded apart
    assert scores.unique().numel() == 4
    torch.testing.assert_close(matcher.predict(pairs, convert_to_tensor=True), log_odds.sigmoid())
    named = [({"image": tmp_path / "image.png"}, {"text": TEXTS[0]}), (str(tmp_path / "image.png"), TEXTS[0])]
    other_order = [*named, *((image, text) for text, image in pairs[1:])]
    again = matcher.predict(other_order, batch_size=2, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    torch.testing.assert_close(again, log_odds[[0, 0, 1, 2, 3]])
    ranking = matcher.rank(TEXTS[1], images)
    assert [row["score"] for row in ranking] == sorted((row["score"] for row in ranking), reverse=True)
    assert {row["corpus_id"]: pytest.approx(row["score"]) for row in ranking}[1] == log_odds[1].sigmoid().item()
    assert matcher.max_seq_length == 30


def test_an_image_is_encoded_once_for_all_its_texts(library, save, images):
    matcher = library.CrossEncoder(save(AlbefForRetrieval)[0], **TRUST)
    sizes = []
    matcher.model.albef.vision_model.register_forward_pre_hook(
        lambda module, args: sizes.append(args[0].shape[0]) if args[0].ndim == 4 else None
    )
    matcher.rank(images[0], TEXTS)
    assert sizes == [1]


def test_the_probability_is_calibrated_if_the_model_is(library, save, processor, images):
    folder, model = save(AlbefForRetrieval, match_calibration=CALIBRATION)
    expected = model.match_probability(outputs_of(model, processor, images))
    matcher = library.CrossEncoder(folder, **TRUST)
    scores = matcher.predict(list(zip(TEXTS, images, strict=True)), convert_to_tensor=True)
    torch.testing.assert_close(scores, expected)


def test_bfloat16(library, save, processor, images):
    folder, model = save(AlbefForRetrieval)
    expected = outputs_of(model, processor, images)
    low = {"model_kwargs": {"dtype": torch.bfloat16}}
    embeddings = library.SentenceTransformer(folder, **low).encode(images, convert_to_tensor=True)
    torch.testing.assert_close(embeddings.float(), expected.image_embeds, atol=0.02, rtol=0)
    scores = library.CrossEncoder(folder, **low, **TRUST).predict(list(zip(TEXTS, images, strict=True)))
    np.testing.assert_allclose(scores, expected.itm_logits.diff(dim=1).flatten().sigmoid(), atol=0.02)


def test_what_is_not_a_pair_is_refused(library, save, images):
    folder, _ = save(AlbefForRetrieval)
    matcher = library.CrossEncoder(folder, **TRUST)
    for pair in (
        ("a", "no_such_file.png"),
        (images[0], images[1]),
        ("a", images[0], "b"),
        ("a", {"sound": images[0]}),
    ):
        with pytest.raises(ValueError, match="is not a pair of an image and a text"):
            matcher.predict([pair])
    with pytest.raises(ValueError, match="pass pairs of them"):
        matcher.predict(["a text"])
    with pytest.raises(ValueError, match="Some inputs have no image or no text"):
        matcher.predict([("a text",), (images[0],)])
    with pytest.raises(ValueError, match="remove processing_kwargs"):
        matcher.predict([(TEXTS[0], images[0])], processing_kwargs={"text": {"max_length": 3}})
    for setting in ({"num_labels": 2}, {"max_length": 8}, {"backend": "onnx"}):
        with pytest.raises(ValueError, match="remove num_labels=2|remove max_length|'onnx' is not supported"):
            library.CrossEncoder(folder, **setting, **TRUST)


@pytest.mark.parametrize("name", OTHERS)
def test_other_heads_are_refused(library, save, processor, name):
    folder, _ = save(getattr(albef_hf, name))
    assert not (Path(folder) / "modules.json").exists()
    with pytest.raises(ValueError, match=f"A checkpoint of {name} has no trained classifier with one class"):
        library.CrossEncoder(folder, **TRUST)
    with pytest.raises(ValueError, match="load the model as AlbefForRetrieval"):
        library.SentenceTransformer(folder).encode("a dog")


def test_a_folder_that_got_another_head_is_refused(library, save):
    save(AlbefForRetrieval)
    folder, _ = save(AlbefForVisualEntailment)
    with pytest.raises(ValueError, match="has AlbefForVisualEntailment, which does not score pairs"):
        library.CrossEncoder(folder, **TRUST)


def test_a_regression_has_to_be_asked_for(save):
    folder, _ = save(AlbefForRetrieval)
    with pytest.raises(ValueError, match='pass problem_type="regression"'):
        AlbefForVisualEntailment.from_pretrained(folder, num_labels=1)
    model = AlbefForVisualEntailment.from_pretrained(folder, num_labels=1, problem_type="regression")
    assert model.config.num_labels == 1


def training_data(images):
    from datasets import Dataset
    from datasets import Image as ImageFeature

    columns = {"text": TEXTS, "image": images, "label": [1.0, 1.0, 0.0, 0.0]}
    return Dataset.from_dict(columns).cast_column("image", ImageFeature())


def changed_weights(before: str, after: Path) -> set[str]:
    """Return the first parts of the names of the weights that differ, of two folders with the same names."""
    old, new = (load_file(Path(folder) / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}


def test_contrastive_training_keeps_the_matching_head(library, save, images, tmp_path):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    folder, _ = save(AlbefForPreTraining)
    embedder = library.SentenceTransformer(folder)
    arguments = library.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), per_device_train_batch_size=4, max_steps=1, save_strategy="no", report_to="none"
    )
    library.SentenceTransformerTrainer(
        embedder,
        arguments,
        train_dataset=training_data(images).remove_columns("label"),
        loss=CachedMultipleNegativesRankingLoss(embedder, mini_batch_size=2),
    ).train()
    queries, corpus = ({str(i): row for i, row in enumerate(rows)} for rows in (TEXTS, images))
    evaluator = InformationRetrievalEvaluator(queries, corpus, {key: {key} for key in queries}, accuracy_at_k=[4])
    assert evaluator(embedder)["cosine_accuracy@4"] == 1
    saved = tmp_path / "saved"
    embedder.save_pretrained(str(saved))
    assert changed_weights(folder, saved) == {"albef", "contrastive_head"}
    again = library.SentenceTransformer(str(saved))
    assert np.array_equal(again.encode(TEXTS), embedder.encode(TEXTS))

    with pytest.raises(ValueError, match="run `albef renew FOLDER`"):
        library.CrossEncoder(str(saved), **TRUST)
    renew_code(saved)
    assert np.array_equal(library.SentenceTransformer(str(saved)).encode(TEXTS), embedder.encode(TEXTS))
    matcher = library.CrossEncoder(str(saved), **TRUST)
    assert torch.equal(matcher.model.itm_head.weight, embedder.transformers_model.itm_head.weight)
    assert renew_code(saved).files == {}


def test_matching_training_keeps_the_projections(library, save, images, tmp_path):
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    folder, _ = save(AlbefForPreTraining)
    matcher = library.CrossEncoder(folder, **TRUST)
    arguments = library.CrossEncoderTrainingArguments(
        str(tmp_path / "run"),
        per_device_train_batch_size=4,
        max_steps=1,
        save_strategy="no",
        report_to="none",
        weight_decay=0.1,  # would change weights whose gradient is zero
    )
    loss = BinaryCrossEntropyLoss(matcher)
    library.CrossEncoderTrainer(matcher, arguments, train_dataset=training_data(images), loss=loss).train()
    samples = [{"query": TEXTS[0], "positive": images[:1], "negative": images[1:]}]
    assert 0 < CrossEncoderRerankingEvaluator(samples)(matcher)["map"] <= 1
    saved = tmp_path / "saved"
    matcher.save_pretrained(str(saved))
    assert changed_weights(folder, saved) == {"albef", "itm_head"}
    again = library.CrossEncoder(str(saved), **TRUST)
    assert again.predict((TEXTS[0], images[0])) == matcher.predict((TEXTS[0], images[0]))
    assert library.SentenceTransformer(str(saved)).encode(TEXTS).shape == (4, 16)
    assert renew_code(saved).files.keys() == {"README.md"}  # that of sentence-transformers, and a section on versions


def test_an_earlier_folder_is_renewed(library, save, images):
    folder, _ = save(AlbefForRetrieval)
    expected = library.CrossEncoder(folder, **TRUST).predict((TEXTS[0], images[0]))
    settings = json.loads((Path(folder) / "config.json").read_text())
    settings["auto_map"]["AutoModel"] = "modeling_albef.AlbefModel"
    (Path(folder) / "config.json").write_text(json.dumps(settings))
    new = ("modules.json", "config_sentence_transformers.json", "sentence_albef.py")
    for name in new:
        (Path(folder) / name).unlink()
    with pytest.raises(ValueError, match="was saved by an earlier release"):
        library.CrossEncoder(folder, **TRUST)
    files = renew_code(folder).files
    assert {name: files[name] for name in (*new, "config.json")} == dict.fromkeys(new, "added") | {
        "config.json": "updated"
    }
    assert library.CrossEncoder(folder, **TRUST).predict((TEXTS[0], images[0])) == expected


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers.base.modality", None)
    monkeypatch.delitem(sys.modules, "albef_hf.sentence_albef", raising=False)
    with pytest.raises(ImportError, match="pip install 'sentence-transformers>=6'"):
        importlib.import_module("albef_hf.sentence_albef")
