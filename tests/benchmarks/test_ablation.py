"""The ablation of matching on photographs: one change at a time, results that accumulate, and the report."""

import dataclasses
import json
import sys
import types

import pytest
import torch
import yaml
from paths import REPOSITORY

from albef_hf.retrieval_albef import score_all

FOLDER = REPOSITORY / "benchmarks" / "photographs"
SMALL = {
    "model_config": {"text_config": {"hidden_dropout_prob": 0.1, "image_token_dropout_prob": 0.5}},
    "freeze": ["image_encoder", "text_encoder", "contrastive_head"],
    "num_train_epochs": 1,
    "per_device_train_batch_size": 5,
    "hardness_strength": 0,
    "itm_contrast_weight": 2,
    "alpha": 0.3,
    "queue_size": 0,
    "rerank_k": 4,
    "eval_steps": 2,
    "dataloader_num_workers": 0,
    "mixed_precision": "no",
    "overwrite_output_dir": True,
}


@pytest.fixture
def ablate(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setitem(sys.modules, "efficientnet_lite", types.ModuleType("efficientnet_lite"))  # not needed here
    import ablate

    return ablate


@pytest.fixture
def arguments(model, processor, scene_images, tmp_path) -> list[str]:
    for part in (model, processor):
        part.save_pretrained(tmp_path / "start")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    places = {
        "config": tmp_path / "small.yaml",
        "output_dir": tmp_path / "ablation",
        "model": tmp_path / "start",
        "train_files": scene_images / "train.json",
        "validation_files": scene_images / "train.json",
        "image_root": scene_images,
    }
    return [part for name, place in places.items() for part in (f"--{name}", str(place))]


@pytest.fixture
def knowing(monkeypatch):
    """A start whose contrast tells right from wrong, which the weights of the tests do not."""

    def score(*args, **kwargs):
        scores, noise = score_all(*args, **kwargs), torch.Generator().manual_seed(0)
        for way in (scores.image_to_text, scores.text_to_image):
            way.similarities += way.positives + torch.randn(way.positives.shape, generator=noise)
        return scores

    monkeypatch.setattr("albef_hf.tasks.retrieval.score_all", score)


def test_a_way_changes_one_thing_of_another(ablate):
    options = {name: ablate.read_options(ablate.RECIPE, way, []) for name, way in ablate.WAYS.items()}
    changed = {}
    for name, way in ablate.WAYS.items():
        before = dataclasses.asdict(options[way.base or "recipe"])
        changed[name] = {key for key, value in dataclasses.asdict(options[name]).items() if value != before[key]}
    assert changed == {
        "recipe": set(),
        "not_distilled": {"alpha"},
        "contrast_start": {"start_matching_from_contrast"},
        "all_tokens": {"model_config"},
        "text_encoder": {"freeze", "text_encoder_learning_rate"},
        "easy_negative": {"itm_contrast_weight"},
        "easy_negatives": {"itm_negatives"},
        "hard_negative": {"hardness_strength"},
        "hard_negatives": {"itm_negatives"},
    }
    before, after = (json.loads(options[name].model_config)["text_config"] for name in ("recipe", "all_tokens"))
    hidden = {name for name, value in before.items() if value != after[name]}
    assert before.keys() == after.keys() and hidden == {"image_token_dropout_prob", "text_token_dropout_prob"}


def test_trainings_accumulate_and_are_reported(ablate, knowing, arguments, tmp_path, monkeypatch, capsys):
    results = tmp_path / "ablation" / "results.jsonl"
    ablate.main([*arguments, "--seeds", "1", "--ways", "recipe", "all_tokens"])
    first = results.read_text()
    for other, message in ((["--alpha", "0.1"], "alpha: the ways differ in it"), (["--rerank_k", "3"], "with other")):
        with pytest.raises(SystemExit):
            ablate.main([*arguments, "--seeds", "1", *other])
        assert message in capsys.readouterr().err
    ablate.main([*arguments, "--seeds", "1", "2", "--ways", "all_tokens"])
    assert results.read_text().startswith(first)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    found = [(line["way"], line["seed"]) for line in lines]
    assert found == [("recipe", 1), ("all_tokens", 1), ("all_tokens", 2)]
    for line in lines:
        assert [evaluation["step"] for evaluation in line["curve"]] == [2, 4]
        assert {"itc_text_r1", "itm_image_r10", "cross_fitted_r_mean"} <= line["curve"][0].keys()
    for way, hidden in (("recipe", 0.5), ("all_tokens", 0.0)):
        config = json.loads((tmp_path / "ablation" / f"{way}-seed1" / "config.json").read_text())["text_config"]
        assert config.get("image_token_dropout_prob", 0.0) == hidden and config["hidden_dropout_prob"] == 0.1
    import ablation_report

    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["ablation_report.py", "--results", str(results)])
    ablation_report.main()
    text = capsys.readouterr().out
    title = ablate.WAYS["all_tokens"].title
    assert f"| {title}, instead of {ablate.WAYS['recipe'].title} |" in text
    assert ablate.WAYS["hard_negative"].title not in text  # it was not trained
    texts_at_1 = [line["curve"][-1]["cross_fitted_text_r1"] for line in lines if line["way"] == "all_tokens"]
    row = next(row for row in text.split("### cross-fitted")[1].splitlines() if row.startswith(f"| {title} |"))
    assert row.split(" | ")[1].startswith(f"{sum(texts_at_1) / 2:.1f} ± ") and row.endswith(" 2 |")
    assert results.with_suffix(".png").stat().st_size > 10_000


def test_options_without_effect_are_refused(ablate, arguments, capsys):
    with pytest.raises(SystemExit):
        ablate.main([*arguments, "--seeds", "1", "--ways", "recipe", "--calibrate"])
    assert "calibrate" in capsys.readouterr().err


def test_a_report_of_nothing_says_what_to_run(ablate, tmp_path, monkeypatch, capsys):
    import ablation_report

    monkeypatch.setattr(sys, "argv", ["ablation_report.py", "--results", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit):
        ablation_report.main()
    assert "run ablate.py first" in capsys.readouterr().err
