"""The outputs of ALBEF's models, including those of a momentum teacher."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithCrossAttentions,
    SequenceClassifierOutput,
)
from transformers.utils import ModelOutput

NO_LABEL_SMOOTHING = (
    "Pass labels. With the Trainer of transformers, leave label_smoothing_factor at 0: smoothing removes the labels "
    "from the batch."
)


@dataclass
class AlbefModelOutput(ModelOutput):
    """Output of the three encoders for image-text pairs.

    Args:
        last_hidden_state: States of the multimodal encoder, (batch, text tokens, text width).
        image_hidden_states: States of the image encoder, (batch, patches + 1, image width).
        text_hidden_states: States of the text encoder, (batch, text tokens, text width).
        vision_model_output: The whole output of the image encoder.
        text_model_output: The whole output of the text encoder.
        multimodal_model_output: The whole output of the multimodal encoder.
        hidden_states: States of the multimodal encoder after each layer, with `output_hidden_states`.
        attentions: Attention of the multimodal encoder's tokens to each other, (batch, heads, text tokens,
            text tokens) per layer, with `output_attentions`.
        cross_attentions: Attention of its tokens to the image, (batch, heads, text tokens, patches + 1) per layer,
            with `output_attentions`.
    """

    last_hidden_state: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    text_hidden_states: torch.Tensor | None = None
    vision_model_output: BaseModelOutput | None = None
    text_model_output: BaseModelOutput | None = None
    multimodal_model_output: BaseModelOutputWithCrossAttentions | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None

    def to_tuple(self) -> tuple:
        """Convert to a tuple, nested outputs included."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class AlbefTeacherOutput(ModelOutput):
    """Targets that a momentum teacher computes for a student: features and logits, never losses.

    Args:
        image_embeds: Momentum image features, unit length, (batch, projection).
        text_embeds: Momentum text features, unit length, (batch, projection).
        image_queue: Earlier momentum image features, (queue, projection).
        text_queue: Earlier momentum text features, (queue, projection).
        ids: Id of the image of each pair, (batch,), if known.
        queue_ids: Id of the image of each queued pair, -100 if unknown, (queue,).
        logits: Logits of what the student predicts, in the row order of the labels. In pretraining those of the masked
            tokens and in question answering those of the answers' tokens, (tokens, vocabulary); in classification
            (batch, classes).
    """

    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_queue: torch.Tensor | None = None
    text_queue: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    queue_ids: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass
class AlbefForPreTrainingOutput(ModelOutput):
    """Losses and predictions of the pretraining head.

    Args:
        loss: Weighted sum of the losses, a scalar; only with `labels`, as the next five.
        loss_itc: Image-text contrastive loss, equation 6 of the paper.
        loss_itm: Image-text matching loss, equation 4.
        loss_itm_contrast: Contrastive loss of the matching scores, if it has a weight.
        loss_mlm: Masked-language loss, equation 7.
        info_nce: InfoNCE of the pairs with the same keys and without distillation. It bounds the mutual information
            of image and text (section 4 of the paper): I >= log(keys) - info_nce, in nats.
        itm_logits: Logits of (no match, match). In training, ((1 + 2 * itm_negatives) * batch, 2): the pairs, each
            text with hard negative images, each image with hard negative texts. At inference, (batch, 2).
        logits: Vocabulary logits. In training those of the masked tokens, (masked tokens, vocabulary); at inference
            those of all tokens, (batch, text tokens, vocabulary).
        image_embeds: Image features, unit length, (batch, projection).
        text_embeds: Text features, unit length, (batch, projection).
        hidden_states: As in `AlbefModelOutput`, at inference, like the next two.
        attentions: As in `AlbefModelOutput`.
        cross_attentions: As in `AlbefModelOutput`.
    """

    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
    loss_itm_contrast: torch.Tensor | None = None
    loss_mlm: torch.Tensor | None = None
    info_nce: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class AlbefForRetrievalOutput(ModelOutput):
    """Losses and scores of the retrieval head.

    Args:
        loss: Weighted sum of the losses, a scalar; only with `labels`, as the next four.
        loss_itc: Image-text contrastive loss, equation 6 of the paper.
        loss_itm: Image-text matching loss, equation 4.
        loss_itm_contrast: Contrastive loss of the matching scores, if it has a weight.
        info_nce: The contrastive loss without distillation.
        logits_per_image: Cosine over temperature of every image with every text, (images, texts). In training with a
            teacher, the texts are encoded by the teacher.
        logits_per_text: Cosine over temperature of every text with every image, (texts, images).
        itm_logits: Logits of (no match, match). At inference, (texts, 2): text `i` with image `i % images`; None if
            the number of texts is not a multiple of the number of images. In training, ((1 + 2 * itm_negatives) *
            batch, 2): the pairs, each text with hard negative images, each image with hard negative texts.
        image_embeds: Image features, unit length, (images, projection).
        text_embeds: Text features, unit length, (texts, projection).
        hidden_states: As in `AlbefModelOutput`, at inference, like the next two.
        attentions: As in `AlbefModelOutput`.
        cross_attentions: As in `AlbefModelOutput`.
    """

    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
    loss_itm_contrast: torch.Tensor | None = None
    info_nce: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None

    def __getitem__(self, key: Any) -> Any:
        """Return a value as in transformers; its label smoothing asks for `logits`, which are ambiguous here."""
        if key == "logits":
            raise ValueError(f"Retrieval has no `logits` for label smoothing. {NO_LABEL_SMOOTHING}")
        return super().__getitem__(key)


@dataclass
class AlbefClassifierOutput(SequenceClassifierOutput):
    """The output of transformers' classifiers with cross-attentions.

    Args:
        cross_attentions: As in `AlbefModelOutput`; with two images, the layers of the first and second alternate.
    """

    cross_attentions: tuple[torch.Tensor, ...] | None = None


def attention_outputs(outputs: ModelOutput) -> dict[str, Any]:
    """Return what was recorded for `output_hidden_states` and `output_attentions`, if anything."""
    return {name: outputs.get(name) for name in ("hidden_states", "attentions", "cross_attentions")}


__all__ = [
    "NO_LABEL_SMOOTHING",
    "AlbefClassifierOutput",
    "AlbefForPreTrainingOutput",
    "AlbefForRetrievalOutput",
    "AlbefModelOutput",
    "AlbefTeacherOutput",
    "attention_outputs",
]
