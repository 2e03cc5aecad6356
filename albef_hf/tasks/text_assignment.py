"""Text assignment, between pretraining and NLVR2 (section 5 of the paper, the original's `Pretrain_nlvr.py`)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data import BadSampleError, Issue
from ..data.scene_tasks import SceneCaptions
from ..modeling_albef import AlbefForTextAssignment
from ..utils.options import with_defaults
from .base import FineTuningOptions, Rows, RowTask
from .retrieval import PairTask

PLACES = ("first", "second", "neither")
FEWEST = 3  # pictures to draw from: a text's own one, and two others


@dataclass
class TextAssignmentOptions(
    with_defaults(
        FineTuningOptions,
        epochs=1,
        batch_size=64,
        learning_rate=2e-5,
        min_learning_rate=1e-5,
        warmup_learning_rate=1e-5,
        warmup_steps=100,
        alpha=0.0,
        min_crop_scale=0.2,
        max_tokens=25,
    )
):
    """The paper's settings; there is no teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(FEWEST, "batch_size", "eval_batch_size")
        if self.alpha > 0:
            raise ValueError(
                f"alpha is {self.alpha}, but text assignment has no teacher, as in the paper: set it to 0."
            )


class TextAssignment(PairTask, RowTask):
    """Rows: `image`, `caption` (a text or a list of them), the data of pretraining."""

    name = "text_assignment"
    protocol = "How often the place of a text's own picture is found among first picture, second picture and neither."
    head = AlbefForTextAssignment
    options_class = TextAssignmentOptions
    metric = "accuracy"
    columns = ("image", "caption")
    scenes = SceneCaptions

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pairs; the model draws which two pictures each text is shown."""
        batch = super().collate(samples)
        del batch["labels"]
        return batch

    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The place where a text's own picture is thought to be; the draws are the same in every evaluation."""
        predictions = []
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed)
            for batch in self._drawable(rows, numbers):
                inputs = self.inputs(model, [row["text"] for row in batch], [row["image"] for row in batch])
                pairs, places = model.draw_image_pairs(inputs["pixel_values"])
                found = model(**inputs, image_pairs=pairs).logits.argmax(-1)
                for row, answer, right in zip(batch, found.tolist(), places.tolist(), strict=True):
                    prediction = {"row": row["row"], "text": row["text"], "answer": PLACES[answer]}
                    predictions.append({**prediction, "right": PLACES[right]})
        return predictions

    def _drawable(self, rows: Rows, numbers: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
        """Batches with enough pictures to draw from; a rest that has too few goes with the batch before."""
        held: list[dict[str, Any]] = []
        for batch in self.readable(rows, numbers):
            if len(batch) >= FEWEST and held:
                yield held
                held = []
            held = held + batch
        if len(held) >= FEWEST:
            yield held
            return
        for row in held:
            self.findings.bad[row["row"]] = BadSampleError(Issue.IMAGE_MISSING, f"fewer than {FEWEST} to draw from")

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """How often the place is found."""
        hits = [prediction["answer"] == prediction["right"] for prediction in predictions]
        return {"accuracy": 100 * sum(hits) / max(len(hits), 1)}

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """What guessing would reach."""
        return {"chance_accuracy": 100 / len(PLACES)}


TASK = TextAssignment
