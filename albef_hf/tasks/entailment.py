"""Visual entailment: SNLI-VE (section 5 of the paper, the original's `VE.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data import BadSampleError, Issue, load_image
from ..data.scene_tasks import SceneEntailment
from ..finetuning import FineTuningOptions, LabelTask, Rows, count_issues, flat, with_defaults
from ..metrics.entailment_accuracy.entailment_accuracy import entailment_accuracy
from ..modeling_albef import AlbefForVisualEntailment
from ..options import option

LABELS = ("contradiction", "neutral", "entailment")


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


class VisualEntailment(LabelTask):
    """Rows: `image`, `sentence`, `label` (contradiction, neutral or entailment)."""

    name = "entailment"
    head = AlbefForVisualEntailment
    options_class = EntailmentOptions
    metric = "accuracy"
    columns = ("image", "sentence", "label")
    scenes = SceneEntailment

    def read(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A sentence with its label."""
        issues: list[Issue] = []
        sample = {"sentence": self.clean(row["sentence"], issues), "label": label_number(row["label"])}
        return {**sample, "pixel_values": self.pixels(self._image(row), rng), "issues": issues}

    def _image(self, row: Mapping[str, Any]) -> Any:
        image = row["image"]
        return f"{image}{self.options.image_suffix}" if isinstance(image, str) else image

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Sentences, pictures and labels."""
        return {
            **self.tokenize([sample["sentence"] for sample in samples]),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": torch.tensor([sample["label"] for sample in samples]),
            "issues": count_issues(samples),
        }

    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The likeliest label of each row."""

        def read(row: Mapping[str, Any]) -> dict[str, Any]:
            label_number(row["label"])
            image = load_image(self._image(row), self.options.image_root)
            return {"sentence": self.clean(row["sentence"], []), "image": image}

        predictions = []
        for batch in self.readable(rows, numbers, read):
            inputs = self.inputs(model, [row["sentence"] for row in batch], [row["image"] for row in batch])
            shares, best = model(**inputs).logits.softmax(-1).max(-1)
            for row, share, number in zip(batch, shares.tolist(), best.tolist(), strict=True):
                prediction = {"row": row["row"], "sentence": row["sentence"], "answer": LABELS[number]}
                predictions.append({**prediction, "probability": round(share, 4)})
        return predictions

    def text_and_label(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """The sentence and its label."""
        return self.clean(row["sentence"], []), LABELS[label_number(row["label"])]

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Accuracy, overall and by label."""
        given = [prediction["answer"] for prediction in predictions]
        right = [LABELS[label_number(rows[prediction["row"]]["label"])] for prediction in predictions]
        return flat(entailment_accuracy(given, right))


def label_number(label: Any) -> int:
    """Number of a label in any spelling, or the number itself.

    Raises:
        BadSampleError: If it is none of the three.
    """
    text = LABELS[label] if label in (0, 1, 2) else str(label).strip().lower()
    if text not in LABELS:
        raise BadSampleError(Issue.LABEL_UNKNOWN, repr(label)[:100])
    return LABELS.index(text)


TASK = VisualEntailment
