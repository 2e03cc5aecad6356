"""Text assignment, between pretraining and NLVR2 (section 5 of the paper, the original's `Pretrain_nlvr.py`)."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from ..data import load_image, usable_captions
from ..data.scene_tasks import SceneCaptions
from ..finetuning import FineTuningOptions, Rows
from ..modeling_albef import AlbefForTextAssignment
from ..options import with_defaults
from .retrieval import PairTask

PLACES = ("first", "second", "neither")


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
    )
):
    """The paper's settings; there is no teacher."""


class TextAssignment(PairTask):
    """Rows: `image`, `caption` (a text or a list of them), the data of pretraining."""

    name = "text_assignment"
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

    @torch.no_grad()
    def evaluate(
        self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """How often the place of a text's own picture is found; the draws are the same in every evaluation."""
        training = model.training
        model.eval()
        self.bad_rows = {}
        numbers = range(accelerator.process_index, len(rows), accelerator.num_processes)

        def read(row) -> dict[str, Any]:
            text = self.clean(usable_captions(row["caption"])[0], [])
            return {"text": text, "image": load_image(row["image"], self.options.image_root)}

        predictions = []
        with torch.random.fork_rng(), accelerator.autocast():
            torch.manual_seed(self.options.seed)
            for batch in self.readable(rows, numbers, read):
                if len(batch) < 3:
                    continue  # too few to draw from
                inputs = self.inputs(model, [row["text"] for row in batch], [row["image"] for row in batch])
                pairs, places = model.draw_image_pairs(inputs["pixel_values"])
                found = model(**inputs, image_pairs=pairs).logits.argmax(-1)
                for row, answer, right in zip(batch, found.tolist(), places.tolist(), strict=True):
                    prediction = {"row": row["row"], "text": row["text"], "answer": PLACES[answer]}
                    predictions.append({**prediction, "right": PLACES[right]})
        predictions = sorted(gather_object(predictions), key=lambda prediction: prediction["row"])
        left_out = sum(len(bad) for bad in gather_object([self.bad_rows]))
        model.train(training)
        hits = [prediction["answer"] == prediction["right"] for prediction in predictions]
        metrics = {"accuracy": 100 * sum(hits) / max(len(hits), 1)}
        return metrics | ({"rows_left_out": left_out} if left_out else {}), predictions

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """What guessing would reach."""
        return {"chance_accuracy": 100 / len(PLACES)}


TASK = TextAssignment
