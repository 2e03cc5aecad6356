"""Grounding without any box in training: RefCOCO+ (section 5 of the paper, the original's `Grounding.py`).

Training is that of retrieval. An expression's heat map, by Grad-CAM of the matching score, ranks boxes.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data import BadSampleError, Issue, load_image, without_pictures
from ..data.scene_tasks import SceneExpressions
from ..explain import contrastive_heatmaps, matching_heatmaps, resize_heatmap, score_boxes
from ..finetuning import Rows, RowTask, flat
from ..metrics.grounding_accuracy.grounding_accuracy import grounding_accuracy
from ..options import option, with_defaults
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
    scenes = SceneExpressions

    def validation_rows(self) -> Rows:
        """Rows to evaluate on, each with the box that is meant and those to choose from."""
        rows = super().validation_rows()
        if self.options.refer_root is None:
            return rows
        return add_boxes(rows, Path(self.options.refer_root), self.options.box_file)

    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The box that holds most of the heat, and the hottest point."""

        def read(row: Mapping[str, Any]) -> dict[str, Any]:
            if not row.get("bbox") or not row.get("boxes"):
                raise BadSampleError(Issue.LABEL_UNKNOWN, "no bbox, or no boxes to choose from")
            image = load_image(row["image"], self.options.image_root)
            return {"text": self.clean(row["text"], []), "image": image, "boxes": row["boxes"]}

        predictions = []
        for batch in self.readable(rows, numbers, read):
            inputs = self.inputs(model, [row["text"] for row in batch], [row["image"] for row in batch])
            heatmaps = self._heatmaps(model, inputs).cpu()
            for row, heatmap in zip(batch, heatmaps, strict=True):
                scores = score_boxes(heatmap, row["boxes"], row["image"].size, self.options.box_alpha)
                width, height = row["image"].size
                hottest = int(resize_heatmap(heatmap, height, width).argmax())
                prediction = {"row": row["row"], "text": row["text"], "box": list(row["boxes"][int(scores.argmax())])}
                predictions.append({**prediction, "point": [hottest % width, hottest // width]})
        return predictions

    def _heatmaps(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """A map of each text, (batch, rows, columns)."""
        layer = self.options.layer
        if self.options.heatmap == "contrast":
            return contrastive_heatmaps(model, **inputs, layer=layer)
        return matching_heatmaps(model, **inputs, layer=None if layer < 0 else layer).mean(1)

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Accuracy at an overlap of one half, and of the hottest point, by split where the rows name it."""
        meant = [rows[prediction["row"]] for prediction in predictions]
        splits = [row.get("split") for row in meant]
        scores = grounding_accuracy(
            [prediction["box"] for prediction in predictions],
            [row["bbox"] for row in meant],
            points=[prediction["point"] for prediction in predictions],
            splits=splits if splits and all(splits) else None,
        )
        return flat(scores)

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """What one of the boxes drawn at random would reach, and the largest."""
        usable = [row for row in without_pictures(rows) if row.get("bbox") and row.get("boxes")]
        everything = [
            grounding_accuracy(row["boxes"], [row["bbox"]] * len(row["boxes"]))["accuracy"] for row in usable
        ]
        largest = [max(row["boxes"], key=lambda box: box[2] * box[3]) for row in usable]
        return {
            "random_box_accuracy": sum(everything) / max(len(everything), 1),
            "largest_box_accuracy": grounding_accuracy(largest, [row["bbox"] for row in usable])["accuracy"],
        }


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
    except (OSError, pickle.UnpicklingError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"refer_root {folder} needs refs(unc).p, instances.json and {box_file}: {error}") from error
    boxes = {annotation["id"]: annotation["bbox"] for annotation in annotations}
    found = []
    for row in rows:
        reference = references.get(row.get("ref_id"))
        if reference is None:
            raise ValueError(f"refs(unc).p has no reference {row.get('ref_id')}; the rows belong to another dataset.")
        choice = [box[:4] for box in candidates.get(str(reference["image_id"]), [])]
        extra = {"bbox": boxes[reference["ann_id"]], "boxes": choice, "split": reference["split"]}
        found.append({**row, **extra})
    return found


TASK = Grounding
