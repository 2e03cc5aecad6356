"""Rows of `datasets` are read like annotation files: labels, images, and optional columns."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from task_rows import results_of, small, small_evaluation

from albef_hf.data import InvalidSampleError
from albef_hf.tasks import find_task

PICTURE = datasets.Image()
TEXT = datasets.Value("string")


def image_bytes(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 50), color).save(buffer, "PNG")
    return buffer.getvalue()


def stored(content: bytes) -> dict:
    return {"bytes": content, "path": None}


@pytest.fixture
def task_on(processor, tmp_path):
    """A task whose rows are those of a parquet file."""

    def make(name: str, columns: dict, features: dict, *named: str, **options: object):
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        file = str(tmp_path / f"{name}.parquet")
        rows.to_parquet(file)
        kind = find_task(name)
        source = {"dataset": "parquet", "data_files": [file], "validation_split": "train", "columns": list(named)}
        return kind(kind.arguments_class(model="m", **source, **options), processor)

    return make


def evaluated(task, pretrained_kind=None) -> tuple[dict, list[dict]]:
    torch.manual_seed(0)
    model = task.head(pretrained_kind)
    return task.evaluate(model, task.validation_rows(), Accelerator(cpu=True))


def test_numbered_labels_are_read_by_their_names(task_on):
    order = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])  # SNLI's; the model has another
    columns = {"image": [stored(image_bytes())] * 4, "sentence": ["it is red"] * 4, "label": [0, 1, 2, -1]}
    task = task_on("entailment", columns, {"image": PICTURE, "sentence": TEXT, "label": order})
    rows = task.validation_rows()
    assert [row["label"] for row in rows] == ["entailment", "neutral", "contradiction", None]
    assert [task.text_and_label(rows[number])[1] for number in range(3)] == [
        "entailment",
        "neutral",
        "contradiction",
    ]
    with pytest.raises(InvalidSampleError, match="label_unknown: None"):
        task.text_and_label(rows[3])


def test_numbered_answers_and_identifiers_are_read_by_what_they_mean(task_on):
    words = datasets.ClassLabel(names=["red", "blue"])
    columns = {"image": [stored(image_bytes())] * 2, "question": ["what color?"] * 2, "answers": [[0, 1, 1], [1]]}
    features = {"image": PICTURE, "question": TEXT, "answers": datasets.List(words)}
    task = task_on("vqa", columns, features, "answer=answers")
    assert [task.answers(row) for row in task.train_rows()] == [["red", "blue", "blue"], ["blue"]]
    columns["answers"] = [[{"answer": 0, "id": 1}], [{"answer": 1, "id": 2}, {"answer": None, "id": 3}]]
    features["answers"] = datasets.List({"answer": words, "id": datasets.Value("int64")})
    task = task_on("vqa", columns, features, "answer=answers")
    assert [task.answers(row) for row in task.train_rows()] == [["red"], ["blue"]]
    columns = {"image": [stored(image_bytes())] * 3, "caption": ["a", "b", "c"], "image_id": [7.0, 8.0, 7.0]}
    features = {"image": PICTURE, "caption": TEXT, "image_id": datasets.Value("float64")}
    assert [row["image_index"] for row in task_on("retrieval", columns, features).train_rows()] == [0, 1, 0]


def test_a_dataset_is_trained_on_and_evaluated_from_the_command_line(task_on, run, pretrained, tmp_path):
    order = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    columns = {"photo": [stored(image_bytes())] * 12, "hypothesis": ["it is red"] * 12, "gold": [0, 1, 2] * 4}
    features = {"photo": PICTURE, "hypothesis": TEXT, "gold": order}
    named = ("image=photo", "sentence=hypothesis", "label=gold")
    task_on("entailment", columns, features, *named)  # writes the file
    source = ["--dataset", "parquet", "--data_files", tmp_path / "entailment.parquet", "--validation_split", "train"]
    source += ["--columns", *named]
    run("finetune", "entailment", *small(pretrained, tmp_path / "tuned"), *source)
    run("evaluate", "entailment", *small_evaluation(tmp_path / "tuned", tmp_path / "again"), *source)
    metrics, predictions = results_of(tmp_path / "again")
    names = ["entailment", "neutral", "contradiction"] * 4
    right = [found["answer"] == name for found, name in zip(predictions, names, strict=True)]
    assert metrics["accuracy"] == pytest.approx(100 * np.mean(right)) == pytest.approx(100 / 3), "one answer to all"


def test_captions_of_a_picture_share_its_number(task_on, config):
    images = [stored(image_bytes(color)) for color in ("red", "blue", "red")]
    columns = {"image": images, "caption": ["all red", "all blue", "one color"], "image_id": [7, 8, 7]}
    for kind in ("int64", "int32", "string"):
        features = {"image": PICTURE, "caption": TEXT, "image_id": datasets.Value(kind)}
        task = task_on("retrieval", columns, features)
        assert [row["image_index"] for row in task.train_rows()] == [0, 1, 0]
    metrics, predictions = evaluated(task, config)
    assert len([found for found in predictions if "texts" in found]) == 2, "two images, not three"
    assert task.baselines([], task.validation_rows()) == {"chance_r1": 50}
    columns["file"], features["file"] = columns.pop("image_id"), features.pop("image_id")
    task = task_on("retrieval", columns | {"file": ["x", "y", "x"]}, features, "image_id=file")
    assert [row["image_index"] for row in task.train_rows()] == [0, 1, 0]


def test_pictures_that_are_paths_are_told_apart_by_them(task_on):
    columns = {"file": ["a.png", "b.png", "a.png"], "caption": ["a", "b", "c"]}
    task = task_on("retrieval", columns, {"file": TEXT, "caption": TEXT}, "image=file")
    assert [row["image_index"] for row in task.train_rows()] == [0, 1, 0]


def test_boxes_of_a_dataset_are_chosen_from(task_on, config):
    boxes = datasets.List(datasets.List(datasets.Value("float64")))
    columns = {
        "image": [stored(image_bytes())] * 2,
        "text": ["the red thing", "the thing"],
        "bbox": [[0.0, 0.0, 20.0, 20.0]] * 2,
        "boxes": [[[0.0, 0.0, 20.0, 20.0], [20.0, 20.0, 20.0, 20.0]]] * 2,
        "split": ["testA", "testB"],
    }
    features = {"image": PICTURE, "text": TEXT, "bbox": boxes.feature, "boxes": boxes, "split": TEXT}
    task = task_on("grounding", columns, features, heatmap="contrast")
    metrics, predictions = evaluated(task, config)
    assert len(predictions) == 2 and {"accuracy", "per_split/testA/accuracy"} <= set(metrics)
    assert task.baselines([], task.validation_rows())["random_box_accuracy"] == 50


def test_questions_keep_their_types_and_sources(task_on):
    answer = {"answer": TEXT, "answer_id": datasets.Value("int64")}
    given = [[{"answer": "red", "answer_id": n} for n in range(9)] + [{"answer": "pink", "answer_id": 9}]]
    columns = {
        "image": [stored(image_bytes())] * 2,
        "question": ["what color?", "is it red?"],
        "answers": given + [[{"answer": "yes", "answer_id": 0}]],
        "question_id": [5, 6],
        "answer_type": ["other", "yes/no"],
        "dataset": ["vqa", "vg"],
        "useless": ["a", "b"],
    }
    features = {"image": PICTURE, "question": TEXT, "answers": datasets.List(answer), "useless": TEXT}
    features |= {"question_id": datasets.Value("int64"), "answer_type": TEXT, "dataset": TEXT}
    task = task_on("vqa", columns, features, "answer=answers")
    rows, rng = task.train_rows(), np.random.default_rng(0)
    assert "useless" not in rows.column_names
    assert task.preprocess_train(rows[0], rng)["answers"] == {"red": 0.9, "pink": 0.1}
    assert task.preprocess_train(rows[1], rng)["answers"] == {"yes": 0.5}, "what Visual Genome says weighs half"
    scores = task.score([{"row": 0, "answer": "red"}, {"row": 1, "answer": "no"}], task.validation_rows())
    assert scores["per_answer_type/other"] == 100 and scores["per_answer_type/yes/no"] == 0


def test_one_broken_picture_of_two_ends_nothing(task_on, config):
    pairs = [[stored(image_bytes()), stored(b"no image")], [stored(image_bytes()), stored(image_bytes("blue"))]]
    columns = {"images": pairs, "sentence": ["one is red"] * 2, "label": [True, False]}
    features = {"images": datasets.List(PICTURE), "sentence": TEXT, "label": datasets.Value("bool")}
    task = task_on("nlvr2", columns, features)
    metrics, predictions = evaluated(task, config)
    assert [found["row"] for found in predictions] == [1] and metrics["rows_left_out"] == 1
    assert task.text_and_label(task.validation_rows()[0])[1] == "True"


def test_pairs_of_pictures_may_have_a_column_each(task_on, config):
    columns = {
        "left": [stored(image_bytes()), stored(b"no image")],
        "right": [stored(image_bytes("blue"))] * 2,
        "sentence": ["one is red"] * 2,
        "label": ["True", "false"],
    }
    features = {"left": PICTURE, "right": PICTURE, "sentence": TEXT, "label": TEXT}
    named = ("left_image=left", "right_image=right")
    task = task_on("nlvr2", columns, features, *named)
    sample = task.preprocess_train(task.train_rows()[0], np.random.default_rng(0))
    assert sample["pixel_values"].shape == (2, 3, 32, 32)
    metrics, predictions = evaluated(task, config)
    assert [found["row"] for found in predictions] == [0] and metrics["rows_left_out"] == 1
    with pytest.raises(ValueError, match="no column 'right_image'; set columns right_image=... to one of left, right"):
        task_on("nlvr2", columns, features, "left_image=left").train_rows()


def test_text_assignment_reads_captions_of_a_dataset(task_on):
    columns = {"image": [stored(image_bytes())] * 3, "text": ["a", "b", "c"], "other": [1, 2, 3]}
    features = {"image": PICTURE, "text": TEXT, "other": datasets.Value("int64")}
    task = task_on("text_assignment", columns, features, "caption=text")
    rows = task.train_rows()
    assert [row["caption"] for row in rows] == ["a", "b", "c"] and "other" not in rows[0]
    assert task.preprocess_train(rows[0], np.random.default_rng(0))["pixel_values"].shape == (3, 32, 32)


def test_a_column_that_is_not_there_or_named_twice_is_told(task_on):
    columns = {"image": [stored(image_bytes())], "caption": ["a"]}
    features = {"image": PICTURE, "caption": TEXT}
    for named, message in (
        ("image_id=number", "no column 'number'; set columns image_id=... to one of image, caption"),
        ("image=caption", "named twice"),
        ("picture=image", "columns names picture; retrieval has image, caption, image_id"),
    ):
        with pytest.raises(ValueError, match=message):
            task_on("retrieval", columns, features, named).validation_rows()


def test_files_to_evaluate_on_win_over_a_dataset(task_on, tmp_path: Path):
    file = tmp_path / "validation.json"
    file.write_text('[{"image": "other.png", "caption": "of the file"}]')
    columns = {"image": [stored(image_bytes())], "caption": ["of the dataset"]}
    task = task_on("retrieval", columns, {"image": PICTURE, "caption": TEXT}, validation_files=[str(file)])
    assert [row["caption"] for row in task.validation_rows()] == ["of the file"]
    assert [row["caption"] for row in task.train_rows()] == ["of the dataset"]
