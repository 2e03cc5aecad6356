"""What tasks have in common: rows, training samples, evaluation, and how the training saves the model.

A task is one file in this folder, found by its name: the head, the paper's defaults, rows, collate, evaluate.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..data import Augmentation, InvalidSampleError, Normalization, RowErrors, SkipReason, load_image, valid_text
from ..data.augmentation import torch_resize
from ..data.collator import pad_tokens
from ..data.image_states import ImageRecorder, ImageStates
from ..data.pairs import ATTEMPTS
from ..data.scene_tasks import SceneRows
from ..evaluation.exchanged_images import fingerprints
from ..evaluation.match_calibration import FittedCalibration
from ..processing_albef import AlbefProcessor, tokenize
from ..training.arguments import MAX_POSITIONS, DataArguments, FineTuningArguments
from ..training.dataloaders import make_dataloader
from ..training.model_setup import load_task_model
from ..training.saved_model import BestModel, SavedModel
from ..utils.progress import progress
from . import EVALUATION_ONLY

if TYPE_CHECKING:
    from ..momentum import MomentumTeacher

Rows = Sequence[Mapping[str, Any]]


class TextLimit(NamedTuple):
    """How much of a text is kept."""

    words: int
    tokens: int


class Task(ABC):
    """Base class of tasks; `find_task` finds a task by the name of its file.

    Args:
        args: Options, of the class `arguments_class`.
        processor: Makes pixels and tokens.
    """

    name: ClassVar[str]
    head: ClassVar[type[PreTrainedModel]]
    arguments_class: ClassVar[type[DataArguments]]
    saved_model_class: ClassVar[type[SavedModel]] = BestModel
    metric: ClassVar[str]  # of the validation; the highest is the best model
    protocol: ClassVar[str]  # how it is measured, for the model card

    def __init__(self, args: Any, processor: AlbefProcessor):
        self.args = args
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.row_errors = RowErrors()  # of the last evaluation
        self.fits_calibration = False  # on the rows of an evaluation
        self.normalizes = False  # the scores of an evaluation, by references
        self.calibration: FittedCalibration | None = None  # of the last evaluation
        self.image_states: ImageStates | ImageRecorder | None = None  # take the place of training images
        images = processor.image_processor
        self.normalize = Normalization(images.image_mean, images.image_std)

    def make_augmentation(self, flip_probability: float) -> Augmentation:
        """Return the augmentation of training images."""
        images = self.processor.image_processor
        return Augmentation(
            (images.size["height"], images.size["width"]),
            images.image_mean,
            images.image_std,
            self.args.min_crop_scale,
            self.args.randaugment_operations,
            flip_probability,
            images.resample,
            torch_resize if self.args.fast_resize else Image.Image.resize,
        )

    @classmethod
    def training_task(cls) -> str:
        """Return the name of the task that trains the head: this one, unless it only evaluates."""
        return EVALUATION_ONLY.get(cls.name, cls.name)

    @classmethod
    @abstractmethod
    def load_model(cls, args: Any) -> tuple[PreTrainedModel, AlbefProcessor]:
        """Return the model to train, and its processor."""

    @abstractmethod
    def load_rows(self, accelerator: Accelerator) -> tuple[Any, Any]:
        """Return the rows to train on, and what to evaluate on: rows, or images with their captions."""

    @abstractmethod
    def make_reader(self) -> Callable[[Mapping[str, Any], np.random.Generator], dict[str, Any]]:
        """Return the function that turns a row into a training sample."""

    def prepare_model(  # noqa: B027  # most tasks train the model as it is
        self, model: PreTrainedModel, teacher: "MomentumTeacher | None", rows: Any, accelerator: Accelerator
    ) -> None:
        """Change model and teacher before a training that is not resumed, in the same way on all processes."""

    @abstractmethod
    def train_dataloader(self, rows: Any, accelerator: Accelerator) -> DataLoader:
        """Return the batches of this process."""

    @abstractmethod
    def check_validation(self, rows: Any) -> None:
        """Raise a `ValueError` before the training if rows cannot be evaluated."""

    @abstractmethod
    def evaluate(
        self, model: PreTrainedModel, rows: Any, accelerator: Accelerator
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return metrics in percent, the same on all processes, and predictions, as JSON stores them.

        Raises:
            ValueError: If no row can be used.
        """

    @property
    def forward_settings(self) -> dict[str, Any]:
        """Return arguments of the student's forward pass that are the same for all batches."""
        return {}

    def evaluate_exchanged(self, model: PreTrainedModel, rows: Any, accelerator: Accelerator) -> dict[str, float]:
        """Return the metric of the last `evaluate` with images exchanged among rows, if the task has such a metric."""
        return {}

    def baselines(self, train_rows: Any, rows: Any) -> dict[str, float]:
        """Return metrics of answers that need no model, or no image."""
        return {}

    @property
    def command(self) -> str:
        """Return the command that trains the task."""
        return f"finetune {self.name}"

    def describe_protocol(self) -> str:
        """Return how the metrics are measured."""
        return self.protocol

    def base_models(self) -> list[str]:
        """Return what the model started from."""
        return [self.args.model] if self.args.model else []

    @abstractmethod
    def describe_data(self, rows: Any, validation: Any, baselines: dict[str, float]) -> str:
        """Return what is trained and evaluated on."""

    def save_pretrained(self, folder: Path) -> None:  # noqa: B027  # most tasks have nothing to save
        """Write what the task needs to evaluate the model again, beside it."""

    def format_metrics(self, metrics: dict[str, float], rows: Any) -> str:
        """Return metrics for people to read."""
        return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())

    def format_prediction(self, prediction: dict[str, Any]) -> str:
        """Return a prediction in a line."""
        return ", ".join(f"{name} {value}" for name, value in prediction.items())


class FineTuningTask(Task):
    """A downstream task: rows from files, a dataset or synthetic scenes, and a head from any ALBEF checkpoint."""

    arguments_class: ClassVar[type[FineTuningArguments]]
    columns: ClassVar[tuple[str, ...]]  # required of every row
    training_columns: ClassVar[tuple[str, ...]] = ()  # additional columns required for training
    optional_columns: ClassVar[tuple[str, ...]] = ()  # read if a row has them
    image_columns: ClassVar[tuple[str, ...]] = ()  # that move with an image to another row; none: it stays
    synthetic_data: ClassVar[type[SceneRows]]
    trains_baselines: ClassVar[bool] = False  # on rows to train on
    language: str | None = None  # of the texts of files that name it; None: all

    def __init__(self, args: FineTuningArguments, processor: AlbefProcessor):
        super().__init__(args, processor)
        self.fingerprints: dict[int, frozenset[bytes]] = {}  # of the images of the last evaluation
        self.positions = min(processor.tokenizer.model_max_length, MAX_POSITIONS)
        self.training_limit = TextLimit(args.max_words, min(args.max_tokens, self.positions))
        self.evaluation_limit = self.training_limit
        self.uses_synthetic_data = not (args.train_files or args.validation_files or args.dataset)
        self.augmentation = self.make_augmentation(0.0 if self.uses_synthetic_data else args.flip_probability)

    @classmethod
    def load_model(cls, args: FineTuningArguments) -> tuple[PreTrainedModel, AlbefProcessor]:
        """Return the head from any ALBEF checkpoint, or untrained, and the processor."""
        model, processor, _ = load_task_model(cls.head, args)
        cls.check_model(model)
        return model, processor

    @classmethod
    def check_model(cls, model: PreTrainedModel) -> None:
        """Raise a `ValueError` for a model that was trained for something else."""

    # Rows

    def load_rows(self, accelerator: Accelerator) -> tuple[Rows, Rows]:
        """Return the rows to train on and the rows to evaluate on."""
        return self.train_rows(), self.validation_rows()

    def train_rows(self) -> Rows:
        """Return the rows to train on."""
        args = self.args
        required = (*self.required_columns(), *self.training_columns)
        return self._rows(args.train_files, args.split, args.scenes, args.seed, required)

    def validation_rows(self) -> Rows:
        """Return the rows to evaluate on."""
        args = self.args
        return self._rows(
            files=args.validation_files,
            split=args.validation_split,
            count=args.validation_size,
            seed=args.seed + 1,
            required=self.required_columns(),
        )

    def required_columns(self) -> tuple[str, ...]:
        """Return the columns that a row must have."""
        return self.columns

    def _rows(self, files: list[str], split: str, count: int, seed: int, required: tuple[str, ...]) -> Rows:
        if self.uses_synthetic_data:
            return self.synthetic_data(count, seed, max(96, self.processor.image_processor.size["height"]))
        if files:
            return self._read_files(files, split, required)
        if self.args.dataset:
            return self._load_dataset(split, required)
        raise ValueError(
            "train_files and validation_files need each other; set both. A published file with several splits may be "
            "both: split and validation_split choose among them."
        )

    def _read_files(self, files: list[str], split: str, required: tuple[str, ...]) -> Rows:
        from ..data.row_files import read_rows, require_columns

        args = self.args
        rows = read_rows(files, args.dataset_format, split, args.image_root, self.language, args.needs_splits)
        require_columns(rows, files, required)
        texts = rows if isinstance(rows, list) else ()  # a dataset, which would decode its images, has no splits
        args.read_splits[(*files, split)] = sorted({row["split"] for row in texts if row.get("split")})
        return rows

    def _load_dataset(self, split: str, required: tuple[str, ...]) -> Rows:
        from ..data.sources import load_columns  # needs the datasets library

        named = self.named_columns()
        # Columns for training alone may be missing in a split to evaluate on, under whatever name.
        required = (*required, *(name for name in named if name not in (*required, *self.training_columns)))
        columns = {name: named.get(name, name) for name in required}
        others = (*self.training_columns, *self.optional_columns)
        optional = {name: named.get(name, name) for name in others if name not in columns}
        return load_columns(
            self.args.dataset,
            self.args.dataset_config,
            self.args.data_files or None,
            split,
            columns,
            remedy="columns {}=...",
            optional=optional,
        )

    def named_columns(self) -> dict[str, str]:
        """Return the dataset's names of columns, as given by the option `columns`."""
        named = dict(entry.partition("=")[::2] for entry in self.args.columns)
        known = (*self.columns, *self.training_columns, *self.optional_columns)
        unknown = [name for name in named if name not in known]
        if unknown:
            raise ValueError(f"columns names {', '.join(unknown)}; {self.name} has {', '.join(known)}.")
        return named

    def describe_data(self, rows: Rows, validation: Rows, baselines: dict[str, float]) -> str:
        """Return the numbers of rows, and what answers without a model reach."""
        counts = f"{len(rows)} rows to train on, {len(validation)} to evaluate on"
        values = ", ".join(f"{name} {value:.2f}" for name, value in baselines.items())
        return f"{counts}; baselines: {values}" if values else counts

    # Training

    @abstractmethod
    def preprocess_train(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return a training sample, with `pixel_values` and `issues`.

        Raises:
            InvalidSampleError: If the row cannot be used.
        """

    @abstractmethod
    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch for the head, and `issues`."""

    def make_reader(self) -> Callable[[Mapping[str, Any], np.random.Generator], dict[str, Any]]:
        """Return the function that turns a row into a training sample."""
        return self.preprocess_train

    def train_dataloader(self, rows: Rows, accelerator: Accelerator) -> DataLoader:
        """Return the batches of this process."""
        return make_dataloader(rows, self.make_reader(), self.collate, self.args, accelerator)

    # Evaluation

    @abstractmethod
    def preprocess_eval(self, row: Mapping[str, Any], issues: list[SkipReason]) -> dict[str, Any]:
        """Return the texts of a row, and its images as they are; add to `issues` what was cut.

        Raises:
            InvalidSampleError: If the row cannot be used.
        """

    def check_validation(self, rows: Rows) -> None:
        """Check, before the training, that rows can be evaluated.

        Raises:
            ValueError: If none of the first rows can be used.
        """
        self.row_errors = RowErrors()
        for index in range(min(len(rows), ATTEMPTS)):
            try:
                self.preprocess_eval(rows[index], [])
            except InvalidSampleError as error:
                self.row_errors.bad[index] = error
            else:
                return
        self.require_rows([])

    def require_rows(self, usable: Sequence[Any]) -> None:
        """Raise a `ValueError` that says what is wrong with the rows, if none of them is usable."""
        if not usable:
            problem = self.row_errors if self.row_errors.bad else "there are none"
            raise ValueError(
                f"No row can be evaluated: {problem}. Check image_root, and the columns or keys of the rows."
            )

    def valid_batches(self, rows: Rows, indices: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
        """Yield batches of preprocessed rows; invalid ones are skipped, and recorded with the reason."""
        batch: list[dict[str, Any]] = []
        for index in progress(indices, f"evaluate {self.name}", leave=False):
            issues: list[SkipReason] = []
            try:
                sample = self.preprocess_eval(rows[index], issues)
                batch.append({"row": index, **sample})
                self.row_errors.cut += len(issues)
                if self.args.exchanged_images and self.image_columns:
                    images = sample["images"] if "images" in sample else [sample["image"]]
                    self.fingerprints[index] = fingerprints(images)
            except InvalidSampleError as error:
                self.row_errors.bad[index] = error
            if len(batch) == self.args.per_device_eval_batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def save_figures(self, folder: Path, predictions: list[dict[str, Any]]) -> None:
        """Draw predictions of `albef evaluate`, if the task has something to draw."""

    # Texts and images

    def tokenize(self, texts: list[str], limit: TextLimit) -> dict[str, torch.Tensor]:
        """Return cleaned texts as `input_ids` and `attention_mask`."""
        if not texts:
            raise ValueError("There is no row to make a batch of.")
        tokens = tokenize(
            self.tokenizer, texts, return_tensors="pt", padding=True, truncation=True, max_length=limit.tokens
        )
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def tokenize_for_training(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Return cleaned texts as `tokenize` does, padded as the options say."""
        batch = self.tokenize(texts, self.training_limit)
        fill = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0}
        multiple = self.args.text_multiple or 1
        return {
            name: pad_tokens(tokens, multiple, self.training_limit.tokens, fill[name])
            for name, tokens in batch.items()
        }

    def clean(self, text: Any, issues: list[SkipReason], limit: TextLimit) -> str:
        """Return a cleaned text of at most `limit.words`; add to `issues` if words or tokens are cut.

        Raises:
            InvalidSampleError: If there is no text.
        """
        text = valid_text(text)
        kept = self.processor.clean(text, limit.words)
        tokens = tokenize(self.tokenizer, kept, verbose=False)["input_ids"]
        if len(tokens) > limit.tokens or len(kept) < len(self.processor.clean(text, 10**9)):
            issues.append(SkipReason.CAPTION_CUT)
        return kept

    def pixels(self, image: Any, rng: np.random.Generator, image_root: str | None = None) -> torch.Tensor:
        """Return augmented pixels of an image, uint8, (channels, height, width), or its states, (1 + tokens, width).

        The training normalizes them, in batches on its device.

        Args:
            image: See `load_image`.
            rng: Random generator.
            image_root: Folder that paths are relative to; default: that of the options.
        """
        image_root = image_root or self.args.image_root
        if self.image_states:
            return self.image_states.read(image, image_root)
        return self.augmentation.augment(load_image(image, image_root), rng)[0]

    def inputs(self, model: PreTrainedModel, texts: list[str], images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """Return a head's inputs for texts and as many images, on its device."""
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        inputs = self.tokenize(texts, self.evaluation_limit) | {"pixel_values": pixels}
        return {name: value.to(model.device) for name, value in inputs.items()}


def flatten(scores: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested scores side by side: `{"per_label": {"neutral": 1.0}}` as `{"per_label/neutral": 1.0}`."""
    flat: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = float(value)
    return flat


def count_issues(samples: list[dict[str, Any]]) -> torch.Tensor:
    """Return how often each `SkipReason` occurred, (reasons,)."""
    issues = torch.tensor([issue for sample in samples for issue in sample["issues"]], dtype=torch.long)
    return torch.bincount(issues, minlength=len(SkipReason))
