"""Text assignment, between pretraining and NLVR2 (section 5 of the paper, the original's `Pretrain_nlvr.py`)."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data import InvalidSampleError, SkipReason
from ..data.scene_tasks import SceneCaptions
from ..modeling_albef import AlbefForTextAssignment
from .arguments import MIN_IMAGES, TextAssignmentArguments
from .base import Rows
from .base_rows import RowTask
from .retrieval import PairTask

POSITIONS = ("first", "second", "neither")


class TextAssignment(PairTask, RowTask):
    """Rows: `image`, `caption` (a text or a list of texts), the data of pretraining."""

    name = "text_assignment"
    protocol = "How often the position of a text's own image is found among first image, second image and neither."
    head = AlbefForTextAssignment
    arguments_class = TextAssignmentArguments
    metric = "accuracy"
    columns = ("image", "caption")
    synthetic_data = SceneCaptions

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of pairs; the model draws the two images that each text is shown."""
        batch = super().collate(samples)
        del batch["labels"]
        return batch

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the predicted position of each text's own image; the draws are the same in every evaluation."""
        predictions = []
        with torch.random.fork_rng():
            torch.manual_seed(self.args.seed)
            for batch in self._drawable(rows, indices):
                inputs = self.inputs(model, [row["text"] for row in batch], [row["image"] for row in batch])
                pairs, positions = model.draw_image_pairs(inputs["pixel_values"])
                answers = model(**inputs, image_pairs=pairs).logits.argmax(-1)
                for row, answer, position in zip(batch, answers.tolist(), positions.tolist(), strict=True):
                    prediction = {"row": row["row"], "text": row["text"], "answer": POSITIONS[answer]}
                    predictions.append({**prediction, "right": POSITIONS[position]})
        return predictions

    def _drawable(self, rows: Rows, indices: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
        """Yield batches with enough images to draw from; a last one with too few joins the batch before."""
        held: list[dict[str, Any]] = []
        for batch in self.valid_batches(rows, indices):
            if len(batch) >= MIN_IMAGES and held:
                yield held
                held = []
            held = held + batch
        if len(held) >= MIN_IMAGES:
            yield held
            return
        for row in held:
            error = InvalidSampleError(SkipReason.IMAGE_MISSING, f"fewer than {MIN_IMAGES} to draw from")
            self.row_errors.bad[row["row"]] = error

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return how often the position is right."""
        hits = [prediction["answer"] == prediction["right"] for prediction in predictions]
        return {"accuracy": 100 * sum(hits) / max(len(hits), 1)}

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """Return what guessing would reach."""
        return {"chance_accuracy": 100 / len(POSITIONS)}


TASK = TextAssignment
