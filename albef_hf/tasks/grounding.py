"""Grounding without any box in training: RefCOCO+ (section 5 of the paper, the original's `Grounding.py`).

Training is that of retrieval. An expression's heat map, by Grad-CAM of the matching score, ranks boxes.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data import InvalidSampleError, SkipReason, drop_image_columns
from ..data.boxes import Box, add_refcoco_boxes, nearest_box, parse_boxes
from ..data.scene_tasks import SceneExpressions
from ..heatmaps_albef import contrastive_heatmaps, matching_heatmaps, resize_heatmap, score_boxes
from ..metrics.grounding_accuracy.scoring import grounding_accuracy
from .arguments import GroundingArguments
from .base import Rows, flatten
from .base_rows import RowTask
from .retrieval import PairTask


class Grounding(PairTask, RowTask):
    """Rows: `image`, `text`; for evaluation also `bbox` and `boxes`, or `ref_id` and the option refer_root."""

    name = "grounding"
    protocol = (
        "No box is seen in training: the heat map of an expression, by Grad-CAM, ranks boxes; accuracy at an overlap "
        "of one half, and of the hottest point."
    )
    arguments_class = GroundingArguments
    metric = "accuracy"
    columns = ("image", "text")
    optional_columns = ("bbox", "boxes", "ref_id", "split", "image_id")
    image_columns = ("image", *optional_columns)
    synthetic_data = SceneExpressions

    def validation_rows(self) -> Rows:
        """Return the rows to evaluate on, each with the annotated box and those to choose from."""
        rows = super().validation_rows()
        if self.args.refer_root is None:
            return rows
        return add_refcoco_boxes(rows, Path(self.args.refer_root), self.args.box_file)

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return expression, image, and the boxes to choose from."""
        parse_boxes([row.get("bbox")])
        return {**super().preprocess_eval(row, issues), "boxes": parse_boxes(row.get("boxes"))}

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the box that holds most of the heat, and the hottest point."""
        predictions = []
        for batch in self.valid_batches(rows, indices):
            inputs = self.inputs(model, [row["text"] for row in batch], [row["image"] for row in batch])
            heatmaps = self._heatmaps(model, inputs).cpu()
            for row, heatmap in zip(batch, heatmaps, strict=True):
                scores = score_boxes(heatmap, row["boxes"], row["image"].size, self.args.box_alpha)
                width, height = row["image"].size
                hottest = int(resize_heatmap(heatmap, height, width).argmax())
                predictions.append(
                    {
                        "row": row["row"],
                        "text": row["text"],
                        "box": list(row["boxes"][int(scores.argmax())]),
                        "point": [hottest % width, hottest // width],
                        "size": [width, height],
                    }
                )
        return predictions

    def _heatmaps(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return a map for each text, (batch, rows, columns)."""
        layer = self.args.layer
        if self.args.heatmap == "contrast":
            return contrastive_heatmaps(model, **inputs, layer=layer)
        return matching_heatmaps(model, **inputs, layer=None if layer < 0 else layer).mean(1)

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return the accuracy at an overlap of one half, and of the hottest point, by split if the rows name it.

        Beside them is what the image's center and the box nearest to it reach, since photographers center objects. If
        one of the splits is `val`, it stands for the whole: as in the original, it chooses the best model, not what
        the model is tested on.
        """
        annotated = [rows[prediction["row"]] for prediction in predictions]
        splits = [row.get("split") for row in annotated]
        splits = splits if splits and all(splits) else None

        def accuracy(boxes: list[Box], points: list[list[float]]) -> dict[str, float]:
            scores = grounding_accuracy(boxes, parse_boxes([row["bbox"] for row in annotated]), points, splits)
            return flatten(scores | scores.get("per_split", {}).get("val", {}))

        centers = [[side / 2 for side in prediction["size"]] for prediction in predictions]
        central = [nearest_box(row["boxes"], center) for row, center in zip(annotated, centers, strict=True)]
        predicted = accuracy([p["box"] for p in predictions], [p["point"] for p in predictions])
        return predicted | {f"center_prior_{name}": value for name, value in accuracy(central, centers).items()}

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """Return what a box drawn at random would reach, and the largest box."""
        choices = []
        annotated = []
        for row in drop_image_columns(rows):
            with contextlib.suppress(InvalidSampleError):  # counted during evaluation
                annotated += parse_boxes([row.get("bbox")])
                choices.append(parse_boxes(row.get("boxes")))
            del annotated[len(choices) :]  # of a row without boxes to choose from
        drawn = [
            grounding_accuracy(boxes, [box] * len(boxes))["accuracy"]
            for boxes, box in zip(choices, annotated, strict=True)
        ]
        largest = [max(boxes, key=lambda box: box[2] * box[3]) for boxes in choices]
        return {
            "random_box_accuracy": sum(drawn) / max(len(drawn), 1),
            "largest_box_accuracy": grounding_accuracy(largest, annotated)["accuracy"],
        }


TASK = Grounding
