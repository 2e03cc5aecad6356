"""Visual reasoning about two pictures: NLVR2 (section 5 of the paper, the original's `NLVR.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data import BadSampleError, Issue, load_image, usable_text
from ..data.row_values import parse_written_list
from ..data.scene_tasks import ScenePairs
from ..metrics.nlvr2_accuracy.nlvr2_accuracy import nlvr2_accuracy
from ..modeling_albef import REASONING_CLASSES, AlbefForVisualReasoning
from ..utils.options import with_defaults
from .base import FineTuningOptions, Rows, SentenceTask

PLACES = ("left_image", "right_image")


@dataclass
class Nlvr2Options(
    with_defaults(
        FineTuningOptions,
        epochs=10,
        batch_size=16,
        learning_rate=2e-5,
        min_learning_rate=1e-6,
        warmup_learning_rate=1e-5,
        warmup_steps=100,
    )
):
    """The paper's settings."""


class VisualReasoning(SentenceTask):
    """Rows: `images` (two), `sentence`, `label` (True or False).

    A dataset with a column for each picture is read by `--columns left_image=... right_image=...`.
    """

    name = "nlvr2"
    protocol = (
        "Accuracy over statements about two pictures; consistency is the share of statements that are judged rightly "
        "of all their pictures."
    )
    head = AlbefForVisualReasoning
    options_class = Nlvr2Options
    metric = "accuracy"
    columns = ("images", "sentence", "label")
    optional_columns = PLACES
    image_columns = ("images", *PLACES)
    labels = REASONING_CLASSES
    scenes = ScenePairs

    def required_columns(self) -> tuple[str, ...]:
        """What a row must have: both pictures in one column, or in the two that `--columns` names."""
        return (*PLACES, "sentence", "label") if {*PLACES} & {*self.named_columns()} else self.columns

    def sentence_pixels(self, row: Mapping[str, Any], rng: np.random.Generator) -> torch.Tensor:
        """Augmented pixels of both pictures."""
        return torch.stack([self.pixels(image, rng) for image in two_images(row)])

    def look(self, row: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
        """Statement and pictures; the label has to be one of the two."""
        self.label_number(row["label"])
        sentence = self.clean(row["sentence"], issues, self.evaluation_limit)
        return {"sentence": sentence, "images": [load_image(i, self.options.image_root) for i in two_images(row)]}

    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Whether each statement is true."""
        predictions = []
        for batch in self.readable(rows, numbers):
            pictures = [image for row in batch for image in row["images"]]
            inputs = self.inputs(model, [row["sentence"] for row in batch], pictures)
            inputs["pixel_values"] = inputs["pixel_values"].unflatten(0, (-1, 2))
            predictions += self.predict_labels(model, batch, inputs)
        return predictions

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Accuracy, and the share of sentences that are judged right with all their pairs."""
        judged = [rows[prediction["row"]] for prediction in predictions]
        right = [self.labels[self.label_number(row["label"])] for row in judged]
        given = [prediction["answer"] for prediction in predictions]
        return nlvr2_accuracy(given, right, groups=[usable_text(row["sentence"]).strip() for row in judged])


def two_images(row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row.

    Raises:
        BadSampleError: If there are not two.
    """
    images = row["images"] if "images" in row else [row.get(place) for place in PLACES]
    images = parse_written_list(images) if isinstance(images, str) else images
    if not isinstance(images, (list, tuple)) or len(images) != 2:
        raise BadSampleError(Issue.IMAGE_MISSING, f"{repr(images)[:100]} are not two pictures")
    return list(images)


TASK = VisualReasoning
