"""Add a task: is a statement true of an image? As in Visual Spatial Reasoning (arXiv 2205.00363), for example.

A task is a class that derives from the closest one and says what differs; `albef_hf/tasks/base.py` and `base_rows.py`
have what can be overridden. The training loop, checkpoints, baselines and the model card come from `run`. With `TASK =
Verification`, and its options in `tasks/arguments.py`, this becomes a task of `albef finetune` and `albef evaluate`.

    albef pretrain --config scenes
    python examples/custom_task.py --model runs/scenes --output_dir runs/verification --scenes 16000

trains on statements about scenes, half of them wrong in a color, a shape, a relation or the order of two objects. Its
log ends, with the model of the first command, with

    step 500: accuracy 79.80, accuracy/color 80.80, accuracy/shape 81.20, accuracy/relation 81.60, accuracy/order 75.60
        exchanged_images_accuracy 50.50
    best: accuracy 79.80 at step 500; it is in runs/verification

The second line is what is left without the right image; a guess is right in half of the cases.

With `--train_files` and `--validation_files`, rows come from JSON lists of `{"image", "sentence", "label", "kind"}`.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from albef_hf import AlbefForImageTextClassification, AlbefProcessor
from albef_hf.data.scene_tasks import SceneChoices, SceneRows
from albef_hf.tasks.base import Rows
from albef_hf.tasks.entailment import VisualEntailment
from albef_hf.training.arguments import FineTuningArguments
from albef_hf.training.run import run
from albef_hf.utils.command_line import parse_arguments


@dataclass
class VerificationArguments(FineTuningArguments):
    """Options of every fine-tuning, with the defaults of this task."""

    num_train_epochs: int = 1
    per_device_train_batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 50
    alpha: float = 0.0  # no teacher
    min_crop_scale: float = 1.0
    randaugment_operations: int = 0
    flip_probability: float = 0.0  # mirroring would exchange left and right
    image_suffix: str = ""  # an option of entailment


class SceneStatements(SceneRows):
    """Right and wrong statements about scenes, the rows if no others are given."""

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a statement, whether it is true, and what it is about."""
        choice = SceneChoices(self.length, self.seed, self.image_size)[index]
        is_true = bool(rng.integers(2))
        sentence = choice["caption"] if is_true else choice["wrong_caption"]
        return {"image": choice["image"], "sentence": sentence, "label": str(is_true), "kind": choice["category"]}


class Verification(VisualEntailment):
    """Rows: `image`, `sentence`, `label` (true or false) and optionally `kind`, by which they are counted."""

    name = "verification"
    protocol = "Accuracy over true and false statements."
    head = AlbefForImageTextClassification
    arguments_class = VerificationArguments
    optional_columns = ("kind",)
    labels = ("false", "true")
    synthetic_data = SceneStatements

    @classmethod
    def load_model(cls, args: VerificationArguments) -> tuple[PreTrainedModel, AlbefProcessor]:
        """Return the model, with the names of its classes."""
        model, processor = super().load_model(args)
        model.config.id2label = dict(enumerate(cls.labels))
        model.config.label2id = {label: index for index, label in enumerate(cls.labels)}
        return model, processor

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return the accuracy in percent, over all rows and over those of each kind."""
        right = defaultdict(list)
        for prediction in predictions:
            row = rows[prediction["row"]]
            is_right = prediction["answer"] == self.labels[self.label_index(row["label"])]
            for name in ("accuracy", f"accuracy/{row.get('kind') or 'other'}"):
                right[name].append(is_right)
        return {name: 100 * sum(values) / len(values) for name, values in right.items()}


if __name__ == "__main__":
    run(Verification, parse_arguments(VerificationArguments, "Train the task.", sys.argv[1:]))
