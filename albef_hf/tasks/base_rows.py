"""Tasks in which every row has a prediction of its own: any rows, rows with a label, sentences with a label."""

import contextlib
import copy
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from ..data import InvalidSampleError, RowErrors, SkipReason, drop_image_columns
from ..evaluation.exchanged_images import ExchangedRows, exchange
from ..evaluation.text_only_baseline import text_only_answers
from ..retrieval_albef import evaluation_mode
from ..training.saved_model import EXCHANGED
from .base import FineTuningTask, Rows, count_issues

BASELINE_ROWS = 20_000  # training rows, spread over all of them, that baselines are trained on


class RowTask(FineTuningTask):
    """A task in which every row has a prediction of its own."""

    exchanged_metrics: ClassVar[tuple[str, ...]] = ()  # that are measured with exchanged images beside `metric`

    @torch.no_grad()
    def evaluate(
        self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return metrics and predictions; each process predicts its part of the rows, no row counts twice."""
        self.row_errors = RowErrors()
        self.fingerprints = {}
        predictions = self._predictions(model, rows, range(len(rows)), accelerator)
        self.row_errors = RowErrors.merge(gather_object([self.row_errors]))
        images = {row: images for part in gather_object([self.fingerprints]) for row, images in part.items()}
        self.require_rows(predictions)
        metrics = self.score(predictions, drop_image_columns(rows))
        self.fingerprints = dict(sorted(images.items())) if self.metric in metrics else {}
        return metrics | self.row_errors.counts(), predictions

    @torch.no_grad()
    def evaluate_exchanged(self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator) -> dict[str, float]:
        """Return metrics of the last `evaluate` with images exchanged; nothing if all rows show the same image."""
        givers = exchange(self.fingerprints, self.args.seed)
        if not givers:
            return {}
        texts = drop_image_columns(rows)
        task = copy.copy(self)  # which keeps the errors and fingerprints of the evaluation
        task.row_errors = RowErrors()
        task.fingerprints = {}
        exchanged = ExchangedRows(texts, rows, self.image_columns, givers)
        predictions = task._predictions(model, exchanged, sorted(givers), accelerator)
        scores = self.score(predictions, ExchangedRows(texts, texts, self.image_columns, givers))
        names = (self.metric, *self.exchanged_metrics)
        return {f"{EXCHANGED}_{name}": scores[name] for name in names if name in scores}

    def _predictions(
        self, model: PreTrainedModel, rows: Rows, indices: Sequence[int], accelerator: Accelerator
    ) -> list[dict[str, Any]]:
        """Return predictions for the rows at some indices, from all processes, in order."""
        indices = indices[accelerator.process_index :: accelerator.num_processes]
        with evaluation_mode(model), accelerator.autocast():
            predictions = gather_object(self.predict(model, rows, indices))
        return sorted(predictions, key=lambda prediction: prediction["row"])

    @abstractmethod
    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return a prediction, as JSON stores it, for each valid row at these indices."""

    @abstractmethod
    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return the metrics of predictions, in percent."""


class LabelTask(RowTask):
    """A task with a fixed set of answers, so that a classifier of the texts alone is a baseline."""

    trains_baselines = True

    @abstractmethod
    def text_and_label(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return what a classifier of the texts is trained on: the text of a row and its answer.

        Raises:
            InvalidSampleError: If there is none.
        """

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """Return the metric of the most frequent answer, and that of a classifier of the texts.

        Nothing without rows that have an answer, to train on and to evaluate.
        """
        train_rows = drop_image_columns(train_rows)
        rows = drop_image_columns(rows)
        train = dict(self._texts_and_labels(train_rows, BASELINE_ROWS))
        validation = dict(self._texts_and_labels(rows, len(rows)))
        if not train or not validation:
            return {}
        train_texts, labels = zip(*train.values(), strict=True)
        answers = {"majority": [Counter(labels).most_common(1)[0][0]] * len(validation)}
        if self.args.text_only_baseline:
            texts = [text for text, _ in validation.values()]
            answers["text_only"] = text_only_answers(train_texts, labels, texts)
        scores = {}
        for name, given in answers.items():
            predictions = [{"row": row, "answer": answer} for row, answer in zip(validation, given, strict=True)]
            scores[f"{name}_{self.metric}"] = self.score(predictions, rows)[self.metric]
        return scores

    def _texts_and_labels(self, rows: Rows, max_rows: int) -> Iterator[tuple[int, tuple[str, Any]]]:
        """Yield indices of valid rows, with texts and labels; at most `max_rows`, spread evenly."""
        count = min(len(rows), max_rows)
        for index in (position * len(rows) // count for position in range(count)):
            with contextlib.suppress(InvalidSampleError):  # counted during training or evaluation
                yield index, self.text_and_label(rows[index])


class SentenceTask(LabelTask):
    """A task of sentences, each with one of some labels."""

    labels: ClassVar[tuple[str, ...]]

    @classmethod
    def check_model(cls, model: PreTrainedModel) -> None:
        """Refuse a classifier of other classes, whose logits would get the names of ours."""
        names = [*model.config.id2label.values()]
        is_unnamed = names == [f"LABEL_{index}" for index in range(len(cls.labels))]
        if not is_unnamed and [name.lower() for name in names] != [label.lower() for label in cls.labels]:
            raise ValueError(
                f"The model classifies {', '.join(names)[:200]}, but {cls.name} needs {', '.join(cls.labels)}, in "
                "this order: start from the model that this one was trained from, or train `albef finetune "
                "classification`."
            )

    @abstractmethod
    def sentence_pixels(self, row: Mapping[str, Any], rng: np.random.Generator) -> torch.Tensor:
        """Return augmented pixels of what a sentence is about."""

    def preprocess_train(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return a sentence with its label and pixels."""
        issues: list[SkipReason] = []
        sentence = self.clean(row["sentence"], issues, self.training_limit)
        sample = {"sentence": sentence, "label": self.label_index(row["label"])}
        return {**sample, "pixel_values": self.sentence_pixels(row, rng), "issues": issues}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of sentences, images and labels."""
        return {
            **self.tokenize_for_training([sample["sentence"] for sample in samples]),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": torch.tensor([sample["label"] for sample in samples]),
            "issues": count_issues(samples),
        }

    def text_and_label(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return the sentence and its label."""
        return self.clean(row["sentence"], [], self.evaluation_limit), self.labels[self.label_index(row["label"])]

    def label_index(self, label: Any) -> int:
        """Return the index of a label, given in any case or as the index; true and false are names, not indices.

        Raises:
            InvalidSampleError: If it is none of the labels.
        """
        names = [name.lower() for name in self.labels]
        spelled = str(label).strip().lower()
        if spelled in names:
            return names.index(spelled)
        index = re.fullmatch(r"([0-9]+)(\.0)?", spelled)
        if index is None or int(index[1]) >= len(names):
            raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, repr(label)[:100])
        return int(index[1])

    def predict_labels(
        self, model: PreTrainedModel, batch: list[dict[str, Any]], inputs: dict[str, torch.Tensor]
    ) -> list[dict[str, Any]]:
        """Return the most probable label of each sentence of a batch."""
        probabilities, best = model(**inputs).logits.softmax(-1).max(-1)
        return [
            {
                "row": row["row"],
                "sentence": row["sentence"],
                "answer": self.labels[index],
                "probability": round(probability, 4),
            }
            for row, probability, index in zip(batch, probabilities.tolist(), best.tolist(), strict=True)
        ]
