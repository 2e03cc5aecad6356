"""What the downstream tasks have in common: their options, where rows come from, and what a task has to say."""

import contextlib
import copy
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from transformers import PreTrainedModel

from ..configuration_albef import AlbefConfig
from ..data import (
    Augmentation,
    BadSampleError,
    Findings,
    Issue,
    embedded_tokenizer,
    load_image,
    usable_text,
    without_pictures,
)
from ..data.annotations import read_json_list
from ..data.pairs import ATTEMPTS
from ..data.row_values import require_readable
from ..data.scene_tasks import SceneRows
from ..evaluation.exchanged_images import ExchangedRows, exchange, fingerprints
from ..evaluation.text_only_baseline import text_only_answers
from ..processing_albef import AlbefProcessor, added_tokens, clean_caption, tokenize
from ..retrieval_albef import evaluation_mode
from ..training.model_setup import check_vocabulary, make_processor, read_model_config, with_special_tokens
from ..training.trainer import DataOptions
from ..utils.files import written_aside
from ..utils.options import option, with_defaults
from ..utils.progress import progress

Rows = Sequence[Mapping[str, Any]]

BASELINE_ROWS = 20_000  # training rows, spread over all of them, that the baselines learn from
EXCHANGED = "exchanged_images"  # begins the name of a metric that was measured so
LATER_RESULTS = "evaluation"  # folder, in that of a model, for what is measured after the training
MOST_TOKENS = 512  # that any text is cut to, BERT's positions


class TextLimit(NamedTuple):
    """How much of a text is kept."""

    words: int
    tokens: int


@dataclass
class FineTuningOptions(
    with_defaults(DataOptions, validation_split="validation", min_crop_scale=0.5, max_tokens=MOST_TOKENS)
):
    """What to start from and what to train on, beside how."""

    model: str = option("", "folder or Hub name of an ALBEF to start from, its teacher included")
    model_config: str | None = option(None, "JSON file or text with AlbefConfig settings of a fresh model, instead")
    image_size: int = option(0, "resolution in pixels, to which positions are interpolated; 0: that of the model")
    columns: list[str] = option([], "names of columns: image=picture ...; for NLVR2 maybe left_image=a right_image=b")
    flip_probability: float = option(0.5, "chance of a picture to be mirrored; never for the built-in rows")
    eval_batch_size: int = option(64, "rows per forward pass in the evaluation")
    text_only_baseline: bool = option(True, "train a classifier on the texts alone, for comparison")
    exchanged_images: bool = option(
        True,
        "evaluate once more with images exchanged among rows, to see what the model reaches without the right image; "
        "takes as long as the evaluation, and in training is done for each new best model",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "validation_size", "eval_batch_size")
        self.require_at_least(0, "image_size")
        self.require_share("flip_probability")
        if bool(self.model) == bool(self.model_config):
            raise ValueError(
                "Name the folder or Hub repository of an ALBEF to start from (model), or the settings of a fresh one "
                "(model_config); one of the two."
            )


class Task(ABC):
    """A downstream task: found by the name of its file, and all that the scripts need to know of it.

    Args:
        options: Of the class that `options` names.
        processor: Makes pixels and tokens.
    """

    name: ClassVar[str]
    head: ClassVar[type[PreTrainedModel]]
    options_class: ClassVar[type[FineTuningOptions]]
    metric: ClassVar[str]  # of the validation; the highest is the best checkpoint
    protocol: ClassVar[str]  # how it is measured, for the model card
    columns: ClassVar[tuple[str, ...]]  # that a row must have
    training_columns: ClassVar[tuple[str, ...]] = ()  # that a row to train on must have beside them
    optional_columns: ClassVar[tuple[str, ...]] = ()  # that a row may have
    image_columns: ClassVar[tuple[str, ...]] = ()  # that move with an image to another row; none: it stays
    scenes: ClassVar[type[SceneRows]]

    def __init__(self, options: FineTuningOptions, processor: AlbefProcessor):
        self.options, self.processor = options, processor
        self.tokenizer = processor.tokenizer
        self.findings = Findings()  # of the last evaluation
        self.images: dict[int, frozenset[bytes]] = {}  # of the rows of the last evaluation, to exchange them
        images = processor.image_processor
        self.positions = min(processor.tokenizer.model_max_length, MOST_TOKENS)
        self.training_limit = TextLimit(options.max_words, min(options.max_tokens, self.positions))
        self.evaluation_limit = self.training_limit
        self.built_in = not (options.train_files or options.validation_files or options.dataset)
        self.augmentation = Augmentation(
            images.size["height"],
            images.image_mean,
            images.image_std,
            options.min_crop_scale,
            options.randaugment_operations,
            0.0 if self.built_in else options.flip_probability,
        )

    # Rows

    def train_rows(self) -> Rows:
        """Rows to train on."""
        options, required = self.options, (*self.required_columns(), *self.training_columns)
        return self._rows(options.train_files, options.split, options.scenes, options.seed, required)

    def validation_rows(self) -> Rows:
        """Rows to evaluate on."""
        options = self.options
        size, seed = options.validation_size, options.seed + 1
        return self._rows(options.validation_files, options.validation_split, size, seed, self.required_columns())

    def required_columns(self) -> tuple[str, ...]:
        """What a row must have."""
        return self.columns

    def _rows(self, files: list[str], split: str, count: int, seed: int, required: tuple[str, ...]) -> Rows:
        if self.built_in:
            return self.scenes(count, seed, max(96, self.processor.image_processor.size["height"]))
        if files:
            return _read_files(files, required)
        if self.options.dataset:
            return self._load_dataset(split, required)
        raise ValueError("train_files needs validation_files beside it, and the other way round.")

    def _load_dataset(self, split: str, required: tuple[str, ...]) -> Rows:
        from ..data.sources import load_columns

        options, named = self.options, self.named_columns()
        # What only training needs may be absent from a split to evaluate on, whatever it is called elsewhere.
        required = (*required, *(name for name in named if name not in (*required, *self.training_columns)))
        columns = {name: named.get(name, name) for name in required}
        others = (*self.training_columns, *self.optional_columns)
        optional = {name: named.get(name, name) for name in others if name not in columns}
        source = (options.dataset, options.dataset_config, options.data_files or None, split)
        return load_columns(*source, columns, remedy="columns {}=...", optional=optional)

    def named_columns(self) -> dict[str, str]:
        """What the dataset calls columns, as far as the options say."""
        named = dict(entry.partition("=")[::2] for entry in self.options.columns)
        known = (*self.columns, *self.training_columns, *self.optional_columns)
        unknown = [name for name in named if name not in known]
        if unknown:
            raise ValueError(f"columns names {', '.join(unknown)}; {self.name} has {', '.join(known)}.")
        return named

    # Training

    @abstractmethod
    def read(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A training sample of a row, with `pixel_values` and `issues`.

        Raises:
            BadSampleError: If the row cannot be used.
        """

    @abstractmethod
    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch that the head takes, and `issues`."""

    # Evaluation

    @abstractmethod
    def evaluate(
        self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics in percent, the same on all processes, and predictions, as JSON takes them.

        Raises:
            ValueError: If no row can be used.
        """

    def evaluate_exchanged(self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator) -> dict[str, float]:
        """Return the metric of the last `evaluate` with images exchanged among rows, if the task has such a metric."""
        return {}

    @abstractmethod
    def look(self, row: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
        """What the model is shown of a row in the evaluation: texts, and pictures as they are.

        Raises:
            BadSampleError: If the row cannot be used.
        """

    def check(self, rows: Rows) -> None:
        """See that rows can be evaluated, before the training rather than after its first epoch.

        Raises:
            ValueError: If none of the first rows can be used.
        """
        self.findings = Findings()
        for number in range(min(len(rows), ATTEMPTS)):
            try:
                self.look(rows[number], [])
            except BadSampleError as error:
                self.findings.bad[number] = error
            else:
                return
        self.refuse_nothing([])

    def refuse_nothing(self, found: Sequence[Any]) -> None:
        """Raise a `ValueError` that tells what is wrong with the rows, if nothing was found in them."""
        if not found:
            told = self.findings if self.findings.bad else "there is none"
            raise ValueError(
                f"No row can be evaluated: {told}. Check image_root, and the columns or keys of the rows."
            )

    @abstractmethod
    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """Metrics of answers that need no model, or no picture."""

    def show(self, prediction: dict[str, Any]) -> str:
        """A prediction in a line."""
        return ", ".join(f"{name} {value}" for name, value in prediction.items())

    # What tasks share

    def tokenize(self, texts: list[str], limit: TextLimit) -> dict[str, torch.Tensor]:
        """Cleaned texts as `input_ids` and `attention_mask`."""
        if not texts:
            raise ValueError("There is no row to make a batch of.")
        settings = {"padding": True, "truncation": True, "max_length": limit.tokens}
        tokens = tokenize(self.tokenizer, texts, return_tensors="pt", **settings)
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def clean(self, text: Any, issues: list[Issue], limit: TextLimit) -> str:
        """A text as the model takes it; whether words or tokens are cut is noted.

        Raises:
            BadSampleError: If there is no text.
        """
        text = usable_text(text)
        added = added_tokens(self.tokenizer)
        kept = clean_caption(text, limit.words, added)
        tokens = tokenize(self.tokenizer, kept, verbose=False)["input_ids"]
        if len(tokens) > limit.tokens or len(kept) < len(clean_caption(text, 10**9, added)):
            issues.append(Issue.CAPTION_CUT)
        return kept

    def pixels(self, image: Any, rng: np.random.Generator) -> torch.Tensor:
        """Augmented pixels of a picture."""
        return self.augmentation(load_image(image, self.options.image_root), rng)[0]

    def readable(self, rows: Rows, numbers: Sequence[int]) -> Iterator[list[dict[str, Any]]]:
        """Batches of rows as `look` reads them; bad ones are left out, and noted with the reason."""
        good: list[dict[str, Any]] = []
        for number in progress(numbers, f"evaluate {self.name}", leave=False):
            issues: list[Issue] = []
            try:
                seen = self.look(rows[number], issues)
                good.append({"row": number, **seen})
                self.findings.cut += len(issues)
                if self.options.exchanged_images and self.image_columns:
                    self.images[number] = fingerprints(seen["images"] if "images" in seen else [seen["image"]])
            except BadSampleError as error:
                self.findings.bad[number] = error
            if len(good) == self.options.eval_batch_size:
                yield good
                good = []
        if good:
            yield good

    def inputs(self, model: PreTrainedModel, texts: list[str], images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What a head takes of texts and as many pictures, on its device."""
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        inputs = self.tokenize(texts, self.evaluation_limit) | {"pixel_values": pixels}
        return {name: value.to(model.device) for name, value in inputs.items()}


class RowTask(Task):
    """A task in which every row has a prediction of its own."""

    @torch.no_grad()
    def evaluate(
        self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics and predictions; every process predicts its share of the rows, and no row is counted twice."""
        self.findings, self.images = Findings(), {}
        predictions = self._predictions(model, rows, range(len(rows)), accelerator)
        self.findings = Findings.together(gather_object([self.findings]))
        images = {row: images for part in gather_object([self.images]) for row, images in part.items()}
        self.refuse_nothing(predictions)
        metrics = self.score(predictions, without_pictures(rows))
        self.images = dict(sorted(images.items())) if self.metric in metrics else {}
        return metrics | self.findings.counts(), predictions

    @torch.no_grad()
    def evaluate_exchanged(self, model: PreTrainedModel, rows: Rows, accelerator: Accelerator) -> dict[str, float]:
        """Return the metric of the last `evaluate` with images exchanged; nothing if all rows show the same image."""
        givers = exchange(self.images, self.options.seed)
        if not givers:
            return {}
        texts, again = without_pictures(rows), copy.copy(self)
        again.findings, again.images = Findings(), {}  # those of the evaluation stay
        exchanged = ExchangedRows(texts, rows, self.image_columns, givers)
        predictions = again._predictions(model, exchanged, sorted(givers), accelerator)
        scores = self.score(predictions, ExchangedRows(texts, texts, self.image_columns, givers))
        return {f"{EXCHANGED}_{self.metric}": scores[self.metric]}

    def _predictions(
        self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int], accelerator: Accelerator
    ) -> list[dict[str, Any]]:
        """Predictions for the rows with these numbers, of all processes, in their order."""
        share = numbers[accelerator.process_index :: accelerator.num_processes]
        with evaluation_mode(model), accelerator.autocast():
            predictions = gather_object(self.predict(model, rows, share))
        return sorted(predictions, key=lambda prediction: prediction["row"])

    @abstractmethod
    def predict(self, model: PreTrainedModel, rows: Rows, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """A prediction, as JSON takes it, for each of the rows with these numbers; bad rows have none."""

    @abstractmethod
    def score(self, predictions: list[dict[str, Any]], rows: Rows) -> dict[str, float]:
        """The metrics of predictions, in percent."""


class LabelTask(RowTask):
    """A task whose predictions are one of some answers, which a classifier that sees no picture may give too."""

    @abstractmethod
    def text_and_label(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """What a classifier that sees no picture has of a row: its text, and the answer to give.

        Raises:
            BadSampleError: If there is none.
        """

    def baselines(self, train_rows: Rows, rows: Rows) -> dict[str, float]:
        """The metric of answers that need no picture: always the most frequent one, and a classifier of the texts."""
        train_rows, rows = without_pictures(train_rows), without_pictures(rows)
        train = dict(self._texts_and_labels(train_rows, BASELINE_ROWS))
        asked = dict(self._texts_and_labels(rows, len(rows)))
        train_texts, labels = zip(*train.values(), strict=True)
        answers = {"majority": [Counter(labels).most_common(1)[0][0]] * len(asked)}
        if self.options.text_only_baseline:
            answers["text_only"] = text_only_answers(train_texts, labels, [text for text, _ in asked.values()])
        scores = {}
        for name, given in answers.items():
            predictions = [{"row": row, "answer": answer} for row, answer in zip(asked, given, strict=True)]
            scores[f"{name}_{self.metric}"] = self.score(predictions, rows)[self.metric]
        return scores

    def _texts_and_labels(self, rows: Rows, most: int) -> Iterator[tuple[int, tuple[str, Any]]]:
        """Numbers of rows that can be used, with their texts and labels; of more rows than that, some of each part."""
        count = min(len(rows), most)
        for number in (place * len(rows) // count for place in range(count)):
            with contextlib.suppress(BadSampleError):  # it is counted where it is read for training or evaluation
                yield number, self.text_and_label(rows[number])


def flat(scores: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested scores side by side: `{"per_label": {"neutral": 1.0}}` as `{"per_label/neutral": 1.0}`."""
    numbers: dict[str, float] = {}
    for name, value in scores.items():
        numbers |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": float(value)}
    return numbers


def count_issues(samples: list[dict[str, Any]]) -> torch.Tensor:
    """How often each `Issue` occurred, (number of issues,)."""
    issues = torch.tensor([issue for sample in samples for issue in sample["issues"]], dtype=torch.long)
    return torch.bincount(issues, minlength=len(Issue))


def _read_files(files: list[str], required: tuple[str, ...]) -> Rows:
    rows = [row for file in files for row in read_json_list(file)]
    for row in rows:
        missing = [name for name in required if name not in row]
        if missing:
            raise ValueError(f"A row of {', '.join(files)} has {sorted(row)}, but not {', '.join(missing)}.")
    require_readable(rows, ", ".join(files))
    return rows


def load_model(kind: type[Task], options: FineTuningOptions) -> tuple[PreTrainedModel, AlbefProcessor]:
    """The head of a task from any ALBEF checkpoint, or a fresh one, and the processor, at a resolution."""
    model, processor, _ = _load(kind, options)
    return model, processor


def load_trained_model(kind: type[Task], options: FineTuningOptions) -> tuple[PreTrainedModel, AlbefProcessor]:
    """The head of a task as it was trained, and the processor, at a resolution.

    Raises:
        ValueError: If the checkpoint is of another head, so that some weights would be random.
    """
    model, processor, missing = _load(kind, options)
    if missing:
        raise ValueError(
            f"{options.model or 'A fresh model'} has no trained {kind.head.__name__}: {len(missing)} weights are "
            f"missing, such as {min(missing)}. Fine-tune it by train/finetune.py --task {kind.name}, and evaluate "
            "what comes out."
        )
    return model, processor


def _load(kind: type[Task], options: FineTuningOptions) -> tuple[PreTrainedModel, AlbefProcessor, set[str]]:
    """Model, processor, and the names of the weights that nobody has trained."""
    if options.model_config:
        tokenizer = embedded_tokenizer()
        config = AlbefConfig(**with_special_tokens(read_model_config(options.model_config), tokenizer))
        processor = make_processor(config, tokenizer, options.max_words)
    else:
        config, processor = AlbefConfig.from_pretrained(options.model), AlbefProcessor.from_pretrained(options.model)
    check_vocabulary(config, processor.tokenizer)
    processor.max_words = options.max_words
    processor.tokenizer.model_max_length = config.text_config.max_position_embeddings
    if options.image_size:
        config.vision_config.image_size = options.image_size
        config.vision_config.validate_patches()
        processor.image_processor.size = {"height": options.image_size, "width": options.image_size}
    if options.model_config:
        model = kind.head(config)
        missing = set(model.state_dict())
    else:
        settings = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, loaded = kind.head.from_pretrained(options.model, **settings)
        missing = set(loaded["missing_keys"])
    model.set_attn_implementation(options.attention)
    return model, processor, missing


def write_results(folder: Path, metrics: dict[str, float], predictions: list[dict[str, Any]]) -> None:
    """Write `metrics.json` and `predictions.jsonl`; if one of them cannot be written, the old ones stay."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(prediction) + "\n" for prediction in predictions]
    with (
        written_aside(folder / "metrics.json") as new_metrics,
        written_aside(folder / "predictions.jsonl") as new_rows,
    ):
        new_metrics.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        new_rows.write_text("".join(lines), encoding="utf-8")


class SentenceTask(LabelTask):
    """A task of sentences with one of some labels."""

    labels: ClassVar[tuple[str, ...]]

    @abstractmethod
    def sentence_pixels(self, row: Mapping[str, Any], rng: np.random.Generator) -> torch.Tensor:
        """Augmented pixels of what a sentence is about."""

    def read(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A sentence with its label."""
        issues: list[Issue] = []
        sentence = self.clean(row["sentence"], issues, self.training_limit)
        sample = {"sentence": sentence, "label": self.label_number(row["label"])}
        return {**sample, "pixel_values": self.sentence_pixels(row, rng), "issues": issues}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Sentences, pictures and labels."""
        return {
            **self.tokenize([sample["sentence"] for sample in samples], self.training_limit),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": torch.tensor([sample["label"] for sample in samples]),
            "issues": count_issues(samples),
        }

    def text_and_label(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """The sentence and its label."""
        return self.clean(row["sentence"], [], self.evaluation_limit), self.labels[self.label_number(row["label"])]

    def label_number(self, label: Any) -> int:
        """Number of a label in any spelling, or of the number itself; true and false are names, not numbers.

        Raises:
            BadSampleError: If it is none of the labels.
        """
        names, spelled = [name.lower() for name in self.labels], str(label).strip().lower()
        if spelled in names:
            return names.index(spelled)
        number = re.fullmatch(r"([0-9]+)(\.0)?", spelled)
        if number is None or int(number[1]) >= len(names):
            raise BadSampleError(Issue.LABEL_UNKNOWN, repr(label)[:100])
        return int(number[1])

    def predict_labels(
        self, model: PreTrainedModel, batch: list[dict[str, Any]], inputs: dict[str, torch.Tensor]
    ) -> list[dict[str, Any]]:
        """The likeliest label of each sentence of a batch."""
        shares, best = model(**inputs).logits.softmax(-1).max(-1)
        return [
            {
                "row": row["row"],
                "sentence": row["sentence"],
                "answer": self.labels[number],
                "probability": round(share, 4),
            }
            for row, share, number in zip(batch, shares.tolist(), best.tolist(), strict=True)
        ]
