"""Evaluation of the tasks on all kinds of rows: without answers, invalid, in other formats."""

import pickle
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from task_rows import CAPTIONED, FILES, evaluated, make_task, results_of, small, small_evaluation, write

from albef_hf import AlbefProcessor
from albef_hf.data import ImageTextPairs, InvalidSampleError, RowErrors, SkipReason
from albef_hf.data.boxes import parse_boxes
from albef_hf.tasks import find_task
from albef_hf.tasks.nlvr2 import two_images
from albef_hf.tasks.vqa import given_answers
from albef_hf.training.model_setup import load_task_model
from albef_hf.utils.command_line import parse_arguments

UNUSABLE = ([], [None], "\u200b", ["\u0301"], " ", [float("nan")], {"answer": None})


@pytest.fixture(autouse=True)
def model_of_tasks(config, tmp_path, monkeypatch):
    """The model that `make_task` names, whose configuration classification reads."""
    config.save_pretrained(tmp_path / "m")
    monkeypatch.chdir(tmp_path)


def test_questions_without_answers_get_predictions_and_no_accuracy(run, pretrained, photographs, tmp_path, capsys):
    rows = [{"question_id": 7 + number, "image": "a.png", "question": "What color?"} for number in range(3)]
    files = {
        "train_files": write(tmp_path, "train.json", FILES["vqa"] * 6),
        "validation_files": write(tmp_path, "validation.json", FILES["vqa"]),
        "answer_list": write(tmp_path, "answers.json", ["red", "blue"]),
        "image_root": photographs,
    }
    run("finetune", "vqa", *small(pretrained, tmp_path / "tuned", **files))
    files |= {"validation_files": write(tmp_path, "test.json", rows)}
    run("evaluate", "vqa", *small_evaluation(tmp_path / "tuned", tmp_path / "test", **files))
    metrics, predictions = results_of(tmp_path / "test")
    assert [found["question_id"] for found in predictions] == [7, 8, 9]
    assert {found["answer"] for found in predictions} <= {"red", "blue"}
    assert metrics == {"rows/without_answer": 3}
    with pytest.raises(ValueError, match="No row to evaluate on has an answer"):
        run("finetune", "vqa", *small(pretrained, tmp_path / "more", **files))
    files["train_files"] = files["validation_files"]
    with pytest.raises(ValueError, match="but not answer"):
        run("finetune", "vqa", *small(pretrained, tmp_path / "more", **files))


def test_unusable_answers_are_counted(processor, config, photographs):
    task = make_task("vqa", processor, image_root=str(photographs), train_files=["none.json"])
    task.answer_list = ["red", "blue"]
    good = {"image": "a.png", "question": "What color?"}
    rows = [{**good, "answer": answer} for answer in (*UNUSABLE, ["red", None, "red"], "\ud800", "blue")]
    metrics, predictions = evaluated(task, config, rows)
    assert [found["row"] for found in predictions] == [7, 8, 9]
    assert metrics["rows_left_out"] == metrics["rows/caption_empty"] == len(UNUSABLE)
    assert task.score([{"row": 7, "answer": "red"}, {"row": 9, "answer": "red"}], rows)["accuracy"] == 50
    for row in rows[: len(UNUSABLE)]:
        with pytest.raises(InvalidSampleError, match="caption_empty: no answer in"):
            task.preprocess_train(row, np.random.default_rng(0))
    batch = task.collate([ImageTextPairs(rows, task.preprocess_train)[number] for number in range(len(rows))])
    assert len(batch["labels"]) == batch["answer_counts"].sum() and batch["issues"][SkipReason.CAPTION_EMPTY] >= 7
    with pytest.raises(InvalidSampleError, match="caption_empty"):
        task.preprocess_eval({**good, "question": "\u200b"}, [])


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
    assert [task.preprocess_train(row, rng)["answers"] for row in rows[:3]] == [
        {"2": 1},
        {"2": 1},
        {"two": 0.25, "2": 0.75},
    ]
    assert task.answer_list == ["2", "two"]
    metrics, predictions = evaluated(task, config, task.validation_rows())
    assert len(predictions) == 4 and metrics["rows/without_answer"] == 1
    assert task.score([{"row": row, "answer": "2"} for row in range(4)], rows)["accuracy"] == 100


TEXT_COLUMNS = {
    "captioning": "caption",
    "classification": "text",
    "grounding": "text",
    "retrieval": "caption",
    "text_assignment": "caption",
    "vqa": "question",
}


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
    trained = [task.preprocess_train(row, np.random.default_rng(0)) for row in task.train_rows()]
    return [
        [{name: str(value) for name, value in sample.items() if name != "pixel_values"} for sample in trained],
        [
            task.preprocess_eval(row, []).get(task.columns[1], task.preprocess_eval(row, []).get("text"))
            for row in task.validation_rows()
        ],
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
        for read in ("train_rows", "validation_rows"):
            with pytest.raises(ValueError, match=message):
                getattr(make_task(name, processor, train_files=[file], validation_files=[file]), read)()


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
        with pytest.raises(InvalidSampleError, match=reason):
            task.preprocess_eval(row, [])


def test_boxes_and_pairs_of_images_may_be_written_as_text():
    assert parse_boxes("[[0, 0, 20, 20], [1.5, 2, 3, 4, 0.9]]") == [[0, 0, 20, 20], [1.5, 2, 3, 4]]
    assert parse_boxes(["[0, 0, 20, 20]"]) == [[0, 0, 20, 20]]
    assert two_images({"images": "['a.png', 'b.png']"}) == ["a.png", "b.png"]
    for wrong in ("[0, 0, 20, 20]", "a dog", ["a dog"]):
        with pytest.raises(InvalidSampleError, match="label_unknown"):
            parse_boxes(wrong)


def test_a_missing_answer_list_is_an_error_before_training(run, pretrained, photographs, tmp_path):
    rows = write(tmp_path, "rows.json", FILES["vqa"] * 6)
    files = {"train_files": rows, "validation_files": rows, "image_root": photographs}
    with pytest.raises(ValueError, match="absent.json cannot be read"):
        run("finetune", "vqa", *small(pretrained, tmp_path / "x", **files, answer_list="absent.json"))
    assert not (tmp_path / "x" / "log.jsonl").exists(), "before any step of the training"
    task = make_task("vqa", AlbefProcessor.from_pretrained(pretrained), validation_files=[str(rows)])
    with pytest.raises(ValueError, match="set answer_list"):
        task.predict(None, task.validation_rows(), range(2))


def test_the_answer_list_is_that_of_the_training_data_by_frequency(processor, tmp_path):
    words = ["green", "blue", "red", "pink"]
    rows = [{"image": "a.png", "question": "what?", "answer": given} for given in (words, ["red", "red"], [], "gold")]
    task = make_task("vqa", processor, train_files=[str(write(tmp_path, "train.json", rows))])
    assert task.answer_list == ["red", "green", "blue", "pink", "gold"], "the most frequent first, then in order"


def test_the_list_of_answers_is_read_once(processor, config, photographs, tmp_path, monkeypatch):
    file = write(tmp_path, "answers.json", ["red", "blue"])
    task = make_task("vqa", processor, image_root=str(photographs), answer_list=str(file))
    first, _ = evaluated(task, config, FILES["vqa"])
    file.unlink()
    assert evaluated(task, config, FILES["vqa"])[0] == first


def test_skipped_rows_are_reported_by_reason_with_an_example(run, pretrained, photographs, tmp_path, capsys):
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
    run("finetune", "entailment", *small(pretrained, tmp_path / "tuned", **files))
    metrics, _ = results_of(tmp_path / "tuned")
    counted = {name: value for name, value in metrics.items() if name.startswith("rows")}
    assert counted == {"rows_left_out": 3, "rows/image_missing": 2, "rows/label_unknown": 1, "rows/text_cut": 1}
    told = "image_missing 2 (first row 2: missing.png), label_unknown 1 (first row 3: 'perhaps'), text_cut 1"
    assert told in capsys.readouterr().out.replace("\n", "")
    assert not any(name.startswith("confusion") for name in metrics)


def test_row_errors_of_processes_are_merged():
    parts = [RowErrors({3: InvalidSampleError(SkipReason.IMAGE_MISSING, "c.png")}, 1), RowErrors(cut=2)]
    parts.append(RowErrors({1: InvalidSampleError(SkipReason.IMAGE_MISSING, "b.png")}))
    whole = RowErrors.merge(pickle.loads(pickle.dumps(parts)))
    assert whole.counts() == {"rows/image_missing": 2, "rows_left_out": 2, "rows/text_cut": 3}
    assert str(whole) == "image_missing 2 (first row 1: b.png), text_cut 3"
    assert str(RowErrors()) == "nothing" and RowErrors().counts() == {}


@pytest.mark.parametrize("name", ["retrieval", "text_assignment", "vqa", "entailment", "nlvr2", "grounding"])
def test_a_wrong_image_root_is_an_error_before_training_and_in_the_evaluation(name, processor, config, tmp_path):
    task = make_task(name, processor, image_root=str(tmp_path))
    message = "No row can be evaluated: image_missing .*(a|d).png.*Check image_root"
    with pytest.raises(ValueError, match=message):
        task.check_validation(FILES[name])
    with pytest.raises(ValueError, match=message):
        evaluated(task, config, FILES[name])
    with pytest.raises(ValueError, match="No row can be evaluated: there are none"):
        task.check_validation([])


def test_the_first_valid_row_may_come_late(processor, photographs):
    task = make_task("entailment", processor, image_root=str(photographs))
    task.check_validation(
        [{"image": "absent.png", "sentence": "It is red.", "label": "neutral"}] * 3 + FILES["entailment"]
    )


def test_no_row_of_the_text_assignment_is_dropped(processor, config, photographs):
    task = make_task("text_assignment", processor, image_root=str(photographs), per_device_eval_batch_size=4)
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
        row = {**FILES[name][0], "question": long, "sentence": long, "text": long, "caption": long, "image_index": 0}
        sample = task.preprocess_train(row, np.random.default_rng(0))
        lengths[name] = task.collate([sample])["input_ids"].shape[1]
        assert sample["issues"] == [SkipReason.CAPTION_CUT]
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
    question = task.preprocess_eval({**FILES["vqa"][0], "question": long}, issues)["question"]
    tokens = task.tokenize([question], task.evaluation_limit)["input_ids"]
    assert tokens.shape[1] == 41 and issues == [], "a question of the evaluation is whole"
    twenty = " ".join(["grandmotherly"] * 20)  # three tokens each
    sample = task.preprocess_train({**FILES["vqa"][0], "question": twenty}, np.random.default_rng(0))
    assert sample["issues"] == [SkipReason.CAPTION_CUT]


def test_longer_texts_are_possible(run, pretrained, tmp_path):
    run("finetune", "entailment", *small(pretrained, tmp_path / "tuned", max_words=35, max_steps=1))
    processor = AlbefProcessor.from_pretrained(tmp_path / "tuned")
    assert processor.max_words == 35 and processor.tokenizer.model_max_length == 40, "the positions of the model"
    task = make_task("entailment", processor, max_words=200)
    tokens = task.tokenize(["red " * 60], task.evaluation_limit)["input_ids"]
    assert tokens.shape[1] == 40, "more tokens than positions would end the run"


def test_a_resolution_that_patches_do_not_tile_is_refused(pretrained):
    kind = find_task("entailment")
    with pytest.raises(ValueError, match="must be a multiple of patch_size"):
        load_task_model(kind.head, kind.arguments_class(model=str(pretrained), image_size=40))
    model, processor, _ = load_task_model(kind.head, kind.arguments_class(model=str(pretrained), image_size=48))
    assert model.config.vision_config.image_size == 48 == processor.image_processor.size["height"]


def test_options_that_cannot_be_are_refused(capsys):
    for task, option, value, message in (
        ("retrieval", "rerank_k", 0, "rerank_k is 0"),
        ("grounding", "rerank_k", 16, "there is no option --rerank_k"),
        ("text_assignment", "alpha", 0.4, "set it to 0"),
        ("text_assignment", "per_device_eval_batch_size", 2, "per_device_eval_batch_size is 2"),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(find_task(task).arguments_class, "", ["--model", "m", f"--{option}", str(value)])
        assert message in capsys.readouterr().err


def test_recall_here_is_that_of_the_metric(processor):
    from albef_hf.metrics.retrieval_recall.scoring import recall_at
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
    assert task.baselines([], FILES["retrieval"] * 2) == {"chance_r1": 50}, "two images in four rows"


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


def test_consistency_goes_by_the_statement_as_it_is_written(processor):
    task = make_task("nlvr2", processor)
    long = "one " * 40
    rows = [{"sentence": sentence, "label": "1"} for sentence in (long + "red", long + "blue", "A.", "a")]
    predictions = [{"row": row, "answer": answer} for row, answer in enumerate(("True", "False", "True", "False"))]
    assert task.score(predictions, rows) == {"accuracy": 50, "consistency": 50}


def test_baselines_learn_from_all_parts_of_the_training_data(processor, monkeypatch):
    monkeypatch.setattr("albef_hf.tasks.base_rows.BASELINE_ROWS", 4)
    task = make_task("entailment", processor)
    rows = [{"image": 0, "sentence": f"it is {word}", "label": word} for word in ("neutral", "entailment")]
    train_rows = rows[:1] * 9 + rows[1:] * 30
    assert task.baselines(train_rows, rows[1:])["majority_accuracy"] == 100, "though the first rows say otherwise"


def test_labels_of_entailment_are_numbered_alike_in_the_metric():
    from albef_hf.metrics.entailment_accuracy.scoring import LABELS
    from albef_hf.modeling_albef import ENTAILMENT_CLASSES

    assert tuple(LABELS) == tuple(ENTAILMENT_CLASSES)


def test_image_ids_get_their_suffix(processor, photographs):
    Image.new("RGB", (40, 50), "red").save(photographs / "4711.png")
    task = make_task("entailment", processor, image_root=str(photographs), image_suffix=".png")
    for name in (4711, "4711"):
        task.preprocess_eval({"image": name, "sentence": "it is red", "label": "neutral"}, [])


@pytest.mark.parametrize("boxes", [[[0, 0, 5]], [0, 0, 5, 5], "0 0 5 5", [["0", 0, 5, 5]], [[0, 0, -5, 5]], [None], 7])
def test_invalid_boxes_are_counted(boxes, processor, config, photographs):
    task = make_task("grounding", processor, image_root=str(photographs), heatmap="contrast")
    good = FILES["grounding"][0]
    rows = [good, {**good, "boxes": boxes}, {**good, "bbox": [0, 5]}, {**good, "boxes": [[0, 0, 20, 20, 0.9]]}]
    metrics, predictions = evaluated(task, config, rows)
    assert [found["row"] for found in predictions] == [0, 3] and metrics["rows/label_unknown"] == 2
    assert predictions[1]["box"] == [0, 0, 20, 20], "the score of a detector is not part of a box"
    assert task.baselines([], rows)["random_box_accuracy"] == 75


def test_the_best_model_is_not_chosen_by_the_test_splits(processor):
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


def test_the_center_prior_is_the_box_nearest_to_the_center(processor):
    """The center (50, 20) lies in the first box and is nearest to the middle of the second."""
    task = make_task("grounding", processor)
    boxes = [[0, 0, 60, 40], [40, 22, 20, 18]]
    rows = [{"bbox": box, "boxes": boxes} for box in boxes]
    predictions = [{"row": row, "box": boxes[0], "point": [1, 1], "size": [100, 40]} for row in range(2)]
    scores = task.score([*predictions, predictions[1]], rows)
    assert scores["accuracy"] == pytest.approx(100 / 3) and scores["pointing"] == pytest.approx(100 / 3)
    assert scores["center_prior_accuracy"] == pytest.approx(200 / 3)
    assert scores["center_prior_pointing"] == pytest.approx(100 / 3)


def test_grounding_is_trained_on_whole_images(processor, photographs, tmp_path: Path):
    """Of an image twice as wide as high, no crop of the usual shapes would contain both edges."""
    wide = Image.new("RGB", (200, 100), "white")
    wide.paste("black", (0, 0, 20, 100))
    wide.paste("black", (180, 0, 200, 100))
    task = make_task("grounding", processor, randaugment_operations=0)
    for seed in range(5):
        row = {"image": wide, "text": "the far left", "image_index": 0}
        pixels = task.normalize(task.preprocess_train(row, np.random.default_rng(seed))["pixel_values"])
        assert pixels[0, 16, 0] < 0 < pixels[0, 16, 16] and pixels[0, 16, -1] < 0
