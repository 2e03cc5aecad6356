"""Classify texts and their images: the base class of the heads with classes.

The original's `models/model_ve.py` and `models/model_nlvr.py`, for any number of classes and as transformers' own
heads for one label, several labels, or numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from .configuration_albef import AlbefConfig
from .encoders_albef import AlbefPreTrainedModel, one_of
from .head_layers_albef import AlbefClassificationHead
from .losses_albef import classification_loss
from .outputs_albef import AlbefClassifierOutput, AlbefTeacherOutput, attention_outputs

logger = logging.get_logger(f"transformers.{__name__}")


class AlbefClassifier(AlbefPreTrainedModel):
    """Classify a text and its images; the base class of the heads with classes."""

    albef: AlbefPreTrainedModel
    classifier: AlbefClassificationHead
    default_classes: tuple[str, ...]

    def __init__(self, config: AlbefConfig):
        family = [kind.__name__ for kind in type(self).__mro__]
        super().__init__(config.with_classes(self.default_classes, family))
        self._other_classifier = config.other_classifier(family)  # while the checkpoint may hold its weights
        self._reset_weights: set[str] = set()

    def initialize_weights(self) -> None:
        """Initialize what no checkpoint has filled, and a classifier that another head has saved."""
        weights = dict(self.classifier.named_parameters(prefix="classifier"))
        loaded = any(getattr(weight, "_is_hf_initialized", False) for weight in weights.values())
        if self._other_classifier is not None and loaded:
            parts: tuple[Any, ...] = (*self.classifier.modules(), *weights.values())
            for part in parts:  # transformers initializes what does not carry this mark
                part._is_hf_initialized = False
            self._reset_weights = set(weights)
            logger.warning(
                f"The classifier of the checkpoint was saved by {self._other_classifier} and is not reused: that of "
                f"{type(self).__name__} is newly initialized. Train it before use."
            )
            self._other_classifier = None  # what is initialized or trained from here on is this head's own
        super().initialize_weights()

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Share what is tied; a classifier that was reset is reported as missing."""
        if missing_keys is not None:
            missing_keys |= self._reset_weights
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    @torch.no_grad()
    def reset_classifier(self, labels: Sequence[str], problem_type: str | None = None) -> None:
        """Replace the classifier by an untrained one for other classes.

        Args:
            labels: Names of the classes, in the order of the logits.
            problem_type: That of transformers: "single_label_classification", "multi_label_classification" or
                "regression"; None decides by the type of the labels.
        """
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: index for index, label in enumerate(labels)}
        self.config.problem_type = problem_type
        self.config.class_thresholds = None
        self.config.classes_asked_for = False
        old = self.classifier.out_proj.weight
        self.classifier = AlbefClassificationHead(self.config).to(old.device, old.dtype)
        self.classifier.apply(self._init_weights)

    @torch.no_grad()
    def get_teacher_outputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        class_weights: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> AlbefTeacherOutput:
        """Compute the teacher's targets for a batch: logits. Takes the batch that `forward` takes."""
        kwargs = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True}
        return AlbefTeacherOutput(logits=self(input_ids, pixel_values, attention_mask, **kwargs).logits)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        class_weights: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefClassifierOutput:
        """Classify texts and their images.

        Args:
            input_ids: Texts, (batch, tokens), `[CLS]` first.
            pixel_values: The image of each text, (batch, channels, height, width); for visual reasoning two images,
                (batch, 2, channels, height, width).
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            labels: Class of each text, (batch,); for regression and multi-label classification, numbers, (batch,
                classes). `config.problem_type` decides, or else their type and the number of classes.
            teacher_outputs: The outputs of a `MomentumTeacher` for the same batch.
            alpha: Weight of the teacher in the targets; 0.4 in the paper.
            class_weights: Weight of each class in the loss, (classes,); with several labels, that of the texts that
                have the class.
            inputs_embeds: Instead of `input_ids`, their word embeddings, (batch, tokens, width).

        Returns:
            `logits`, (batch, classes), in the order of `config.id2label`, and with `labels` the `loss`.

        Raises:
            ValueError: If the labels or weights do not fit the problem type.
        """
        texts = one_of(input_ids, inputs_embeds)
        outputs = self.albef(texts, pixel_values, attention_mask, return_dict=True, **kwargs)
        logits = self.classifier(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            teacher_logits = None if teacher_outputs is None else teacher_outputs.logits
            loss = classification_loss(logits, labels, self.config, teacher_logits, alpha, class_weights)
        return AlbefClassifierOutput(loss=loss, logits=logits, **attention_outputs(outputs))


__all__ = ["AlbefClassifier"]
