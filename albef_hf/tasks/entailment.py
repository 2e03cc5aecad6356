"""Visual entailment: SNLI-VE (section 5 of the paper, the original's `VE.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data import Issue, load_image
from ..data.scene_tasks import SceneEntailment
from ..metrics.entailment_accuracy.entailment_accuracy import entailment_accuracy
from ..modeling_albef import ENTAILMENT_CLASSES, AlbefForVisualEntailment
from ..utils.options import option, with_defaults
from .base import FineTuningOptions, Rows, SentenceTask, flat


@dataclass
class EntailmentOptions(
    with_defaults(
        FineTuningOptions,
        epochs=5,
        batch_size=32,
        learning_rate=2e-5,
        min_learning_rate=1e-6,
        warmup_learning_rate=1e-5,
        warmup_steps=100,
        alpha_ramp_steps=0,
    )
):
    """The paper's settings."""

    image_suffix: str = option("", "what the names of pictures lack, such as .jpg for SNLI-VE's Flickr30k numbers")


class VisualEntailment(SentenceTask):
    """Rows: `image`, `sentence`, `label` (contradiction, neutral or entailment)."""

    name = "entailment"
    protocol = "Accuracy over three labels."
    head = AlbefForVisualEntailment
    options_class = EntailmentOptions
    metric = "accuracy"
    columns = ("image", "sentence", "label")
    image_columns = ("image",)
    labels = ENTAILMENT_CLASSES
    scenes = SceneEntailment

    def sentence_pixels(self, row: Mapping[str, Any], rng: np.random.Generator) -> torch.Tensor:
        """Augmented pixels of the picture."""
        return self.pixels(self._image(row), rng)

    def _image(self, row: Mapping[str, Any]) -> Any:
        image = row["image"]
        return f"{image}{self.options.image_suffix}" if isinstance(image, (str, int)) else image

    def look(self, row: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
        """Sentence and picture; the label has to be one of the three."""
        self.label_number(row["label"])
        sentence = self.clean(row["sentence"], issues, self.evaluation_limit)
        return {"sentence": sentence, "image": load_image(self._image(row), self.options.image_root)}

    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The likeliest label of each row."""
        predictions = []
        for batch in self.readable(rows, numbers):
            inputs = self.inputs(model, [row["sentence"] for row in batch], [row["image"] for row in batch])
            predictions += self.predict_labels(model, batch, inputs)
        return predictions

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Accuracy, overall and by label."""
        right = [self.labels[self.label_number(rows[prediction["row"]]["label"])] for prediction in predictions]
        scores = entailment_accuracy([prediction["answer"] for prediction in predictions], right)
        return flat({name: scores[name] for name in ("accuracy", "per_label")})  # confusions are counts, not shares


TASK = VisualEntailment
