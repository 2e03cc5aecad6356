"""Pretraining data: files, datasets, streams, and what is refused before the training."""

import json

import datasets
import pytest
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from published_files import FORMATS, rows_of, write_images
from small_pretraining import TINY_MODEL, records_of
from text_models import LANGUAGES, SMALL, save_text_model
from transformers import BertTokenizer, pipeline

from albef_hf import AlbefForPreTraining, AlbefProcessor
from albef_hf.data import EvaluationImages, SkipReason, embedded_tokenizer
from albef_hf.data.augmentation import torch_resize
from albef_hf.tasks.pretraining import Pretraining, hold_out
from albef_hf.training.arguments import PretrainingArguments
from albef_hf.training.dataloaders import steps_per_epoch


def test_an_untrained_model_has_the_special_tokens_of_its_tokenizer(pretrain, tmp_path):
    """The vocabulary of BERT-base from its end to its beginning; the settings name those of another."""
    (tmp_path / "reversed").mkdir()
    words = sorted((vocabulary := embedded_tokenizer().get_vocab()), key=vocabulary.get, reverse=True)
    (tmp_path / "reversed" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizer.from_pretrained(tmp_path / "reversed").save_pretrained(tmp_path / "reversed")
    settings = TINY_MODEL | {"text_config": TINY_MODEL["text_config"] | {"eos_token_id": 102}}
    folder = pretrain("--tokenizer", str(tmp_path / "reversed"), "--model_config", json.dumps(settings))
    model = AlbefForPreTraining.from_pretrained(folder)
    text = model.config.text_config
    assert [text.pad_token_id, text.bos_token_id, text.eos_token_id] == [30521, 30420, 30419]
    embedded = model.get_input_embeddings().weight.abs().amax(1)
    assert embedded[30521] < 1e-3 < embedded[0]  # padding starts at zero
    assert pipeline("image-text-matching", model=str(folder))(Image.new("RGB", (9, 9)), "a red ball")["score"]


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_pretraining_starts_from_text_models_of_several_languages(pretrain, scene_images, tmp_path, kind):
    text_model = save_text_model(tmp_path / "text", kind, layers=2)
    rows = json.loads((scene_images / "train.json").read_text())
    captions = list(LANGUAGES.values())
    for index, row in enumerate(rows):
        row["caption"] = captions[index % len(captions)]
    (scene_images / "train.json").write_text(json.dumps(rows))
    settings = {
        "projection_dim": 16,
        "text_pooling": "mean",
        "vision_config": {**SMALL, "num_hidden_layers": 1, "image_size": 32},
        "text_config": {"num_hidden_layers": 1, "num_multimodal_layers": 1},
    }
    files = ["--train_files", scene_images / "train.json", "--image_root", scene_images]
    options = ["--text_model", tmp_path / "text", "--model_config", json.dumps(settings), "--max_tokens", "100"]
    folder = pretrain(*map(str, [*files, *options]), steps=3)
    records = [record for record in records_of(folder) if "loss" in record]
    assert all(record["loss"] < 100 for record in records) and records_of(folder)[-1].keys() >= {"itc_text_r1"}
    model = AlbefForPreTraining.from_pretrained(folder)
    assert model.config.text_pooling == "mean"
    weights = (text_model.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert (weights[0] - weights[1]).abs().max() < 0.01  # three small steps from there
    processor = AlbefProcessor.from_pretrained(folder)
    assert processor.keep_case and processor.decode_answers(processor.encode_whole(captions[2])) == [captions[2]]
    match = pipeline("image-text-matching", model=str(folder))
    assert match(Image.new("RGB", (9, 9)), captions[1])["score"]
    with pytest.raises(ValueError, match="max_tokens is 513, but the model has 512 positions"):
        pretrain(*map(str, [*files, *options]), "--max_tokens", "513")


def test_a_tokenizer_of_another_language_is_refused(pretrain, scene_images, tmp_path):
    """SentencePiece has a space in front of every unknown word, which is no known word."""
    save_text_model(tmp_path / "text", "xlm-roberta", layers=1)
    rows = json.loads((scene_images / "train.json").read_text())
    for row in rows:
        row["caption"] = "Ωραία Γη"
    (scene_images / "train.json").write_text(json.dumps(rows))
    files = ["--train_files", str(scene_images / "train.json"), "--image_root", str(scene_images)]
    settings = {"vision_config": TINY_MODEL["vision_config"], "text_config": {"num_multimodal_layers": 1}}
    with pytest.raises(ValueError, match="words of the captions are unknown to the tokenizer"):
        pretrain(*files, "--text_model", str(tmp_path / "text"), "--model_config", json.dumps(settings))


def test_original_json_with_bad_pairs(pretrain, scene_images):
    rows = json.loads((scene_images / "train.json").read_text())
    rows[3]["image"], rows[5]["caption"], rows[7]["caption"] = "absent.png", [" "], "long " * 2000
    (scene_images / "train.json").write_text(json.dumps(rows))
    arguments = ["--train_files", str(scene_images / "train.json"), "--image_root", str(scene_images)]
    folder = pretrain(*arguments, "--max_skipped_share", "0.5", steps=8)
    last = [record for record in records_of(folder) if "loss" in record][-1]
    assert last["pairs"] == 64
    assert last["image_missing"] > 0 and last["caption_empty"] > 0 and last["caption_cut"] > 0
    with pytest.raises(RuntimeError, match=r"more than max_skipped_share=0.01 allows\. .* image_missing \d"):
        pretrain(*arguments, "--max_skipped_share", "0.01", steps=30)


def test_load_dataset_with_column_options(pretrain, scene_images):
    rows = json.loads((scene_images / "train.json").read_text())
    lines = [json.dumps({"file_name": row["image"], "words": row["caption"][0]}) for row in rows]
    (scene_images / "metadata.jsonl").write_text("\n".join(lines))
    held_out = scene_images.parent / "held_out.json"
    (scene_images / "train.json").rename(held_out)  # load_dataset would take it for the data
    columns = ["--dataset", str(scene_images), "--caption_column", "words"]
    stream = [*columns, "--streaming"]
    validation = ["--validation_files", str(held_out), "--image_root", str(scene_images)]
    for arguments in (
        columns,
        [*stream, *validation],
        [*stream, "--validation_split", "train", "--dataloader_num_workers", "2"],
    ):
        assert records_of(pretrain(*arguments))[-1].keys() >= {"itc_text_r1"}
    assert "itc_text_r1" not in records_of(pretrain(*stream, "--validation_size", "0"))[-1]
    with pytest.raises(ValueError, match="set caption_column to one of"):
        pretrain("--dataset", str(scene_images))
    with pytest.raises(ValueError, match="No pairs can be held out of a stream; set validation_split"):
        pretrain(*stream)
    with pytest.raises(ValueError, match="set max_steps"):
        pretrain(*stream, "--validation_size", "0", "--max_steps", "-1")


def test_held_out_images_are_in_no_training_row():
    rows = datasets.Dataset.from_dict(
        {"image": [f"{i % 40}.png" for i in range(200)], "caption": [[str(i)] for i in range(200)]}
    )
    training, held_out = hold_out(rows, 1000, seed=0)
    assert len(training) == 180 and len(held_out) == 20  # a tenth of 40 images, five rows each
    assert not set(training["image"]) & set(held_out["image"])


def test_a_split_of_the_files_to_train_on_is_evaluated_on(processor, tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path, rows_of("dataset_coco.json", split=split))
    files = {"train_files": [str(FORMATS / "dataset_coco.json")], "image_root": str(tmp_path)}
    args = PretrainingArguments(**files, split="train", validation_split="val")
    rows, held_out = Pretraining(args, processor).load_rows(Accelerator(cpu=True))
    assert held_out.captions == [["A black wall."]] and len(rows) == 2
    assert args.describe_validation_data() == "the rows of dataset_coco.json"
    with pytest.raises(ValueError, match="validation_split chooses .*set validation_files, or remove it"):
        PretrainingArguments(shards=["folder"], validation_split="val")


def test_rows_of_one_image_are_evaluated_as_one(scene_images):
    rows = datasets.Dataset.from_dict({"image": ["0.png", "1.png", "0.png", "x.png"], "caption": ["a", "b", "c", "d"]})
    held_out = EvaluationImages(rows, str(scene_images))
    assert held_out.captions == [["a", "c"], ["b"]] and len(held_out) == 2
    assert [error.reason for error in held_out.bad_rows.values()] == [SkipReason.IMAGE_MISSING]
    assert EvaluationImages(rows, str(scene_images), max_images=1).captions == [["a"]]
    stream = EvaluationImages(iter([{"image": Image.new("RGB", (9, 9), "red"), "caption": "a"}]))
    assert stream[0].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("fast_resize", "resize"), [(False, Image.Image.resize), (True, torch_resize)])
def test_training_images_are_resized_by_torch_only_if_asked(processor, fast_resize, resize):
    task = Pretraining(PretrainingArguments(fast_resize=fast_resize), processor)
    assert task.make_reader().augmentation.resize is resize


def test_batches_of_a_stream_are_not_sharded_again(processor, scene_images):
    content = (scene_images / "0.png").read_bytes()
    rows = datasets.Dataset.from_dict({"image": [content] * 8, "caption": ["a dog"] * 8}).to_iterable_dataset(4)
    args = PretrainingArguments(per_device_train_batch_size=4, dataloader_num_workers=0)
    accelerator = Accelerator(cpu=True)
    loader = Pretraining(args, processor).train_dataloader(rows, accelerator)
    assert loader.device is None and steps_per_epoch(loader, args) is None
    assert next(iter(loader))["input_ids"].shape == (4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenes", "7"], "7 rows to train on, but one batch on all 1 processes needs 8"),
        (["--model_config", '{"text_config": {"vocab_size": 300}}'], "set vocab_size of text_config to 30522"),
        (["--model_config", '{"hidden_sise": 3}'], "setting hidden_sise"),  # no such name at the top
        (
            ["--model_config", '{"vision_config": {"hidden_sise": 3}}'],
            "setting vision_config.hidden_sise; did you mean hidden_size?",
        ),
        (["--model_config", "absent.json"], "neither a JSON file nor a JSON text"),
        (["--model_config", '{"projection_dim": "8"}'], "expected int, got str"),
        (["--max_tokens", "41"], "the model has 40 positions"),
        (["--train_files", "absent.json"], "absent.json cannot be read"),
        (["--text_model", "/absent/bert"], "/absent/bert"),
        (["--shards", "/absent"], "/absent has no index.json: albef shards --output_dir /absent"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_cannot_work_are_refused_before_training(pretrain, arguments, message):
    with pytest.raises((ValueError, OSError, StrictDataclassError), match=message):
        pretrain(*arguments)


def test_unreadable_data_is_refused_before_training(pretrain, scene_images):
    with pytest.raises(ValueError, match="cannot be used; the last one: image_missing.*Check the image root"):
        pretrain("--train_files", str(scene_images / "train.json"), "--image_root", "/absent")
