"""Configuration of ALBEF models: architecture only, training settings live with the training loop."""

import copy
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .calibration_albef import MatchCalibration
from .compatibility_albef import sub_config_specs

# The heads that embed images and texts, and match them.
MATCHING_HEADS = ("AlbefForPreTraining", "AlbefForRetrieval")
# The tasks of transformers' `pipeline`: the class in `pipeline_albef.py`, what loads the model, the heads it is for.
PIPELINES = {
    "image-text-retrieval": ("ImageTextRetrievalPipeline", "AutoModelForZeroShotImageClassification", MATCHING_HEADS),
    "image-text-matching": ("ImageTextMatchingPipeline", "AutoModelForZeroShotImageClassification", MATCHING_HEADS),
    "visual-grounding": ("VisualGroundingPipeline", "AutoModelForZeroShotImageClassification", MATCHING_HEADS),
    "prompted-image-classification": (
        "PromptedImageClassificationPipeline",
        "AutoModelForZeroShotImageClassification",
        MATCHING_HEADS,
    ),
    "visual-question-answering": (
        "VisualQuestionAnsweringPipeline",
        "AutoModelForVisualQuestionAnswering",
        ("AlbefForQuestionAnswering",),
    ),
    "image-captioning": (
        "ImageCaptioningPipeline",
        "AutoModelForImageTextToText",
        ("AlbefForImageCaptioning",),
    ),
    "visual-entailment": (
        "VisualEntailmentPipeline",
        "AutoModelForSequenceClassification",
        ("AlbefForVisualEntailment",),
    ),
    "visual-reasoning": (
        "VisualReasoningPipeline",
        "AutoModelForSequenceClassification",
        ("AlbefForVisualReasoning",),
    ),
    "image-text-classification": (
        "ImageTextClassificationPipeline",
        "AutoModelForSequenceClassification",
        ("AlbefForImageTextClassification",),
    ),
}

# The heads that each Auto class loads from the folder of any of them: the one that was saved there, else the first.
AUTO_MODELS = {
    "AutoModel": ("AlbefModel", "AlbefTwoImageModel", *MATCHING_HEADS),
    "AutoModelForPreTraining": ("AlbefForPreTraining", "AlbefForTextAssignment"),
    "AutoModelForZeroShotImageClassification": ("AlbefForRetrieval",),
    "AutoModelForVisualQuestionAnswering": ("AlbefForQuestionAnswering",),
    "AutoModelForImageTextToText": ("AlbefForImageCaptioning",),
    "AutoModelForSequenceClassification": (
        "AlbefForVisualEntailment",
        "AlbefForVisualReasoning",
        "AlbefForImageTextClassification",
    ),
}
AUTO_MAP = {auto_class: f"modeling_albef.{heads[0]}" for auto_class, heads in AUTO_MODELS.items()}

# What sentence-transformers reads. `CrossEncoder` loads the module. `SentenceTransformer` skips what has another type,
# loads what `AutoModel` does, and embeds with its `get_image_features` and `get_text_features`.
SENTENCE_TRANSFORMERS_FILES: dict[str, Any] = {
    "config_sentence_transformers.json": {"model_type": "CrossEncoder"},
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_albef.AlbefMatcher"}],
}

# Classes that were renamed. Saved configurations have the old names in `architectures`; code may import them for one
# more release.
RENAMED_CLASSES = {
    "AlbefAlignedModel": "AlbefImageTextModel",
    "AlbefPairModel": "AlbefTwoImageModel",
    "AlbefPairMultimodalModel": "AlbefTwoImageEncoder",
}

REASONING_CLASSES = ("False", "True")
ENTAILMENT_CLASSES = ("contradiction", "neutral", "entailment")
# The heads with a classifier, each with the one whose classes it can use: its parent's, but not the other's.
CLASSIFIERS = {
    "AlbefForVisualReasoning": "AlbefForVisualReasoning",
    "AlbefForVisualEntailment": "AlbefForImageTextClassification",
    "AlbefForImageTextClassification": "AlbefForImageTextClassification",
}
# Settings that earlier models do not have: they are saved only if they differ, so that `config.json` stays the same.
UNSAVED_DEFAULTS = {
    "position_offset": 0,
    "input_dropout_prob": 0.0,
    "image_token_dropout_prob": 0.0,
    "text_token_dropout_prob": 0.0,
    "text_pooling": "cls",
    "image_size": None,
    "image_pooling": None,
    "image_registers": False,
    "lora_config": None,
    "match_calibration": None,
    "class_thresholds": None,
}
POOLINGS = {"text_pooling": ("cls", "mean"), "image_pooling": (None, "cls", "pooler", "mean")}
LORA_SETTINGS = {"r", "lora_alpha", "target_modules"}  # of peft's LoraConfig
DEFAULT_IMAGE_SIZE = 224  # of image models without one, such as ResNet


@strict
class AlbefVisionConfig(PreTrainedConfig):
    """Architecture of the image encoder; the defaults are ViT-B/16 at 256 pixels, as in the paper's pretraining.

    Args:
        hidden_size: Width of the image tokens.
        num_hidden_layers: Number of transformer layers.
        num_attention_heads: Number of attention heads; must divide `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        image_size: Height and width of the input images in pixels, or the two as a pair; multiples of `patch_size`.
        patch_size: Height and width of a patch in pixels.
        num_channels: Number of color channels.
        hidden_act: Activation of the feed-forward layers.
        layer_norm_eps: Epsilon of the layer norms (1e-6 in the original's `models/vit.py`).
        attention_probs_dropout_prob: Dropout of the attention probabilities; the original uses none in the ViT.
        initializer_range: Standard deviation of newly initialized weights.
    """

    model_type = "albef_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int | list[int] | tuple[int, ...] = 256
    patch_size: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float | int = 1e-6
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _check_ranges(self)
        self.validate_patches()
        self.validate_heads()

    def validate_patches(self) -> None:
        """Check that patches tile the image."""
        for side in size_pair(self.image_size):
            if side % self.patch_size:
                raise ValueError(
                    f"image_size ({side}) must be a multiple of patch_size ({self.patch_size}); "
                    f"the nearest smaller one is {side - side % self.patch_size}."
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        height, width = size_pair(self.image_size)
        return height // self.patch_size, width // self.patch_size

    def set_image_size(self, size: int | Sequence[int]) -> None:
        """Change the size of the images, and remember the grid of saved positions, which are resampled when loaded."""
        saved_grid = getattr(self, "saved_grid", self.grid)
        self.image_size = size if isinstance(size, int) else list(size)
        self.validate_patches()
        self.saved_grid = saved_grid

    def to_dict(self) -> dict:
        """Serialize as transformers does; what is saved has the positions of the present grid."""
        settings = super().to_dict()
        settings.pop("saved_grid", None)
        return settings

    def validate_heads(self) -> None:
        """Check that the heads share the width evenly."""
        _check_heads(self)


@strict
class AlbefTextConfig(PreTrainedConfig):
    """Architecture of the text encoder and of the multimodal encoder, which are the two halves of one BERT.

    Args:
        vocab_size: Number of tokens; must cover every id that the tokenizer can emit.
        hidden_size: Width of the text tokens.
        num_hidden_layers: Layers of the text encoder (BERT-base: layers 0 to 5).
        num_multimodal_layers: Layers of the multimodal encoder (BERT-base: layers 6 to 11), each with cross-attention.
        num_attention_heads: Number of attention heads; must divide `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        encoder_hidden_size: Width of the image tokens that cross-attention reads; `AlbefConfig` sets it.
        hidden_act: Activation of the feed-forward layers.
        hidden_dropout_prob: Dropout of embeddings and layer outputs.
        attention_probs_dropout_prob: Dropout of the attention probabilities.
        input_dropout_prob: Dropout of the text and image states that the multimodal encoder reads; 0 as in the paper.
        image_token_dropout_prob: Fraction of the image tokens, except for the first, that are dropped before the
            multimodal encoder in training; 0 as in the paper.
        text_token_dropout_prob: Likewise of the text tokens, where images and texts are matched.
        max_position_embeddings: Rows of the position table: longest text in tokens, and the offset.
        position_offset: Position of the first token. The RoBERTa family counts from `pad_token_id + 1`, BERT from 0.
        type_vocab_size: Rows of the token-type table; ALBEF always adds row 0.
        layer_norm_eps: Epsilon of the layer norms (1e-12, as in BERT).
        pad_token_id: Id of the padding token.
        bos_token_id: Id of the token that an answer starts with, BERT's `[CLS]`.
        eos_token_id: Id of the token that an answer ends with, BERT's `[SEP]`.
        initializer_range: Standard deviation of newly initialized weights.
    """

    model_type = "albef_text_model"
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_multimodal_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    encoder_hidden_size: int = 768
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    input_dropout_prob: float | int = 0.0
    image_token_dropout_prob: float | int = 0.0
    text_token_dropout_prob: float | int = 0.0
    max_position_embeddings: int = 512
    position_offset: int = 0
    type_vocab_size: int = 2
    layer_norm_eps: float | int = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | None = 102
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        if self.architectures:
            self.architectures = [RENAMED_CLASSES.get(name, name) for name in self.architectures]
        super().__post_init__(**kwargs)
        _check_ranges(self)
        self.validate_padding()
        self.validate_positions()
        self.validate_heads()

    @property
    def max_tokens(self) -> int:
        """Return the number of tokens that a text may have."""
        return self.max_position_embeddings - self.position_offset

    def to_diff_dict(self) -> dict:
        """Serialize as transformers does, without new settings at their defaults."""
        return _drop_unsaved_defaults(super().to_diff_dict())

    def validate_heads(self) -> None:
        """Check that the heads share the width evenly."""
        _check_heads(self)

    def validate_positions(self) -> None:
        """Check that the offset leaves positions for a text."""
        if self.max_tokens < 1:
            raise ValueError(
                f"position_offset ({self.position_offset}) must be smaller than max_position_embeddings "
                f"({self.max_position_embeddings}), which includes it."
            )

    def validate_padding(self) -> None:
        """Check that the padding token has an embedding."""
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(
                f"vocab_size ({self.vocab_size}) must be larger than pad_token_id ({self.pad_token_id}) and every "
                "other id of the tokenizer."
            )


@strict
class AlbefConfig(PreTrainedConfig):
    """Architecture of an ALBEF model; the defaults are the paper's: ViT-B/16, BERT-base, a joint space of 256.

    Args:
        vision_config: An `AlbefVisionConfig`, or the configuration of any image model of transformers, or that is
            registered with `AutoConfig` and `AutoModel`; or the dictionary of one, whose `model_type` says which.
        text_config: An `AlbefTextConfig` or the dictionary of one.
        projection_dim: Width of the space in which images and texts are contrasted.
        image_size: Height and width of the input images in pixels, or the two as a pair, if the image model of
            transformers was made for another size. It interpolates its positions as it does itself. For the paper's
            ViT, this sets the size in `vision_config`.
        image_pooling: The first state of the image encoder, which is contrasted: "cls" for its class token, "pooler"
            for its pooled output, "mean" for the mean of the patches. By default what the image model was trained
            with, see `image_encoder_albef.py`; the paper's ViT always has "cls".
        image_registers: Keep the states of register tokens, such as those of DINOv2 and DINOv3.
        text_pooling: State of a text that is contrasted with images: "cls", that of its first token as in the paper,
            or "mean", the mean over its tokens, as in sentence encoders.
        initial_temperature: Starting value of the learned temperature of the contrastive loss.
        tie_word_embeddings: Whether the masked-language head shares the word embeddings, as in BERT.
        initializer_range: Standard deviation of newly initialized heads.
        lora_config: `r`, `lora_alpha` and `target_modules` of peft's `LoraConfig`, for a model that was saved with its
            adapters unmerged. The modules are named from `vision_model` and `text_model` on, by a regular expression.
        match_calibration: The probability of a match, as a dictionary of `MatchCalibration`, which
            `albef evaluate retrieval --calibrate` fits; None for that of the matching head. `albef pretrain` and
            `albef finetune` drop it; in a training of your own, set it to None.
        class_thresholds: Of a classifier with several labels, the least probability at which each class is predicted,
            in the order of `id2label`. `albef finetune classification` chooses them on the validation data; None: 0.5.
        kwargs: Settings of every `PreTrainedConfig`. A classifier has the classes given by `num_labels`, `id2label` or
            `label2id`, otherwise those it was saved with, otherwise its own; see `with_classes`.

    Example:
        ```python
        >>> from albef_hf import AlbefConfig
        >>> AlbefConfig(vision_config={"image_size": 384}).vision_config.image_size
        384

        ```
    """

    model_type = "albef"
    sub_configs = {"vision_config": AlbefVisionConfig, "text_config": AlbefTextConfig}
    sub_configs_defaults = sub_config_specs(sub_configs)

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 256
    image_size: int | list[int] | tuple[int, ...] | None = None
    image_pooling: str | None = None
    image_registers: bool = False
    text_pooling: str = "cls"
    initial_temperature: float | int = 0.07
    tie_word_embeddings: bool = True
    initializer_range: float | int = 0.02
    lora_config: dict | None = None
    match_calibration: dict | None = None
    class_thresholds: list | None = None

    def __post_init__(self, **kwargs):
        if self.lora_config is not None and self.lora_config.keys() != LORA_SETTINGS:
            raise ValueError(f"lora_config has to have {', '.join(sorted(LORA_SETTINGS))}, not {self.lora_config}.")
        self.vision_config = read_vision_config(self.vision_config)
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = AlbefTextConfig(**(self.text_config or {}))
        if self.image_size is not None:
            self.set_input_size(self.image_size)
        self.check_image_settings()
        self.text_config.encoder_hidden_size = self.image_hidden_size
        if self.id2label is None and self.label2id is not None:
            self.id2label = _invert(self.label2id)
        # transformers reads the class to load here, also if nothing was saved.
        self.architectures = [RENAMED_CLASSES.get(name, name) for name in self.architectures or []]
        # A saved configuration, which has architectures, holds the classes of the saved model.
        named = self.id2label is not None
        saved_by = kwargs.pop("classes_saved_by", None) or next(iter(self.architectures), None)
        asked_for = kwargs.get("num_labels") is not None or (named and saved_by is None)
        if saved_by is None:  # with a saved configuration, num_labels replaces the names
            _check_class_count(kwargs.get("num_labels"), self.id2label)
        # Only the question answering head is one, and sets it; other heads may start from its checkpoint.
        self.is_encoder_decoder = False
        # The package registers its pipelines; transformers would insist on the code beside the weights.
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        self.classes_saved_by = saved_by if named else None
        self.classes_asked_for = asked_for
        _check_ranges(self)

    def check_image_settings(self) -> None:
        """Raise a `ValueError` for settings that the paper's ViT does not have."""
        given = [name for name in ("image_pooling", "image_registers") if getattr(self, name)]
        if given and self.has_albef_vit:
            raise ValueError(
                f"{' and '.join(given)}: the paper's ViT has a class token and no registers; remove the setting, or "
                "choose another image model."
            )

    @property
    def has_albef_vit(self) -> bool:
        """Return whether the image encoder is the paper's ViT."""
        # Not by class: transformers may load the code of a folder twice.
        return cast(PreTrainedConfig, self.vision_config).model_type == AlbefVisionConfig.model_type

    @property
    def vision(self) -> AlbefVisionConfig:
        """Return `vision_config` of the paper's ViT, which is no longer a dictionary."""
        return cast(AlbefVisionConfig, self.vision_config)

    @property
    def image_hidden_size(self) -> int:
        """Return the width of the image encoder's states.

        Raises:
            ValueError: If the configuration of the image model does not contain it.
        """
        vision: Any = self.vision_config
        sizes = getattr(vision, "hidden_sizes", None) or [None]
        names = ("hidden_size", "hidden_dim", "num_features")
        hidden_size, *others = (getattr(vision, name, None) for name in names)
        size = next((size for size in (hidden_size, sizes[-1], *others) if size), None)
        if size is None:
            raise ValueError(
                f"{type(vision).__name__} has none of hidden_size, hidden_sizes, hidden_dim and num_features: set its "
                "hidden_size to the width of the model's last_hidden_state."
            )
        return size

    @property
    def input_size(self) -> tuple[int, int]:
        """Return height and width of the input images in pixels."""
        size = self.image_size or getattr(self.vision_config, "image_size", None)
        return size_pair(size or DEFAULT_IMAGE_SIZE)

    def set_input_size(self, size: int | Sequence[int]) -> None:
        """Change height and width of the input images; positions are interpolated when weights are loaded.

        Raises:
            ValueError: If patches of the paper's ViT do not tile such an image.
        """
        if self.has_albef_vit:
            self.vision.set_image_size(size)
        else:
            super().__setattr__("image_size", size if isinstance(size, int) else list(size))

    @property
    def text(self) -> AlbefTextConfig:
        """Return `text_config`, which is no longer a dictionary."""
        return cast(AlbefTextConfig, self.text_config)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in POOLINGS and value not in POOLINGS[name]:
            raise ValueError(f"{name} is {value!r}; choose from {', '.join(filter(None, POOLINGS[name]))}.")
        if name == "match_calibration" and value is not None:
            MatchCalibration.from_dict(value)  # refuses invalid ones
        if name == "class_thresholds" and not all(0 <= threshold <= 1 for threshold in value or ()):
            raise ValueError(f"class_thresholds is {value}: each must be a probability, between 0 and 1.")
        if name == "image_size" and value is not None and isinstance(self.vision_config, PreTrainedConfig):
            self.set_input_size(value)  # of the paper's ViT, it belongs to vision_config
            return
        if name == "id2label" and value is not None:  # in the order of the logits, also from a file with sorted keys
            value = dict(sorted((int(index), label) for index, label in value.items()))
        super().__setattr__(name, value)
        if name in ("num_labels", "id2label"):
            super().__setattr__("classes_asked_for", True)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "AlbefConfig":
        """Build a configuration as transformers does; `label2id` alone is enough."""
        if kwargs.get("label2id") is not None:
            kwargs = {"id2label": _invert(kwargs["label2id"])} | kwargs
        if kwargs.get("id2label") is not None:
            kwargs["id2label"] = {int(index): name for index, name in kwargs["id2label"].items()}
        _check_class_count(kwargs.get("num_labels"), kwargs.get("id2label"))
        return super().from_dict(config_dict, **kwargs)

    def with_classes(self, names: Sequence[str], family: Sequence[str]) -> "AlbefConfig":
        """Return a copy with the classes of a classifier.

        The class names are the head's own unless `num_labels`, `id2label` or `label2id` was asked for, or this head
        (or a subclass or parent of it) saved them. A head without a classifier saves them unchanged, with the name of
        the head that they belong to.

        Args:
            names: The head's own classes.
            family: Names of the head's class and of its parents.

        Raises:
            ValueError: If the ids of `id2label` are not 0, 1, 2, ..., or a checkpoint is loaded with one class without
                a `problem_type`.
        """
        self._check_single_class()
        config = copy.deepcopy(self)
        if self.other_classifier(family) or len(self.class_thresholds or ()) != self.num_labels:
            config.class_thresholds = None  # those of other classes
        if not self.classes_asked_for and (self.classes_saved_by is None or self.other_classifier(family)):
            config.id2label = dict(enumerate(names))
        config.classes_saved_by = next((name for name in family if name in CLASSIFIERS), family[0])
        config.classes_asked_for = False
        if sorted(config.id2label) != list(range(len(config.id2label))) or not config.id2label:
            raise ValueError(
                f"id2label is {config.id2label}, but ids have to be 0, 1, 2, ..., such as {dict(enumerate(names))}."
            )
        if set(config.label2id or ()) != set(config.id2label.values()):
            config.label2id = _invert(config.id2label)
        return config

    def _check_single_class(self) -> None:
        """Refuse to load a checkpoint as a classifier of one class, which `CrossEncoder` would initialize silently."""
        if self.classes_asked_for and self.num_labels == 1 and self.architectures and self.problem_type is None:
            raise ValueError(
                f"A checkpoint of {self.architectures[0]} has no trained classifier with one class. CrossEncoder of "
                f"sentence-transformers scores pairs with {' or '.join(MATCHING_HEADS)}; a folder of theirs that it "
                "does not load as such was saved by an earlier release or by SentenceTransformer: run `albef renew "
                'FOLDER`. To train a regression, pass problem_type="regression".'
            )

    def other_classifier(self, family: Collection[str]) -> str | None:
        """Return the name of the classifier that was saved with this configuration, unless it is of the family."""
        saved_by = self.classes_saved_by
        return saved_by if saved_by in CLASSIFIERS and CLASSIFIERS[saved_by] not in family else None

    @property
    def thresholds(self) -> list[float]:
        """Return the least probability at which each class of several labels is predicted.

        Raises:
            ValueError: If there is not one for each class.
        """
        thresholds = self.class_thresholds or [0.5] * self.num_labels
        if len(thresholds) != self.num_labels:
            raise ValueError(
                f"class_thresholds has {len(thresholds)} numbers for {self.num_labels} classes: set one for each "
                "class, or None for 0.5."
            )
        return thresholds

    def to_dict(self) -> dict:
        """Serialize as transformers does, with the pipelines of the head, for users without the package."""
        settings = super().to_dict()
        settings["architectures"] = settings["architectures"] or None
        asked_for = settings.pop("classes_asked_for")
        saved_by = settings.pop("classes_saved_by")
        if saved_by is None and not asked_for:
            del settings["id2label"], settings["label2id"]
        elif not asked_for and saved_by != (self.architectures or [None])[0]:
            settings["classes_saved_by"] = saved_by
        pipelines = {
            task: {"impl": f"pipeline_albef.{pipeline}", "pt": [auto_class]}
            for task, (pipeline, auto_class, heads) in PIPELINES.items()
            if set(heads) & set(self.architectures or ())
        }
        return settings | ({"custom_pipelines": pipelines} if pipelines else {})

    def to_diff_dict(self) -> dict:
        """Serialize as transformers does, but keep two unnamed classes that were asked for or saved.

        New settings are dropped at their defaults.
        """
        settings = _drop_unsaved_defaults(super().to_diff_dict())
        settings["text_config"] = _drop_unsaved_defaults(settings["text_config"])
        if self.classes_asked_for or self.classes_saved_by is not None:
            settings |= {"id2label": self.id2label, "label2id": self.label2id}
        return settings

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Save as transformers does; with a head that matches, also what sentence-transformers reads.

        A model saves its configuration by this method, before it is pushed. Files of sentence-transformers that are
        there stay: it has written them for the same model, with its own settings.
        """
        if set(MATCHING_HEADS) & set(self.architectures or ()):
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            if not any((folder / name).exists() for name in SENTENCE_TRANSFORMERS_FILES):
                for name, content in sentence_transformers_files().items():
                    (folder / name).write_text(content, encoding="utf-8")
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the text configuration, or with `decoder` that of the answer decoder if there is one.

        The decoder has the depth of the multimodal encoder, whose weights it starts from, and attends to text states,
        not images.
        """
        if not (decoder and self.is_encoder_decoder) or encoder:
            return super().get_text_config(decoder, encoder)
        config = copy.deepcopy(self.text_config)
        config.num_hidden_layers = config.num_multimodal_layers
        config.encoder_hidden_size = config.hidden_size
        return config


def sentence_transformers_files() -> dict[str, str]:
    """Return the content of each of `SENTENCE_TRANSFORMERS_FILES`."""
    return {name: json.dumps(content, indent=2) + "\n" for name, content in SENTENCE_TRANSFORMERS_FILES.items()}


def size_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a square or of a pair.

    Raises:
        ValueError: If it is neither.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"image_size is {size}: pass one number for a square, or height and width.")
    return sides


def read_vision_config(vision_config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    """Return the configuration of an image encoder; of a model of images and texts, that of its images.

    Raises:
        ValueError: If the `model_type` of a dictionary is unknown.
    """
    if isinstance(vision_config, PreTrainedConfig):
        return getattr(vision_config, "vision_config", vision_config)
    settings = dict(vision_config or {})
    model_type = settings.pop("model_type", AlbefVisionConfig.model_type)
    if model_type == AlbefVisionConfig.model_type:
        return AlbefVisionConfig(**settings)
    try:
        return read_vision_config(AutoConfig.for_model(model_type, **settings))
    except ValueError as error:
        if "Unrecognized model identifier" not in str(error):
            raise
        raise ValueError(
            f"transformers does not know the image model {model_type!r} of vision_config: upgrade transformers, or "
            "import the code that registers it with AutoConfig and AutoModel first."
        ) from error


def _drop_unsaved_defaults(settings: dict) -> dict:
    """Return settings without those in `UNSAVED_DEFAULTS` that have their defaults."""
    return {name: value for name, value in settings.items() if (name, value) not in UNSAVED_DEFAULTS.items()}


def _check_class_count(num_labels: int | None, id2label: dict | None) -> None:
    """Refuse a `num_labels` that contradicts the names of the classes."""
    if num_labels is not None and id2label is not None and num_labels != len(id2label):
        raise ValueError(
            f"num_labels is {num_labels}, but id2label or label2id has {len(id2label)} classes; use only one of them."
        )


def _invert(names: dict) -> dict:
    return {value: key for key, value in names.items()}


_LEAST = {
    "hidden_size": 1,
    "num_hidden_layers": 0,
    "num_multimodal_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "image_size": 1,
    "patch_size": 1,
    "num_channels": 1,
    "vocab_size": 1,
    "max_position_embeddings": 1,
    "position_offset": 0,
    "type_vocab_size": 1,
    "projection_dim": 1,
    "initial_temperature": 1e-6,
    "layer_norm_eps": 0,
    "initializer_range": 0,
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
    "input_dropout_prob": 0,
    "image_token_dropout_prob": 0,
    "text_token_dropout_prob": 0,
}


def _check_ranges(config: PreTrainedConfig) -> None:
    """Raise a `ValueError` for sizes and probabilities that no model can have, also while loading."""
    for name, least in _LEAST.items():
        value = getattr(config, name, least)
        value = min(size_pair(value)) if isinstance(value, (list, tuple)) else value  # image_size
        if value is not None and not least <= value:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")
        if name.endswith("_prob") and value > 1:
            raise ValueError(f"{name} is {value}; it must be at most 1.")


def _check_heads(config: AlbefVisionConfig | AlbefTextConfig) -> None:
    if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size ({config.hidden_size}) must be a multiple of "
            f"num_attention_heads ({config.num_attention_heads})."
        )


for _config in (AlbefConfig, AlbefTextConfig, AlbefVisionConfig):
    _config.register_for_auto_class()  # so that this file is saved with it

__all__ = ["AlbefConfig", "AlbefTextConfig", "AlbefVisionConfig"]
