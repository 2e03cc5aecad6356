"""Models on the Hub: what is pushed, and that it loads without the package, also after fine-tuning."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_client import HEADS
from hub_server import HubServer
from test_architecture import HUB_FILES, PACKAGE
from torch.testing import assert_close
from transformers import AutoModel

import albef_hf
from albef_hf import AlbefConfig, AlbefForRetrieval, AlbefModel, AlbefVisionModel
from albef_hf.configuration_albef import AUTO_MODELS, MATCHING_HEADS, SENTENCE_TRANSFORMERS_FILES
from albef_hf.modeling_albef import AlbefTwoImageModel

CODE = {f"{name}.py": (PACKAGE / f"{name}.py").read_bytes() for name in HUB_FILES}
AUTO_MAP = {
    "AutoConfig": "configuration_albef.AlbefConfig",
    "AutoModel": "modeling_albef.AlbefModel",
    "AutoModelForPreTraining": "modeling_albef.AlbefForPreTraining",
    "AutoModelForZeroShotImageClassification": "modeling_albef.AlbefForRetrieval",
    "AutoModelForVisualQuestionAnswering": "modeling_albef.AlbefForQuestionAnswering",
    "AutoModelForImageTextToText": "modeling_albef.AlbefForImageCaptioning",
    "AutoModelForSequenceClassification": "modeling_albef.AlbefForVisualEntailment",
}


def auto_map_of(head: str) -> dict[str, str]:
    """The map that is saved with a head; `AutoModel` loads a head that embeds, as sentence-transformers needs it."""
    auto_classes = {HEADS.get(head, "AutoModel"), *(["AutoModel"] if head in MATCHING_HEADS else [])}
    return AUTO_MAP | dict.fromkeys(auto_classes, f"modeling_albef.{head}")


def code_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".py")}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys() and expected
    for name, tensor in expected.items():
        assert torch.isfinite(tensor).all() and torch.equal(actual[name], tensor), name


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> dict:
    """The Hub, and what its owner, a visitor without the package, and the same offline have seen."""
    folder = tmp_path_factory.mktemp("hub")
    with HubServer() as hub:
        results = {"hub": hub}
        for role, home, token, variables in (
            ("owner", "owner", "hf_owner", {"PYTHONPATH": str(PACKAGE.parent)}),
            ("visitor", "visitor", "hf_visitor", {}),
            ("offline", "visitor", "hf_visitor", {"HF_HUB_OFFLINE": "1"}),
        ):
            environment = hub.environment(folder / home, token, OMP_NUM_THREADS="1", **variables)
            command = [sys.executable, str(Path(__file__).with_name("hub_client.py")), role, str(folder)]
            asked = len(hub.log)
            run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
            assert run.returncode == 0, f"{role}: {run.stderr[-5000:]}"
            results[role] = torch.load(folder / f"{role}.pt", weights_only=True)
            results[f"{role}_requests"] = hub.log[asked:]
        return results


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pusher", ["owner", "visitor"])
def test_what_is_pushed_brings_the_code_along(story, pusher, head):
    files = story["hub"].files(f"{pusher}/{head}")
    assert code_of(files) == CODE
    assert json.loads(files["config.json"])["auto_map"] == auto_map_of(head)
    assert json.loads(files["processor_config.json"])["auto_map"] == {
        "AutoProcessor": "processing_albef.AlbefProcessor"
    }
    assert {"model.safetensors", "tokenizer.json"} <= set(files)
    assert (SENTENCE_TRANSFORMERS_FILES.keys() <= files.keys()) == (head in MATCHING_HEADS)
    assert "library_name: transformers" in files["README.md"].decode()


@pytest.mark.parametrize("head", HEADS)
def test_with_the_package_nothing_remote_is_run(story, head):
    result = story["owner"][head]
    assert_same(result["loaded"], result["outputs"])
    assert result["classes"] == [
        f"albef_hf.modeling_albef.{head}",
        "albef_hf.processing_albef.AlbefProcessor",
        "albef_hf.configuration_albef.AlbefConfig",
    ]


@pytest.mark.parametrize("head", HEADS)
def test_without_the_package_it_computes_the_same(story, head):
    result = story["visitor"][head]
    assert_same(result["outputs"], story["owner"][head]["outputs"])
    commit = story["hub"].repositories["models", f"owner/{head}"].find("main").oid
    place = f"transformers_modules.owner.{head}.{commit}"
    assert result["classes"] == [f"{place}.modeling_albef.{head}", f"{place}.processing_albef.AlbefProcessor"]


@pytest.mark.parametrize("head", HEADS)
def test_trained_and_pushed_without_the_package_it_loads_again(story, head):
    result = story["visitor"][head]
    assert_same(result["again"], result["trained"])
    assert any(not torch.equal(value, result["outputs"][name]) for name, value in result["trained"].items())
    commit = story["hub"].repositories["models", f"visitor/{head}"].find("main").oid
    place = f"transformers_modules.visitor.{head}.{commit}"
    assert result["again_classes"] == [f"{place}.modeling_albef.{head}", f"{place}.processing_albef.AlbefProcessor"]
    base_class = head if head in MATCHING_HEADS else "AlbefModel"
    assert result["base_class"] == f"{place}.modeling_albef.{base_class}"
    assert_same(story["offline"][head]["outputs"], result["trained"])
    assert story["offline"][head]["classes"] == result["again_classes"][:1]


def test_offline_sends_no_request(story):
    assert story["offline_requests"] == [] and story["visitor_requests"]


def test_one_head_starts_from_the_repository_of_another(story):
    assert story["visitor"]["other_head"].endswith(".modeling_albef.AlbefForQuestionAnswering")


def test_tokenizer_and_image_processor_load_on_their_own(story):
    tokenizer, images, config = (name.rpartition(".")[2] for name in story["visitor"]["parts"])
    assert (tokenizer, config) == ("TokenizersBackend", "AlbefConfig")
    assert images in ("BlipImageProcessor", "BlipImageProcessorPil")


def test_a_revision_pins_weights_and_code(story):
    versions, first, second = story["visitor"]["versions"], story["owner"]["first"], story["owner"]["second"]
    assert not torch.equal(first["itm_logits"], second["itm_logits"])
    assert_same(versions["main"]["outputs"], second)
    assert_same(versions["v1.0"]["outputs"], first)
    assert_same(versions["folder"]["outputs"], first)
    assert_same(story["offline"]["v1.0"], first)
    repository = story["hub"].repositories["models", "owner/versions"]
    for revision in ("main", "v1.0"):
        assert f".{repository.find(revision).oid}." in versions[revision]["class"]
    assert "transformers_modules.snapshot." in versions["folder"]["class"]


def test_pipelines_load_from_the_name_of_a_repository(story):
    """With the package, without it, and offline: they say the same, and `v1.0` is another model than `main`."""
    expected = dict(story["owner"]["pipelines"])
    kinds = [name.rpartition(".")[2] for name in expected.pop("classes")]
    assert kinds == ["ImageTextMatchingPipeline", "VisualGroundingPipeline", "AlbefForRetrieval"]
    assert expected["matching"] != expected["matching at v1.0"]
    oids = [story["hub"].repositories["models", "owner/versions"].find(name).oid for name in ("main", "v1.0")]
    for role in ("visitor", "offline"):
        found = dict(story[role]["pipelines"])
        code = found.pop("classes")
        assert [name.rpartition(".")[2] for name in code] == kinds
        assert all(name.startswith("transformers_modules.owner.") for name in code)
        assert oids[0] in code[0] and oids[1] in code[1]
        assert found == expected


@pytest.mark.parametrize("role", ["visitor", "offline"])
def test_sentence_transformers_load_both_halves_from_the_name_of_a_repository(story, role):
    found, expected = story[role]["sentence-transformers"], story["owner"]["first"]
    if not found:
        pytest.skip("sentence-transformers is not installed")
    # it encodes by length and images apart, so the last digit may differ
    assert_close(found["log_odds"], expected["itm_logits"].diff(dim=1)[:, 0])
    for name in ("image_embeds", "text_embeds"):
        assert_close(found[name], expected[name])


def test_what_may_not_be_loaded_says_why(story):
    refusals = story["visitor"]["refusals"]
    assert refusals["trust"].startswith("ValueError") and "trust_remote_code=True" in refusals["trust"]
    assert "not a valid model identifier" in refusals["private"]
    assert "not a valid git identifier" in refusals["revision"]
    assert_same(story["visitor"]["private"], story["owner"]["private"])


@pytest.mark.parametrize("head", [*HEADS, "AlbefTwoImageModel"])
def test_what_is_saved_brings_the_code_along(config, tmp_path, head):
    model = AlbefTwoImageModel(config) if head == "AlbefTwoImageModel" else getattr(albef_hf, head)(config)
    model.save_pretrained(tmp_path)
    files = files_of(tmp_path)
    assert code_of(files) == CODE
    assert json.loads(files["config.json"])["auto_map"] == auto_map_of(head)


def test_an_encoder_a_configuration_and_a_processor_bring_theirs(config, processor, tmp_path):
    parts = {"model": AlbefModel(config).vision_model, "config": AlbefConfig(), "processor": processor}
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
    files = {name: files_of(tmp_path / name) for name in parts}
    assert code_of(files["model"]).keys() == {
        "calibration_albef.py",
        "compatibility_albef.py",
        "configuration_albef.py",
        "encoders_albef.py",
        "masks_albef.py",
        "shared_inputs_albef.py",
    }
    assert code_of(files["config"]).keys() == {
        "calibration_albef.py",
        "compatibility_albef.py",
        "configuration_albef.py",
    }
    assert code_of(files["processor"]).keys() == {"images_albef.py", "processing_albef.py"}
    assert json.loads(files["config"]["config.json"])["auto_map"] == {"AutoConfig": "configuration_albef.AlbefConfig"}
    assert json.loads(files["model"]["config.json"])["auto_map"] == {
        "AutoConfig": "configuration_albef.AlbefVisionConfig",
        "AutoModel": "encoders_albef.AlbefVisionModel",
    }
    assert type(AutoModel.from_pretrained(tmp_path / "model")) is AlbefVisionModel


def test_a_head_leaves_nothing_of_another_in_the_map(config, tmp_path):
    """A configuration goes from head to head, as in fine-tuning, and each folder suits the last one."""
    albef_hf.AlbefForVisualReasoning(config).save_pretrained(tmp_path / "reasoning")
    reasoning = AlbefConfig.from_pretrained(tmp_path / "reasoning")
    assert reasoning.auto_map["AutoModelForSequenceClassification"] == "modeling_albef.AlbefForVisualReasoning"
    AlbefForRetrieval(reasoning).save_pretrained(tmp_path / "retrieval")
    assert json.loads((tmp_path / "retrieval" / "config.json").read_text())["auto_map"] == auto_map_of(
        "AlbefForRetrieval"
    )


def test_every_head_has_an_auto_class():
    heads = {name for names in AUTO_MODELS.values() for name in names}
    public = {name for name in albef_hf.__all__ if name == "AlbefModel" or name.startswith("AlbefFor")}
    assert heads - {"AlbefTwoImageModel"} == public == set(HEADS)
