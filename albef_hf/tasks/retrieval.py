"""Image-text retrieval: Flickr30k, COCO (section 5 of the paper, the original's `Retrieval.py`)."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..calibration_albef import MatchCalibration
from ..data import EvaluationImages, RowErrors, SkipReason, image_ids, load_image, valid_captions
from ..data.scene_tasks import SceneCaptions
from ..evaluation.match_calibration import FittedCalibration, calibrate
from ..evaluation.references import References
from ..evaluation.retrieval_table import STAGES, retrieval_table
from ..modeling_albef import AlbefForRetrieval
from ..processing_albef import AlbefProcessor
from ..retrieval_albef import MAX_TOKENS, RANKS, RetrievalScores, score_all
from ..training.contrast_start import check_form, start_from_rows
from .arguments import RetrievalArguments
from .base import FineTuningTask, Rows, TextLimit, count_issues

if TYPE_CHECKING:
    from ..momentum import MomentumTeacher

SAVED_RANKS = 10  # best answers of each query that are written down


class RowsWithImageIndex(Sequence):
    """Rows with the `image_index` of their image, equal for rows of the same image.

    Args:
        rows: With `image_id`, or images named by paths; otherwise each row is an image of its own.
    """

    def __init__(self, rows: Rows):
        self.rows = rows
        first_rows: dict[Any, int] = {}
        ids = enumerate(image_ids(rows))
        self.indices = [index if key is None else first_rows.setdefault(key, index) for index, key in ids]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], "image_index": self.indices[index]}


class PairTask(FineTuningTask):
    """A task that is trained on pairs of image and text, by contrast and matching."""

    head: ClassVar[type[PreTrainedModel]] = AlbefForRetrieval

    def train_rows(self) -> Rows:
        """Return the rows to train on, each with the index of its image."""
        return RowsWithImageIndex(super().train_rows())

    def preprocess_train(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return an image with one of its captions."""
        issues: list[SkipReason] = []
        captions = valid_captions(row[self.columns[1]])
        text = self.clean(captions[rng.integers(len(captions))], issues, self.training_limit)
        return {
            "pixel_values": self.pixels(row["image"], rng),
            "text": text,
            "image_index": row["image_index"],
            "issues": issues,
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of pairs, with the index of each image as label."""
        return {
            **self.tokenize_for_training([sample["text"] for sample in samples]),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": torch.tensor([sample["image_index"] for sample in samples]),
            "issues": count_issues(samples),
        }

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return the first caption and the image."""
        text = self.clean(valid_captions(row[self.columns[1]])[0], issues, self.evaluation_limit)
        return {"text": text, "image": load_image(row["image"], self.args.image_root)}


class Retrieval(PairTask):
    """Rows: `image`, `caption` (a text or a list of texts), and optionally `image_id`."""

    name = "retrieval"
    protocol = (
        "All pairs are ranked by similarity (itc), and the best candidates of each query again by the log-odds of "
        "matching (itm); recall at 1, 5 and 10 of the texts of an image, and of the images of a text, and its mean."
    )
    arguments_class = RetrievalArguments
    metric = "itm_r_mean"
    columns = ("image", "caption")
    optional_columns = ("image_id",)
    synthetic_data = SceneCaptions
    num_images = 0  # of the last evaluation

    @classmethod
    def load_model(cls, args: RetrievalArguments) -> tuple[PreTrainedModel, AlbefProcessor]:
        """Return the model and its processor, as other tasks do; refuse a form that cannot start from contrast."""
        model, processor = super().load_model(args)
        if args.start_matching_from_contrast:
            check_form(model.config)
        return model, processor

    def prepare_model(
        self, model: PreTrainedModel, teacher: "MomentumTeacher | None", rows: Rows, accelerator: Accelerator
    ) -> None:
        """Start matching from contrast if the options say so."""
        if self.args.start_matching_from_contrast:
            start_from_rows(model, teacher, self, rows, accelerator)

    @torch.no_grad()
    def evaluate(
        self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the recalls of both directions among all images; processes share the reranking."""
        images = EvaluationImages(rows, self.args.image_root, self.columns[1])
        limit = TextLimit(self.args.max_words, MAX_TOKENS)
        issues: list[SkipReason] = []
        for text in itertools.chain(*images.captions):
            self.clean(text, issues, limit)
        self.row_errors = RowErrors(images.bad_rows, len(issues))
        self.num_images = len(images)
        self.require_rows(images)
        references = self._references(model, images, accelerator) if self.normalizes else None
        with accelerator.autocast():
            scores = score_all(
                model,
                self.processor,
                images,
                images.captions,
                self.args.rerank_k,
                self.args.per_device_eval_batch_size,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                all_reduce=accelerator.reduce,
                references=references and (references, references.captions),
            )
        if self.fits_calibration:
            self.calibration = self._calibrate(scores, images, references)
            scores.calibration = self.calibration.calibration
        metrics = scores.metrics(self.args.itc_weight or 0.0, self.args.mismatch_weight)
        if self.calibration:
            metrics |= self.calibration.metrics
        for stage in [stage for stage in STAGES if f"{stage}_text_r1" in metrics]:
            for target in ("text", "image"):
                recalls = [metrics[f"{stage}_{target}_r{k}"] for k in RANKS]
                metrics[f"{stage}_{target}_r_mean"] = fmean(recalls)
            metrics[f"{stage}_r_mean"] = fmean(metrics[f"{stage}_{target}_r_mean"] for target in ("text", "image"))
        return metrics | self.row_errors.counts(), self._predictions(scores, images)

    def _references(self, model: PreTrainedModel, images: EvaluationImages, accelerator: Accelerator) -> References:
        """Return the references, and print how many there are.

        Raises:
            ValueError: If the model has no weight for them, or none can be used.
        """
        args = self.args
        if not self.fits_calibration and MatchCalibration.from_config(model.config).reference_weight is None:
            raise ValueError(
                "reference_files: the model has no weight for references; fit it on validation data first, with "
                "calibrate and reference_files."
            )
        rows = self._read_files(args.reference_files, args.split, self.columns)
        found = EvaluationImages(rows, args.image_root, self.columns[1], args.reference_size)
        references = References(found, images)
        accelerator.print(f"references: {references.describe()}")
        return references

    def _calibrate(
        self, scores: RetrievalScores, images: EvaluationImages, references: References | None
    ) -> FittedCalibration:
        """Fit a calibration on the rows that are evaluated."""
        image_of_text = [index for index, captions in enumerate(images.captions) for _ in captions]
        fitted_on = (
            f"{len(images):,} images and {len(image_of_text):,} texts, with up to {self.args.rerank_k} candidates "
            f"each, of {self.args.describe_validation_data()}"
        )
        if references:
            names = ", ".join(Path(file).name for file in self.args.reference_files)
            fitted_on += f"; references: {references.describe()}, of {names}"
        texts = [text for captions in references.captions for text in captions] if references else []
        return calibrate(scores, image_of_text, fitted_on, texts)

    def _predictions(self, scores: RetrievalScores, images: EvaluationImages) -> list[dict[str, Any]]:
        """Return the best answers of each query, by the calibration of the model unless the options say otherwise."""
        texts = [text for captions in images.captions for text in captions]
        best_texts, best_images = (best[:, :SAVED_RANKS].tolist() for best in self._order(scores))
        of_images = [
            {"image": index, "row": images.row_indices[index], "texts": [texts[text] for text in best]}
            for index, best in enumerate(best_texts)
        ]
        return of_images + [{"text": text, "images": best} for text, best in zip(texts, best_images, strict=True)]

    def _order(self, scores: RetrievalScores) -> list[torch.Tensor]:
        """Return the candidates of both directions, best first, each (queries, k)."""
        ways = (scores.image_to_text, scores.text_to_image)
        if scores.references and self.args.itc_weight is None and self.args.mismatch_weight == 1:
            logits = scores.normalized(scores.calibration)
            return [way.ordered(values) for way, values in zip(ways, logits, strict=True)]
        itc_weight = self.args.itc_weight
        if itc_weight is None:
            itc_weight = scores.calibration.itc_weight if self.args.mismatch_weight == 1 else 0.0
        return [way.reranked(itc_weight, self.args.mismatch_weight) for way in ways]

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """Return what a random order would reach."""
        images = {("row", index) if key is None else key for index, key in enumerate(image_ids(rows))}
        return {"chance_r1": 100 / max(len(images), 1)}

    def format_metrics(self, metrics: dict[str, float], rows: Rows) -> str:
        """Return the recalls as a table."""
        table = retrieval_table(metrics, self.num_images)
        return f"{table}\n{self.metric} {metrics[self.metric]:.2f}"


TASK = Retrieval
