"""Rows of sentences about images from the files of published datasets; functions of their parsed contents."""

from typing import Any

from .caption_formats import FLICKR30K_FOLDER
from .file_contents import Row
from .question_formats import coco_image

FLICKR30K_KEYS = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")


def snli_ve(contents: list[Any]) -> list[Row]:
    """Return the sentences of SNLI-VE, `snli_ve_train.jsonl` and the like, on images of Flickr30k.

    A JSON object a line: `{"Flickr30K_ID", "sentence2", "gold_label"}` (https://github.com/necla-ml/SNLI-VE); other
    releases spell the first key differently.
    """
    rows = []
    for content in contents:
        for item in content:
            name = str(next(item[key] for key in FLICKR30K_KEYS if key in item)).removesuffix(".jpg")
            image = f"{FLICKR30K_FOLDER}/{name}.jpg"
            rows.append({"image": image, "sentence": item["sentence2"], "label": item["gold_label"]})
    return rows


def nlvr2(contents: list[Any]) -> list[Row]:
    """Return the statements of NLVR2, `train.json`, `dev.json` and `test1.json`.

    A JSON object a line: `{"identifier": "split-set-pair-sentence", "sentence", "label"}`, in training also the
    `directory` of the images, which are called `split-set-pair-img0.png` and `img1`
    (https://github.com/lil-lab/nlvr, `nlvr2/README.md`).
    """
    rows = []
    for content in contents:
        for item in content:
            pair = item["identifier"].rpartition("-")[0]
            part = pair.partition("-")[0]
            folder = f"images/{part}/{item['directory']}" if "directory" in item else part
            images = [f"{folder}/{pair}-img{side}.png" for side in (0, 1)]
            rows.append({"images": images, "sentence": item["sentence"], "label": item["label"]})
    return rows


def refcoco(contents: list[Any]) -> list[Row]:
    """Return the expressions of RefCOCO, RefCOCO+ or RefCOCOg, on training images of COCO 2014.

    `refs(unc).p` is a pickled `[{"ref_id", "image_id", "split", "sentences": [{"sent"}]}]`
    (https://github.com/lichengunc/refer). Boxes come from the option refer_root;
    RefCOCOg gets rows, but no boxes. Splits: train, val, testA, testB.
    """
    return [
        {
            "image": coco_image("train2014", reference["image_id"]),
            "text": sentence["sent"],
            "ref_id": reference["ref_id"],
            "image_id": reference["image_id"],
            "split": reference["split"],
        }
        for content in contents
        for reference in content
        for sentence in reference["sentences"]
    ]
