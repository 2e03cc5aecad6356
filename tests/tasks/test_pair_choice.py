"""The choice of the right caption of an image: forms of files, scores, accuracies, baselines."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from task_rows import make_task, results_of, small_evaluation

from albef_hf import AlbefForRetrieval, AlbefForVisualEntailment, cli
from albef_hf.data.pair_choices import load_pair_choice, read_pair_choices
from albef_hf.tasks.arguments import PairChoiceArguments
from albef_hf.tasks.pair_choice import PairChoiceTask

CALIBRATION = {"scale": 0.5, "cosine_weight": 40.0, "bias": -0.25, "fitted_on": "a test"}
ROWS = [
    {"image": "a.png", "caption": "a red dog", "wrong_caption": "a blue dog", "category": "color"},
    {"image": "b.png", "caption": "two cats", "wrong_caption": ["no cats", "one cat"], "category": "number"},
    {"image": "c.png", "caption": "a cat on a dog", "wrong_caption": "a dog on a cat", "category": "order"},
]
BOX = {"bbox_x": 10, "bbox_y": 20, "bbox_w": 5, "bbox_h": 8}
# The published forms: of SugarCrepe, ARO, VL-CheckList, Winoground, and ours.
FORMS = {
    "swap_obj.json": {
        "0": {"filename": "a.png", "caption": "a dog on a cat", "negative_caption": "a cat on a dog"},
        "7": {"filename": "b.png", "caption": "a man", "negative_caption": "two men"},
    },
    "aro.json": [
        {"image_path": "a.png", "true_caption": "x on y", "false_caption": "y on x", "relation_name": "on", **BOX}
    ],
    "action.json": [["a.png", {"POS": ["a boy jumps", "jumps"], "NEG": ["a boy sits", "sits"]}]],
    "winoground.json": [
        {"image_0": "a.png", "image_1": "b.png", "caption_0": "x y", "caption_1": "y x", "collapsed_tag": "Object"}
    ],
    "ours.json": ROWS,
}
WINOGROUND = FORMS["winoground.json"]
EXPECTED = {  # images, captions and category of each row
    "swap_obj.json": [
        (1, ["a dog on a cat", "a cat on a dog"], "swap_obj"),
        (1, ["a man", "two men"], "swap_obj"),
    ],
    "aro.json": [(1, ["x on y", "y on x"], "on")],
    "action.json": [(1, ["a boy jumps", "a boy sits"], "action"), (1, ["jumps", "sits"], "action")],
    "winoground.json": [(2, ["x y", "y x"], "Object")],
    "ours.json": [
        (1, ["a red dog", "a blue dog"], "color"),
        (1, ["two cats", "no cats", "one cat"], "number"),
        (1, ["a cat on a dog", "a dog on a cat"], "order"),
    ],
}


@pytest.mark.parametrize("name", FORMS)
def test_published_files_are_read_as_they_are(name, photographs, tmp_path):
    (tmp_path / name).write_text(json.dumps(FORMS[name]))
    choices = [load_pair_choice(row, str(photographs)) for row in read_pair_choices([str(tmp_path / name)])]
    assert [(len(choice.images), choice.captions, choice.category) for choice in choices] == EXPECTED[name]
    assert choices[0].images[0].size == ((5, 8) if name == "aro.json" else Image.open(photographs / "a.png").size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"image": "a.png", "caption": "a"}],
            "has caption, image, but no wrong caption: it must be called",
        ),
        ({"0": {"caption": "a", "negative_caption": "b"}}, "but no image: it must be called image, or filename"),
        ([["a.png", {"POS": ["a"], "NEG": []}]], "POS and NEG must be lists of equal length"),
        (["a.png"], "'a.png': it must be an object with image and captions"),
        ([], "contains no list of choices"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_pair_choices([str(tmp_path / "rows.json")])


def test_files_of_equal_names_are_categories_of_their_own(tmp_path):
    for folder in ("vg", "hake"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "action.json").write_text('[["a.png", {"POS": ["a"], "NEG": ["b"]}]]')
    rows = read_pair_choices([str(tmp_path / folder / "action.json") for folder in ("vg", "hake")])
    assert [row["category"] for row in rows] == ["vg/action", "hake/action"]
    with pytest.raises(ValueError, match="remove dataset_format"):
        PairChoiceArguments(model="m", validation_files=["a.json"], dataset_format="gqa")


def test_one_and_two_images_are_not_mixed(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([*ROWS, *WINOGROUND]))
    with pytest.raises(ValueError, match="rows with one image and rows with two: evaluate them separately"):
        read_pair_choices([str(tmp_path / "rows.json")])


@pytest.fixture
def sharp(config) -> AlbefForRetrieval:
    """A head whose scores differ between captions."""
    torch.manual_seed(0)
    config.match_calibration = CALIBRATION
    model = AlbefForRetrieval(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.mark.parametrize("rows", [ROWS, WINOGROUND])
def test_scores_are_those_of_the_model(rows, sharp, processor, photographs):
    task = make_task("pair_choice", processor, image_root=str(photographs), per_device_eval_batch_size=2)
    metrics, predictions = task.evaluate(sharp, rows, Accelerator(cpu=True))
    assert [prediction["row"] for prediction in predictions] == [*range(len(rows))] and metrics["choices"] == len(rows)
    for row, prediction in zip(rows, predictions, strict=True):
        choice = load_pair_choice(row, str(photographs))
        for index, image in enumerate(choice.images):
            inputs = processor(
                images=[image] * len(choice.captions), text=choice.captions, return_tensors="pt", padding=True
            )
            with torch.no_grad():
                outputs = sharp(**inputs)
            cosines = (outputs.image_embeds * outputs.text_embeds).sum(1)
            log_odds = outputs.itm_logits.diff(dim=1).flatten()
            expected = {"itc": cosines, "itm": log_odds, "calibrated": 0.5 * log_odds + 40 * cosines - 0.25}
            for stage, values in expected.items():
                torch.testing.assert_close(torch.tensor(prediction[stage][index]), values, atol=1e-5, rtol=1e-4)


def predictions_of(category: str, scores: list) -> list[dict]:
    negated = [[[-value for value in row] for row in matrix] for matrix in scores]
    return [
        {"category": category, "captions": ["a", "b"], "itc": matrix, "itm": other}
        for matrix, other in zip(scores, negated, strict=True)
    ]


def test_accuracies_counted_by_hand():
    one = predictions_of("one", [[[2.0, 1.0]], [[1.0, 2.0]], [[1.0, 1.0]], [[math.nan, 0.0]]])
    metrics = PairChoiceTask.score(None, one + predictions_of("two", [[[2.0, 1.0]]]), [])
    assert metrics == {
        "itc_accuracy": 40,
        "itm_accuracy": 20,
        "chance_accuracy": 50,
        "choices": 5,
        "itc_accuracy/one": 25,
        "itm_accuracy/one": 25,
        "chance_accuracy/one": 50,
        "choices/one": 4,
        "itc_accuracy/two": 100,
        "itm_accuracy/two": 0,
        "chance_accuracy/two": 50,
        "choices/two": 1,
    }
    table = PairChoiceTask.format_metrics(None, metrics | {"rows/text_cut": 3}, [])
    assert "two                            100.0         0.0        50.0         1" in table and "rows" not in table


def test_scores_of_winoground_counted_by_hand():
    """The second has the wrong image for a caption, the third the wrong caption for an image, the fourth both."""
    scores = [[[3.0, 1.0], [2.0, 4.0]], [[3.0, 1.0], [5.0, 6.0]], [[2.0, 3.0], [1.0, 4.0]], [[2.0, 3.0], [4.0, 1.0]]]
    metrics = PairChoiceTask.score(None, predictions_of("", scores), [])
    assert metrics == {
        "itc_accuracy": 50,
        "itc_image_accuracy": 50,
        "itc_group_accuracy": 25,
        "itm_accuracy": 25,
        "itm_image_accuracy": 25,
        "itm_group_accuracy": 25,
        "chance_accuracy": 25,
        "choices": 4,
    }
    assert "itc_group_accuracy              25.00" in PairChoiceTask.format_metrics(None, metrics, [])


def test_rows_that_are_no_choice_are_skipped_and_counted(sharp, processor, photographs):
    long = "word " * 40
    bad = [
        {**ROWS[0], "wrong_caption": "A red dog!"},
        {**ROWS[0], "caption": long + "red", "wrong_caption": long + "blue"},
        {**ROWS[0], "wrong_caption": " "},
        {**WINOGROUND[0], "wrong_caption": "a man"},
        {**ROWS[0], "image": "absent.png"},
        *({**ROWS[0], **BOX, "bbox_w": width} for width in (0, -3, "wide")),
    ]
    task = make_task("pair_choice", processor, image_root=str(photographs))
    metrics, predictions = task.evaluate(sharp, [*bad, ROWS[0]], Accelerator(cpu=True))
    assert [prediction["row"] for prediction in predictions] == [8] and metrics["rows/image_broken"] == 3
    assert metrics["rows/label_unknown"] == 2 and metrics["rows/caption_empty"] == 2
    assert metrics["rows/image_missing"] == 1 and "with the same tokens" in str(task.row_errors)


def test_a_scorer_that_looks_fails_with_exchanged_images(processor, config, photographs, monkeypatch):
    def sees_red(task, model, batch):
        for row in batch:
            red = float(row["images"][0].getpixel((0, 0)) == (255, 0, 0))
            yield {"itc": [[0.0, 0.0]], "itm": [[red if "red" in text else 1 - red for text in row["captions"]]]}

    for name in ("red", "blue"):
        Image.new("RGB", (40, 50), name).save(photographs / f"{name}.png")
    rows = [
        {"image": f"{right}.png", "caption": f"it is {right}", "wrong_caption": f"it is {wrong}"}
        for right, wrong in (("red", "blue"), ("blue", "red"))
    ]
    monkeypatch.setattr(PairChoiceTask, "_scores", sees_red)
    task = make_task("pair_choice", processor, image_root=str(photographs))
    model, accelerator = task.head(config), Accelerator(cpu=True)
    metrics, _ = task.evaluate(model, rows, accelerator)
    assert metrics["itm_accuracy"] == 100 and metrics["itc_accuracy"] == 0, "ties count against the model"
    assert task.evaluate_exchanged(model, rows, accelerator) == {"exchanged_images_itm_accuracy": 0}


def test_the_texts_alone(processor):
    words = ["dog", "cat", "man", "car", "tree", "boat"]
    rows = [
        {"image": "", "caption": f"a {first} {word} {second}", "wrong_caption": f"a {second} {word} {first}"}
        for word in ("on", "not on")
        for first in words
        for second in words
        if first != second
    ]
    task = make_task("pair_choice", processor)
    assert task.baselines([], rows)["text_only_accuracy"] == pytest.approx(50, abs=15)
    given_away = [{**row, "wrong_caption": [row["caption"] + " maybe", "maybe"]} for row in rows]
    assert task.baselines([], given_away)["text_only_accuracy"] == 100
    assert task.baselines([], WINOGROUND * 9) == task.baselines([], rows[:1]) == {}
    assert make_task("pair_choice", processor, text_only_baseline=False).baselines([], rows) == {}


def test_the_command_on_scenes_on_files_and_on_a_dataset(run, pretrained, photographs, tmp_path, capsys):
    run("evaluate", "pair_choice", *small_evaluation(pretrained, tmp_path / "scenes"))
    printed = capsys.readouterr().out
    metrics, predictions = results_of(tmp_path / "scenes")
    assert len(predictions) == metrics["choices"] == 10 and metrics["chance_accuracy"] == 50
    assert {name for name in metrics if name.startswith("choices/")} == {
        f"choices/{name}" for name in ("color", "shape", "relation", "order")
    }
    assert "exchanged_images_itm_accuracy" in printed and "text_only_accuracy" in printed

    options = ["--model", pretrained, "--image_root", photographs, "--output_dir", tmp_path / "files"]
    files = [tmp_path / name for name in ("swap_obj.json", "ours.json")]
    for file in files:
        file.write_text(json.dumps(FORMS[file.name]))
    run("evaluate", "pair_choice", *options, "--validation_files", *files)
    assert results_of(tmp_path / "files")[0]["choices/swap_obj"] == 2
    lines = tmp_path / "winoground.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in WINOGROUND * 3))
    dataset = ["--dataset", "json", "--data_files", lines, "--validation_split", "train"]
    run("evaluate", "pair_choice", *options, *dataset)
    assert results_of(tmp_path / "files")[0]["itm_group_accuracy"] in (0, 100)
    with pytest.raises(ValueError, match="json has caption, image_0, but no image: it must be called"):
        lines.write_text(json.dumps({"image_0": "a.png", "caption": "a"}) + "\n")
        run("evaluate", "pair_choice", *options, *dataset)
    with pytest.raises(SystemExit):
        run("evaluate", "pair_choice", *options, "--train_files", *files)
    assert "pair_choice trains nothing: pass the files" in capsys.readouterr().err


def test_nothing_is_trained(run, config, processor, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("finetune", "pair_choice", "--model", tmp_path)
    assert "pair_choice trains nothing: albef evaluate pair_choice takes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["finetune", "--help"])
    assert "pair_choice" not in capsys.readouterr().out
    for part in (AlbefForVisualEntailment(config), processor):
        part.save_pretrained(tmp_path / "entailment")
    with pytest.raises(ValueError, match="no trained AlbefForRetrieval.*`albef finetune retrieval`"):
        run("evaluate", "pair_choice", "--model", tmp_path / "entailment")
