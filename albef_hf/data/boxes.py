"""Boxes of rows, and those of RefCOCO+ in the original's format."""

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .file_contents import read_plain_pickle
from .row_errors import InvalidSampleError, SkipReason
from .row_values import parse_written_list

INSTANCES = "instances.json"  # COCO's annotations, which have boxes, too

Box = list[float]  # left, top, width, height


def parse_boxes(boxes: Any) -> list[Box]:
    """Return the boxes of a row: left, top, width and height; further numbers, such as a score, are dropped.

    Boxes, or one of them, may be written as text, as in CSV files.

    Raises:
        InvalidSampleError: If there are none, or one is something else.
    """
    boxes = parse_written_list(boxes) if isinstance(boxes, str) else boxes
    if isinstance(boxes, (list, tuple)):
        boxes = [parse_written_list(box) if isinstance(box, str) else box for box in boxes]
    if not isinstance(boxes, (list, tuple)) or not boxes:
        detail = "no bbox, or no boxes to choose from; refer_root adds those of RefCOCO+"
        raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, detail)
    for box in boxes:
        values = list(box[:4]) if isinstance(box, (list, tuple)) else []
        is_valid = len(values) == 4 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)
        if not is_valid or min(values[2:]) < 0:
            raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, f"{repr(box)[:80]} is not left, top, width and height")
    return [list(box[:4]) for box in boxes]


def nearest_box(boxes: Sequence[Sequence[float]], point: Sequence[float]) -> Box:
    """Return the box whose center is nearest to a point."""
    return min(parse_boxes(boxes), key=lambda box: math.dist((box[0] + box[2] / 2, box[1] + box[3] / 2), point))


def _annotated_boxes(annotations: Sequence[Mapping[str, Any]]) -> dict[str, list[Box]]:
    """Return the annotated boxes of each image."""
    boxes: dict[str, list[Box]] = {}
    for annotation in annotations:
        boxes.setdefault(str(annotation.get("image_id")), []).append(annotation["bbox"])
    return boxes


def add_refcoco_boxes(
    rows: Sequence[Mapping[str, Any]], folder: Path, box_file: str = "dets.json"
) -> list[dict[str, Any]]:
    """Add to rows with a `ref_id` their box and those of their image to choose from (the original's `refTools`).

    Args:
        rows: With `ref_id`.
        folder: Holds `refs(unc).p`, `instances.json` and the box file.
        box_file: Boxes by image id: lists of left, top, width, height and maybe more; or `instances.json` itself.

    Raises:
        ValueError: If a file is missing, or a reference unknown.
    """
    try:
        references = {reference["ref_id"]: reference for reference in read_plain_pickle(folder / "refs(unc).p")}
        annotations = json.loads((folder / INSTANCES).read_text(encoding="utf-8"))["annotations"]
        candidates = _annotated_boxes(annotations)
        if box_file != INSTANCES:
            candidates = json.loads((folder / box_file).read_text(encoding="utf-8"))
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"refer_root {folder} needs refs(unc).p, instances.json and {box_file}: {error}") from error
    if not isinstance(candidates, dict):
        raise ValueError(f"{folder / box_file} is not a JSON object of boxes by image id.")
    box_of = {annotation["id"]: annotation["bbox"] for annotation in annotations}
    completed = []
    for row in rows:
        reference = references.get(row.get("ref_id"))
        if reference is None:
            raise ValueError(f"refs(unc).p has no reference {row.get('ref_id')}; the rows belong to another dataset.")
        # A reference without a box or candidates is counted during evaluation.
        choices = candidates.get(str(reference["image_id"])) or []
        completed.append(
            {
                **row,
                "bbox": box_of.get(reference["ann_id"]),
                "boxes": [box[:4] if isinstance(box, list) else box for box in choices],
                "split": reference["split"],
            }
        )
    return completed
