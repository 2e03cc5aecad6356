"""`albef evaluate`, for fine-tuned and pretrained models."""

from pathlib import Path

import pytest
import torch
from paths import REPOSITORY
from task_rows import FILES, results_of, small, small_evaluation, write
from two_processes import run_on_two_processes

from albef_hf import AlbefForPreTraining


@pytest.fixture
def sharp_model(config, processor, tmp_path) -> Path:
    """A model whose scores differ clearly, unlike those of small weights."""
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.2
    torch.manual_seed(0)
    for part in (AlbefForPreTraining(config), processor):
        part.save_pretrained(tmp_path / "sharp")
    return tmp_path / "sharp"


def test_two_processes_count_every_row_once(run, pretrained, photographs, tmp_path):
    bad = [{"image": f"absent{number}.png", "sentence": "It is red.", "label": "neutral"} for number in range(3)]
    rows = write(tmp_path, "rows.json", FILES["entailment"] * 3 + bad + FILES["entailment"])
    files = {"train_files": rows, "validation_files": rows, "image_root": photographs}
    run("finetune", "entailment", *small(pretrained, tmp_path / "tuned", **files, max_skipped_share=1.0))
    command = ["entailment", *small_evaluation(tmp_path / "tuned", tmp_path / "again", **files)]
    printed = run_on_two_processes(REPOSITORY / "train" / "evaluate.py", *command, folder=tmp_path)
    assert printed.count("image_missing 3 (first row 6: absent0.png)") == 1, "one process reports for both"
    metrics, predictions = results_of(tmp_path / "again")
    assert [found["row"] for found in predictions] == [*range(6), 9, 10] and metrics["rows_left_out"] == 3
    tuned, expected = results_of(tmp_path / "tuned")
    assert predictions == expected
    assert metrics["exchanged_images_accuracy"] == tuned["exchanged_images_accuracy"]


def test_results_in_the_directory_of_a_model_do_not_replace_those_of_its_training(run, pretrained, tmp_path):
    run("finetune", "entailment", *small(pretrained, tmp_path / "tuned"))
    trained = results_of(tmp_path / "tuned")
    options = ["--model", tmp_path / "tuned", "--scenes", 24, "--validation_size", 7]
    run("evaluate", "entailment", *options)
    run("evaluate", "entailment", *options, "--output_dir", tmp_path / "tuned")
    assert results_of(tmp_path / "tuned") == trained
    assert len(results_of(tmp_path / "tuned" / "evaluation")[1]) == 7
    run("finetune", "entailment", *small(pretrained, tmp_path / "tuned", overwrite_output_dir=True))
    assert not (tmp_path / "tuned" / "evaluation").exists(), "another model, other results"


def test_an_untrained_head_is_not_evaluated(run, pretrained, tmp_path):
    for task in ("entailment", "nlvr2", "text_assignment"):
        with pytest.raises(ValueError, match=f"no trained AlbefFor.*albef finetune {task}"):
            run("evaluate", task, *small_evaluation(pretrained, tmp_path / "results"))
    run("evaluate", "retrieval", *small_evaluation(pretrained, tmp_path / "results"))  # needs no fine-tuning


def test_a_pretrained_model_is_evaluated_as_what_it_is(run, pretrained, tmp_path, capsys):
    run("evaluate", "retrieval", *small_evaluation(pretrained, tmp_path / "results"))
    printed = capsys.readouterr().out
    assert "(AlbefForPreTraining, evaluated without fine-tuning) on 10 rows: 10 built-in rows" in printed
    assert "retrieval among 10 images, recall in % (chance at 1: 10)" in printed
    assert results_of(tmp_path / "results")[0]["chance_r1"] == 10


def best(prediction: dict) -> object:
    """Return the first text or image, or the box."""
    return prediction["box"] if "box" in prediction else prediction.get("texts", prediction.get("images"))[0]


@pytest.mark.parametrize("name", ["retrieval", "grounding"])
def test_bfloat16_hardly_changes_the_results(run, sharp_model, tmp_path, capsys, name):
    found = {}
    for dtype in ("float32", "bfloat16"):
        run("evaluate", name, *small_evaluation(sharp_model, tmp_path / dtype), "--dtype", dtype)
        assert f"weights in {dtype}, mixed_precision no" in capsys.readouterr().out
        found[dtype] = results_of(tmp_path / dtype)
    (metrics, predictions), (expected, expected_predictions) = found["bfloat16"], found["float32"]
    same = [best(a) == best(b) for a, b in zip(predictions, expected_predictions, strict=True)]
    assert sum(same) >= 0.9 * len(same) and len(same) >= 10
    model_metrics = [metric for metric in expected if metric.startswith(("itc_", "itm_", "accuracy"))]
    assert all(abs(metrics[metric] - expected[metric]) <= 10 for metric in model_metrics), "of one query among ten"


def test_the_dtype_of_the_saved_weights_takes_the_place_of_mixed_precision(run, pretrained, tmp_path, capsys):
    AlbefForPreTraining.from_pretrained(pretrained, dtype=torch.float16).save_pretrained(pretrained)
    options = ("--dtype", "auto", "--mixed_precision", "bf16")
    run("evaluate", "retrieval", *small_evaluation(pretrained, tmp_path / "results"), *options)
    printed = capsys.readouterr().out
    assert "weights in float16, mixed_precision no" in printed
    assert "dtype auto takes the place of mixed_precision bf16" in printed


@pytest.mark.parametrize(
    ("command", "task"),
    [
        ("finetune", "captioning"),
        ("evaluate", "captioning"),
        ("evaluate", "zero_shot"),
        ("evaluate", "caption_scores"),
    ],
)
def test_a_baseline_of_texts_is_refused_where_there_is_none(command, task, run, capsys):
    with pytest.raises(SystemExit):
        run(command, task, "--model", "m", "--text_only_baseline", "false")
    assert "--text_only_baseline has no effect in this command; remove it" in capsys.readouterr().err


def test_an_evaluation_smooths_no_labels(run, capsys):
    with pytest.raises(SystemExit):
        run("evaluate", "captioning", "--model", "m", "--label_smoothing", "0.1")
    assert "--label_smoothing has no effect in this command; remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["--learning_rate", "--per_device_train_batch_size", "--no_teacher_dropout", "--alpha"]
)
def test_training_options_are_refused(run, name, capsys):
    with pytest.raises(SystemExit) as ended:
        run("evaluate", "retrieval", "--model", "m", name, 1)
    assert ended.value.code == 2
    assert f"{name} has no effect in this command; remove it" in capsys.readouterr().err


def test_as_many_candidates_are_reranked_as_in_training_unless_an_option_says_otherwise(run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("albef_hf.evaluation.evaluate.evaluate", lambda task, args: seen.append(args.rerank_k))
    (tmp_path / "recipe.yaml").write_text("rerank_k: 9\nlearning_rate: 1\n")
    for options in ("rerank_k: 5\nalpha: 0.4\n", "rerank: 5\nbatch_size: 2\n"):  # the second of version 0.1
        (tmp_path / "options.yaml").write_text(options)
        run("evaluate", "retrieval", "--model", tmp_path)
        run("evaluate", "retrieval", "--model", tmp_path, "--rerank_k", 7)
        run("evaluate", "retrieval", "--model", tmp_path, "--config", tmp_path / "recipe.yaml")
    assert seen == [5, 7, 9] * 2
    (tmp_path / "options.yaml").unlink()
    run("evaluate", "retrieval", "--model", tmp_path)
    assert seen[-1] == 128


@pytest.mark.parametrize(("name", "expected"), [("retrieval", {"chance_r1": 50}), ("entailment", {})])
def test_without_rows_to_train_on_there_are_only_untrained_baselines(
    run, pretrained, photographs, tmp_path, capsys, name, expected
):
    rows = write(tmp_path, "rows.json", FILES[name] * 6)
    files = {"train_files": rows, "validation_files": rows, "image_root": photographs}
    run("finetune", name, *small(pretrained, tmp_path / "tuned", **files))
    del files["train_files"]
    run("evaluate", name, *small_evaluation(tmp_path / "tuned", tmp_path / "results", **files))
    names = ("chance_r1", "majority_accuracy", "text_only_accuracy")
    metrics = results_of(tmp_path / "results")[0]
    assert {name: metrics[name] for name in names if name in metrics} == expected
    assert ("baselines are not computed" in capsys.readouterr().out) == (not expected)
