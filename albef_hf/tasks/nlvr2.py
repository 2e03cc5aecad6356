"""Visual reasoning about two pictures: NLVR2 (section 5 of the paper, the original's `NLVR.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data import BadSampleError, Issue, load_image
from ..data.scene_tasks import ScenePairs
from ..finetuning import FineTuningOptions, LabelTask, Rows, count_issues, with_defaults
from ..metrics.nlvr2_accuracy.nlvr2_accuracy import nlvr2_accuracy
from ..modeling_albef import AlbefForVisualReasoning

LABELS = ("False", "True")


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


class VisualReasoning(LabelTask):
    """Rows: `images` (two), `sentence`, `label` (True or False)."""

    name = "nlvr2"
    head = AlbefForVisualReasoning
    options_class = Nlvr2Options
    metric = "accuracy"
    columns = ("images", "sentence", "label")
    scenes = ScenePairs

    def read(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A statement with its two pictures and its label."""
        issues: list[Issue] = []
        sample = {"sentence": self.clean(row["sentence"], issues), "label": label_number(row["label"])}
        pixels = torch.stack([self.pixels(image, rng) for image in two_images(row)])
        return {**sample, "pixel_values": pixels, "issues": issues}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Statements, pairs of pictures and labels."""
        return {
            **self.tokenize([sample["sentence"] for sample in samples]),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": torch.tensor([sample["label"] for sample in samples]),
            "issues": count_issues(samples),
        }

    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Whether each statement is true."""

        def read(row: Mapping[str, Any]) -> dict[str, Any]:
            label_number(row["label"])
            images = [load_image(image, self.options.image_root) for image in two_images(row)]
            return {"sentence": self.clean(row["sentence"], []), "images": images}

        predictions = []
        for batch in self.readable(rows, numbers, read):
            pictures = [image for row in batch for image in row["images"]]
            inputs = self.inputs(model, [row["sentence"] for row in batch], pictures)
            inputs["pixel_values"] = inputs["pixel_values"].unflatten(0, (-1, 2))
            for row, share in zip(batch, model(**inputs).logits.softmax(-1)[:, 1].tolist(), strict=True):
                prediction = {"row": row["row"], "sentence": row["sentence"], "answer": LABELS[share > 0.5]}
                predictions.append({**prediction, "probability": round(max(share, 1 - share), 4)})
        return predictions

    def text_and_label(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """The statement and its label."""
        return self.clean(row["sentence"], []), LABELS[label_number(row["label"])]

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Accuracy, and the share of sentences that are judged right with all their pairs."""
        answered = [rows[prediction["row"]] for prediction in predictions]
        return nlvr2_accuracy(
            [prediction["answer"] for prediction in predictions],
            [row["label"] for row in answered],
            groups=[row["sentence"] for row in answered],
        )


def two_images(row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row.

    Raises:
        BadSampleError: If there are not two.
    """
    images = row["images"]
    if not isinstance(images, (list, tuple)) or len(images) != 2:
        raise BadSampleError(Issue.IMAGE_MISSING, f"{repr(images)[:100]} are not two pictures")
    return list(images)


def label_number(label: Any) -> int:
    """1 for a statement that is true and 0 for one that is not, in any spelling.

    Raises:
        BadSampleError: If it is neither.
    """
    text = str(bool(label) if label in (0, 1) else label).strip().capitalize()
    if text not in LABELS:
        raise BadSampleError(Issue.LABEL_UNKNOWN, repr(label)[:100])
    return LABELS.index(text)


TASK = VisualReasoning
