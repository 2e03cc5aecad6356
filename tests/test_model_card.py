"""Model cards: what is known is in them, nothing is made up, and their snippets run."""

import importlib.util
import json
import re

import pytest
import yaml
from full_disk import file_size_limit
from huggingface_hub import ModelCard
from PIL import Image
from text_models import make_tokenizer
from transformers import BlipImageProcessorPil

from albef_hf import AlbefProcessor
from albef_hf.configuration_albef import MATCHING_HEADS
from albef_hf.conversion.checkpoints import MODELS
from albef_hf.model_card import Evaluation, Training, _metric_type, model_card, on_the_hub

OPTIONS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-4,
    "min_learning_rate": 1e-5,
    "warmup_steps": 10,
    "weight_decay": 0.02,
    "alpha": 0.4,
    "momentum": 0.995,
    "queue_size": 64,
    "mixed_precision": "bf16",
    "seed": 7,
}


@pytest.fixture
def folder(config, processor, tmp_path):
    """Save a small head with its processor."""

    def save(kind):
        kind(config).save_pretrained(tmp_path / "little")
        processor.save_pretrained(tmp_path / "little")
        return tmp_path / "little"

    return save


def metadata(card: ModelCard) -> dict:
    return yaml.safe_load(card.content.split("---")[1])


@pytest.mark.parametrize("task", MODELS)
def test_snippet_of_every_head_runs(task, folder, tmp_path, monkeypatch, capsys):
    saved = folder(MODELS[task])
    card = model_card(saved, str(saved))
    Image.new("RGB", (60, 40), "red").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", card.content, re.DOTALL)
    assert len(snippets) == (
        2 if MODELS[task].__name__ in MATCHING_HEADS else 1
    )  # transformers, sentence-transformers
    for snippet in snippets:
        if importlib.util.find_spec("sentence_transformers") or "sentence_transformers" not in snippet:
            exec(snippet, {})  # noqa: S102
            assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("task", MODELS)
def test_nothing_is_made_up(task, folder):
    card = model_card(folder(MODELS[task]), "you/little")
    assert metadata(card)["library_name"] == "transformers" and "albef" in metadata(card)["tags"]
    for unknown in ("license", "datasets", "base_model", "model-index", "co2_eq_emissions", "metrics"):
        assert unknown not in metadata(card)
    for word in (
        "More Information Needed",
        "| None",
        "`None`",
        "Undefined",
        "{{",
        "{%",
        "## Training",
        "## Evaluation",
    ):
        assert word not in card.content
    assert "\n\n\n" not in card.content.split("```")[0]
    assert "Training data and evaluation results have not been documented." in card.content


def test_a_cased_tokenizer_may_read_any_language(folder):
    saved = folder(MODELS["retrieval"])
    card = model_card(saved, "you/little")
    assert metadata(card)["language"] == "en" and "It reads English; texts are lower-cased,\nstripped" in card.content
    AlbefProcessor(BlipImageProcessorPil(), make_tokenizer("xlm-roberta")).save_pretrained(saved)
    card = model_card(saved, "you/little")
    assert "language" not in metadata(card) and "lower-cased" not in card.content
    assert "identify them. It reads the languages of its training data; texts are truncated. It" in card.content


def test_what_is_known_is_in_the_card(folder):
    saved = folder(MODELS["retrieval"])
    training = Training(OPTIONS, 120, 90.0, 2, "make it again", "some pairs", "you/pairs", ["you/base"], "the best")
    evaluation = Evaluation(
        {"itm_text_r1": 41.239, "rows/image_broken": 1.0, "rows_left_out": 1},
        "As always.",
        "500 images",
        "you/pairs",
        {"chance": 0.2},
    )
    card = model_card(saved, "you/little", training, evaluation)
    known = metadata(card)
    assert known["pipeline_tag"] == "zero-shot-image-classification"
    assert (known["datasets"], known["base_model"], known["metrics"]) == (["you/pairs"], ["you/base"], ["recall"])
    (result,) = known["model-index"][0]["results"]
    assert result["dataset"] == {"name": "500 images", "type": "you/pairs"}
    assert result["metrics"] == [{"type": "recall", "value": 41.24, "name": "itm_text_r1"}]
    types = {name: _metric_type(name) for name in ("itm_r_mean", "captions_right", "most_frequent_relations")}
    assert types == {"itm_r_mean": "recall", "captions_right": "accuracy", "most_frequent_relations": "accuracy"}
    for text in (
        "| pairs or rows per step | 32 |",
        "| alpha | 0.4 |",
        "1.5 minutes",
        "make it again",
        "| 41.24 |",
        "| 0.20 |",
        "1 rows could not be used",
        "| saved state | the best |",
        "Initialized from: `you/base`",
    ):
        assert text in card.content, text
    assert "image_broken" not in card.content and "rows_left_out" not in card.content
    assert model_card(saved, "you/other").content == card.content.replace("you/little", "you/other").replace(
        "little", "other"
    )


def test_paths_of_folders_are_not_in_the_card(folder, tmp_path):
    saved = folder(MODELS["retrieval"])
    training = Training(OPTIONS, 1, 1.0, 1, "command", "pairs", on_the_hub(str(tmp_path)), [str(saved)])
    card = model_card(saved, "you/little", training)
    assert str(tmp_path) not in card.content and "Initialized from: `little`" in card.content
    assert "datasets" not in metadata(card) and "base_model" not in metadata(card)


def test_provenance_and_emissions(folder):
    saved = folder(MODELS["vqa"])
    (saved / "conversion.json").write_text(
        json.dumps(
            {
                "source": "vqa.pth",
                "sha256": "ab" * 32,
                "task": "vqa",
                "keys": 9,
                "dropped": {},
                "largest_difference": 0.0,
                "resampled": True,
                "image_size": 64,
            }
        )
    )
    (saved / "emissions.csv").write_text(
        "emissions,country_name,gpu_model,cpu_model\n0.5,Iceland,,a CPU\n0.25,Iceland,,a CPU\n"
    )
    (saved / "momentum.safetensors").write_bytes(b"")
    card = model_card(saved, "you/little")
    assert (
        metadata(card)["license"] == "bsd-3-clause" and metadata(card)["pipeline_tag"] == "visual-question-answering"
    )
    assert metadata(card)["co2_eq_emissions"]["emissions"] == 750
    assert metadata(card)["co2_eq_emissions"]["hardware_used"] == "a CPU"
    for text in (
        "vqa.pth",
        "ab" * 32,
        "difference between an original and a converted weight | 0.0",
        "momentum teacher",
        "750",
    ):
        assert text in card.content, text
    assert "| keys | 9 |" in card.content and "interpolated to images of 64 pixels" in card.content
    assert metadata(card)["co2_eq_emissions"]["training_type"] == "fine-tuning"
    assert "momentum teacher" not in model_card(saved, "you/little", exclude=["*momentum.safetensors"]).content


@pytest.mark.parametrize("measured", ["", "emissions,country_name\n", "emissions,country_name\n,Iceland\n"])
def test_emissions_that_were_not_measured_are_omitted(folder, measured):
    saved = folder(MODELS["vqa"])
    (saved / "emissions.csv").write_text(measured)
    assert "co2_eq_emissions" not in metadata(model_card(saved, "you/little"))


def test_a_folder_with_another_model_has_no_card(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match="contains BertModel, for which there is no card"):
        model_card(tmp_path, "you/little")


def test_the_card_is_written_again_under_another_name(folder, run, monkeypatch):
    saved = folder(MODELS["entailment"])
    model_card(saved, "here", Training(OPTIONS, 5, 9.0, 1, "command", "some pairs")).save(saved / "README.md")
    run("card", saved, "you/there")
    text = (saved / "README.md").read_text()
    assert 'from_pretrained("you/there"' in text and "some pairs" in text and "# there" in text
    monkeypatch.delenv("ALBEF_TRACEBACK")
    with pytest.raises(SystemExit, match="error: .*config.json"):
        run("card", saved / "nowhere", "you/there")


def test_a_card_that_cannot_be_written_keeps_the_old_one(folder, run, monkeypatch):
    saved = folder(MODELS["retrieval"])
    (saved / "README.md").write_text("mine")
    monkeypatch.delenv("ALBEF_TRACEBACK")
    with (
        file_size_limit(100),
        pytest.raises(SystemExit, match=f"error: {saved / 'README.md'} could not be written: .*Free disk space"),
    ):
        run("card", saved, "you/albef")
    assert (saved / "README.md").read_text() == "mine"
    assert not list(saved.glob(".*"))
