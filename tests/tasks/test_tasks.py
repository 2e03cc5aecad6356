"""The downstream tasks, from the command line to the metric."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from original import FIXTURES
from PIL import Image
from task_rows import BAD, FILES, REPOSITORY, results_of, small, write

from albef_hf import AlbefForPreTraining, AlbefProcessor, MomentumTeacher
from albef_hf.data import BadSampleError
from albef_hf.data.scene_tasks import SceneEntailment, SceneExpressions, ScenePairs, SceneQuestions
from albef_hf.evaluation.text_only_baseline import text_only_answers
from albef_hf.processing_albef import clean_caption
from albef_hf.tasks import find_task, task_names
from albef_hf.tasks.base import load_model
from albef_hf.training.trainer import TrainingOptions, learning_rate_at
from albef_hf.utils.options import parse_options


@pytest.mark.parametrize("task", task_names())
def test_a_task_from_the_scenes_to_the_metric_and_again_from_what_is_saved(task, run, pretrained, tmp_path, capsys):
    run("finetune", "--task", task, *small(pretrained, tmp_path / "tuned"))
    metrics, predictions = results_of(tmp_path / "tuned")
    kind = find_task(task)
    assert predictions
    records = [json.loads(line) for line in (tmp_path / "tuned" / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert len(steps) == 4 and all(math.isfinite(record["loss"]) for record in steps)
    ramp = {"entailment": [0.4] * 4, "text_assignment": [None] * 4}.get(task, [0.1, 0.2, 0.3, 0.4])
    assert [record.get("alpha") for record in steps] == pytest.approx(ramp), "over the first epoch; in VE not at all"
    evaluations = [record[kind.metric] for record in records if kind.metric in record]
    assert len(evaluations) == 2 and max(evaluations) == pytest.approx(metrics[kind.metric])

    run("evaluate", "--task", task, *small(tmp_path / "tuned", tmp_path / "again"))
    again, predicted_again = results_of(tmp_path / "again")
    assert all(again[name] == pytest.approx(metrics[name]) for name in again)
    assert predicted_again == predictions
    has_exchange = task not in ("retrieval", "text_assignment")
    assert has_exchange == ("exchanged_images_accuracy" in again)
    if has_exchange:
        exchanged = metrics["exchanged_images_accuracy"]
        assert f"exchanged_images_accuracy    {exchanged:8.2f}" in capsys.readouterr().out
        card = (tmp_path / "tuned" / "README.md").read_text()
        assert f"| for comparison: exchanged_images_accuracy | {exchanged:.2f} |" in card


def test_metrics_are_what_the_predictions_say(run, pretrained, tmp_path):
    """Counted here once more, against the rows that the scenes pose."""
    shares = {}
    for task in ("entailment", "nlvr2", "text_assignment", "retrieval"):
        run("finetune", "--task", task, *small(pretrained, tmp_path / task))
        metrics, predictions = results_of(tmp_path / task)
        kind = find_task(task)
        rows = kind.scenes(10, TrainingOptions().seed + 1, 96)
        if task == "retrieval":
            found = [prediction for prediction in predictions if "texts" in prediction]
            captions = [{clean_caption(text) for text in row["caption"]} for row in rows]
            right = [clean_caption(hit["texts"][0]) in captions[hit["row"]] for hit in found]
            assert len(right) == 10 and metrics["itm_text_r1"] == pytest.approx(100 * np.mean(right))
            continue
        right = [hit["answer"] == hit.get("right", rows[hit["row"]].get("label")) for hit in predictions]
        shares[task] = np.mean(right)
        assert len(right) == 10 and metrics["accuracy"] == pytest.approx(100 * shares[task])
    assert any(0 < share < 1 for share in shares.values()), "or the count says nothing"


def test_without_distillation_there_is_no_teacher(run, pretrained, tmp_path):
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned", alpha=0.0))
    assert not (tmp_path / "tuned" / "momentum.safetensors").exists()
    record = json.loads((tmp_path / "tuned" / "log.jsonl").read_text().splitlines()[0])
    assert "alpha" not in record and "mutual_information_bound" not in record


def test_without_a_queue_there_are_the_keys_of_the_batch_alone(run, pretrained, tmp_path):
    """As the recipes for scenes and photographs have it, whose models have come from a pretraining without a queue."""
    model = AlbefForPreTraining.from_pretrained(pretrained)
    MomentumTeacher(model, queue_size=0).save_pretrained(pretrained)
    run("finetune", "--task", "retrieval", *small(pretrained, tmp_path / "tuned"), "--queue_size", "0")
    record = json.loads((tmp_path / "tuned" / "log.jsonl").read_text().splitlines()[0])
    assert "queue_age" not in record
    keys = record["mutual_information_bound"] + record["info_nce"]
    assert keys == pytest.approx(math.log(6), abs=1e-4), "those of the batch"


def test_the_best_is_kept_and_the_last_beside_it(run, pretrained, tmp_path, monkeypatch):
    accuracies = iter([70.0, 60.0])
    monkeypatch.setattr(find_task("entailment"), "evaluate", lambda *_: ({"accuracy": next(accuracies)}, []))
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned"))
    assert results_of(tmp_path / "tuned")[0] | {"accuracy": 70.0, "step": 2} == results_of(tmp_path / "tuned")[0]
    head = find_task("entailment").head
    best, last = (head.from_pretrained(tmp_path / "tuned" / part).state_dict() for part in ("", "last"))
    assert any(not torch.equal(best[name], last[name]) for name in best)
    assert (tmp_path / "tuned" / "last" / "momentum.safetensors").exists()

    # Where the last is the best, an older run's last is gone.
    accuracies = iter([60.0, 70.0])
    run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned", overwrite_output_dir=True))
    assert not (tmp_path / "tuned" / "last").exists()


def test_an_interrupted_run_keeps_what_was_learned(run, pretrained, tmp_path, monkeypatch):
    def interrupted(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(find_task("entailment"), "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned"))
    assert find_task("entailment").head.from_pretrained(tmp_path / "tuned" / "last")


def test_curves_have_a_panel_for_whatever_a_run_has_logged(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from albef_hf.training.logging import MATCHING_PRIOR, _panels, plot_curves

    records = [
        {"step": 1, "loss": 2.0, "loss_itc": 1.4, "loss_itm": 0.6, "gradient_norm": 1.0, "learning_rate": 0.1},
        {"step": 1, "seconds": 0.2, "accuracy": 40.0, "accuracy/yes": 30.0, "rows_left_out": 1},
    ]
    panels = {title: names for title, names in _panels(records).items() if names}
    assert panels == {
        "losses": ["loss_itc", "loss_itm"],
        "ITM: loss": ["loss_itm"],
        "gradient norm": ["gradient_norm"],
        "learning rate": ["learning_rate"],
        "evaluation (%)": ["accuracy", "accuracy/yes"],
    }
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 800
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **_: [path.touch(), drawn.extend(figure.axes)])
        plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    priors = [axes.get_title() for axes in drawn for line in axes.lines if line.get_ydata()[0] == MATCHING_PRIOR]
    assert priors == ["ITM: loss"]
    (tmp_path / "log.jsonl").write_text("")
    plot_curves(tmp_path / "log.jsonl", tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()


def test_recipes_of_the_tasks_are_valid():
    folders = {folder for folder in (REPOSITORY / "train" / "configs").iterdir() if folder.name != "accelerate"}
    recipes = [recipe for folder in folders for recipe in folder.glob("*.yaml")]
    assert {recipe.parent.name for recipe in recipes} == set(task_names())
    for recipe in recipes:
        settings = yaml.safe_load(recipe.read_text())
        start = [] if "model_config" in settings else ["--model", "m"]
        kind = find_task(recipe.parent.name)
        options = parse_options(kind.options_class, "", ["--config", str(recipe), *start])
        assert set(settings) <= set(vars(options))
        if options.model_config:
            load_model(kind, options)


def test_a_model_of_its_own_settings_is_trained_from_scratch(run, config, tmp_path, capsys):
    settings = json.dumps({name: value for name, value in config.to_dict().items() if name.endswith("_config")})
    arguments = small("", tmp_path / "tuned", model_config=settings, alpha=0.0)
    del arguments[:2]  # the model
    run("finetune", "--task", "entailment", *arguments)
    head = find_task("entailment").head.from_pretrained(tmp_path / "tuned")
    assert head.config.vision_config.hidden_size == config.vision_config.hidden_size
    assert AlbefProcessor.from_pretrained(tmp_path / "tuned").image_processor.size["height"] == 32
    assert "Started from" not in (tmp_path / "tuned" / "README.md").read_text()
    with pytest.raises(SystemExit):
        run("finetune", "--task", "entailment", *small("both", tmp_path / "more", model_config=settings))
    assert "one of the two" in capsys.readouterr().err
    few = json.dumps({"text_config": {"vocab_size": 300}})
    with pytest.raises(ValueError, match="has ids up to 30521, the model embeds 300 tokens: set vocab_size"):
        run("finetune", "--task", "entailment", *small("", tmp_path / "few", model_config=few)[2:])


def test_learning_rates_are_those_of_the_originals_scripts():
    """Every value that the replayed loops of the original's eight configurations have set."""
    for case in json.loads((FIXTURES / "misc.json").read_text())["lr"]:
        schedule, peak = case["schedular"], case["optimizer"]["lr"]
        options = TrainingOptions(
            learning_rate=peak,
            min_learning_rate=schedule["min_lr"],
            warmup_learning_rate=schedule["warmup_lr"],
            warmup_steps=100 * schedule["warmup_epochs"],
            staircase=True,
        )
        epoch_steps = 3000
        for epoch in case["log"]:
            changes = epoch["lr_changes_[iteration,lr]"]
            ends = [start for start, _ in changes[1:]] + [epoch_steps]
            for (start, expected), end in zip(changes, ends, strict=True):
                for step in (start, end - 1):
                    rate = learning_rate_at(
                        epoch["epoch"] * epoch_steps + step, options, epoch_steps, epoch_steps * schedule["epochs"]
                    )
                    assert rate == pytest.approx(expected, rel=1e-12), (case["config"], epoch["epoch"], step)


# What the scenes ask


def test_labels_of_pairs_are_balanced_and_each_statement_is_made_of_a_true_and_a_false_pair():
    rows = ScenePairs(60, seed=5)
    for first, second in zip(list(rows)[::2], list(rows)[1::2], strict=True):
        assert first["sentence"] == second["sentence"]
        assert {first["label"], second["label"]} == {"True", "False"}


def test_rows_depend_on_seed_and_index_alone():
    for kind in (SceneQuestions, ScenePairs, SceneEntailment, SceneExpressions):
        first, again, other = kind(5, seed=1)[3], kind(9, seed=1)[3], kind(5, seed=2)[3]
        plain = [{name: value for name, value in row.items() if "image" not in name} for row in (first, again, other)]
        assert plain[0] == plain[1] != plain[2]


def test_annotators_answer_from_the_list():
    for row in SceneQuestions(60, seed=3):
        assert len(row["answer"]) == 10 and set(row["answer"]) <= set(SceneQuestions.answers)


def test_the_box_of_an_expression_is_where_its_colour_is():
    from albef_hf.data.scenes import COLORS

    for row in SceneExpressions(30, seed=1):
        left, top, width, height = row["bbox"]
        pixels = np.asarray(row["image"])
        color = next(np.array(COLORS[word]) for word in row["text"].split() if word in COLORS)
        inside = pixels[int(top) : int(top + height) + 1, int(left) : int(left + width) + 1].reshape(-1, 3)
        assert (np.abs(inside - color).sum(1) < 30).mean() > 0.15
        assert row["bbox"] in row["boxes"]


def test_a_classifier_of_texts_learns_what_texts_tell():
    texts = [f"is it {color} or {other}" for color in ("red", "blue") for other in ("green", "pink")] * 20
    labels = ["yes" if "red" in text else "no" for text in texts]
    assert text_only_answers(texts, labels, ["is it red", "is it blue"]) == ["yes", "no"]


# Data of other people


@pytest.mark.parametrize("task", task_names())
def test_bad_rows_are_counted_and_nothing_else_is_lost(task, run, pretrained, photographs, tmp_path):
    train = write(tmp_path, "train.json", FILES[task] * 6)
    validation = write(tmp_path, "validation.json", FILES[task] + BAD[task])
    files = {"train_files": train, "validation_files": validation, "image_root": photographs}
    run("finetune", "--task", task, *small(pretrained, tmp_path / "tuned", **files))
    metrics, predictions = results_of(tmp_path / "tuned")
    assert metrics["rows_left_out"] == 3
    if task != "retrieval":
        assert [prediction["row"] for prediction in predictions] == list(range(len(FILES[task])))


def test_a_long_question_is_cut_and_an_answer_outside_the_list_is_wrong(run, pretrained, photographs, tmp_path):
    rows = [{"image": "a.png", "question": "what " * 500, "answer": ["crimson"] * 10}] * 12
    files = {
        "train_files": write(tmp_path, "train.json", rows),
        "validation_files": write(tmp_path, "validation.json", rows[:2]),
        "answer_list": write(tmp_path, "answers.json", ["red", "blue"]),
        "image_root": photographs,
    }
    run("finetune", "--task", "vqa", *small(pretrained, tmp_path / "tuned", **files))
    metrics, predictions = results_of(tmp_path / "tuned")
    assert metrics["accuracy"] == 0 and len(predictions) == 2
    records = [json.loads(line) for line in (tmp_path / "tuned" / "log.jsonl").read_text().splitlines()]
    assert max(record.get("caption_cut", 0) for record in records) == 12


def test_mistakes_are_named(run, pretrained, photographs, tmp_path):
    rows = write(tmp_path, "rows.json", [{"image": "a.png", "caption": "a"}] * 8)
    right = write(tmp_path, "right.json", FILES["entailment"] * 4)
    for options, message in (
        ({"train_files": rows, "validation_files": rows}, "but not sentence, label"),
        ({"train_files": right}, "needs validation_files"),
        ({"train_files": tmp_path / "none.json", "validation_files": right}, "cannot be read as a JSON list"),
        ({"scenes": 3}, "fewer than the 6 of one batch"),
    ):
        with pytest.raises(ValueError, match=message):
            run("finetune", "--task", "entailment", *small(pretrained, tmp_path / "tuned", **options))
    with pytest.raises(ValueError, match="no task 'captioning'; there are entailment"):
        find_task("captioning")


def test_labels_are_read_in_any_spelling(processor):
    spelled = {
        "entailment": ("Contradiction", " NEUTRAL", 2),
        "nlvr2": ("False", "true", False, True, "0", 1.0, np.int64(0), np.True_),
    }
    for name, spellings in spelled.items():
        kind = find_task(name)
        task = kind(kind.options_class(model="m"), processor)
        expected = [0, 1, 2] if name == "entailment" else [0, 1] * 4
        assert [task.label_number(spelling) for spelling in spellings] == expected
        for label in ("perhaps", 3, -1, 0.5, None, *((True, np.False_) if name == "entailment" else ())):
            with pytest.raises(BadSampleError, match="label_unknown"):
                task.label_number(label)


def test_answers_of_visual_genome_weigh_half():
    from albef_hf.tasks.vqa import weighted_answers

    assert weighted_answers({"dataset": "vg"}, ["red"]) == {"red": 0.5}
    assert weighted_answers({}, ["red", "red", "pink", "red"]) == {"red": 0.75, "pink": 0.25}


def test_pictures_keep_their_numbers(processor, tmp_path):
    from albef_hf.tasks.retrieval import NumberedRows

    rows = [{"image_id": 7, "image": "a"}, {"image_id": 8, "image": "b"}, {"image_id": 7, "image": "a"}]
    assert [row["number"] for row in NumberedRows(rows)] == [0, 1, 0]
    assert [row["number"] for row in NumberedRows([{"image": "x"}, {"image": "y"}, {"image": "x"}])] == [0, 1, 0]


def test_references_are_read_without_running_what_they_may_hold(tmp_path):
    import pickle

    from albef_hf.tasks.grounding import add_boxes

    references = [{"ref_id": 5, "ann_id": 9, "image_id": 3, "split": "testA"}]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    (tmp_path / "instances.json").write_text(json.dumps({"annotations": [{"id": 9, "bbox": [1, 2, 3, 4]}]}))
    (tmp_path / "dets.json").write_text(json.dumps({"3": [[1, 2, 3, 4, 0.9], [5, 6, 7, 8, 0.1]]}))
    (row,) = add_boxes([{"image": "a.png", "text": "it", "ref_id": 5}], tmp_path)
    assert (row["bbox"], row["boxes"], row["split"]) == ([1, 2, 3, 4], [[1, 2, 3, 4], [5, 6, 7, 8]], "testA")
    (tmp_path / "cocos.json").write_text(json.dumps({"3": [[7, 7, 7, 7]]}))
    (row,) = add_boxes([{"ref_id": 5}], tmp_path, "cocos.json")
    assert row["boxes"] == [[7, 7, 7, 7]]
    with pytest.raises(ValueError, match="no reference 6"):
        add_boxes([{"ref_id": 6}], tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(Accelerator))
    with pytest.raises(ValueError, match="may do harm and is not read"):
        add_boxes([{"ref_id": 5}], tmp_path)


def test_prediction_of_a_share_is_that_of_all(pretrained, processor):
    """Processes predict every other row; together they have all of them once."""
    kind = find_task("entailment")
    options = kind.options_class(model=str(pretrained), eval_batch_size=3)
    task = kind(options, processor)
    rows = SceneEntailment(11, seed=2)
    model = kind.head.from_pretrained(pretrained).eval()
    with torch.no_grad():
        whole = task.predict(model, rows, range(11))
        parts = task.predict(model, rows, range(0, 11, 2)) + task.predict(model, rows, range(1, 11, 2))
    assert [p["row"] for p in whole] == list(range(11))
    by_row = sorted(parts, key=lambda prediction: prediction["row"])
    assert [p["answer"] for p in by_row] == [p["answer"] for p in whole]
