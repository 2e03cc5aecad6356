"""Models in MTEB, on tasks of scenes: both stages, against `albef evaluate` and against mteb's own wrappers."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY
from task_rows import results_of

from albef_hf import AlbefConfig, AlbefForRetrieval
from albef_hf.data import embedded_tokenizer, make_processor

mteb = pytest.importorskip("mteb", reason='needs: pip install -e ".[test,mteb]"')

import mteb_evaluation  # noqa: E402  # imports mteb

from albef_hf.evaluation.mteb_models import AlbefSearch, encoder_meta, search_meta  # noqa: E402

SCENES = 20
RERANK_K = 6
KWARGS = {"encode_kwargs": {"batch_size": 7, "show_progress_bar": False}, "cache": None, "show_progress_bar": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A model whose scores differ clearly."""
    config = AlbefConfig(
        projection_dim=16,
        vision_config={**TINY, "image_size": 32},
        text_config={**TINY, "num_multimodal_layers": 2, "max_position_embeddings": 40},
    )
    torch.manual_seed(0)
    model = AlbefForRetrieval(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    folder = tmp_path_factory.mktemp("models") / "albef"
    for part in (model, make_processor(config, embedded_tokenizer(), 30)):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def search(folder) -> AlbefSearch:
    return AlbefSearch(folder, rerank_k=RERANK_K)


@pytest.fixture(scope="module")
def scores(folder) -> dict:
    """Return what the example prints."""
    return mteb_evaluation.evaluate(folder, mteb_evaluation.scene_tasks(SCENES), RERANK_K, cache=None)


def test_the_meta_describes_a_folder(folder, tmp_path):
    meta = encoder_meta(folder)
    model = AlbefForRetrieval.from_pretrained(folder)
    assert meta.name.endswith("/albef") and set(meta.modalities) == {"text", "image"}
    assert (meta.embed_dim, meta.max_tokens, meta.similarity_fn_name) == (16, 30, "cosine")
    assert meta.n_parameters == model.num_parameters() and meta.memory_usage_mb == model.num_parameters() / 2**18
    assert meta.n_embedding_parameters == model.get_input_embeddings().weight.numel()
    assert not meta.is_cross_encoder and search_meta(folder).is_cross_encoder
    loaded = search_meta(folder, rerank_k=3).loader(meta.name, revision=meta.revision, rerank_k=3)
    assert loaded.rerank_k == 3 and loaded.mteb_model_meta.to_dict() == search_meta(folder, rerank_k=3).to_dict()
    assert loaded.mteb_model_meta.experiment_name == "rerank_k_3", "which is the name of the folder of results"

    model.config.match_calibration = {"scale": 2.0, "cosine_weight": 1.0, "bias": 0.0, "fitted_on": "a test"}
    for part in (model, loaded.encoder.processor):
        part.save_pretrained(tmp_path / "albef")
    assert encoder_meta(str(tmp_path / "albef")).revision != meta.revision, "scores depend on the calibration, too"


def test_retrieval_has_the_recalls_of_the_command(run, folder, scores, tmp_path):
    options = ["--model", folder, "--validation_size", SCENES, "--rerank_k", RERANK_K, "--output_dir", tmp_path]
    run("evaluate", "retrieval", *options)
    metrics, _ = results_of(tmp_path)
    for task, target in (("SceneI2TRetrieval", "text"), ("SceneT2IRetrieval", "image")):
        for name, stage in (("ITC", "itc"), ("reranked", "itm")):
            # Beyond the reranked candidates, the command has none, and mteb those of the contrast.
            for k in (1, 5) if stage == "itm" else (1, 5, 10):
                found = 100 * scores[task, name][f"hit_rate_at_{k}"]
                assert found == pytest.approx(metrics[f"{stage}_{target}_r{k}"], abs=0.01), (task, name, k)
    assert scores["SceneI2TRetrieval", "ITC"] != scores["SceneI2TRetrieval", "reranked"]


def test_choices_have_the_accuracy_of_the_command(run, folder, scores, tmp_path):
    run("evaluate", "pair_choice", "--model", folder, "--validation_size", SCENES, "--output_dir", tmp_path)
    metrics, _ = results_of(tmp_path)
    assert 100 * scores["SceneChoice", "ITC"]["text_acc"] == pytest.approx(metrics["itc_accuracy"])


@pytest.mark.parametrize("place", [0, 1])
def test_scores_are_those_of_the_wrappers_of_mteb(place, folder, search, tmp_path):
    """Its own way to two stages: embed with sentence-transformers, and give what was found to a `CrossEncoder`."""
    from mteb.models import CrossEncoderWrapper, SentenceTransformerEncoderWrapper

    embedder = SentenceTransformerEncoderWrapper(folder)
    matcher = CrossEncoderWrapper(folder, trust_remote_code=True, activation_fn=torch.nn.Identity())
    for wrapper in (embedder, matcher):
        wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update={"modalities": ["image", "text"]})
    task = mteb_evaluation.scene_tasks(SCENES)[place]
    found = {}
    for name, model in (("embedder", embedder), ("encoder", search.encoder), ("search", search)):
        mteb.evaluate(model, task, prediction_folder=tmp_path / name, **KWARGS)
        found[name] = predictions_of(tmp_path / name)
    task.convert_to_reranking(tmp_path / "embedder", top_k=RERANK_K)
    for name, model in (("matcher", matcher), ("reranker", search)):
        mteb.evaluate(model, task, prediction_folder=tmp_path / name, **KWARGS)
        found[name] = predictions_of(tmp_path / name)
    assert found["encoder"].keys() == found["matcher"].keys()
    for query, expected in found["matcher"].items():
        assert found["encoder"][query] == pytest.approx(found["embedder"][query], abs=1e-5)
        assert found["reranker"][query] == pytest.approx(expected, abs=1e-4)
        both = found["search"][query]
        assert len(expected) == RERANK_K < len(both)
        assert {document: both[document] for document in expected} == pytest.approx(expected, abs=1e-4)
        others = {document: score for document, score in both.items() if document not in expected}
        assert max(others.values()) < min(expected.values()), "what was not reranked follows"
        cosines = found["encoder"][query]
        by_cosine = sorted(others, key=cosines.__getitem__)
        assert by_cosine == sorted(others, key=others.__getitem__)


def predictions_of(folder) -> dict:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())["default"]["test"]


def test_a_calibrated_model_orders_by_its_probability(search):
    config = search.encoder.model.config
    config.match_calibration = {"scale": 0.5, "cosine_weight": 3.0, "bias": -1.0, "fitted_on": "a test"}
    try:
        merged = search._merge({"a": 0.5, "b": -0.5, "c": 0.25}, {"a": 2.0, "b": 4.0})
    finally:
        config.match_calibration = None
    assert merged == {"a": 1.5, "b": -0.5, "c": -0.5 - 2 + 0.25}


def test_the_encoder_passes_the_check_of_mteb(search):
    """`mteb.mock_run` evaluates a model on a small task of every kind."""
    result = mteb.mock_run(search.encoder)
    assert result.all_passed, result.to_markdown()
    passed = [name for name, status in result.items() if isinstance(status, mteb.TaskResult)]
    assert {"MockImageTextPairClassification", "MockAny2AnyRetrievalI2T", "MockVisionCentricQA"} <= {*passed}


def test_an_input_of_image_and_text_is_the_sum(search):
    image = torch.randint(256, (40, 50, 3), dtype=torch.uint8).numpy()
    both = search.encoder._embed({"image": [image], "text": ["a dog"]})
    parts = [search.encoder._embed(batch) for batch in ({"image": [image]}, {"text": ["a dog"]})]
    np.testing.assert_allclose(both.detach(), sum(parts).detach(), rtol=1e-5)


def test_search_refuses_what_has_no_pairs_of_image_and_text(search):
    mocks = {task.metadata.name: task for task in mteb.mocks.ALL_MOCK_TASK_TEST_GRID}
    with pytest.raises(ValueError, match=r"searches \['image'\] by \['image', 'text'\].*evaluate AlbefEncoder"):
        mteb.evaluate(search, mocks["MockVisionCentricQA"], **KWARGS)
    with pytest.raises(TypeError, match="does not support Search"):
        mteb.evaluate(search, mteb_evaluation.SceneCaptionChoice(4), **KWARGS)


def test_the_tasks_of_the_example_exist():
    tasks = mteb.get_tasks(tasks=[*mteb_evaluation.RETRIEVAL, *mteb_evaluation.CHOICES])
    kinds = {task.metadata.name: task.metadata.type for task in tasks}
    assert [kinds[name] for name in mteb_evaluation.RETRIEVAL] == ["Any2AnyRetrieval"] * 4
    assert [kinds[name] for name in mteb_evaluation.CHOICES] == ["Compositionality"] * 6


def test_the_example_prints_its_scores(folder, capsys, monkeypatch):
    arguments = ["mteb_evaluation.py", folder, "--scenes", "4", "--rerank_k", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    mteb_evaluation.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("Scene")] == [
        ["SceneI2TRetrieval", "ITC"],
        ["SceneT2IRetrieval", "ITC"],
        ["SceneChoice", "ITC"],
        ["SceneI2TRetrieval", "reranked"],
        ["SceneT2IRetrieval", "reranked"],
    ]
    assert all("hit_rate_at_1 " in line or "text_acc" in line for line in lines)
