"""The formats of published datasets: the function that reads each, and the keys by which its files are recognized."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from .caption_formats import cc3m, coco_captions, flickr30k_token, karpathy
from .file_contents import Row, TextLines
from .question_formats import aokvqa, gqa, slake, textvqa, vizwiz, vqa_rad, vqav2
from .sentence_formats import nlvr2, refcoco, snli_ve

READERS: dict[str, Callable[[list[Any]], list[Row]]] = {
    "aokvqa": aokvqa,
    "cc3m": cc3m,
    "coco_captions": coco_captions,
    "flickr30k_token": flickr30k_token,
    "gqa": gqa,
    "karpathy": karpathy,
    "nlvr2": nlvr2,
    "okvqa": vqav2,
    "refcoco": refcoco,
    "slake": slake,
    "snli_ve": snli_ve,
    "textvqa": textvqa,
    "vizwiz": vizwiz,
    "vqa_rad": vqa_rad,
    "vqav2": vqav2,
}

# Where the rows of a file are (in itself, in a list of an object, or in the values of an object), and what they have.
ITSELF = ""
VALUES = "*"
KEYS = (
    ("karpathy", "images", {"filename", "sentences", "split"}),
    ("coco_captions", "annotations", {"image_id", "caption"}),
    ("vqav2", "questions", {"question_id", "image_id", "question"}),
    ("vqav2", "annotations", {"question_id", "answers"}),
    ("textvqa", "data", {"question_id", "image_id", "question", "set_name"}),
    ("gqa", VALUES, {"imageId", "question"}),
    ("aokvqa", ITSELF, {"question_id", "image_id", "question", "choices"}),
    ("vizwiz", ITSELF, {"image", "question", "answers", "answerable"}),
    ("vqa_rad", ITSELF, {"qid", "image_name", "question", "answer", "answer_type"}),
    ("slake", ITSELF, {"qid", "img_name", "question", "answer", "answer_type", "q_lang"}),
    ("snli_ve", ITSELF, {"pairID", "sentence2", "gold_label"}),
    ("nlvr2", ITSELF, {"identifier", "sentence", "label"}),
    ("refcoco", ITSELF, {"ref_id", "image_id", "split", "sentences"}),
)
OWN_TEXTS = {"answer", "caption", "label", "sentence", "text"}  # beside `image` or `images`, as no published list has
TOKEN_LINE = re.compile(r"\S+\.jpe?g#\d+\t")
CC3M_LINE = re.compile(r"\thttps?://|^(caption|title)\t|\t(caption|title)$")  # a row, or the names of columns


def recognize(content: Any) -> str | None:
    """Return the format of a file by the keys of its first row; None if it is none of those that are known."""
    if isinstance(content, TextLines):
        if TOKEN_LINE.match(content[0]):
            return "flickr30k_token"
        return "cc3m" if CC3M_LINE.search(content[0]) else None
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and first.keys() & {"image", "images"} and first.keys() & OWN_TEXTS:
        return None
    for name, place, keys in KEYS:
        row = next(_rows_in(content, place), None)
        if isinstance(row, dict) and keys <= row.keys():
            return name
    return None


def _rows_in(content: Any, place: str) -> Iterator[Any]:
    if isinstance(content, dict):
        content = [*content.values()] if place == VALUES else content.get(place)
    elif place != ITSELF:
        return iter(())
    return iter(content if isinstance(content, list) else ())
