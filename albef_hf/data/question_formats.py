"""Rows of questions from the files of published datasets; each function takes the parsed contents of one or more."""

from typing import Any

from .file_contents import Row


def vqav2(contents: list[Any]) -> list[Row]:
    """Return the questions of VQA v2 or OK-VQA, with the answers of the ten annotators if their file is given too.

    `{"data_subtype": "train2014", "questions": [{"question_id", "image_id", "question"}]}` and `{"annotations":
    [{"question_id", "image_id", "answer_type", "answers": [{"answer"}]}]}` (https://visualqa.org/download.html,
    https://okvqa.allenai.org/download.html).

    Raises:
        ValueError: If there are annotations without questions, or questions that have none or two that differ.
    """
    annotations: dict[tuple[Any, Any], Row] = {}
    for item in (item for content in contents for item in content.get("annotations", ())):
        key = (item["image_id"], item["question_id"])  # question ids of VQA v2 and OK-VQA overlap
        if annotations.setdefault(key, item)["answers"] != item["answers"]:
            raise ValueError(f"Question {key[1]} has different answers in the files: remove one of them.")
    rows = []
    for content in contents:
        for item in content.get("questions", ()):
            row = {
                "question_id": item["question_id"],
                "image": coco_image(content["data_subtype"], item["image_id"]),
                "question": item["question"],
            }
            if annotations:
                annotation = annotations.get((item["image_id"], item["question_id"]), {"answers": []})
                row["answer"] = [answer["answer"] for answer in annotation["answers"]] or None
                row["answer_type"] = annotation.get("answer_type")
            rows.append(row)
    if not rows:
        raise ValueError("It has answers without questions: give both files, such as --train_files QUESTIONS ANSWERS.")
    if annotations and not any(row["answer"] for row in rows):
        raise ValueError("No question has an answer: the two files belong to different parts of the dataset.")
    return rows


def coco_image(subset: str, image_id: int) -> str:
    """Return the path of an image of COCO 2014 or 2015, by part, such as `train2014` or `test-dev2015`, and id."""
    folder = "test2015" if subset.startswith("test") else subset
    return f"{folder}/COCO_{folder}_{image_id:012d}.jpg"


def aokvqa(contents: list[Any]) -> list[Row]:
    """Return the questions of A-OKVQA with their ten direct answers, on images of COCO 2017.

    `[{"split", "image_id", "question_id", "question", "direct_answers", "difficult_direct_answer"}]`; the last ones
    have no direct answers to compare with, and the official evaluation leaves them out
    (https://github.com/allenai/aokvqa, `evaluation/eval_predictions.py`). It counts min(1, matches / 3) of all ten
    answers, while the task compares with all but one of them in turn, as for VQA. The test has no answers.
    """
    return [
        {
            "question_id": item["question_id"],
            "image": f"{item['split']}2017/{item['image_id']:012d}.jpg",
            "question": item["question"],
            "dropped": "difficult_direct_answer" if item.get("difficult_direct_answer") else None,
            **({"answer": item["direct_answers"]} if "direct_answers" in item else {}),
        }
        for content in contents
        for item in content
    ]


def gqa(contents: list[Any]) -> list[Row]:
    """Return the questions of GQA with their one answer; the structural type is the type of the answer.

    `{question_id: {"question", "imageId", "answer", "types": {"structural"}}}`
    (https://cs.stanford.edu/people/dorarad/gqa/download.html). The test has no answers.
    """
    return [
        {
            "question_id": question_id,
            "image": f"images/{item['imageId']}.jpg",
            "question": item["question"],
            **({"answer": item["answer"]} if "answer" in item else {}),
            **({"answer_type": item["types"]["structural"]} if "types" in item else {}),
        }
        for content in contents
        for question_id, item in content.items()
    ]


def vizwiz(contents: list[Any]) -> list[Row]:
    """Return the questions of VizWiz-VQA with the answers of ten annotators.

    `[{"image": "VizWiz_train_00000000.jpg", "question", "answers": [{"answer"}], "answer_type", "answerable"}]`
    (https://vizwiz.org/tasks-and-datasets/vqa). "unanswerable" is an answer; a question with `answerable` 0 has this
    type. The test has neither answers nor types.
    """
    return [
        {
            "question_id": item["image"],
            "image": f"{item['image'].split('_')[1]}/{item['image']}",
            "question": item["question"],
            **({"answer": [answer["answer"] for answer in item["answers"]]} if "answers" in item else {}),
            **({"answer_type": _vizwiz_type(item)} if "answerable" in item else {}),
        }
        for content in contents
        for item in content
    ]


def _vizwiz_type(item: Row) -> str:
    return item["answer_type"] if item["answerable"] else "unanswerable"


def textvqa(contents: list[Any]) -> list[Row]:
    """Return the questions of TextVQA with the answers of ten annotators.

    `{"data": [{"question_id", "image_id", "question", "answers", "set_name"}]}` (https://textvqa.org/dataset). The
    images of validation are among those of training; the test has no answers.
    """
    return [
        {
            "question_id": item["question_id"],
            "image": f"{'test' if item['set_name'] == 'test' else 'train'}_images/{item['image_id']}.jpg",
            "question": item["question"],
            **({"answer": item["answers"]} if "answers" in item else {}),
        }
        for content in contents
        for item in content["data"]
    ]


def vqa_rad(contents: list[Any]) -> list[Row]:
    """Return the questions of VQA-RAD with their one answer, in lower case, and its type: open or closed.

    `[{"qid", "phrase_type", "image_name", "question", "answer", "answer_type"}]`, the file `VQA_RAD Dataset
    Public.json` (https://osf.io/89kps, doi 10.1038/sdata.2018.251). A `phrase_type` that begins with `test` marks the
    451 test questions, all others are for training; if no row has one, there are no splits.
    """
    rows = []
    for content in contents:
        has_splits = any(map(_is_test, content))
        for item in content:
            row = {**_medical(item), "image": f"VQA_RAD Image Folder/{item['image_name']}"}
            rows.append(row | {"split": "test" if _is_test(item) else "train"} if has_splits else row)
    return rows


def slake(contents: list[Any]) -> list[Row]:
    """Return the questions of SLAKE with their one answer, in lower case, its type, open or closed, and language.

    `[{"qid", "img_name": "xmlab1/source.jpg", "question", "answer", "q_lang": "en" or "zh", "answer_type"}]`
    (https://www.med-vqa.com/slake, arXiv 2102.09542); a part of the dataset is a file.
    """
    return [
        {**_medical(item), "image": f"imgs/{item['img_name']}", "language": item["q_lang"]}
        for content in contents
        for item in content
    ]


def _medical(item: Row) -> Row:
    """Return what medical questions have in common; the published answers differ in case and outer spaces."""
    return {"question_id": item["qid"], "question": item["question"]} | {
        name: None if item[name] is None else str(item[name]).strip().lower() or None
        for name in ("answer", "answer_type")
    }


def _is_test(item: Row) -> bool:
    return str(item.get("phrase_type", "")).strip().lower().startswith("test")
