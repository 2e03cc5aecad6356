"""Options of the downstream tasks; the defaults are the paper's.

The class of a task is named after it: that of `text_assignment` is `TextAssignmentArguments`. Only light libraries are
imported here, so that `--help` needs neither torch nor the models.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..training.arguments import FineTuningArguments

HEATMAPS = ("matching", "contrast")  # of grounding
EVALUATION_OPTIONS = ("calibrate", "dtype", "reference_files", "reference_size")  # without effect in a training
# Older tasks without such a baseline accept the option, for the sake of existing commands.
NO_TEXT_ONLY_BASELINE = frozenset({"text_only_baseline"})
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")  # transformers' names
REFERENCE_SIZE = 1000
MIN_IMAGES = 3  # in a batch of text assignment: a text's own image, and two others


@dataclass
class PairArguments(FineTuningArguments):
    """What the tasks on image-text pairs have in common; the defaults are the paper's for Flickr30k."""

    num_train_epochs: int = 10
    per_device_train_batch_size: int = 32
    learning_rate: float = 1e-5
    min_learning_rate: float = 1e-6
    warmup_learning_rate: float = 1e-5
    warmup_steps: int = 100


@dataclass
class RetrievalArguments(PairArguments):
    """Retrieval; the defaults are the paper's for Flickr30k (COCO: 5 epochs, 256 candidates)."""

    rerank_k: int = field(default=128, metadata={"help": "candidates of each query that matching reranks"})
    itc_weight: float | None = field(
        default=None,
        metadata={
            "help": "weight of the cosine beside the matching score; 0: the paper. By default predictions are in the "
            "order of the model's calibration, if `albef evaluate retrieval --calibrate` has fitted one, otherwise 0"
        },
    )
    mismatch_weight: float = field(
        default=1.0,
        metadata={
            "help": "weight of the logit of no match in the matching score; 1: log-odds, 0: the logit of a match "
            "alone, as in the original's code"
        },
    )
    start_matching_from_contrast: bool = field(
        default=False,
        metadata={
            "help": "replace the multimodal layer, of which there must be one, and the matching head by ones whose "
            "first scores follow the contrast of the model; for few images, with hardness_strength 0 and "
            "itm_contrast_weight, since hard negatives teach that this knowledge is of no use"
        },
    )
    calibrate: bool = field(
        default=False,
        metadata={
            "help": "fit the probability of a match and the weight of the cosine on the evaluated rows, which must be "
            "no test data, and save them in configuration and card of the model's folder"
        },
    )
    reference_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "annotations of other images, such as those of training: scores are also normalized by how well "
            "an image matches the captions there that are nearest to it, and a text the images (querybank "
            "normalization); calibrate fits the weight"
        },
    )
    reference_size: int = field(
        default=REFERENCE_SIZE, metadata={"help": "images of reference_files that are used, the first ones"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "rerank_k", "reference_size")
        if self.start_matching_from_contrast and not self.model:
            raise ValueError("start_matching_from_contrast needs a model whose contrast is trained: pass model.")
        if self.start_matching_from_contrast and self.lora_rank:
            raise ValueError("start_matching_from_contrast replaces weights that lora_rank keeps: pass one of them.")
        if self.reference_size != REFERENCE_SIZE and not self.reference_files:
            raise ValueError("reference_size has no effect without reference_files.")


@dataclass
class EntailmentArguments(FineTuningArguments):
    """Visual entailment; the defaults are the paper's."""

    num_train_epochs: int = 5
    per_device_train_batch_size: int = 32
    learning_rate: float = 2e-5
    min_learning_rate: float = 1e-6
    warmup_learning_rate: float = 1e-5
    warmup_steps: int = 100
    alpha_ramp_steps: int = 0
    image_suffix: str = field(
        default="", metadata={"help": "appended to the names of images, such as .jpg for SNLI-VE's Flickr30k numbers"}
    )


@dataclass
class ClassificationArguments(FineTuningArguments):
    """Classification; the defaults are the paper's for entailment."""

    num_train_epochs: int = 5
    per_device_train_batch_size: int = 32
    learning_rate: float = 2e-5
    min_learning_rate: float = 1e-6
    warmup_learning_rate: float = 1e-5
    warmup_steps: int = 100
    alpha_ramp_steps: int = 0
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "single_label_classification, multi_label_classification or regression; default: that of a model "
            "that is a classifier already, otherwise several labels if a training row has a list of them or the "
            "separator, otherwise one"
        },
    )
    labels: list[str] = field(
        default_factory=list,
        metadata={
            "help": "names of the classes; default: those of a model that is a classifier already, otherwise those of "
            "the training rows, sorted"
        },
    )
    label_separator: str = field(default="|", metadata={"help": "separates several labels that are written as a text"})
    balance_classes: bool = field(
        default=False,
        metadata={
            "help": "weigh a class in the loss by the inverse of its frequency, or with several labels by the ratio "
            "of the rows without and with it"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type is {self.problem_type!r}; choose from {', '.join(PROBLEM_TYPES)}.")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels contains {max(self.labels, key=self.labels.count)!r} twice; remove one.")
        if self.balance_classes and self.problem_type == "regression":
            raise ValueError("balance_classes has no effect on a regression; remove it.")


@dataclass
class Nlvr2Arguments(FineTuningArguments):
    """NLVR2; the defaults are the paper's."""

    num_train_epochs: int = 10
    per_device_train_batch_size: int = 16
    learning_rate: float = 2e-5
    min_learning_rate: float = 1e-6
    warmup_learning_rate: float = 1e-5
    warmup_steps: int = 100


@dataclass
class VqaArguments(FineTuningArguments):
    """Visual question answering; the defaults are the paper's."""

    num_train_epochs: int = 8
    per_device_train_batch_size: int = 32
    learning_rate: float = 2e-5
    min_learning_rate: float = 1e-6
    warmup_learning_rate: float = 1e-5
    warmup_steps: int = 400
    max_tokens: int = 25
    answer_list: str | None = field(
        default=None,
        metadata={
            "help": "JSON list of answers to choose from; default: those of the training data, or that the model was "
            "fine-tuned with"
        },
    )
    vg_root: str | None = field(
        default=None, metadata={"help": 'folder of the images of rows whose "dataset" is "vg"; default: image_root'}
    )
    question_language: str = field(
        default="en",
        metadata={"help": "language of the questions that are used, of files that name it, such as SLAKE; empty: all"},
    )
    rank_candidates: int = field(
        default=128, metadata={"help": "answers with the most probable first token, which are scored completely"}
    )


@dataclass
class CaptioningArguments(FineTuningArguments):
    """Captioning, which the paper does not have.

    Epochs, batch size, learning rates, weight decay, label smoothing, prompt and beams are BLIP's for COCO; warmup and
    teacher are the paper's for VQA.
    """

    unused_options: ClassVar[frozenset[str]] = NO_TEXT_ONLY_BASELINE
    num_train_epochs: int = 5
    per_device_train_batch_size: int = 32
    learning_rate: float = 1e-5
    min_learning_rate: float = 0.0
    warmup_learning_rate: float = 1e-5
    warmup_steps: int = 400
    weight_decay: float = 0.05
    max_tokens: int = 40
    prompt: str | None = field(
        default=None,
        metadata={
            "help": "words before a caption, which bear no loss; default: those that the model was trained with, or "
            "BLIP's, a picture of"
        },
    )
    label_smoothing: float = field(
        default=0.1, metadata={"help": "weight of the whole vocabulary in the targets, as in BLIP; 0: none"}
    )
    num_beams: int = field(default=3, metadata={"help": "beams of the evaluation"})
    max_length: int = field(default=20, metadata={"help": "tokens of a written caption, with [CLS] and prompt"})
    min_length: int = field(default=5, metadata={"help": "tokens that a written caption has at least, likewise"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "num_beams", "min_length")
        self.require_fraction("label_smoothing")
        if self.max_length < self.min_length:
            raise ValueError(f"max_length is {self.max_length}; it must be at least min_length, {self.min_length}.")


@dataclass
class ZeroShotArguments(FineTuningArguments):
    """Zero-shot classification, which is not trained."""

    unused_options: ClassVar[frozenset[str]] = NO_TEXT_ONLY_BASELINE
    validation_split: str | None = "train"  # that of a folder of images without splits
    classes: str | None = field(
        default=None,
        metadata={
            "help": "text file with a class in each line: its label or folder, and maybe a tab and the words for it; "
            "default: the labels of the rows, with spaces for underscores"
        },
    )
    templates: list[str] = field(
        default_factory=list,
        metadata={
            "help": "texts with {} in the place of the class, files with one in each line, or names of lists of this "
            "package; their features are averaged; default: photo, or for scenes a list of their own"
        },
    )
    rerank_k: int = field(default=5, metadata={"help": "best classes of each image that are matched; 0: none"})
    scenes_attribute: str = field(
        default="color", metadata={"help": "what the classes of the built-in scenes are: color or shape"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(0, "rerank_k")
        if self.scenes_attribute not in ("color", "shape"):
            raise ValueError(f"scenes_attribute is {self.scenes_attribute!r}; choose color or shape.")


@dataclass
class CaptionScoresArguments(FineTuningArguments):
    """Scores of captions beside the ratings of people, which is not trained."""

    unused_options: ClassVar[frozenset[str]] = NO_TEXT_ONLY_BASELINE
    ratings: str | None = field(
        default=None, metadata={"help": "ExpertAnnotations.txt of Flickr8k; needs captions, and image_root"}
    )
    captions: str | None = field(default=None, metadata={"help": "Flickr8k.token.txt, the captions that are rated"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.ratings) != bool(self.captions):
            raise ValueError("ratings and captions need each other; set both, or neither.")
        if self.ratings and self.has_source:
            raise ValueError("ratings is a source of rows like dataset and validation_files; choose one.")

    def describe_validation_data(self) -> str:
        """Return what the model is evaluated on."""
        return f"the ratings of {Path(self.ratings).name}" if self.ratings else super().describe_validation_data()


@dataclass
class GroundingArguments(PairArguments):
    """Grounding; the defaults are the paper's."""

    num_train_epochs: int = 5
    min_crop_scale: float = 1.0
    refer_root: str | None = field(
        default=None, metadata={"help": "folder with refs(unc).p, instances.json and the box file of RefCOCO+"}
    )
    box_file: str = field(
        default="dets.json",
        metadata={
            "help": "boxes to choose from: dets.json, detected; cocos.json, annotated; instances.json, annotated, "
            "which comes with refs(unc).p"
        },
    )
    heatmap: str = field(
        default="matching", metadata={"help": "matching: of the matching score through the text's attention; contrast"}
    )
    layer: int = field(
        default=-1, metadata={"help": "layer of the heat map, from 0; -1: the paper's, or the last one for contrast"}
    )
    box_alpha: float = field(
        default=0.5, metadata={"help": "exponent of the area by which the heat in a box is divided"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heatmap not in HEATMAPS:
            raise ValueError(f"heatmap is {self.heatmap!r}; choose {' or '.join(HEATMAPS)}.")


@dataclass
class TextAssignmentArguments(FineTuningArguments):
    """Text assignment; the defaults are the paper's, which has no teacher here."""

    num_train_epochs: int = 1
    per_device_train_batch_size: int = 64
    learning_rate: float = 2e-5
    min_learning_rate: float = 1e-5
    warmup_learning_rate: float = 1e-5
    warmup_steps: int = 100
    alpha: float = 0.0
    min_crop_scale: float = 0.2
    max_tokens: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(MIN_IMAGES, "per_device_train_batch_size", "per_device_eval_batch_size")
        if self.alpha > 0:
            raise ValueError(
                f"alpha is {self.alpha}, but text assignment has no teacher, as in the paper; set it to 0."
            )


@dataclass
class PairChoiceArguments(FineTuningArguments):
    """Choices between captions, which are only evaluated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_files:
            raise ValueError("pair_choice trains nothing: pass the files to evaluate on as validation_files.")
        if self.dataset_format:
            raise ValueError("pair_choice reads the files of benchmarks by their keys; remove dataset_format.")
