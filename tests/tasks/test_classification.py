"""The task of classification: labels as they are written, thresholds, weights, and metrics worked out by hand."""

import csv
import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from task_rows import results_of, small, small_evaluation
from transformers import pipeline

from albef_hf import AlbefForImageTextClassification, AlbefForVisualEntailment
from albef_hf.data import InvalidSampleError
from albef_hf.data.scene_tasks import SceneCounts
from albef_hf.evaluation.label_metrics import choose_thresholds, class_metrics, number_metrics, text_only_probabilities
from albef_hf.tasks import find_task
from albef_hf.tasks.classification import NUMBER, SEVERAL, SINGLE
from albef_hf.training.arguments import TrainingArguments

CLASSES = ["blue", "green", "red"]


def task_of(processor, problem_type: str = SEVERAL, **options):
    kind = find_task("classification")
    settings = {"labels": CLASSES, "problem_type": problem_type, "model_config": "{}", **options}
    return kind(kind.arguments_class(**settings), processor)


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (["red", "blue"], [1, 0, 1]),
        (np.array(["green"]), [0, 1, 0]),
        ("red | green", [0, 1, 1]),
        ("['red', 'blue']", [1, 0, 1]),
        ("red", [0, 0, 1]),
        ([], [0, 0, 0]),
        ("", [0, 0, 0]),
        ("[]", [0, 0, 0]),
    ],
)
def test_several_labels_are_read_in_the_forms_in_which_they_are_written(processor, label, classes):
    assert task_of(processor).target({"label": label}).tolist() == classes


@pytest.mark.parametrize("label", [None, float("nan"), "pink", ["red", "pink"], [0, 1, 0], ["red", "red"], [None]])
def test_unknown_labels_are_no_classes(processor, label):
    for problem_type in (SEVERAL, SINGLE):
        with pytest.raises(InvalidSampleError, match="label_unknown"):
            task_of(processor, problem_type).target({"label": label})


def test_one_label_and_numbers(processor):
    assert task_of(processor, SINGLE).target({"label": " red "}).tolist() == [0, 0, 1]
    assert task_of(processor, SINGLE, labels=["1", "2"]).target({"label": 2.0}).tolist() == [0, 1]
    for label in (["red", "blue"], []):
        with pytest.raises(InvalidSampleError, match="is not one label"):
            task_of(processor, SINGLE).target({"label": label})
    task = task_of(processor, NUMBER, labels=[])
    assert [task.target({"label": label}).tolist() for label in (2, "0.5", np.float32(1.5))] == [[2], [0.5], [1.5]]
    for label in (None, "much", float("inf"), [1, 2]):
        with pytest.raises(InvalidSampleError, match="is not a number"):
            task.target({"label": label})
    assert task.classes == ["value"] and task.metric == "r2"


def test_what_a_label_is_and_the_classes_come_from_the_training_rows(pretrained, processor, tmp_path):
    kind = find_task("classification")
    for labels, problem_type, classes in (
        (["b", "a", "b"], SINGLE, ["a", "b"]),
        ([["b"], ["a"], []], SEVERAL, ["a", "b"]),
        (["c|a", "b", None], SEVERAL, ["a", "b", "c"]),
    ):
        rows = tmp_path / "rows.json"
        rows.write_text(json.dumps([{"image": "a.png", "label": label} for label in labels]))
        files = {"train_files": [str(rows)], "validation_files": [str(rows)]}
        args = kind.arguments_class(model=str(pretrained), **files)
        task = kind(args, processor)
        assert (task.problem_type, task.classes) == (problem_type, classes)
        model, _ = kind.load_model(args)
        assert (model.config.problem_type, [*model.config.id2label.values()]) == (problem_type, classes)
    rows.write_text(json.dumps([{"image": "a.png", "label": None}]))
    with pytest.raises(ValueError, match="No row to train on has a label: set labels"):
        _ = kind(args, processor).classes


def test_a_classifier_keeps_its_classes_unless_others_are_asked_for(config, processor, tmp_path):
    kind = find_task("classification")
    model = AlbefForImageTextClassification(config)
    model.reset_classifier(["owl", "cat"], SEVERAL)
    for part in (model, processor):
        part.save_pretrained(tmp_path)

    def loaded(**options):
        return kind.load_model(kind.arguments_class(model=str(tmp_path), **options))[0]

    for options in ({}, {"labels": ["cat", "owl"]}):
        same = loaded(**options)
        assert [*same.config.id2label.values()] == ["owl", "cat"] and same.config.problem_type == SEVERAL
        assert torch.equal(same.classifier.dense.weight, model.classifier.dense.weight)
    other = loaded(labels=["dog", "owl"])
    assert [*other.config.id2label.values()] == ["dog", "owl"]
    assert not torch.equal(other.classifier.dense.weight, model.classifier.dense.weight)
    single = loaded(problem_type=SINGLE)
    assert [*single.config.id2label.values()] == ["2", "3", "4"], "those of the scenes"
    entailment = find_task("entailment")
    with pytest.raises(ValueError, match="classifies owl, cat, but entailment needs contradiction, .*classification"):
        entailment.load_model(entailment.arguments_class(model=str(tmp_path)))
    AlbefForVisualEntailment(config).save_pretrained(tmp_path)
    assert [*loaded().config.id2label.values()] == ["contradiction", "neutral", "entailment"]


def test_a_blank_text_is_an_image_alone(processor, photographs):
    task = task_of(processor, image_root=str(photographs))
    for row in ({}, {"text": None}, {"text": " "}, {"text": float("nan")}):
        assert task.preprocess_eval({"image": "a.png", "label": [], **row}, [])["text"] == ""
    rng = np.random.default_rng(0)
    rows = [{"image": "a.png", "label": ["red"]}, {"image": "b.png", "label": [], "text": "A dog!"}]
    batch = task.collate([task.preprocess_train(row, rng) for row in rows])
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]] and batch["input_ids"][0, 0] == 101
    assert batch["labels"].tolist() == [[0, 0, 1], [0, 0, 0]]


def test_rare_classes_weigh_more(processor):
    rows = [{"label": label} for label in (["red"], ["red", "blue"], ["red"], [])]
    several = task_of(processor)._balanced_weights(rows)
    assert several.tolist() == pytest.approx([3, 3, 1 / 3])  # rows without over rows with; no green counts as one
    assert task_of(processor)._balanced_weights(rows[:3]).tolist() == pytest.approx([2, 2, 1 / 3])
    rows = [{"label": label} for label in ("red", "red", "blue", "green", None)]
    one = task_of(processor, SINGLE)._balanced_weights(rows)
    assert one.tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 6])


def test_thresholds_give_the_highest_f1():
    probabilities = np.array([[0.9, 0.1, 0.4], [0.6, 0.2, 0.5], [0.3, 0.3, 0.6], [0.1, 0.4, 0.7]])
    targets = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    thresholds = choose_thresholds(probabilities, targets)
    # From 0.3 on, two of three are right and none is missed: F1 0.8; from 0.9 on, 2/3. Of the second, all: 6/7.
    assert thresholds == pytest.approx([(0.3 + 0.1) / 2, 0.05, 0.5])


def test_metrics_by_hand():
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    answers = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    probabilities = np.array([[0.9, 0.2, 0], [0.4, 0.8, 0], [0.7, 0.9, 0], [0.1, 0.1, 0.9]])
    metrics = class_metrics(answers, targets, CLASSES, probabilities)
    assert metrics == pytest.approx(
        {
            "macro_f1": 100 * (0.5 + 1) / 2,  # no row is red
            "micro_f1": 100 * 6 / 9,  # 3 right, 2 wrong, 1 missed
            "accuracy": 25,
            "auroc": 100 * (3 / 4 + 1) / 2,
            "f1/blue": 50,
            "f1/green": 100,
            "rows/classes_without": 1,
        }
    )
    alone = class_metrics(answers[:, :1], targets[:, :1], CLASSES[:1], probabilities[:, :1])
    assert (alone["macro_f1"], alone["micro_f1"], alone["accuracy"], alone["auroc"]) == (50, 50, 50, 75)
    assert number_metrics([1, 2, 4], [1, 2, 3]) == pytest.approx({"r2": 50, "spearman": 100})
    assert number_metrics([2, 2, 2], [1, 2, 3]) == {"r2": 0}


def test_texts_alone_reveal_what_they_name():
    texts = ["a red dog", "a blue dog", "a red cat", "a blue cat"] * 5
    targets = np.array([["red" in text, "cat" in text, True] for text in texts])
    probabilities = text_only_probabilities(texts, targets, ["one blue cat", "the red dog"])
    assert (probabilities >= 0.5).tolist() == [[False, True, True], [True, False, True]]


def test_a_table_of_labels_is_trained_on_and_thresholds_are_used_everywhere(run, pretrained, photographs, tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "label"])
        table.writerows([(photographs / f"{name}.png", "what is it", "red|big") for name in "abc"] * 3)
        table.writerows([(photographs / "d.png", "", "[]"), (photographs / "d.png", "", "blue")] * 2)
    data = {"dataset": "csv", "data_files": tmp_path / "rows.csv", "split": "train", "validation_split": "train"}
    data["columns"] = "text=caption"
    run("finetune", "classification", *small(pretrained, tmp_path / "tuned", **data), "--balance_classes")
    metrics, predictions = results_of(tmp_path / "tuned")
    assert len(predictions) == 13 and set(metrics) >= {"macro_f1", "auroc", "f1/big", "macro_f1_at_half"}
    config = AlbefForImageTextClassification.from_pretrained(tmp_path / "tuned").config
    assert config.problem_type == SEVERAL and [*config.id2label.values()] == ["big", "blue", "red"]
    assert config.class_thresholds is not None and metrics["macro_f1"] >= metrics["macro_f1_at_half"]
    data.pop("split")
    run("evaluate", "classification", *small_evaluation(tmp_path / "tuned", tmp_path / "again", **data))
    assert results_of(tmp_path / "again")[1] == predictions

    classify = pipeline("image-text-classification", model=str(tmp_path / "tuned"))
    for prediction, text in ((predictions[0], "what is it"), (predictions[-1], "")):
        image = Image.open(photographs / ("a.png" if text else "d.png"))
        results = classify(image, text) if text else classify(image)
        scores = {result["label"]: result["score"] for result in results}
        assert scores == pytest.approx(prediction["scores"], abs=1e-4)
        assert {result["label"] for result in results if result["predicted"]} == set(prediction["answer"])
    assert len(classify([image, image], top_k=1)) == 2
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "by any number of labels: big, blue, red." in card and "model.config.thresholds" in card


@pytest.mark.parametrize(("problem_type", "metric"), [(SINGLE, "macro_f1"), (NUMBER, "r2")])
def test_one_label_and_a_number_are_trained_on_scenes(problem_type, metric, run, pretrained, tmp_path):
    options = {"problem_type": problem_type, "max_steps": 1, "exchanged_images": False}
    if problem_type == NUMBER and importlib.util.find_spec("peft"):
        options["lora_rank"] = 2
    run("finetune", "classification", *small(pretrained, tmp_path / "tuned", **options))
    metrics, predictions = results_of(tmp_path / "tuned")
    rows = SceneCounts(10, TrainingArguments().seed + 1, 96)
    right = [rows[prediction["row"]]["label"] for prediction in predictions]
    answers = [prediction["answer"] for prediction in predictions]
    if problem_type == NUMBER:
        errors = sum((answer - label) ** 2 for answer, label in zip(answers, right, strict=True))
        assert metrics["r2"] == pytest.approx(100 * (1 - errors / (len(right) * np.var(right))))
    else:
        hits = [answer == str(label) for answer, label in zip(answers, right, strict=True)]
        assert metrics["accuracy"] == pytest.approx(100 * np.mean(hits))
    assert f"constant_{metric}" in metrics
    assert AlbefForImageTextClassification.from_pretrained(tmp_path / "tuned").config.problem_type == problem_type
