"""The downstream tasks, from the command line to the metric."""

import json
import math

import numpy as np
import pytest
import torch
from task_rows import BAD, FILES, TASKS, results_of, small, small_evaluation, write

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefProcessor, MomentumTeacher
from albef_hf.data import InvalidSampleError
from albef_hf.data.scene_tasks import SceneEntailment
from albef_hf.processing_albef import clean_caption
from albef_hf.tasks import find_task
from albef_hf.training.arguments import TrainingArguments


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_trained_on_scenes_and_evaluated_from_its_directory(task, run, pretrained, tmp_path, capsys):
    run("finetune", task, *small(pretrained, tmp_path / "tuned"))
    metrics, predictions = results_of(tmp_path / "tuned")
    kind = find_task(task)
    assert predictions
    records = [json.loads(line) for line in (tmp_path / "tuned" / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert len(steps) == 4 and all(math.isfinite(record["loss"]) for record in steps)
    ramp = {"entailment": [0.4] * 4, "classification": [0.4] * 4, "text_assignment": [None] * 4}.get(
        task, [0.1, 0.2, 0.3, 0.4]
    )
    assert [record.get("alpha") for record in steps] == pytest.approx(ramp), (
        "over the first epoch, in VE without a ramp"
    )
    evaluations = [record[kind.metric] for record in records if kind.metric in record]
    assert len(evaluations) == 2 and max(evaluations) == pytest.approx(metrics[kind.metric])

    capsys.readouterr()
    run("evaluate", task, *small_evaluation(tmp_path / "tuned", tmp_path / "again"))
    printed = capsys.readouterr().out
    again, predicted_again = results_of(tmp_path / "again")
    assert all(again[name] == pytest.approx(metrics[name]) for name in again)
    assert predicted_again == predictions
    has_exchange = task not in ("retrieval", "text_assignment")
    name = f"exchanged_images_{kind.metric}"
    assert has_exchange == (name in again)
    if has_exchange:
        assert f"{name} {metrics[name]:.2f}" in printed
        card = (tmp_path / "tuned" / "README.md").read_text()
        assert f"| baseline: {name} | {metrics[name]:.2f} |" in card


def test_metrics_agree_with_the_predictions(run, pretrained, tmp_path):
    """Counted again, from the rows of the scenes."""
    shares = {}
    for task in ("entailment", "nlvr2", "text_assignment", "retrieval"):
        run("finetune", task, *small(pretrained, tmp_path / task))
        metrics, predictions = results_of(tmp_path / task)
        kind = find_task(task)
        rows = kind.synthetic_data(10, TrainingArguments().seed + 1, 96)
        if task == "retrieval":
            found = [prediction for prediction in predictions if "texts" in prediction]
            captions = [{clean_caption(text) for text in row["caption"]} for row in rows]
            right = [clean_caption(hit["texts"][0]) in captions[hit["row"]] for hit in found]
            assert len(right) == 10 and metrics["itm_text_r1"] == pytest.approx(100 * np.mean(right))
            continue
        right = [hit["answer"] == hit.get("right", rows[hit["row"]].get("label")) for hit in predictions]
        shares[task] = np.mean(right)
        assert len(right) == 10 and metrics["accuracy"] == pytest.approx(100 * shares[task])
    assert any(0 < share < 1 for share in shares.values()), "or the comparison is empty"


def test_without_distillation_there_is_no_teacher(run, pretrained, tmp_path):
    run("finetune", "entailment", *small(pretrained, tmp_path / "tuned", alpha=0.0))
    assert not (tmp_path / "tuned" / "momentum.safetensors").exists()
    record = json.loads((tmp_path / "tuned" / "log.jsonl").read_text().splitlines()[0])
    assert "alpha" not in record and "mutual_information_bound" not in record


def test_without_a_queue_only_the_batch_provides_keys(run, pretrained, tmp_path):
    """As in the recipes for scenes and photographs."""
    model = AlbefForPreTraining.from_pretrained(pretrained)
    MomentumTeacher(model, queue_size=0).save_pretrained(pretrained)
    run("finetune", "retrieval", *small(pretrained, tmp_path / "tuned"), "--queue_size", "0")
    record = json.loads((tmp_path / "tuned" / "log.jsonl").read_text().splitlines()[0])
    assert "queue_age" not in record
    keys = record["mutual_information_bound"] + record["info_nce"]
    assert keys == pytest.approx(math.log(6), abs=1e-4), "those of the batch"


def test_an_untrained_model_is_built_from_model_config(run, config, tmp_path, capsys):
    settings = json.dumps({name: value for name, value in config.to_dict().items() if name.endswith("_config")})
    arguments = small("", tmp_path / "tuned", model_config=settings, alpha=0.0)
    del arguments[:2]  # the model
    run("finetune", "entailment", *arguments)
    head = find_task("entailment").head.from_pretrained(tmp_path / "tuned")
    assert head.config.vision_config.hidden_size == config.vision_config.hidden_size
    assert AlbefProcessor.from_pretrained(tmp_path / "tuned").image_processor.size["height"] == 32
    assert "Initialized from" not in (tmp_path / "tuned" / "README.md").read_text()
    with pytest.raises(SystemExit):
        run("finetune", "entailment", *small("", tmp_path / "none")[2:])
    assert "or model_config, the settings of an untrained one" in capsys.readouterr().err
    few = json.dumps({"text_config": {"vocab_size": 300}})
    with pytest.raises(ValueError, match="has ids up to 30521, the model embeds 300 tokens: set vocab_size"):
        run("finetune", "entailment", *small("", tmp_path / "few", model_config=few)[2:])


def test_model_config_changes_dropout_of_the_model(run, pretrained, tmp_path):
    def tune(changes: dict) -> AlbefConfig:
        settings = json.dumps({"text_config": changes})
        folder = tmp_path / min(changes)
        run("finetune", "entailment", *small(pretrained, folder, model_config=settings))
        return AlbefConfig.from_pretrained(folder)

    changes = {"hidden_dropout_prob": 0.3, "text_token_dropout_prob": 0.25}
    tuned, before = tune(changes), AlbefConfig.from_pretrained(pretrained)
    saved = {"dtype": "float32"}
    assert tuned.text_config.to_dict() == {**before.text_config.to_dict(), **changes, **saved}
    assert tuned.vision_config.to_dict() == {**before.vision_config.to_dict(), **saved}
    with pytest.raises(ValueError, match="no setting text_config.hiden_dropout_prob; did you mean hidden_dropout"):
        tune({"hiden_dropout_prob": 0.3})
    with pytest.raises(ValueError, match="model_config changes num_attention_heads of the model, which its weights"):
        tune({"num_attention_heads": 4})


@pytest.mark.parametrize("task", TASKS)
def test_invalid_rows_are_counted_and_all_others_used(task, run, pretrained, photographs, tmp_path):
    train = write(tmp_path, "train.json", FILES[task] * 6)
    validation = write(tmp_path, "validation.json", FILES[task] + BAD[task])
    files = {"train_files": train, "validation_files": validation, "image_root": photographs}
    run("finetune", task, *small(pretrained, tmp_path / "tuned", **files))
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
    run("finetune", "vqa", *small(pretrained, tmp_path / "tuned", **files))
    metrics, predictions = results_of(tmp_path / "tuned")
    assert metrics["accuracy"] == 0 and len(predictions) == 2
    records = [json.loads(line) for line in (tmp_path / "tuned" / "log.jsonl").read_text().splitlines()]
    assert max(record.get("caption_cut", 0) for record in records) == 12


def test_errors_name_the_mistake(run, pretrained, photographs, tmp_path):
    rows = write(tmp_path, "rows.json", [{"image": "a.png", "caption": "a"}] * 8)
    right = write(tmp_path, "right.json", FILES["entailment"] * 4)
    for options, message in (
        ({"train_files": rows, "validation_files": rows}, "but not sentence, label"),
        ({"train_files": right}, "train_files and validation_files need each other"),
        ({"train_files": tmp_path / "none.json", "validation_files": right}, "none.json cannot be read: "),
        ({"scenes": 3}, "one batch on all 1 processes needs 6"),
    ):
        with pytest.raises(ValueError, match=message):
            run("finetune", "entailment", *small(pretrained, tmp_path / "tuned", **options))
    with pytest.raises(ValueError, match="no task 'translation'; choose from caption"):
        find_task("translation")


def test_labels_may_have_any_spelling(processor):
    spelled = {
        "entailment": ("Contradiction", " NEUTRAL", 2),
        "nlvr2": ("False", "true", False, True, "0", 1.0, np.int64(0), np.True_),
    }
    for name, spellings in spelled.items():
        kind = find_task(name)
        task = kind(kind.arguments_class(model="m"), processor)
        expected = [0, 1, 2] if name == "entailment" else [0, 1] * 4
        assert [task.label_index(spelling) for spelling in spellings] == expected
        for label in ("perhaps", 3, -1, 0.5, None, *((True, np.False_) if name == "entailment" else ())):
            with pytest.raises(InvalidSampleError, match="label_unknown"):
                task.label_index(label)


def test_answers_of_visual_genome_weigh_half():
    from albef_hf.tasks.vqa import weighted_answers

    assert weighted_answers({"dataset": "vg"}, ["red"]) == {"red": 0.5}
    assert weighted_answers({}, ["red", "red", "pink", "red"]) == {"red": 0.75, "pink": 0.25}


def test_rows_of_one_image_have_one_image_index(processor, tmp_path):
    from albef_hf.tasks.retrieval import RowsWithImageIndex

    rows = [{"image_id": 7, "image": "a"}, {"image_id": 8, "image": "b"}, {"image_id": 7, "image": "a"}]
    assert [row["image_index"] for row in RowsWithImageIndex(rows)] == [0, 1, 0]
    assert [row["image_index"] for row in RowsWithImageIndex([{"image": "x"}, {"image": "y"}, {"image": "x"}])] == [
        0,
        1,
        0,
    ]


def test_processes_predict_together_what_one_predicts(pretrained, processor):
    """Each of two processes predicts every other row."""
    kind = find_task("entailment")
    options = kind.arguments_class(model=str(pretrained), per_device_eval_batch_size=3)
    task = kind(options, processor)
    rows = SceneEntailment(11, seed=2)
    model = kind.head.from_pretrained(pretrained).eval()
    with torch.no_grad():
        whole = task.predict(model, rows, range(11))
        parts = task.predict(model, rows, range(0, 11, 2)) + task.predict(model, rows, range(1, 11, 2))
    assert [p["row"] for p in whole] == list(range(11))
    by_row = sorted(parts, key=lambda prediction: prediction["row"])
    assert [p["answer"] for p in by_row] == [p["answer"] for p in whole]
