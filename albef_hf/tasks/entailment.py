"""Visual entailment: SNLI-VE (section 5 of the paper, the original's `VE.py`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data import SkipReason, load_image
from ..data.scene_tasks import SceneEntailment
from ..metrics.entailment_accuracy.scoring import entailment_accuracy
from ..modeling_albef import ENTAILMENT_CLASSES, AlbefForVisualEntailment
from .arguments import EntailmentArguments
from .base import Rows, flatten
from .base_rows import SentenceTask


class VisualEntailment(SentenceTask):
    """Rows: `image`, `sentence`, `label` (contradiction, neutral or entailment)."""

    name = "entailment"
    protocol = "Accuracy over three labels."
    head = AlbefForVisualEntailment
    arguments_class = EntailmentArguments
    metric = "accuracy"
    columns = ("image", "sentence", "label")
    image_columns = ("image",)
    labels = ENTAILMENT_CLASSES
    synthetic_data = SceneEntailment

    def sentence_pixels(self, row: Mapping[str, Any], rng: np.random.Generator) -> torch.Tensor:
        """Return augmented pixels of the image."""
        return self.pixels(self._image(row), rng)

    def _image(self, row: Mapping[str, Any]) -> Any:
        image = row["image"]
        if not isinstance(image, (str, int)):
            return image
        suffix = self.args.image_suffix
        return f"{str(image).removesuffix(suffix)}{suffix}"  # SNLI-VE's own files are read with it

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return sentence and image; the label has to be one of the three."""
        self.label_index(row["label"])
        sentence = self.clean(row["sentence"], issues, self.evaluation_limit)
        return {"sentence": sentence, "image": load_image(self._image(row), self.args.image_root)}

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the most probable label of each row."""
        predictions = []
        for batch in self.valid_batches(rows, indices):
            inputs = self.inputs(model, [row["sentence"] for row in batch], [row["image"] for row in batch])
            predictions += self.predict_labels(model, batch, inputs)
        return predictions

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return the accuracy, overall and by label."""
        labels = [self.labels[self.label_index(rows[prediction["row"]]["label"])] for prediction in predictions]
        scores = entailment_accuracy([prediction["answer"] for prediction in predictions], labels)
        return flatten({name: scores[name] for name in ("accuracy", "per_label")})  # confusions are counts


TASK = VisualEntailment
