"""Classification of images with texts, or of images alone: one label, several labels, or a number."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..configuration_albef import CLASSIFIERS, AlbefConfig
from ..data import InvalidSampleError, SkipReason, drop_image_columns, load_image
from ..data.captions import brief, is_blank, valid_text
from ..data.row_values import answer_text, flatten_texts, is_absent, parse_written_list
from ..data.scene_tasks import SceneColors, SceneCounts
from ..evaluation.label_metrics import choose_thresholds, class_metrics, number_metrics, text_only_probabilities
from ..modeling_albef import AlbefForImageTextClassification
from ..processing_albef import AlbefProcessor
from ..training.saved_model import BestModel
from .arguments import PROBLEM_TYPES, ClassificationArguments
from .base import Rows, TextLimit, count_issues
from .base_rows import BASELINE_ROWS, RowTask

SINGLE, SEVERAL, NUMBER = PROBLEM_TYPES
NUMBER_NAME = "value"  # of the only class of a regression


class ModelWithThresholds(BestModel):
    """The best model so far, with the thresholds of its classes chosen on the validation rows."""

    def evaluate_and_save(self, step: int) -> dict[str, float]:
        """Return the metrics of the model with its thresholds, and save it if it is the best so far."""
        self.task.fits_thresholds = True
        return super().evaluate_and_save(step)


class Classification(RowTask):
    """Rows: `image`, `label`, and optionally `text`; without it, or if it is blank, the image is classified alone.

    A label is a name, a list of names, or names with a separator between them; of a regression, a number.
    """

    name = "classification"
    protocol = (
        "F1 of each class, its mean over classes (macro) and over all labels (micro), accuracy of all labels of a "
        "row, and AUROC; of a regression, the explained variance. With several labels, the thresholds of the classes "
        "maximize F1 on the validation rows of the training, where F1 is therefore optimistic."
    )
    head = AlbefForImageTextClassification
    arguments_class = ClassificationArguments
    saved_model_class = ModelWithThresholds
    metric = "macro_f1"
    columns = ("image", "label")
    optional_columns = ("text",)
    image_columns = ("image",)
    synthetic_data = SceneColors
    trains_baselines = True
    fits_thresholds = False  # on the rows of an evaluation
    class_weights: torch.Tensor | None = None  # in the loss

    def __init__(self, args: ClassificationArguments, processor: AlbefProcessor):
        super().__init__(args, processor)
        if self.uses_synthetic_data and self.problem_type != SEVERAL:
            self.synthetic_data = SceneCounts
        if self.problem_type == NUMBER:
            self.metric = "r2"

    @classmethod
    def load_model(cls, args: ClassificationArguments) -> tuple[PreTrainedModel, AlbefProcessor]:
        """Return the head for the classes of the task; a classifier of others starts untrained."""
        model, processor = super().load_model(args)
        task = cls(args, processor)
        saved = (model.config.problem_type or SINGLE, [*model.config.id2label.values()])
        if saved != (task.problem_type, task.classes):
            model.reset_classifier(task.classes, task.problem_type)
        return model, processor

    # Classes

    @functools.cached_property
    def saved(self) -> AlbefConfig | None:
        """Return the configuration of the model that the task starts from, if that is such a classifier already."""
        if not self.args.model:
            return None
        config = AlbefConfig.from_pretrained(self.args.model)
        if CLASSIFIERS.get(config.classes_saved_by) != self.head.__name__:
            return None
        return config if self.args.problem_type in (None, config.problem_type or SINGLE) else None

    @functools.cached_property
    def problem_type(self) -> str:
        """Return what a label is, in the words of transformers."""
        if self.args.problem_type:
            return self.args.problem_type
        if self.saved:
            return self.saved.problem_type or SINGLE
        if self.uses_synthetic_data:
            return SEVERAL
        return SEVERAL if any(map(self._has_several, self._known_labels())) else SINGLE

    @functools.cached_property
    def classes(self) -> list[str]:
        """Return the names of the classes, in the order of the logits.

        Raises:
            ValueError: If there is none.
        """
        saved = [*self.saved.id2label.values()] if self.saved else []
        if self.args.labels:
            return saved if set(saved) == set(self.args.labels) else self.args.labels
        if saved:
            return saved
        if self.problem_type == NUMBER:
            return [NUMBER_NAME]
        found: set[str] = set()
        for label in self._known_labels():
            with contextlib.suppress(InvalidSampleError):  # counted when the row is read for training
                found.update(self.names(label))
        if not found:
            raise ValueError("No row to train on has a label: set labels, or the column of the labels.")
        return sorted(found)

    def _known_labels(self) -> list[Any]:
        """Return the labels of the rows to train on, as they are."""
        rows = drop_image_columns(self.train_rows()) if not self.uses_synthetic_data else self._scenes_of_classes()
        return [row.get("label") for row in rows]

    def _scenes_of_classes(self) -> Rows:
        """Return some scenes, in which every class occurs."""
        return self.synthetic_data(min(self.args.scenes, 100), self.args.seed, 8)

    def _has_several(self, label: Any) -> bool:
        if isinstance(label, str):
            return self.args.label_separator in label or not isinstance(parse_written_list(label), str)
        return isinstance(label, (list, tuple, np.ndarray))

    def names(self, label: Any) -> list[str]:
        """Return the names in a label.

        Raises:
            InvalidSampleError: If there is no label, or a name occurs twice.
        """
        if is_absent(label):
            raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, "there is none; write [] if a row has no class")
        parts = flatten_texts(label, ())
        if self.problem_type == SEVERAL:
            parts = [piece for part in parts for piece in self._split(part)]
        names = [answer_text(part) for part in parts]
        found = [name.strip() for name in names if name is not None]
        if len(found) < len(names) or len(set(found)) < len(found):
            detail = f"{brief(label)}: pass the names of the classes that a row has, each once"
            raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, detail)
        return found

    def _split(self, part: Any) -> list[Any]:
        if not isinstance(part, str):
            return [part]
        return [piece for piece in part.split(self.args.label_separator) if piece.strip()]

    def target(self, row: Mapping[str, Any]) -> np.ndarray:
        """Return 1 for each class that a row has and 0 for the others, or the number of a regression, (classes,).

        Raises:
            InvalidSampleError: If the label is unknown, or there is more than one where there should be one.
        """
        label = row.get("label")
        if self.problem_type == NUMBER:
            return np.array([_as_number(label)])
        names = self.names(label)
        unknown = [name for name in names if name not in self._positions]
        if unknown:
            raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, repr(unknown[0])[:100])
        if self.problem_type == SINGLE and len(names) != 1:
            raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, f"{brief(label)} is not one label")
        target = np.zeros(len(self.classes))
        target[[self._positions[name] for name in names]] = 1
        return target

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    # Rows

    def text(self, row: Mapping[str, Any], issues: list[SkipReason], limit: TextLimit) -> str:
        """Return the cleaned text of a row, empty if there is none."""
        text = row.get("text")
        if is_absent(text) or (isinstance(text, str) and is_blank(text)):
            return ""
        return self.clean(valid_text(text), issues, limit)

    def preprocess_train(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return a text with its target and pixels."""
        issues: list[SkipReason] = []
        sample = {"text": self.text(row, issues, self.training_limit), "target": self.target(row)}
        return {**sample, "pixel_values": self.pixels(row["image"], rng), "issues": issues}

    def train_dataloader(self, rows: Rows, accelerator: Accelerator) -> DataLoader:
        """Return the batches of this process, with weights of the classes if they are wanted."""
        if self.args.balance_classes:
            self.class_weights = self._balanced_weights(rows)
        return super().train_dataloader(rows, accelerator)

    def _balanced_weights(self, rows: Rows) -> torch.Tensor:
        if self.problem_type == NUMBER:
            raise ValueError("balance_classes has no effect on a regression; remove it.")
        targets = np.stack([target for _, _, target in self._annotated(rows, len(rows))])
        counts = np.maximum(targets.sum(0), 1)
        rest = np.maximum(len(targets) - counts, 1)  # a class that every row has keeps a weight, too
        weights = rest / counts if self.problem_type == SEVERAL else len(targets) / (len(counts) * counts)
        return torch.tensor(weights, dtype=torch.float32)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of texts, images and labels, and the weights of the classes."""
        targets = torch.tensor(np.stack([sample["target"] for sample in samples]), dtype=torch.float32)
        weights = {} if self.class_weights is None else {"class_weights": self.class_weights}
        return {
            **self.tokenize_for_training([sample["text"] for sample in samples]),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": targets.argmax(1) if self.problem_type == SINGLE else targets,
            "issues": count_issues(samples),
            **weights,
        }

    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return text and image; the label has to be known."""
        self.target(row)
        text = self.text(row, issues, self.evaluation_limit)
        return {"text": text, "image": load_image(row["image"], self.args.image_root)}

    # Evaluation

    def evaluate(
        self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return metrics and predictions, in a training with thresholds chosen on these rows."""
        if not self.fits_thresholds or self.problem_type != SEVERAL:
            return super().evaluate(model, rows, accelerator)
        model.config.class_thresholds = None
        metrics, predictions = super().evaluate(model, rows, accelerator)
        annotated = drop_image_columns(rows)
        targets = np.stack([self.target(annotated[prediction["row"]]) for prediction in predictions])
        thresholds = choose_thresholds(self._probabilities(predictions), targets)
        model.config.class_thresholds = thresholds
        for prediction in predictions:
            prediction["answer"] = self._answer(prediction["scores"], thresholds)
        chosen = self.score(predictions, annotated)
        return metrics | chosen | {"macro_f1_at_half": metrics["macro_f1"]}, predictions

    def _probabilities(self, predictions: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return np.array([[prediction["scores"][name] for name in self.classes] for prediction in predictions])

    def _answer(self, scores: Mapping[str, float], thresholds: Sequence[float]) -> list[str]:
        """Return the classes whose probability reaches the threshold."""
        return [name for name, threshold in zip(self.classes, thresholds, strict=True) if scores[name] >= threshold]

    def predict(self, model: PreTrainedModel, rows: Rows, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the predicted label, labels or number of each row, with the probabilities of the classes."""
        predictions = []
        for batch in self.valid_batches(rows, indices):
            inputs = self.inputs(model, [row["text"] for row in batch], [row["image"] for row in batch])
            logits = model(**inputs).logits.float()
            if self.problem_type == NUMBER:
                answers = [{"answer": value} for value in logits[:, 0].tolist()]
            else:
                scores = logits.sigmoid() if self.problem_type == SEVERAL else logits.softmax(-1)
                answers = [self._prediction(values, model.config.thresholds) for values in scores.tolist()]
            texts = [{"row": row["row"], "text": row["text"]} for row in batch]
            predictions += [{**text, **answer} for text, answer in zip(texts, answers, strict=True)]
        return predictions

    def _prediction(self, values: Sequence[float], thresholds: Sequence[float]) -> dict[str, Any]:
        scores = {name: round(value, 6) for name, value in zip(self.classes, values, strict=True)}
        if self.problem_type == SEVERAL:
            return {"answer": self._answer(scores, thresholds), "scores": scores}
        return {"answer": max(scores, key=scores.__getitem__), "scores": scores}

    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """Return F1, accuracy and AUROC of the classes, or the explained variance of numbers."""
        targets = np.stack([self.target(rows[prediction["row"]]) for prediction in predictions])
        if self.problem_type == NUMBER:
            return number_metrics([prediction["answer"] for prediction in predictions], targets[:, 0].tolist())
        answers = np.zeros(targets.shape)
        for row, prediction in enumerate(predictions):
            names = prediction["answer"] if self.problem_type == SEVERAL else [prediction["answer"]]
            answers[row, [self._positions[name] for name in names]] = 1
        return class_metrics(answers, targets, self.classes, self._probabilities(predictions))

    # Baselines and reports

    def _annotated(self, rows: Rows, max_rows: int) -> list[tuple[int, str, np.ndarray]]:
        """Return index, text and target of valid rows; at most `max_rows`, spread evenly."""
        rows = drop_image_columns(rows)
        count = min(len(rows), max_rows)
        found = []
        for index in (position * len(rows) // count for position in range(count)):
            with contextlib.suppress(InvalidSampleError):  # counted during training or evaluation
                row = rows[index]
                found.append((index, self.text(row, [], self.evaluation_limit), self.target(row)))
        return found

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """Return the metric of one answer for all rows, and that of classifiers of the texts.

        The one answer is the most frequent class, with several labels all classes, and of a regression the mean.
        """
        train = self._annotated(train_rows, BASELINE_ROWS)
        validation = self._annotated(rows, len(rows))
        if not train or not validation:
            return {}
        known = np.stack([target for _, _, target in train])
        right = np.stack([target for _, _, target in validation])
        if self.problem_type == NUMBER:
            return {"constant_r2": number_metrics([known.mean()] * len(right), right[:, 0].tolist())["r2"]}
        constant = np.ones(right.shape) if self.problem_type == SEVERAL else _highest(known.sum(0)[None])
        answers = {"constant": np.broadcast_to(constant, right.shape)}
        texts = [text for _, text, _ in train]
        if self.args.text_only_baseline and any(texts):
            values = text_only_probabilities(texts, known, [text for _, text, _ in validation])
            answers["text_only"] = values >= 0.5 if self.problem_type == SEVERAL else _highest(values)
        return {
            f"{name}_{self.metric}": class_metrics(answer, right, self.classes)[self.metric]
            for name, answer in answers.items()
        }

    def describe_data(self, rows: Rows, validation: Rows, baselines: dict[str, float]) -> str:
        """Return the numbers of rows, what a label is, and how many rows have a text."""
        with_text = sum(bool(text) for _, text, _ in self._annotated(validation, len(validation)))
        kind = self.problem_type.replace("_", " ")
        shown = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        return (
            f"{super().describe_data(rows, validation, baselines)}\n{kind}, {len(self.classes)} classes: {shown}; "
            f"{with_text} of {len(validation)} rows to evaluate on have a text, the others are images alone"
        )

    def format_metrics(self, metrics: dict[str, float], rows: Rows) -> str:
        """Return the metrics, without those of single classes."""
        return super().format_metrics({name: value for name, value in metrics.items() if "/" not in name}, rows)

    def format_prediction(self, prediction: dict[str, Any]) -> str:
        """Return a prediction in a line, without the probabilities."""
        return super().format_prediction({name: value for name, value in prediction.items() if name != "scores"})


def _as_number(label: Any) -> float:
    text = answer_text(label)
    try:
        number = float(text) if text is not None else np.nan
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise InvalidSampleError(SkipReason.LABEL_UNKNOWN, f"{brief(label)} is not a number")
    return number


def _highest(values: np.ndarray) -> np.ndarray:
    """Return 1 for the highest of each row and 0 for the others."""
    return np.eye(values.shape[1])[values.argmax(1)]


TASK = Classification
