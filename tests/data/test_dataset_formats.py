"""The files of published datasets are read as they are: small ones with invented content, in `fixtures/formats`."""

import json
import pickle
import shutil
from pathlib import Path

import datasets
import pytest
from encoded_images import encoded
from PIL import Image
from published_files import FORMATS, REFERENCES, VQA_RAD, parquet, rows_of, write_images

from albef_hf.data import row_files
from albef_hf.data.dataset_formats import READERS
from albef_hf.data.row_files import read_rows
from albef_hf.data.source_arguments import DATASET_FORMATS
from albef_hf.data.sources import read_annotations
from albef_hf.training.arguments import PretrainingArguments


def test_every_format_has_a_name():
    assert sorted([*READERS, "img2dataset"]) == list(DATASET_FORMATS)


def test_captions_of_karpathys_splits_are_chosen_by_split():
    rows = rows_of("dataset_coco.json", split="train+restval")
    assert [(row["image"], row["caption"]) for row in rows] == [
        ("val2014/COCO_val2014_000000000008.jpg", "A blue wall."),
        ("train2014/COCO_train2014_000000000009.jpg", "A green wall."),
        ("train2014/COCO_train2014_000000000009.jpg", "All green."),
    ]
    assert [row["caption"] for row in rows_of("dataset_coco.json", split="validation")] == ["A black wall."]
    (first, second) = rows_of("dataset_flickr30k.json", split="train")
    assert first["image"] == second["image"] == "flickr30k-images/1000000001.jpg"
    with pytest.raises(ValueError, match=r"\(karpathy\) has no split restval, but test, train, val: choose from"):
        rows_of("dataset_flickr30k.json", split="train+restval")


def test_captions_of_files_without_splits():
    rows = rows_of("results_20130124.token", split="train")
    assert [row["image"] for row in rows] == [f"flickr30k-images/100000000{i}.jpg" for i in (1, 1, 2)]
    assert rows[2]["caption"] == 'A blue wall , "very" blue .'
    (first, second) = rows_of("captions_val2017.json")
    assert first == {"image": "val2017/000000000007.jpg", "caption": "A red wall."} and second["caption"] == "All red."


def test_a_split_of_files_without_splits_is_told_or_refused(monkeypatch, tmp_path):
    told: list[str] = []
    monkeypatch.setattr(row_files.logger, "warning_once", told.append)
    (tmp_path / "own.json").write_text('[{"image": "a.png", "caption": "one", "split": "train"}]')
    own, token = str(tmp_path / "own.json"), str(FORMATS / "results_20130124.token")
    for file in (own, token):
        assert read_rows([file], split="test", image_root="nowhere")
        assert f"{file}: no splits are named; all rows are used, not only those of test" in told
        told.clear()
        read_rows([file], split="validation", image_root="nowhere")
        assert not any("no splits" in line for line in told)
        args = PretrainingArguments(train_files=[file], validation_split="test")
        with pytest.raises(ValueError, match="no splits are named.*Set other validation_files"):
            read_rows([file], split="test", image_root="nowhere", needs_splits=args.needs_splits)


def test_conceptual_captions_need_images():
    with pytest.raises(ValueError, match="nothing is downloaded.*img2dataset --url_list.*albef shards"):
        rows_of("Validation_GCC-1.1.0-Validation.tsv")
    (_, row) = rows_of("Validation_output.csv")
    assert row == {"image": "val/1/1.jpg", "caption": "a blue\u2028wall"}, "without the incomplete line"


def test_questions_and_annotators_of_vqa():
    files = ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json")
    color, blue = rows_of(*files)
    assert color["image"] == blue["image"] == "train2014/COCO_train2014_000000000009.jpg"
    assert color["answer"] == ["green"] * 7 + ["lime"] * 2 + ["olive"] and color["answer_type"] == "other"
    assert (blue["question_id"], blue["question"], blue["answer_type"]) == (9001, "Is it blue?", "yes/no")
    (row,) = rows_of("v2_OpenEnded_mscoco_test-dev2015_questions.json")
    assert row["image"] == "test2015/COCO_test2015_000000000011.jpg" and "answer" not in row
    for name in ("okvqa", None):
        files = ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")
        assert rows_of(*files, dataset_format=name)[0]["answer"] == ["switzerland", "denmark"]
    with pytest.raises(ValueError, match="answers without questions: give both files"):
        rows_of("mscoco_val2014_annotations.json")
    with pytest.raises(ValueError, match="belong to different parts"):
        rows_of("OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_train2014_annotations.json")


def test_equal_question_ids_of_other_images_keep_their_answers(tmp_path):
    parts = []
    for name, image in (("vqa", 7), ("okvqa", 70)):
        ids = {"question_id": 700, "image_id": image}
        contents = {
            "questions": {"data_subtype": "val2014", "questions": [{**ids, "question": "Which?"}]},
            "annotations": {"annotations": [{**ids, "answer_type": "other", "answers": [{"answer": name}]}]},
        }
        for part, content in contents.items():
            parts.append(tmp_path / f"{name}_{part}.json")
            parts[-1].write_text(json.dumps(content))
    rows = read_rows([*map(str, parts)], image_root="nowhere")
    assert [row["answer"] for row in rows] == [["vqa"], ["okvqa"]]
    other = {"annotations": [{**ids, "answers": [{"answer": "another"}]}]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="Question 700 has different answers in the files"):
        read_rows([*map(str, parts), str(tmp_path / "other.json")], image_root="nowhere")


def test_questions_of_other_datasets(tmp_path):
    (row,) = rows_of("aokvqa_v1p0_val.json", split="train")
    assert row["image"] == "val2017/000000000007.jpg" and row["answer"].count("stone") == 2, "without the difficult"
    assert [
        (row["image"], row["answer"], row["answer_type"]) for row in rows_of("testdev_balanced_questions.json")
    ] == [
        ("images/n7.jpg", "yes", "verify"),
        ("images/8.jpg", "wall", "query"),
    ]
    answerable, unanswerable = rows_of("vizwiz_train.json")
    assert answerable["image"] == "train/VizWiz_train_00000000.jpg" and answerable["answer_type"] == "other"
    assert answerable["answer"] == ["wall", "red wall", "wall"] and unanswerable["answer_type"] == "unanswerable"
    (row,) = rows_of("TextVQA_0.5.1_val.json")
    assert row["image"] == "train_images/003a8ae2ef43b901.jpg" and row["answer"].count("stop") == 8
    test = [{"image": "VizWiz_test_00000000.jpg", "question": "What is this?"}]
    (tmp_path / "test.json").write_text(json.dumps(test))
    (row,) = read_rows([str(tmp_path / "test.json")], "vizwiz", image_root="nowhere")
    assert row["image"] == "test/VizWiz_test_00000000.jpg" and "answer" not in row


def test_medical_questions_have_types_and_answers_in_one_spelling(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(row_files.logger, "warning_once", told.append)
    rows = rows_of(VQA_RAD, split="train")
    assert [(row["question_id"], row["answer"], row["answer_type"]) for row in rows] == [
        ("0", "yes", "closed"),
        ("1", "red", "open"),
        ("2", "1", "open"),
    ]
    assert rows[0]["image"] == "VQA_RAD Image Folder/synpic7.jpg"
    assert [row["answer_type"] for row in rows_of(VQA_RAD, split="test")] == ["closed", "open"]
    with pytest.raises(ValueError, match="has no split val, but test, train: choose from them with split"):
        rows_of(VQA_RAD, split="validation")
    assert [row["answer"] for row in rows_of("slake_train.json", language="en")] == ["mri", "yes"]
    (chinese,) = rows_of("slake_train.json", language="zh")
    assert chinese["image"] == "imgs/xmlab1/source.jpg" and chinese["answer_type"] == "open"
    assert told[0].endswith("(vqa_rad): 3 of 5 rows; not used: split test 2")
    assert told[2].endswith("(slake): 2 of 3 rows; not used: language zh 1")
    with pytest.raises(ValueError, match="has 3 rows, none of which is used: language en 2, language zh 1"):
        rows_of("slake_train.json", language="fr")


def test_a_part_of_vqa_rad_has_no_splits(tmp_path):
    part = [row for row in json.loads((FORMATS / VQA_RAD).read_text()) if "test" not in row["phrase_type"]]
    (tmp_path / "testset.json").write_text(json.dumps(part))
    assert len(read_rows([str(tmp_path / "testset.json")], split="validation")) == 3


def test_medical_questions_without_answer_or_type(tmp_path):
    question = {"qid": 1, "image_name": "a.jpg", "question": "Where?", "answer": None, "answer_type": "OPEN"}
    (tmp_path / "part.json").write_text(json.dumps([question, {**question, "answer": "Left", "answer_type": None}]))
    unanswered, answered = read_rows([str(tmp_path / "part.json")], image_root="nowhere")
    assert unanswered["answer"] is None and unanswered["answer_type"] == "open"
    assert answered["answer"] == "left" and answered["answer_type"] is None


def test_sentences(tmp_path):
    neutral, entailed = rows_of("snli_ve_dev.jsonl")
    assert (entailed["sentence"], entailed["label"]) == ("There is a wall .", "entailment")
    assert neutral["image"] == "flickr30k-images/1000000001.jpg"
    (tmp_path / "one.jsonl").write_text((FORMATS / "snli_ve_dev.jsonl").read_text().splitlines()[1])
    assert read_rows([str(tmp_path / "one.jsonl")], image_root="nowhere") == [entailed]
    row, _ = rows_of("nlvr2_train.json")
    assert row["images"] == [f"images/train/72/train-10171-0-img{side}.png" for side in (0, 1)]
    assert row["label"] == "True" and row["sentence"] == "One image is red."
    assert rows_of("nlvr2_dev.json")[0]["images"][1] == "dev/dev-850-0-img1.png"


def test_expressions_of_refcoco(tmp_path):
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(REFERENCES, protocol=0))  # as in the published file
    rows = read_rows([str(tmp_path / "refs(unc).p")], split="val+testA", image_root="nowhere")
    assert [(row["text"], row["split"]) for row in rows] == [
        (text, split) for split in ("val", "testA") for text in ("the red one", "left")
    ]
    assert rows[0]["image"] == "train2014/COCO_train2014_000000000007.jpg" and rows[0]["ref_id"] == 1
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(Path))
    with pytest.raises(ValueError, match="contains pickled code .*could be malicious"):
        read_rows([str(tmp_path / "refs(unc).p")])


def test_what_img2dataset_downloaded(tmp_path):
    metadata = {
        "url": ["http://a", "http://b", "http://c"],
        "caption": ["a", "b", None],
        "key": ["000010000", "000010001", "000010002"],
        "status": ["success", "failed_to_download", "success"],
        "error_message": [None, "HTTP Error 404", None],
    }
    image = encoded(Image.new("RGB", (40, 50), "red"), "JPEG")
    rows = read_annotations([parquet(tmp_path / "bytes.parquet", **metadata, jpg=[image, None, image])])
    assert isinstance(rows, datasets.Dataset) and rows[:] == {"image": [image, image], "caption": ["a", None]}
    file = parquet(tmp_path / "00001.parquet", **metadata)
    (tmp_path / "00001").mkdir()
    (tmp_path / "00001" / "000010000.webp").touch()
    rows = read_rows([file])
    assert rows[0] == {"image": str(tmp_path / "00001" / "000010000.webp"), "caption": "a"} and len(rows) == 2
    shutil.rmtree(tmp_path / "00001")
    (tmp_path / "00001.tar").touch()
    with pytest.raises(ValueError, match="albef shards --output_dir"):
        read_rows([file])
    with pytest.raises(ValueError, match="has a, but an img2dataset .*--dataset parquet --data_files"):
        read_rows([parquet(tmp_path / "other.parquet", a=[1])])


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_images_are_found_with_and_without_published_folders(tmp_path, dropped):
    published = [path for row in rows_of("dataset_coco.json", split="test") for path in [row["image"]]]
    images = tmp_path / "coco" if dropped == 2 else tmp_path
    names = [path.split("/", min(dropped, 1))[-1] for path in published]
    write_images(images, [{"image": name} for name in names])
    shutil.copy(FORMATS / "dataset_coco.json", tmp_path)
    file = [str(tmp_path / "dataset_coco.json")]
    given = read_rows(file, split="test", image_root=str(images))
    assert [row["image"] for row in given] == names
    if dropped < 2:
        beside = read_rows(file, split="test")
        assert [row["image"] for row in beside] == [str(tmp_path / name) for name in names]


def test_own_rows_may_have_published_keys(tmp_path):
    for published, own in (
        ({"identifier": "dev-1-0-0"}, {"images": ["a.png", "b.png"], "sentence": "One is red.", "label": "True"}),
        ({"question_id": 1, "image_id": 2, "choices": []}, {"image": "a.png", "question": "Which?", "answer": "red"}),
    ):
        (tmp_path / "own.json").write_text(json.dumps([published | own]))
        assert read_rows([str(tmp_path / "own.json")], image_root="nowhere") == [published | own]


def test_datasets_of_several_formats_are_read_together(tmp_path):
    own = tmp_path / "own.json"
    own.write_text('[{"image": "a.png", "caption": "one"}]')
    rows = read_annotations([str(own), str(FORMATS / "dataset_coco.json")], split="val", image_root="nowhere")
    assert rows["caption"] == [["one"], ["A black wall."]]


def test_errors_name_the_formats(tmp_path):
    names = "published .dataset_format.: aokvqa, cc3m, coco_captions, .*vqav2"
    for content, message in (
        ('{"images": [{"id": 1}]}', "one object with 'images'.*" + names),
        ("a\tb\nc\td", "cannot be read as a JSON list"),
        ('[{"picture": "a"}]', r"has \['picture'\], but not image, caption.*" + names),
    ):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_annotations([str(tmp_path / "other.json")])
    with pytest.raises(ValueError, match=r"not in the format gqa \(KeyError: 'imageId'\).*" + names):
        (tmp_path / "other.json").write_text('{"1": {"question": "what?"}}')
        read_rows([str(tmp_path / "other.json")], "gqa")
    with pytest.raises(ValueError, match="has the keys of vizwiz, but dataset_format is gqa"):
        rows_of("vizwiz_train.json", dataset_format="gqa")
    for options, message in (
        ({"dataset_format": "vqa2", "train_files": ["a"]}, "'vqa2', which is none of aokvqa, .*; did you mean vqav2"),
        ({"dataset_format": "gqa"}, "dataset_format gqa is that of files; set train_files"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainingArguments(**options)
