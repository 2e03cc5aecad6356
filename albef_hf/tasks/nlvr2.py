"""Visual reasoning about two images: NLVR2 (section 5 of the paper, the original's `NLVR.py`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data import InvalidSampleError, SkipReason, load_image, valid_text
from ..data.row_values import parse_written_list
from ..data.scene_tasks import ScenePairs
from ..metrics.nlvr2_accuracy.scoring import nlvr2_accuracy
from ..modeling_albef import REASONING_CLASSES, AlbefForVisualReasoning
from .arguments import Nlvr2Arguments
from .base import Rows
from .base_rows import SentenceTask

SIDES = ("left_image", "right_image")


class VisualReasoning(SentenceTask):
    """Rows: `images` (two), `sentence`, `label` (True or False).

    A dataset with a column for each image is read with `--columns left_image=... right_image=...`.
    """

    name = "nlvr2"
    protocol = (
        "Accuracy over statements about two images; consistency is the fraction of sentences that are judged "
        "correctly with all of their image pairs."
    )
    head = AlbefForVisualReasoning
    arguments_class = Nlvr2Arguments
    metric = "accuracy"
    columns = ("images", "sentence", "label")
    optional_columns = SIDES
    image_columns = ("images", *SIDES)
    labels = REASONING_CLASSES
    synthetic_data = ScenePairs

    def required_columns(self) -> tuple[str, ...]:
        """Return the columns that a row must have: both images in one, or in the two that `--columns` names."""
        return (*SIDES, "sentence", "label") if {*SIDES} & {*self.named_columns()} else self.columns

    def sentence_pixels(self, row: Mapping[str, Any], rng: np.random.Generator) -> torch.Tensor:
        """Return augmented pixels of both images, (2, channels, height, width)."""
        return torch.stack([self.pixels(image, rng) for image in two_images(row)])

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return statement and images; the label has to be one of the two."""
        self.label_index(row["label"])
        sentence = self.clean(row["sentence"], issues, self.evaluation_limit)
        images = [load_image(image, self.args.image_root) for image in two_images(row)]
        return {"sentence": sentence, "images": images}

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return whether each statement is true."""
        predictions = []
        for batch in self.valid_batches(rows, indices):
            images = [image for row in batch for image in row["images"]]
            inputs = self.inputs(model, [row["sentence"] for row in batch], images)
            inputs["pixel_values"] = inputs["pixel_values"].unflatten(0, (-1, 2))
            predictions += self.predict_labels(model, batch, inputs)
        return predictions

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return accuracy and consistency."""
        judged = [rows[prediction["row"]] for prediction in predictions]
        labels = [self.labels[self.label_index(row["label"])] for row in judged]
        answers = [prediction["answer"] for prediction in predictions]
        return nlvr2_accuracy(answers, labels, groups=[valid_text(row["sentence"]).strip() for row in judged])


def two_images(row: Mapping[str, Any]) -> list[Any]:
    """Return the images of a row.

    Raises:
        InvalidSampleError: If there are not two.
    """
    images = row["images"] if "images" in row else [row.get(side) for side in SIDES]
    images = parse_written_list(images) if isinstance(images, str) else images
    if not isinstance(images, (list, tuple)) or len(images) != 2:
        raise InvalidSampleError(SkipReason.IMAGE_MISSING, f"{repr(images)[:100]} are not two images")
    return list(images)


TASK = VisualReasoning
