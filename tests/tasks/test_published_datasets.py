"""The real commands train and evaluate on the files of published datasets; see `fixtures/formats`."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from encoded_images import encoded
from PIL import Image
from published_files import FORMATS, REFERENCES, VQA_RAD, parquet, rows_of, write_images
from small_pretraining import TINY_MODEL, small_run
from task_rows import NEEDS_CAPTION_SCORES, make_task, results_of, small, small_evaluation

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefProcessor, MomentumTeacher, cli
from albef_hf.data import drop_image_columns, embedded_tokenizer
from albef_hf.training import logging as training_logging

SOURCES = {
    "okvqa": ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
    "vqav2": ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"),
    "aokvqa": ("aokvqa_v1p0_val.json",),
    "gqa": ("testdev_balanced_questions.json",),
    "slake": ("slake_train.json",),
    "textvqa": ("TextVQA_0.5.1_val.json",),
    "vizwiz": ("vizwiz_train.json",),
}
STEP = {"max_steps": 1, "per_device_train_batch_size": 2, "eval_steps": 0, "text_only_baseline": "false"}


@pytest.fixture(scope="module")
def command():
    """Run a command of `albef` in this process, without curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALBEF_TRACEBACK", "1")
        patch.setattr(cli, "keep_output_from_failing", lambda: None)
        patch.setattr(training_logging, "plot_curves", lambda log, image: image.write_bytes(b"curves"))

        def run(*words: object) -> None:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            cli.main([*map(str, words)])

        yield run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A small pretrained model with its teacher."""
    from transformers import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = AlbefForPreTraining(AlbefConfig(**TINY_MODEL))
    model.save_pretrained(folder)
    processor = AlbefProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), embedded_tokenizer())
    processor.save_pretrained(folder)
    MomentumTeacher(model, queue_size=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answerer(command, tiny, tmp_path_factory) -> Path:
    """The model after a step on VQA-RAD as it is published, without any option for its form."""
    folder = tmp_path_factory.mktemp("vqa_rad")
    shutil.copy(FORMATS / VQA_RAD, folder)
    for split in ("train", "test"):
        write_images(folder, rows_of(VQA_RAD, split=split))
    file = folder / Path(VQA_RAD).name
    files = {"train_files": file, "validation_files": file, "validation_split": "test"}
    command("finetune", "vqa", *small(tiny, folder / "out", **STEP, **files))
    return folder / "out"


def test_open_and_closed_accuracy_of_vqa_rad(command, answerer, tmp_path, capsys):
    metrics, predictions = results_of(answerer)
    assert {"per_answer_type/open", "per_answer_type/closed"} <= metrics.keys()
    assert [prediction["question_id"] for prediction in predictions] == ["3", "4"]
    assert {prediction["answer"] for prediction in predictions} <= {"yes", "red", "1"}, "answers to train on"
    file = answerer.parent / Path(VQA_RAD).name
    files = {"validation_files": file, "validation_split": "test"}
    command("evaluate", "vqa", *small_evaluation(answerer, tmp_path, **files))
    assert results_of(tmp_path)[0]["per_answer_type/open"] == metrics["per_answer_type/open"]
    assert json.loads((answerer / "answer_list.json").read_text()) == ["yes", "red", "1"]
    printed = capsys.readouterr().out
    assert "the rows of VQA_RAD Dataset Public.json, split test" in printed and "per_answer_type/closed" in printed


@pytest.mark.parametrize("name", SOURCES)
def test_questions_of_published_datasets_are_evaluated(command, answerer, tmp_path, name):
    rows = rows_of(*SOURCES[name], language="en")
    write_images(tmp_path, rows)
    options = {"dataset_format": name, "image_root": tmp_path, "exchanged_images": "false"}
    options["answer_list"] = tmp_path / "answers.json"
    options["answer_list"].write_text(json.dumps(["yes", "no", "wall"]))
    arguments = small_evaluation(answerer, tmp_path / "out", **options)
    command("evaluate", "vqa", *arguments, "--validation_files", *(FORMATS / file for file in SOURCES[name]))
    metrics, predictions = results_of(tmp_path / "out")
    assert len(predictions) == len(rows) and "accuracy" in metrics
    assert [found["question_id"] for found in predictions] == [row["question_id"] for row in rows]


def test_captions_of_published_datasets_are_trained_on(command, tiny, tmp_path):
    for split in ("train", "val", "restval"):
        write_images(tmp_path, rows_of("dataset_coco.json", split=split))
    write_images(tmp_path, rows_of("results_20130124.token"))
    files = {"validation_files": FORMATS / "dataset_coco.json", "validation_split": "val+restval"}
    coco = {"train_files": FORMATS / "dataset_coco.json", "split": "train+restval", "image_root": tmp_path}
    command("finetune", "retrieval", *small(tiny, tmp_path / "coco_run", **STEP, **files, **coco))
    metrics, predictions = results_of(tmp_path / "coco_run")
    assert metrics["itm_r_mean"] > 0 and len([found for found in predictions if "text" in found]) == 2
    flickr30k = {"train_files": FORMATS / "results_20130124.token", "image_root": tmp_path, "validation_size": 0}
    options = [part for name, value in flickr30k.items() for part in (f"--{name}", value)]
    options += ["--per_device_train_batch_size", 2]
    command("pretrain", *small_run(tmp_path / "flickr30k_run", 1), *options)
    assert (tmp_path / "flickr30k_run" / "model.safetensors").exists()
    command("shards", "--output_dir", tmp_path / "shards", "--num_workers", 0, *options[:4])
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["rows"] == 3


@NEEDS_CAPTION_SCORES
def test_a_caption_is_compared_with_all_published_ones_of_its_image(processor):
    file = str(FORMATS / "results_20130124.token")
    task = make_task("captioning", processor, validation_files=[file], image_root="nowhere")
    rows = task.validation_rows()
    assert [row["caption"] for row in rows] == [["A red wall .", "All red ."], ['A blue wall , "very" blue .']]
    written = [{"row": row, "caption": rows[row]["caption"][-1]} for row in (0, 1)]
    assert task.score(written, rows)["rouge_l"] > 99


@NEEDS_CAPTION_SCORES
@pytest.mark.parametrize("ids", [{}, {"image_id": [7, 8, 7, 7]}])
def test_rows_of_a_dataset_with_the_same_image_are_one(ids, processor, tmp_path):
    colors = ["red", "blue", "green" if ids else "red", "red"]
    images = [{"bytes": encoded(Image.new("RGB", (9, 9), color), "PNG")} for color in colors]
    parquet(tmp_path / "rows.parquet", image=images, caption=["red", "blue", "all red", " "], **ids)
    task = make_task("captioning", processor, dataset=str(tmp_path), validation_split="train")
    rows = task.validation_rows()
    assert [row["caption"] for row in rows] == [["red", "all red"], ["blue"], [" "]]
    assert "image" in rows[0] and drop_image_columns(rows)[1].keys() <= {"caption", "image_id"}


def test_what_img2dataset_downloaded_is_pretrained_on(command, tmp_path):
    image = encoded(Image.new("RGB", (40, 50), "red"), "JPEG")
    columns = {"key": ["0", "1", "2"], "caption": ["a", "b", "c"], "status": ["success", "success", "failed"]}
    file = parquet(tmp_path / "00000.parquet", **columns, jpg=[image, image, None])
    options = ["--train_files", file, "--validation_size", 0, "--per_device_train_batch_size", 2]
    command("pretrain", *small_run(tmp_path / "out", 1), *options)
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("task", "file", "options"),
    [
        ("entailment", "snli_ve_dev.jsonl", {"image_suffix": ".jpg"}),  # as in the recipe of the paper
        ("nlvr2", "nlvr2_train.json", {}),
    ],
)
def test_sentences_of_published_datasets_are_trained_on(command, tiny, tmp_path, task, file, options):
    write_images(tmp_path, rows_of(file))
    files = {"train_files": FORMATS / file, "validation_files": FORMATS / file, "image_root": tmp_path}
    command("finetune", task, *small(tiny, tmp_path / "out", **STEP, **files, **options))
    metrics, predictions = results_of(tmp_path / "out")
    assert len(predictions) == 2 and "rows_left_out" not in metrics


def test_expressions_of_refcoco_are_trained_on(command, tiny, tmp_path):
    references = tmp_path / "refs(unc).p"
    references.write_bytes(pickle.dumps(REFERENCES, protocol=0))
    shutil.copy(FORMATS / "instances.json", tmp_path)
    write_images(tmp_path, [{"image": "train2014/COCO_train2014_000000000007.jpg"}])
    files = {"train_files": references, "validation_files": references, "validation_split": "val+testA"}
    boxes = {"refer_root": tmp_path, "box_file": "instances.json", "exchanged_images": "false"}
    command("finetune", "grounding", *small(tiny, tmp_path / "out", **STEP, **files, **boxes))
    metrics, predictions = results_of(tmp_path / "out")
    assert len(predictions) == 4 and {"per_split/val/accuracy", "per_split/testA/accuracy"} <= metrics.keys()
    assert metrics["random_box_accuracy"] == 50, "two annotated boxes to choose from"
