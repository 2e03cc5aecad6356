"""Evaluations of the tasks with what people give them: rows without answers, bad ones, models that nobody trained."""

import json
import os
import pickle
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from task_rows import CAPTIONED, FILES, REPOSITORY, results_of, small, write

from albef_hf import AlbefProcessor
from albef_hf.data import BadSampleError, Findings, ImageTextPairs, Issue
from albef_hf.evaluation.exchanged_images import exchange
from albef_hf.tasks import find_task
from albef_hf.tasks.base import load_model
from albef_hf.tasks.grounding import add_boxes, checked_boxes
from albef_hf.tasks.nlvr2 import two_images
from albef_hf.tasks.vqa import given_answers
from albef_hf.utils.options import parse_options

UNUSABLE = ([], [None], "\u200b", ["\u0301"], " ", [float("nan")], {"answer": None})


def make_task(name: str, processor, **options: object):
    kind = find_task(name)
    return kind(kind.options_class(model="m", **options), processor)


def evaluated(task, config, rows) -> tuple[dict, list[dict]]:
    torch.manual_seed(0)
    return task.evaluate(task.head(config), rows, Accelerator(cpu=True))


# Questions


def test_the_official_test_questions_get_predictions_and_no_accuracy(run, pretrained, photographs, tmp_path, capsys):
    rows = [{"question_id": 7 + number, "image": "a.png", "question": "What colour?"} for number in range(3)]
    files = {
        "train_files": write(tmp_path, "train.json", FILES["vqa"] * 6),
        "validation_files": write(tmp_path, "validation.json", FILES["vqa"]),
        "answer_list": write(tmp_path, "answers.json", ["red", "blue"]),
        "image_root": photographs,
    }
    run("finetune", "--task", "vqa", *small(pretrained, tmp_path / "tuned", **files))
    files |= {"validation_files": write(tmp_path, "test.json", rows)}
    run("evaluate", "--task", "vqa", *small(tmp_path / "tuned", tmp_path / "test", **files))
    metrics, predictions = results_of(tmp_path / "test")
    assert [found["question_id"] for found in predictions] == [7, 8, 9]
    assert {found["answer"] for found in predictions} <= {"red", "blue"}
    assert metrics == {"rows/without_answer": 3}
    with pytest.raises(ValueError, match="have no answer, by which the best"):
        run("finetune", "--task", "vqa", *small(pretrained, tmp_path / "more", **files))
    files["train_files"] = files["validation_files"]
    with pytest.raises(ValueError, match="but not answer"):
        run("finetune", "--task", "vqa", *small(pretrained, tmp_path / "more", **files))


def test_answers_that_cannot_be_used_are_counted_and_end_nothing(processor, config, photographs):
    task = make_task("vqa", processor, image_root=str(photographs), train_files=["none.json"])
    task.answer_list = ["red", "blue"]
    good = {"image": "a.png", "question": "What colour?"}
    rows = [{**good, "answer": answer} for answer in (*UNUSABLE, ["red", None, "red"], "\ud800", "blue")]
    metrics, predictions = evaluated(task, config, rows)
    assert [found["row"] for found in predictions] == [7, 8, 9]
    assert metrics["rows_left_out"] == metrics["rows/caption_empty"] == len(UNUSABLE)
    assert task.score([{"row": 7, "answer": "red"}, {"row": 9, "answer": "red"}], rows)["accuracy"] == 50
    for row in rows[: len(UNUSABLE)]:
        with pytest.raises(BadSampleError, match="caption_empty: no answer in"):
            task.read(row, np.random.default_rng(0))
    batch = task.collate([ImageTextPairs(rows, task.read)[number] for number in range(len(rows))])
    assert len(batch["labels"]) == batch["answer_counts"].sum() and batch["issues"][Issue.CAPTION_EMPTY] >= 7
    with pytest.raises(BadSampleError, match="caption_empty"):
        task.look({**good, "question": "\u200b"}, [])


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        (2, ["2"]),
        (2.0, ["2"]),
        (1.5, ["1.5"]),
        (float(np.float32(0.1)), ["0.1"]),
        (True, ["true"]),
        (np.int64(3), ["3"]),
        (Decimal("2.50"), ["2.5"]),
        (b"yes", ["yes"]),
        (np.array(["yes", "no"]), ["yes", "no"]),
        (["yes", 3, None, float("nan"), 3], ["yes", "3", "3"]),
        ([{"answer": 4, "answer_id": 1}, {"answer": "four"}], ["4", "four"]),
        ({"answer": [4, "four"], "answer_id": [1, 2]}, ["4", "four"]),
        ("['ponytail', 'ponytail', 'braid']", ["ponytail", "ponytail", "braid"]),
        ('["yes", 2]', ["yes", "2"]),
        ("['yes' 'no']", ["yes", "no"]),
        ("[{'answer': 'yes', 'answer_confidence': 'maybe'}]", ["yes"]),
        ("[yes]", ["[yes]"]),
        ("{}", ["{}"]),
        ("{'a': 1}", ["{'a': 1}"]),
        ("['{}', 'yes']", ["{}", "yes"]),
        (float("inf"), []),
    ],
)
def test_answers_are_read_in_every_form(answer, texts):
    assert given_answers({"answer": answer}) == texts


def test_answers_that_are_numbers_are_trained_on_and_evaluated(processor, config, photographs, tmp_path):
    rows = [{"image": "a.png", "question": "How many?", "answer": answer} for answer in (2, 2.0, ["two", 2, 2, 2])]
    rows += [{"image": "a.png", "question": "How many?", "answer": float("nan")}]
    file = str(write(tmp_path, "rows.json", rows))
    task = make_task("vqa", processor, image_root=str(photographs), train_files=[file], validation_files=[file])
    rows, rng = task.train_rows(), np.random.default_rng(0)
    assert [task.read(row, rng)["answers"] for row in rows[:3]] == [{"2": 1}, {"2": 1}, {"two": 0.25, "2": 0.75}]
    assert task.answer_list == ["2", "two"]
    metrics, predictions = evaluated(task, config, task.validation_rows())
    assert len(predictions) == 4 and metrics["rows/without_answer"] == 1
    assert task.score([{"row": row, "answer": "2"} for row in range(4)], rows)["accuracy"] == 100


TEXT_COLUMNS = {"retrieval": "caption", "text_assignment": "caption", "grounding": "text", "vqa": "question"}
FORMS = {
    "object": lambda text: {"sentid": 1, "raw": text},
    "list of objects": lambda text: [{"raw": one} for one in ([text] if isinstance(text, str) else text)],
    "written list": lambda text: str([text] if isinstance(text, str) else text),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_texts_of_every_task_are_read_in_every_form(name, form, processor, photographs, tmp_path):
    column = TEXT_COLUMNS.get(name, "sentence")
    plain = FILES[name][:1]
    nested = [{**row, column: form(row[column])} for row in plain]
    datasets.Dataset.from_list(nested).to_parquet(str(tmp_path / "rows.parquet"))
    source = {"dataset": "parquet", "data_files": [str(tmp_path / "rows.parquet")], "validation_split": "train"}
    samples = []
    for number, rows in enumerate((plain, nested)):
        file = str(write(tmp_path, f"{number}.json", rows))
        task = make_task(name, processor, image_root=str(photographs), train_files=[file], validation_files=[file])
        samples.append(texts_of(task))
    samples.append(texts_of(make_task(name, processor, image_root=str(photographs), **source)))
    assert samples[0] == samples[1] == samples[2]


def texts_of(task) -> list[tuple]:
    """What training and evaluation read of the rows of a task, but for pixels."""
    trained = [task.read(row, np.random.default_rng(0)) for row in task.train_rows()]
    return [
        [{name: value for name, value in sample.items() if name != "pixel_values"} for sample in trained],
        [task.look(row, []).get(task.columns[1], task.look(row, []).get("text")) for row in task.validation_rows()],
    ]


@pytest.mark.parametrize("name", FILES)
def test_texts_and_images_in_unknown_forms_are_refused_before_training(name, processor, tmp_path):
    column = TEXT_COLUMNS.get(name, "sentence")
    image = "images" if name == "nlvr2" else "image"
    links = ["https://a.b/c.jpg"] * 2 if name == "nlvr2" else "https://a.b/c.jpg"
    for changed, message in (
        ({column: [{"en": "a dog", "de": "ein Hund"}]}, f"'{column}' of row 1 is an object with en, de, but without"),
        ({image: links}, f"'{image}' of row 1 is an address .https://a.b/c.jpg., and nothing is downloaded"),
    ):
        file = str(write(tmp_path, "rows.json", [FILES[name][0], FILES[name][1] | changed]))
        task = make_task(name, processor, train_files=[file], validation_files=[file])
        for read in (task.train_rows, task.validation_rows):
            with pytest.raises(ValueError, match=message):
                read()


@pytest.mark.parametrize("name", FILES)
def test_an_odd_row_is_skipped_with_the_reason(name, processor, photographs, tmp_path):
    column, image = TEXT_COLUMNS.get(name, "sentence"), "images" if name == "nlvr2" else "image"
    links = ["https://a.b/c.jpg"] * 2 if name == "nlvr2" else "https://a.b/c.jpg"
    odd = [FILES[name][0] | {image: links}, FILES[name][0] | {column: {"en": "a dog"}}]
    file = str(write(tmp_path, "rows.json", [*FILES[name] * 3, *odd]))
    task = make_task(name, processor, train_files=[file], validation_files=[file], image_root=str(photographs))
    rows = task.validation_rows()
    for row, reason in zip(
        [*rows][-2:], ("image_missing: an address", "caption_empty: an object with en"), strict=True
    ):
        with pytest.raises(BadSampleError, match=reason):
            task.look(row, [])


def test_boxes_and_pairs_of_images_may_be_written_as_text():
    assert checked_boxes("[[0, 0, 20, 20], [1.5, 2, 3, 4, 0.9]]") == [[0, 0, 20, 20], [1.5, 2, 3, 4]]
    assert checked_boxes(["[0, 0, 20, 20]"]) == [[0, 0, 20, 20]]
    assert two_images({"images": "['a.png', 'b.png']"}) == ["a.png", "b.png"]
    for wrong in ("[0, 0, 20, 20]", "a dog", ["a dog"]):
        with pytest.raises(BadSampleError, match="label_unknown"):
            checked_boxes(wrong)


def test_answers_to_choose_from_are_asked_for_before_anything_else(run, pretrained, photographs, tmp_path):
    rows = write(tmp_path, "rows.json", FILES["vqa"] * 6)
    files = {"train_files": rows, "validation_files": rows, "image_root": photographs}
    with pytest.raises(ValueError, match="absent.json cannot be read"):
        run("finetune", "--task", "vqa", *small(pretrained, tmp_path / "x", **files, answer_list="absent.json"))
    log = (tmp_path / "x" / "log.jsonl").read_text()
    assert "loss" not in log, "no step of the training has come before"
    task = make_task("vqa", AlbefProcessor.from_pretrained(pretrained), validation_files=[str(rows)])
    with pytest.raises(ValueError, match="give answer_list"):
        task.predict(None, task.validation_rows(), range(2))


def test_answers_to_choose_from_are_those_of_the_training_in_order(processor, tmp_path):
    words = ["green", "blue", "red", "pink"]
    rows = [{"image": "a.png", "question": "what?", "answer": given} for given in (words, ["red", "red"], [], "gold")]
    task = make_task("vqa", processor, train_files=[str(write(tmp_path, "train.json", rows))])
    assert task.answer_list == ["red", "green", "blue", "pink", "gold"], "the most frequent first, then as they come"


def test_the_list_of_answers_is_read_once(processor, config, photographs, tmp_path, monkeypatch):
    file = write(tmp_path, "answers.json", ["red", "blue"])
    task = make_task("vqa", processor, image_root=str(photographs), answer_list=str(file))
    first, _ = evaluated(task, config, FILES["vqa"])
    file.unlink()
    assert evaluated(task, config, FILES["vqa"])[0] == first


# Images exchanged among rows


@pytest.mark.parametrize(
    ("images", "once"),
    [("abcd", True), ("aabb", True), ("aaabcd", True), ("aaab", False), (["ab", "bc", "cd", "de", "ea", "fg"], True)],
)
def test_no_row_gets_an_image_that_it_has(images, once):
    """And all images are shown as often as before, unless one is that of more than half of the rows."""
    images = {row: frozenset(names) for row, names in enumerate(images)}
    exchanges = [exchange(images, seed) for seed in range(40)]
    for givers in exchanges:
        assert [*givers] == [*images] and all(images[row].isdisjoint(images[giver]) for row, giver in givers.items())
        assert not once or sorted(givers.values()) == [*images]
    assert exchanges[0] == exchange(images, 0) and any(givers != exchanges[0] for givers in exchanges) or not once


def test_an_image_without_another_is_not_exchanged():
    same = frozenset("a")
    assert exchange({3: same, 5: same}, 0) == exchange({3: same}, 0) == exchange({}, 0) == {}
    assert exchange({0: frozenset("ab"), 1: frozenset("a"), 2: frozenset("b")}, 0) == {1: 2, 2: 1}, "0 shares with all"


def sees_red(task, model, rows, numbers) -> list[dict]:
    """A model that says what it sees: whether the first image is red."""
    seen = [row for batch in task.readable(rows, numbers) for row in batch]
    images = [row["images"][0] if "images" in row else row["image"] for row in seen]
    red = [image.getpixel((0, 0)) == (255, 0, 0) for image in images]
    answers = {"entailment": ("contradiction", "entailment"), "nlvr2": ("False", "True"), "vqa": ("blue", "red")}
    return [{"row": row["row"], "answer": answers[task.name][is_red]} for row, is_red in zip(seen, red, strict=True)]


@pytest.mark.parametrize("name", ["entailment", "nlvr2", "vqa"])
def test_without_the_right_images_a_model_that_looks_is_wrong(name, processor, config, photographs, monkeypatch):
    """Four rows, two of a red image under two names, two of blue ones: exchanged, each sees the other colour."""
    (photographs / "vg").mkdir()
    (photographs / "a.png").rename(photographs / "vg" / "red.png")
    Image.new("RGB", (40, 50), "red").save(photographs / "red.png")
    kind = find_task(name)
    monkeypatch.setattr(kind, "predict", sees_red)
    options = {"image_root": str(photographs), "train_files": ["none.json"]}
    task = make_task(name, processor, **options, **({"vg_root": str(photographs / "vg")} if name == "vqa" else {}))
    rows = [{**FILES[name][place], "dataset": "vqa"} for place in (0, 1, 0, 1)]
    for row, image in zip(rows, ("red", "b", "red", "b"), strict=True):
        row |= {"image": f"{image}.png", "images": [f"{image}.png", "c.png" if image == "b" else "d.png"]}
    if name == "vqa":
        rows[0] |= {"dataset": "vg", "answer": "red"}
    model, accelerator = task.head(config), Accelerator(cpu=True)
    bad = {**rows[0], "image": "broken.png", "images": ["broken.png"] * 2}
    assert task.evaluate(model, [*rows, bad], accelerator)[0]["accuracy"] == pytest.approx(100)
    assert task.evaluate_exchanged(model, [*rows, bad], accelerator) == {"exchanged_images_accuracy": 0}
    assert [*task.findings.bad] == [4] and [*task.images] == [0, 1, 2, 3], "those of the evaluation itself"
    task.options.exchanged_images = False
    task.evaluate(model, rows, accelerator)
    assert task.evaluate_exchanged(model, rows, accelerator) == {}


def test_what_belongs_to_an_image_moves_with_it(processor, config, photographs):
    """Of grounding the boxes: each row has one to choose from, which is the right one of its image."""
    rows = [
        {**FILES["grounding"][0], "image": f"{name}.png", "boxes": [[0, 0, 9, 9 + place]]}
        for place, name in enumerate("ab")
    ]
    rows = [{**row, "bbox": row["boxes"][0]} for row in rows]
    task = make_task("grounding", processor, image_root=str(photographs))
    model = task.head(config)
    task.evaluate(model, rows, Accelerator(cpu=True))
    assert task.evaluate_exchanged(model, rows, Accelerator(cpu=True)) == {"exchanged_images_accuracy": 100}


# What is left out, and what is cut


def test_what_is_wrong_is_told_by_reason_with_the_first_example(run, pretrained, photographs, tmp_path, capsys):
    bad = [
        {"image": "missing.png", "sentence": "It is red.", "label": "neutral"},
        {"image": "a.png", "sentence": "It is red.", "label": "perhaps"},
        {"image": "absent.png", "sentence": "It is red.", "label": "neutral"},
        {"image": "a.png", "sentence": "red " * 40, "label": "neutral"},
    ]
    files = {
        "train_files": write(tmp_path, "train.json", FILES["entailment"] * 6),
        "validation_files": write(tmp_path, "validation.json", FILES["entailment"] + bad),
        "image_root": photographs,
    }
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned", **files))
    metrics, _ = results_of(tmp_path / "tuned")
    counted = {name: value for name, value in metrics.items() if name.startswith("rows")}
    assert counted == {"rows_left_out": 3, "rows/image_missing": 2, "rows/label_unknown": 1, "rows/text_cut": 1}
    told = "image_missing 2 (first row 2: missing.png), label_unknown 1 (first row 3: 'perhaps'), text_cut 1"
    assert told in capsys.readouterr().out.replace("\n", "")
    assert not any(name.startswith("confusion") for name in metrics)


def test_findings_of_processes_are_put_together():
    parts = [Findings({3: BadSampleError(Issue.IMAGE_MISSING, "c.png")}, 1), Findings(cut=2)]
    parts.append(Findings({1: BadSampleError(Issue.IMAGE_MISSING, "b.png")}))
    whole = Findings.together(pickle.loads(pickle.dumps(parts)))
    assert whole.counts() == {"rows/image_missing": 2, "rows_left_out": 2, "rows/text_cut": 3}
    assert str(whole) == "image_missing 2 (first row 1: b.png), text_cut 3"
    assert str(Findings()) == "nothing" and Findings().counts() == {}


def test_two_processes_count_every_row_once(run, pretrained, photographs, tmp_path):
    bad = [{"image": f"absent{number}.png", "sentence": "It is red.", "label": "neutral"} for number in range(3)]
    rows = write(tmp_path, "rows.json", FILES["entailment"] * 3 + bad + FILES["entailment"])
    files = {"train_files": rows, "validation_files": rows, "image_root": photographs}
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned", **files, max_skipped_share=1.0))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [REPOSITORY / "train" / "evaluate.py", "--task", "entailment"]
    command += small(tmp_path / "tuned", tmp_path / "again", **files)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("image_missing 3 (first row 6: absent0.png)") == 1, "one process tells of both"
    metrics, predictions = results_of(tmp_path / "again")
    assert [found["row"] for found in predictions] == [*range(6), 9, 10] and metrics["rows_left_out"] == 3
    tuned, expected = results_of(tmp_path / "tuned")
    assert predictions == expected
    assert metrics["exchanged_images_accuracy"] == tuned["exchanged_images_accuracy"]


@pytest.mark.parametrize("name", ["retrieval", "text_assignment", "vqa", "entailment", "nlvr2", "grounding"])
def test_a_wrong_image_root_is_told_before_training_and_in_the_evaluation(name, processor, config, tmp_path):
    task = make_task(name, processor, image_root=str(tmp_path))
    message = "No row can be evaluated: image_missing .*(a|d).png.*Check image_root"
    with pytest.raises(ValueError, match=message):
        task.check(FILES[name])
    with pytest.raises(ValueError, match=message):
        evaluated(task, config, FILES[name])
    with pytest.raises(ValueError, match="No row can be evaluated: there is none"):
        task.check([])


def test_the_row_that_is_looked_for_may_come_late(processor, photographs):
    task = make_task("entailment", processor, image_root=str(photographs))
    task.check([{"image": "absent.png", "sentence": "It is red.", "label": "neutral"}] * 3 + FILES["entailment"])


def test_no_row_of_the_text_assignment_is_dropped(processor, config, photographs):
    task = make_task("text_assignment", processor, image_root=str(photographs), eval_batch_size=4)
    for count in (9, 10, 11, 3):
        _, predictions = evaluated(task, config, (CAPTIONED * 3)[:count])
        assert [found["row"] for found in predictions] == list(range(count))
    with pytest.raises(ValueError, match="row 0: fewer than 3 to draw from"):
        evaluated(task, config, CAPTIONED[:2])


def test_texts_are_cut_where_the_original_cuts_them(processor, photographs):
    long = " ".join(["elephant"] * 40)
    lengths = {}
    for name in ("vqa", "text_assignment", "retrieval", "grounding", "entailment", "nlvr2"):
        task = make_task(name, processor, image_root=str(photographs))
        row = {**FILES[name][0], "question": long, "sentence": long, "text": long, "caption": long, "number": 0}
        sample = task.read(row, np.random.default_rng(0))
        lengths[name] = task.collate([sample])["input_ids"].shape[1]
        assert sample["issues"] == [Issue.CAPTION_CUT]
    # 30 words and [CLS]; 25 tokens of questions and of what was pretrained on.
    assert lengths == {
        "vqa": 25,
        "text_assignment": 25,
        "retrieval": 31,
        "grounding": 31,
        "entailment": 31,
        "nlvr2": 31,
    }

    task, issues = make_task("vqa", processor, image_root=str(photographs)), []
    question = task.look({**FILES["vqa"][0], "question": long}, issues)["question"]
    tokens = task.tokenize([question], task.evaluation_limit)["input_ids"]
    assert tokens.shape[1] == 41 and issues == [], "a question of the evaluation is whole"
    twenty = " ".join(["grandmotherly"] * 20)  # three tokens each
    sample = task.read({**FILES["vqa"][0], "question": twenty}, np.random.default_rng(0))
    assert sample["issues"] == [Issue.CAPTION_CUT]


def test_longer_texts_may_be_asked_for(run, pretrained, tmp_path):
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned", max_words=35, max_steps=1))
    processor = AlbefProcessor.from_pretrained(tmp_path / "tuned")
    assert processor.max_words == 35 and processor.tokenizer.model_max_length == 40, "the positions of the model"
    task = make_task("entailment", processor, max_words=200)
    tokens = task.tokenize(["red " * 60], task.evaluation_limit)["input_ids"]
    assert tokens.shape[1] == 40, "more tokens than positions would end the run"


# Models and folders


def test_results_beside_a_model_do_not_replace_those_of_its_training(run, pretrained, tmp_path):
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned"))
    trained = results_of(tmp_path / "tuned")
    options = ["--model", tmp_path / "tuned", "--validation_size", 7]
    run("evaluate", "--task", "entailment", *options)
    run("evaluate", "--task", "entailment", *options, "--output_dir", tmp_path / "tuned")
    assert results_of(tmp_path / "tuned") == trained
    assert len(results_of(tmp_path / "tuned" / "evaluation")[1]) == 7
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned", overwrite_output_dir=True))
    assert not (tmp_path / "tuned" / "evaluation").exists(), "another model, other results"


def test_a_head_that_nobody_has_trained_is_not_evaluated(run, pretrained, tmp_path):
    for task in ("entailment", "nlvr2", "text_assignment"):
        with pytest.raises(ValueError, match=f"no trained AlbefFor.*finetune.py --task {task}"):
            run("evaluate", "--task", task, *small(pretrained, tmp_path / "results"))
    run("evaluate", "--task", "retrieval", *small(pretrained, tmp_path / "results"))  # needs no fine-tuning


def test_a_resolution_that_patches_do_not_tile_is_refused(pretrained):
    kind = find_task("entailment")
    with pytest.raises(ValueError, match="must be a multiple of patch_size"):
        load_model(kind, kind.options_class(model=str(pretrained), image_size=40))
    model, processor = load_model(kind, kind.options_class(model=str(pretrained), image_size=48))
    assert model.config.vision_config.image_size == 48 == processor.image_processor.size["height"]


def test_options_that_cannot_be_are_refused(capsys):
    for task, option, value, message in (
        ("retrieval", "rerank", 0, "rerank is 0"),
        ("text_assignment", "alpha", 0.4, "set it to 0"),
        ("text_assignment", "eval_batch_size", 2, "eval_batch_size is 2"),
    ):
        with pytest.raises(SystemExit):
            parse_options(find_task(task).options_class, "", ["--model", "m", f"--{option}", str(value)])
        assert message in capsys.readouterr().err


# Metrics


def test_recall_here_is_that_of_the_metric(processor):
    from albef_hf.metrics.retrieval_recall.retrieval_recall import recall_at
    from albef_hf.retrieval_albef import recall

    scores = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    positives = torch.rand(40, 30, generator=torch.Generator().manual_seed(1)) < 0.05
    positives[:, 29] |= ~positives.any(1)
    rankings = scores.argsort(descending=True).tolist()
    metric = recall_at(rankings, [row.nonzero().flatten().tolist() for row in positives])
    found = recall(scores, positives)
    assert 0 < found[1] < found[5] < found[10] < 100
    assert {f"r{k}": pytest.approx(value) for k, value in found.items()} | {"r_mean": metric["r_mean"]} == metric


def test_each_direction_of_retrieval_has_its_mean(processor, config, photographs):
    task = make_task("retrieval", processor, image_root=str(photographs))
    metrics, _ = evaluated(task, config, CAPTIONED * 2 + FILES["retrieval"])
    for step in ("itc", "itm"):
        text, image = (np.mean([metrics[f"{step}_{way}_r{k}"] for k in (1, 5, 10)]) for way in ("text", "image"))
        assert metrics[f"{step}_text_r_mean"] == pytest.approx(text)
        assert metrics[f"{step}_image_r_mean"] == pytest.approx(image)
        assert metrics[f"{step}_r_mean"] == pytest.approx((text + image) / 2)
    assert task.baselines([], FILES["retrieval"] * 2) == {"chance_r1": 50}, "two pictures in four rows"


def test_pairs_are_ordered_by_log_odds_or_as_the_weights_have_it(processor, config, photographs):
    """A head whose logit of no match is twice that of a match: the difference orders the other way round."""
    torch.manual_seed(0)
    model = find_task("retrieval").head(config)
    with torch.no_grad():
        model.itm_head.bias.zero_()
        model.itm_head.weight[0] = 2 * model.itm_head.weight[1]
    found = {}
    for mismatch, itc in ((1.0, 0.0), (0.0, 0.0), (0.0, 1e6)):
        weights = {"mismatch_weight": mismatch, "itc_weight": itc}
        task = make_task("retrieval", processor, image_root=str(photographs), **weights)
        _, predictions = task.evaluate(model, CAPTIONED, Accelerator(cpu=True))
        found[mismatch, itc] = [shown["texts"] for shown in predictions if "texts" in shown]
    assert len(found[1, 0][0]) > 2 and found[1, 0] != found[0, 0] != found[0, 1e6]
    assert found[1, 0] == [several[::-1] for several in found[0, 0]]


def test_the_panel_of_the_evaluation_shows_what_chooses_the_best_and_no_counts():
    from albef_hf.training.logging import _panels

    record = {
        "itm_r_mean": 5.0,
        "itm_text_r1": 4.0,
        "itm_text_r_mean": 4.5,
        "rows_left_out": 3,
        "rows/image_missing": 3,
    }
    panels = _panels([{"step": 1, "seconds": 1.0, **record}])
    assert panels["evaluation (%)"] == ["itm_r_mean", "itm_text_r_mean"]


def test_consistency_goes_by_the_statement_as_it_is_written(processor):
    task = make_task("nlvr2", processor)
    long = "one " * 40
    rows = [{"sentence": sentence, "label": "1"} for sentence in (long + "red", long + "blue", "A.", "a")]
    predictions = [{"row": row, "answer": answer} for row, answer in enumerate(("True", "False", "True", "False"))]
    assert task.score(predictions, rows) == {"accuracy": 50, "consistency": 50}


def test_baselines_learn_from_all_parts_of_the_training_data(processor, monkeypatch):
    monkeypatch.setattr("albef_hf.tasks.base.BASELINE_ROWS", 4)
    task = make_task("entailment", processor)
    rows = [{"image": 0, "sentence": f"it is {word}", "label": word} for word in ("neutral", "entailment")]
    train_rows = rows[:1] * 9 + rows[1:] * 30
    assert task.baselines(train_rows, rows[1:])["majority_accuracy"] == 100, "though the first rows say otherwise"


def test_a_thousand_answers_are_enough_for_the_baseline(monkeypatch):
    from albef_hf import text_baseline

    monkeypatch.setattr(text_baseline, "MOST_CLASSES", 2)
    texts = ["red", "blue", "red", "blue", "green"] * 4
    assert text_baseline.text_only_answers(texts, texts, ["red", "blue", "something else"])[:2] == ["red", "blue"]
    assert text_baseline.text_only_answers(texts, texts, ["green"])[0] in ("red", "blue")


def test_labels_of_entailment_are_numbered_alike_in_the_metric():
    from albef_hf.metrics.entailment_accuracy.entailment_accuracy import LABELS
    from albef_hf.modeling_albef import ENTAILMENT_CLASSES

    assert tuple(LABELS) == tuple(ENTAILMENT_CLASSES)


def test_numbers_of_pictures_get_their_suffix(processor, photographs):
    Image.new("RGB", (40, 50), "red").save(photographs / "4711.png")
    task = make_task("entailment", processor, image_root=str(photographs), image_suffix=".png")
    for name in (4711, "4711"):
        task.look({"image": name, "sentence": "it is red", "label": "neutral"}, [])


# Boxes


@pytest.mark.parametrize("boxes", [[[0, 0, 5]], [0, 0, 5, 5], "0 0 5 5", [["0", 0, 5, 5]], [[0, 0, -5, 5]], [None], 7])
def test_boxes_that_are_none_are_counted(boxes, processor, config, photographs):
    task = make_task("grounding", processor, image_root=str(photographs), heatmap="contrast")
    good = FILES["grounding"][0]
    rows = [good, {**good, "boxes": boxes}, {**good, "bbox": [0, 5]}, {**good, "boxes": [[0, 0, 20, 20, 0.9]]}]
    metrics, predictions = evaluated(task, config, rows)
    assert [found["row"] for found in predictions] == [0, 3] and metrics["rows/label_unknown"] == 2
    assert predictions[1]["box"] == [0, 0, 20, 20], "a detector's score is no part of a box"
    assert task.baselines([], rows)["random_box_accuracy"] == 75


def test_files_of_references_that_do_not_fit_are_told(tmp_path):
    def write_files(references: bytes, candidates: str) -> None:
        (tmp_path / "refs(unc).p").write_bytes(references)
        (tmp_path / "instances.json").write_text(json.dumps({"annotations": [{"id": 9, "bbox": [1, 2, 3, 4]}]}))
        (tmp_path / "dets.json").write_text(candidates)

    reference = {"ref_id": 5, "ann_id": 9, "image_id": 3, "split": "val"}
    for references, candidates, message in (
        (b"", "{}", "needs refs"),
        (pickle.dumps([7]), "{}", "needs refs"),
        (pickle.dumps([reference]), "[1]", "not a JSON object of boxes"),
    ):
        write_files(references, candidates)
        with pytest.raises(ValueError, match=message):
            add_boxes([{"ref_id": 5}], tmp_path)
    write_files(pickle.dumps([reference | {"ann_id": 8}]), '{"3": null}')
    (row,) = add_boxes([{"ref_id": 5}], tmp_path)
    assert row["bbox"] is None and row["boxes"] == [], "counted in the evaluation"


def test_the_best_is_not_chosen_by_what_it_is_tested_on(processor):
    task = make_task("grounding", processor)
    rows = [
        {"bbox": [0, 0, 9, 9], "boxes": [[0, 0, 9, 9], [50, 50, 9, 9]], "split": split}
        for split in ("val", "val", "testA", "testA", "testB")
    ]
    predictions = [
        {"row": row, "box": [0, 0, 9, 9] if right else [50, 50, 9, 9], "point": [1, 1], "size": [90, 90]}
        for row, right in enumerate((True, False, True, True, True))
    ]
    assert task.score(predictions, rows)["accuracy"] == 50
    assert task.score(predictions[2:], rows)["accuracy"] == 100


def test_a_photographer_aims(processor):
    """The centre (50, 20) lies in the first box and is nearest to the middle of the second."""
    task = make_task("grounding", processor)
    boxes = [[0, 0, 60, 40], [40, 22, 20, 18]]
    rows = [{"bbox": box, "boxes": boxes} for box in boxes]
    predictions = [{"row": row, "box": boxes[0], "point": [1, 1], "size": [100, 40]} for row in range(2)]
    scores = task.score([*predictions, predictions[1]], rows)
    assert scores["accuracy"] == pytest.approx(100 / 3) and scores["pointing"] == pytest.approx(100 / 3)
    assert scores["center_prior_accuracy"] == pytest.approx(200 / 3)
    assert scores["center_prior_pointing"] == pytest.approx(100 / 3)


def test_grounding_sees_whole_pictures_in_training(processor, photographs, tmp_path: Path):
    """Of a picture twice as wide as high, no crop of the shapes that are drawn would hold both edges."""
    wide = Image.new("RGB", (200, 100), "white")
    wide.paste("black", (0, 0, 20, 100))
    wide.paste("black", (180, 0, 200, 100))
    task = make_task("grounding", processor, randaugment_operations=0)
    for seed in range(5):
        row = {"image": wide, "text": "the far left", "number": 0}
        pixels = task.read(row, np.random.default_rng(seed))["pixel_values"]
        assert pixels[0, 16, 0] < 0 < pixels[0, 16, 16] and pixels[0, 16, -1] < 0
