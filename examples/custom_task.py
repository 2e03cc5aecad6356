"""Add a task: is a statement true of an image? As in Visual Spatial Reasoning (arXiv 2205.00363), for example.

A task is a class. This one derives from `SentenceTask`, which reads, collates and trains sentences with labels; the
training loop, teacher, checkpoints, baselines and model card come from `run`. With `TASK = Verification`, and its
options in `tasks/arguments.py`, the file becomes a task of `albef finetune` and `albef evaluate` (CONTRIBUTING.md).

    albef pretrain --config scenes
    python examples/custom_task.py --model runs/scenes --output_dir runs/verification --scenes 16000

trains on statements about scenes, half of them wrong in a color, a shape, a relation or the order of two objects, and
prints its log, which ends, with the model of the first command, with

    OUTPUT

With `--train_files` and `--validation_files`, rows come from JSON lists of `{"image", "sentence", "label", "kind"}`.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from albef_hf import AlbefForImageTextClassification, AlbefProcessor
from albef_hf.data import SkipReason, load_image
from albef_hf.data.scene_tasks import SceneChoices, SceneRows
from albef_hf.tasks.base import Rows
from albef_hf.tasks.base_rows import SentenceTask
from albef_hf.training.arguments import FineTuningArguments
from albef_hf.training.run import run
from albef_hf.utils.command_line import parse_arguments


@dataclass
class VerificationArguments(FineTuningArguments):
    """Options whose defaults are those of the task; all others are those of every fine-tuning."""

    num_train_epochs: int = 1
    per_device_train_batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 50
    alpha: float = 0.0  # no teacher
    min_crop_scale: float = 1.0
    randaugment_operations: int = 0
    flip_probability: float = 0.0  # a mirrored image changes what is left of what


class SceneStatements(SceneRows):
    """Right and wrong statements about scenes, which train the task if no other rows are given."""

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a statement, whether it is true, and what is wrong with it if it is not."""
        choice = SceneChoices(self.length, self.seed, self.image_size)[index]
        is_true = bool(rng.integers(2))
        sentence = choice["caption"] if is_true else choice["wrong_caption"]
        return {"image": choice["image"], "sentence": sentence, "label": str(is_true), "kind": choice["category"]}


class Verification(SentenceTask):
    """Rows: `image`, `sentence`, `label` (true or false) and optionally `kind`, which accuracies are counted by."""

    name = "verification"
    protocol = "Accuracy over true and false statements."
    head = AlbefForImageTextClassification
    arguments_class = VerificationArguments
    metric = "accuracy"
    columns = ("image", "sentence", "label")
    optional_columns = ("kind",)
    image_columns = ("image",)
    labels = ("false", "true")
    synthetic_data = SceneStatements

    @classmethod
    def load_model(cls, args: VerificationArguments) -> tuple[PreTrainedModel, AlbefProcessor]:
        """Return the model, whose two classes get their names."""
        model, processor = super().load_model(args)
        model.config.id2label = dict(enumerate(cls.labels))
        model.config.label2id = {label: index for index, label in enumerate(cls.labels)}
        return model, processor

    def sentence_pixels(self, row: Mapping[str, Any], rng: np.random.Generator) -> torch.Tensor:
        """Return the pixels to train on."""
        return self.pixels(row["image"], rng)

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return what to evaluate; a row with another label is skipped and counted."""
        self.label_index(row["label"])
        sentence = self.clean(row["sentence"], issues, self.evaluation_limit)
        return {"sentence": sentence, "image": load_image(row["image"], self.args.image_root)}

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return an answer for each row."""
        predictions = []
        for batch in self.valid_batches(rows, indices):
            inputs = self.inputs(model, [row["sentence"] for row in batch], [row["image"] for row in batch])
            predictions += self.predict_labels(model, batch, inputs)
        return predictions

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return the accuracy in percent, of all rows and of each kind."""
        right = defaultdict(list)
        for prediction in predictions:
            row = rows[prediction["row"]]
            is_right = prediction["answer"] == self.labels[self.label_index(row["label"])]
            right["accuracy"].append(is_right)
            if row.get("kind"):
                right[f"accuracy/{row['kind']}"].append(is_right)
        return {name: 100 * sum(values) / len(values) for name, values in right.items()}


if __name__ == "__main__":
    run(Verification, parse_arguments(VerificationArguments, "Train the task.", sys.argv[1:]))
