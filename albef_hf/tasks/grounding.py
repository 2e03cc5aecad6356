"""Grounding without any box in training: RefCOCO+ (section 5 of the paper, the original's `Grounding.py`).

Training is that of retrieval. An expression's heat map, by Grad-CAM of the matching score, ranks boxes.
"""

import contextlib
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data import BadSampleError, Issue, without_pictures
from ..data.row_values import parse_written_list
from ..data.scene_tasks import SceneExpressions
from ..heatmaps_albef import contrastive_heatmaps, matching_heatmaps, resize_heatmap, score_boxes
from ..metrics.grounding_accuracy.grounding_accuracy import grounding_accuracy
from ..utils.options import option, with_defaults
from .base import Rows, RowTask, flat
from .retrieval import PairTask, RetrievalOptions

HEATMAPS = ("matching", "contrast")


@dataclass
class GroundingOptions(with_defaults(RetrievalOptions, epochs=5, min_crop_scale=1.0)):
    """The paper's settings."""

    refer_root: str | None = option(None, "folder with refs(unc).p, instances.json and the box file of RefCOCO+")
    box_file: str = option("dets.json", "boxes to choose from: dets.json, detected ones; cocos.json, annotated ones")
    heatmap: str = option("matching", "of the matching score through the text's attention, or of the contrast")
    layer: int = option(-1, "layer of the heat map, counted from 0; -1: the paper's, or the last one of the contrast")
    box_alpha: float = option(0.5, "power of the area that the heat in a box is divided by")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heatmap not in HEATMAPS:
            raise ValueError(f"heatmap is {self.heatmap!r}; choose {' or '.join(HEATMAPS)}.")


class Grounding(PairTask, RowTask):
    """Rows: `image`, `text`; for evaluation `bbox` and `boxes` too, or `ref_id` and refer_root."""

    name = "grounding"
    protocol = (
        "No box is seen in training: the heat map of an expression, by Grad-CAM, ranks boxes; accuracy at an overlap "
        "of one half, and of the hottest point."
    )
    options_class = GroundingOptions
    metric = "accuracy"
    columns = ("image", "text")
    optional_columns = ("bbox", "boxes", "ref_id", "split", "image_id")
    image_columns = ("image", *optional_columns)
    scenes = SceneExpressions

    def validation_rows(self) -> Rows:
        """Rows to evaluate on, each with the box that is meant and those to choose from."""
        rows = super().validation_rows()
        if self.options.refer_root is None:
            return rows
        return add_boxes(rows, Path(self.options.refer_root), self.options.box_file)

    def look(self, row: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
        """Expression, picture, and the boxes to choose from."""
        (_,) = checked_boxes([row.get("bbox")])
        return {**super().look(row, issues), "boxes": checked_boxes(row.get("boxes"))}

    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The box that holds most of the heat, and the hottest point."""
        predictions = []
        for batch in self.readable(rows, numbers):
            inputs = self.inputs(model, [row["text"] for row in batch], [row["image"] for row in batch])
            heatmaps = self._heatmaps(model, inputs).cpu()
            for row, heatmap in zip(batch, heatmaps, strict=True):
                scores = score_boxes(heatmap, row["boxes"], row["image"].size, self.options.box_alpha)
                width, height = row["image"].size
                hottest = int(resize_heatmap(heatmap, height, width).argmax())
                prediction = {"row": row["row"], "text": row["text"], "box": list(row["boxes"][int(scores.argmax())])}
                point, size = [hottest % width, hottest // width], [width, height]
                predictions.append({**prediction, "point": point, "size": size})
        return predictions

    def _heatmaps(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """A map of each text, (batch, rows, columns)."""
        layer = self.options.layer
        if self.options.heatmap == "contrast":
            return contrastive_heatmaps(model, **inputs, layer=layer)
        return matching_heatmaps(model, **inputs, layer=None if layer < 0 else layer).mean(1)

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Accuracy at an overlap of one half, and of the hottest point, by split where the rows name it.

        Beside them what the picture's centre and the box nearest to it reach, since photographers aim.
        Where one of the splits is `val`, the whole is that one: the best checkpoint is chosen by it, as in the
        original, and not by what it is tested on.
        """
        meant = [rows[prediction["row"]] for prediction in predictions]
        splits = [row.get("split") for row in meant]
        splits = splits if splits and all(splits) else None

        def score_of(boxes: list[list[float]], points: list[list[float]]) -> dict[str, float]:
            scores = grounding_accuracy(boxes, checked_boxes([row["bbox"] for row in meant]), points, splits)
            return flat(scores | scores.get("per_split", {}).get("val", {}))

        centers = [[side / 2 for side in prediction["size"]] for prediction in predictions]
        central = [nearest_box(row["boxes"], center) for row, center in zip(meant, centers, strict=True)]
        found = score_of(*([prediction[name] for prediction in predictions] for name in ("box", "point")))
        return found | {f"center_prior_{name}": value for name, value in score_of(central, centers).items()}

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """What one of the boxes drawn at random would reach, and the largest."""
        choices, meant = [], []
        for row in without_pictures(rows):
            with contextlib.suppress(BadSampleError):  # it is counted where it is evaluated
                meant += checked_boxes([row.get("bbox")])
                choices.append(checked_boxes(row.get("boxes")))
            del meant[len(choices) :]  # without boxes to choose from
        drawn = [
            grounding_accuracy(boxes, [box] * len(boxes))["accuracy"]
            for boxes, box in zip(choices, meant, strict=True)
        ]
        largest = [max(boxes, key=lambda box: box[2] * box[3]) for boxes in choices]
        return {
            "random_box_accuracy": sum(drawn) / max(len(drawn), 1),
            "largest_box_accuracy": grounding_accuracy(largest, meant)["accuracy"],
        }


def nearest_box(boxes: Sequence[Sequence[float]], point: Sequence[float]) -> Sequence[float]:
    """The box, of left, top, width and height, whose centre is nearest to a point."""
    return min(checked_boxes(boxes), key=lambda box: math.dist((box[0] + box[2] / 2, box[1] + box[3] / 2), point))


def checked_boxes(boxes: Any) -> list[list[float]]:
    """Boxes of a row: left, top, width and height each; what comes behind, such as a detector's score, is left out.

    Boxes, or one of them, may be written as text, as in CSV files.

    Raises:
        BadSampleError: If there is none, or one is something else.
    """
    boxes = parse_written_list(boxes) if isinstance(boxes, str) else boxes
    if isinstance(boxes, (list, tuple)):
        boxes = [parse_written_list(box) if isinstance(box, str) else box for box in boxes]
    if not isinstance(boxes, (list, tuple)) or not boxes:
        raise BadSampleError(Issue.LABEL_UNKNOWN, "no bbox, or no boxes to choose from")
    for box in boxes:
        numbers = list(box[:4]) if isinstance(box, (list, tuple)) else []
        sound = len(numbers) == 4 and all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers)
        if not sound or min(numbers[2:]) < 0:
            raise BadSampleError(Issue.LABEL_UNKNOWN, f"{repr(box)[:80]} is not left, top, width and height")
    return [list(box[:4]) for box in boxes]


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists and dictionaries, which is all that the file of references holds."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"The file of references asks for {module}.{name}; it may do harm and is not read.")


def add_boxes(rows: Rows, folder: Path, box_file: str = "dets.json") -> list[dict[str, Any]]:
    """Give rows with a `ref_id` their box and those of their picture to choose from (the original's `refTools`).

    Args:
        rows: With `ref_id`.
        folder: Where the files are.
        box_file: Boxes of each picture by its number: lists of left, top, width, height and maybe more.

    Raises:
        ValueError: If a file is missing, or a reference unknown.
    """
    try:
        with (folder / "refs(unc).p").open("rb") as file:
            references = {reference["ref_id"]: reference for reference in _PlainUnpickler(file).load()}
        annotations = json.loads((folder / "instances.json").read_text(encoding="utf-8"))["annotations"]
        candidates = json.loads((folder / box_file).read_text(encoding="utf-8"))
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"refer_root {folder} needs refs(unc).p, instances.json and {box_file}: {error}") from error
    if not isinstance(candidates, dict):
        raise ValueError(f"{folder / box_file} is not a JSON object of boxes by the number of their picture.")
    boxes = {annotation["id"]: annotation["bbox"] for annotation in annotations}
    found = []
    for row in rows:
        reference = references.get(row.get("ref_id"))
        if reference is None:
            raise ValueError(f"refs(unc).p has no reference {row.get('ref_id')}; the rows belong to another dataset.")
        # A reference whose box or choice is missing is counted where it is evaluated.
        bbox, choice = boxes.get(reference["ann_id"]), candidates.get(str(reference["image_id"])) or []
        choice = [box[:4] if isinstance(box, list) else box for box in choice]
        found.append({**row, "bbox": bbox, "boxes": choice, "split": reference["split"]})
    return found


TASK = Grounding
