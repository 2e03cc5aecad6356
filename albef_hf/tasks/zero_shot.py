"""Zero-shot classification: classes that are named in words, on a folder of images or any dataset with labels."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..data import InvalidSampleError, SkipReason, drop_image_columns, load_image
from ..data.captions import brief
from ..data.row_values import answer_text
from ..data.scene_tasks import SceneOfOneColor, SceneOfOneShape
from ..evaluation.confusion import plot_confusion
from ..evaluation.prompts import read_classes, read_templates, words_of
from ..processing_albef import AlbefProcessor
from ..zero_shot_albef import ClassPrompts, encode_classes, rank_classes
from .arguments import ZeroShotArguments
from .base import Rows
from .base_rows import RowTask
from .retrieval import PairTask

DEFAULT_TEMPLATES = ("photo",)
SCENES = {"color": SceneOfOneColor, "shape": SceneOfOneShape}
STAGES = ("itc", "itm")
RANKS = (1, 5)


class ZeroShot(PairTask, RowTask):
    """Rows: `image`, `label` (the name of the class, or of its folder)."""

    name = "zero_shot"
    protocol = (
        "Classes are named by prompts, whose features are averaged; all classes are ranked by similarity (itc), and "
        "the best again by the log-odds of matching (itm); how often the right one is the first, or among five."
    )
    arguments_class = ZeroShotArguments
    metric = "itm_top1"
    columns = ("image", "label")

    def __init__(self, args: ZeroShotArguments, processor: AlbefProcessor):
        super().__init__(args, processor)
        self.synthetic_data = SCENES[args.scenes_attribute]
        if not args.rerank_k:
            self.metric = "itc_top1"

    @functools.cached_property
    def classes(self) -> dict[str, str]:
        """Return the words for each class.

        Raises:
            ValueError: If there is no class.
        """
        if self.args.classes:
            return read_classes(self.args.classes)
        if self.uses_synthetic_data:
            return {name: name for name in self.synthetic_data.names}
        names = {answer_text(row["label"]) or "" for row in drop_image_columns(self.validation_rows())}
        return {name: words_of(name) for name in sorted({name.strip() for name in names} - {""})}

    @property
    def templates(self) -> list[str]:
        """Return the templates of the prompts."""
        if self.uses_synthetic_data and not self.args.templates:
            return list(self.synthetic_data.templates)
        return read_templates(self.args.templates or DEFAULT_TEMPLATES)

    def label(self, row: Mapping[str, Any]) -> str:
        """Return the class of a row.

        Raises:
            InvalidSampleError: If it is unknown.
        """
        label = answer_text(row["label"])
        if label is None or label.strip() not in self.classes:
            raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, brief(row["label"]))
        return label.strip()

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return the label and the image."""
        return {"label": self.label(row), "image": load_image(row["image"], self.args.image_root)}

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the five best classes of each row, by similarity and by matching."""
        names = [*self.classes]
        prompts = self._prompts(model)
        predictions = []
        for batch in self.valid_batches(rows, indices):
            pixels = self.processor(images=[row["image"] for row in batch], return_tensors="pt")
            images = model.get_image_features(**pixels.to(model.device), return_dict=True)
            ranking = rank_classes(model, images, prompts, self.args.rerank_k)
            best = {"itc": ranking.indices} | ({"itm": ranking.reranked()} if self.args.rerank_k else {})
            for position, row in enumerate(batch):
                answers = {
                    stage: [names[index] for index in order[position, : max(RANKS)].tolist()]
                    for stage, order in best.items()
                }
                predictions.append({"row": row["row"], "label": row["label"], **answers})
        return predictions

    def _prompts(self, model: PreTrainedModel) -> ClassPrompts:
        words = [*self.classes.values()]
        return encode_classes(model, self.processor, words, self.templates, self.args.per_device_eval_batch_size)

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return how often the right class is the first, or among the five best."""
        right = [self.label(rows[prediction["row"]]) for prediction in predictions]
        metrics: dict[str, float] = {}
        for stage in [stage for stage in STAGES if stage in predictions[0]]:
            for k in RANKS:
                hits = sum(
                    label in prediction[stage][:k] for label, prediction in zip(right, predictions, strict=True)
                )
                metrics[f"{stage}_top{k}"] = 100 * hits / len(right)
        return metrics

    def format_metrics(self, metrics: dict[str, float], rows: Rows) -> str:
        """Return the metrics with the numbers of classes and prompts."""
        count = f"{len(self.classes)} classes, {len(self.templates)} prompts each"
        return f"{count}: {super().format_metrics(metrics, rows)}"

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """Return what guessing would reach."""
        return {f"chance_top{k}": 100 * min(k / len(self.classes), 1) for k in RANKS}

    def save_figures(self, folder: Path, predictions: list[dict[str, Any]]) -> None:
        """Draw which classes are taken for which."""
        stage = self.metric.partition("_")[0]
        labels = [prediction["label"] for prediction in predictions]
        answers = [prediction[stage][0] for prediction in predictions]
        plot_confusion(labels, answers, [*self.classes], folder / "confusion.png")


TASK = ZeroShot
