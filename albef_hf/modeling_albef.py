"""ALBEF in PyTorch: the three encoders together, and the heads with their losses.

Align before Fuse, Li et al. 2021, arXiv 2107.07651; the original code is github.com/salesforce/ALBEF.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, Seq2SeqLMOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .answers_albef import (
    Answers,
    CompleteAnswers,
    answer_positions,
    check_answer_list,
    complete_answers,
    score_continuations,
)
from .calibration_albef import MatchCalibration, matching_log_odds
from .captioning_albef import AlbefForImageCaptioning
from .classification_albef import AlbefClassifier
from .compatibility_albef import (
    CACHE_NAME,
    forget_attention_change,
    renamed_arguments,
    renamed_attribute,
    single_cache,
)
from .configuration_albef import AUTO_MODELS, ENTAILMENT_CLASSES, REASONING_CLASSES, RENAMED_CLASSES, AlbefConfig
from .encoders_albef import (
    AlbefAnswerDecoder,
    AlbefMultimodalModel,
    AlbefPreTrainedModel,
    AlbefTextModel,
    AlbefTwoImageEncoder,
    AlbefVisionModel,
    KeyValues,
    cached_key_values,
    one_of,
    refuse_unknown,
    require_both,
    select_key_values,
    token_mask,
)
from .head_layers_albef import (
    AlbefClassificationHead,
    AlbefContrastiveHead,
    AlbefFrozenProjection,
    AlbefMaskedLanguageHead,
    Gather,
)
from .images_albef import read_preprocessing
from .initialization_albef import image_settings, load_pretrained_weights, read_text_model, read_vision_model
from .losses_albef import (
    IGNORED,
    assignment_loss,
    at_least_float32,
    distilled_cross_entropy,
    masked_language_loss,
    positions_of_targets,
    retrieval_targets,
    sample_image_pairs,
)
from .matching_albef import EncodedPairs, add_matching_contrast, match_hard_negatives
from .outputs_albef import (
    NO_LABEL_SMOOTHING,
    AlbefClassifierOutput,
    AlbefForPreTrainingOutput,
    AlbefForRetrievalOutput,
    AlbefModelOutput,
    AlbefTeacherOutput,
    attention_outputs,
)
from .unimodal_albef import AlbefUnimodalEncoders

if TYPE_CHECKING:  # never executed; transformers reads these lines and saves the files with a head
    from .pipeline_albef import AlbefPipeline  # noqa: F401
    from .sentence_albef import AlbefMatcher  # noqa: F401

# ALBEF.forward in the original's models/model_pretrain.py clamps to this range before every step.
TEMPERATURE_RANGE = (0.001, 0.5)


def _teacher_logits(teacher_outputs: AlbefTeacherOutput | None) -> torch.Tensor | None:
    return None if teacher_outputs is None else teacher_outputs.logits


# ---------------------------------------------------------------------------------------------------------------------
# Models without a head
# ---------------------------------------------------------------------------------------------------------------------


class AlbefModel(AlbefUnimodalEncoders):
    """The three encoders without a head."""

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.multimodal_model = AlbefMultimodalModel._from_config(config.text_config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefModelOutput:
        """Encode image-text pairs.

        Args:
            input_ids: (batch, tokens), `[CLS]` first.
            pixel_values: (batch, channels, height, width). If there are only `n` images, text `i` attends to image
                `i % n`.
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            interpolate_pos_encoding: Resample the learned image positions to images of another size.
            inputs_embeds: Instead of `input_ids`, their word embeddings, (batch, tokens, width).

        Raises:
            ValueError: If texts or images are missing.

        Example:
            ```python
            >>> import torch
            >>> from albef_hf import AlbefConfig, AlbefModel
            >>> tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            >>> model = AlbefModel(AlbefConfig(vision_config=tiny | {"image_size": 32}, text_config=tiny))
            >>> model(torch.tensor([[101, 3899]]), torch.zeros(1, 3, 32, 32)).last_hidden_state.shape
            torch.Size([1, 2, 32])

            ```
        """
        input_ids, pixel_values = require_both(input_ids, pixel_values, inputs_embeds)
        images = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        texts = self.text_model(input_ids, attention_mask, **kwargs)
        image_key_values = self.multimodal_model.project_images(images.last_hidden_state)
        fused = self.multimodal_model(texts.last_hidden_state, attention_mask, image_key_values, **kwargs)
        return self._make_output(images, texts, fused)


class AlbefTwoImageModel(AlbefUnimodalEncoders):
    """The three encoders for a text about two images, without a head (section 5 of the paper, NLVR2)."""

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.multimodal_model = AlbefTwoImageEncoder._from_config(config.text_config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefModelOutput:
        """Encode texts with two images each.

        Args:
            input_ids: (batch, tokens), `[CLS]` first.
            pixel_values: (batch, 2, channels, height, width), or states of the image encoder, (batch, 2, 1 + patches,
                image width).
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            interpolate_pos_encoding: Resample the learned image positions to images of another size.
            inputs_embeds: Instead of `input_ids`, their word embeddings, (batch, tokens, width).

        Returns:
            As `AlbefModel`, but `image_hidden_states` are (2 * batch, patches + 1, image width), the two images of a
            text one after the other.

        Raises:
            ValueError: If `pixel_values` does not have two images per text.
        """
        if pixel_values is None or pixel_values.ndim not in (4, 5) or pixel_values.shape[1] != 2:
            shape = None if pixel_values is None else tuple(pixel_values.shape)
            raise ValueError(
                f"pixel_values has shape {shape}: pass two images per text, (batch, 2, channels, height, width), such "
                "as torch.stack([first, second], dim=1)."
            )
        images = self.vision_model(pixel_values.flatten(0, 1), interpolate_pos_encoding, **kwargs)
        texts = self.text_model(input_ids, attention_mask, inputs_embeds, **kwargs)
        key_values = self.multimodal_model.project_images(images.last_hidden_state)
        first = torch.arange(0, images.last_hidden_state.shape[0], 2, device=pixel_values.device)
        first_key_values = select_key_values(key_values, first)
        second_key_values = select_key_values(key_values, first + 1)
        fused = self.multimodal_model(
            texts.last_hidden_state, attention_mask, first_key_values, second_key_values, **kwargs
        )
        return self._make_output(images, texts, fused)


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining and retrieval
# ---------------------------------------------------------------------------------------------------------------------


class AlbefImageTextModel(AlbefPreTrainedModel):
    """The joint space of images and texts, and the matching of pairs; the base class of pretraining and retrieval."""

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.albef = AlbefModel(config)
        self.contrastive_head = AlbefContrastiveHead(config)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlbefContrastiveHead):
            init.constant_(module.temperature, module.initial_temperature)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Clamp the learned temperature to [0.001, 0.5]; call it after every optimizer step of pretraining."""
        self.contrastive_head.temperature.clamp_(*TEMPERATURE_RANGE)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode images; `pooler_output` has unit features, (batch, projection)."""
        outputs = self.albef.vision_model(pixel_values, interpolate_pos_encoding, **kwargs)
        features = self.contrastive_head.project_image(outputs.last_hidden_state)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=features,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts; `pooler_output` has unit features, (batch, projection)."""
        outputs = self.albef.text_model(input_ids, attention_mask, inputs_embeds, **kwargs)
        features = self.contrastive_head.project_text(outputs.last_hidden_state, attention_mask)
        return BaseModelOutputWithPooling(pooler_output=features, **outputs)

    def match_probability(self, outputs: AlbefForPreTrainingOutput | AlbefForRetrievalOutput) -> torch.Tensor:
        """Compute the probability that image and text match, calibrated if the model is (see `MatchCalibration`).

        Args:
            outputs: Those of the model for pairs, without a loss: text `i` is matched with image `i % images`.

        Returns:
            The probability of each pair, (texts,), in float32 or better.

        Raises:
            ValueError: If the outputs contain no matched pairs.
        """
        images, texts = outputs.image_embeds, outputs.text_embeds
        if outputs.itm_logits is None or len(outputs.itm_logits) != len(texts):
            raise ValueError("The outputs have no logit for each pair: call the model for inference, on pairs.")
        cosines = (texts.unflatten(0, (-1, len(images))) * images).sum(-1).flatten()
        return MatchCalibration.from_config(self.config).probability(matching_log_odds(outputs.itm_logits), cosines)


class AlbefForPreTraining(AlbefImageTextModel):
    """ALBEF with the three objectives of pretraining: contrast (ITC), matching (ITM) and masked language (MLM).

    Without `teacher_outputs` it is an ordinary model: negatives come from the batch alone and targets are not soft.
    With the outputs of an `albef_hf.momentum.MomentumTeacher`, it is the paper's.
    """

    _tied_weights_keys = {"mlm_head.out_proj.weight": "albef.text_model.embeddings.word_embeddings.weight"}

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.mlm_head = AlbefMaskedLanguageHead(config.text_config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the last layer of the masked-language head."""
        return self.mlm_head.out_proj

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the last layer of the masked-language head."""
        self.mlm_head.out_proj = value

    @torch.no_grad()
    def get_teacher_outputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mlm_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        target_positions: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> AlbefTeacherOutput:
        """Compute the teacher's targets for a batch: features, and with `labels` logits of the masked tokens.

        Takes the batch that `forward` takes; the `MomentumTeacher` adds its queues.
        """
        pairs, masked_texts = self._encode(
            input_ids,
            pixel_values,
            attention_mask,
            mlm_input_ids,
            interpolate_pos_encoding=interpolate_pos_encoding,
        )
        logits = None
        if labels is not None:
            pairs.image_key_values = self.albef.multimodal_model.project_images(pairs.images)
            positions = positions_of_targets(labels) if target_positions is None else target_positions
            logits = self._mlm_logits(masked_texts, pairs, positions)
        return AlbefTeacherOutput(
            image_embeds=self.contrastive_head.project_image(pairs.images),
            text_embeds=self.contrastive_head.project_text(pairs.texts, pairs.attention_mask),
            logits=logits,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        mlm_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        target_positions: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        gather: Gather | None = None,
        hardness_strength: float = 1.0,
        itm_negatives: int = 1,
        itm_contrast_weight: float = 0.0,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForPreTrainingOutput:
        """Compute the pretraining losses if `labels` are given (equation 8 of the paper), else predictions.

        Args:
            input_ids: Texts, (batch, tokens), `[CLS]` first.
            pixel_values: The image of each text, (batch, channels, height, width).
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            mlm_input_ids: The same texts with masked tokens, from `PretrainingCollator`.
            labels: The token that was masked, -100 for all others, (batch, tokens).
            target_positions: Indices of the masked tokens in `labels.flatten()`, so that a GPU is not waited for.
            teacher_outputs: The outputs of a `MomentumTeacher` for the same batch.
            alpha: Weight of the teacher in the targets of ITC and MLM; the paper ramps it from 0 to 0.4.
            gather: Joins the batches of all processes, such as `albef_hf.training.distributed.gather_with_gradient`;
                hard negatives are then drawn from all processes.
            hardness_strength: Exponent of the distribution of negatives; 1 as in the paper, 0 for uniform.
            itm_negatives: Negatives that are drawn for each image and for each text; 1 as in the paper.
            itm_contrast_weight: Weight of the contrast of matching scores, of every text with every image of the
                batch; 0 as in the paper.
            inputs_embeds: Instead of `input_ids`, their word embeddings, (batch, tokens, width).

        Raises:
            ValueError: If only one of `labels` and `mlm_input_ids` is given, or neither in training, or labels come
                with a batch of one pair.
        """
        input_ids, pixel_values = require_both(input_ids, pixel_values, inputs_embeds)
        if labels is None:
            return self._inference_forward(input_ids, pixel_values, attention_mask, mlm_input_ids, **kwargs)
        pairs, masked_texts = self._encode(input_ids, pixel_values, attention_mask, mlm_input_ids, **kwargs)
        outputs = self._contrast_and_match(
            pairs, teacher_outputs, alpha, gather, hardness_strength, itm_negatives, itm_contrast_weight
        )
        positions = positions_of_targets(labels) if target_positions is None else target_positions
        logits = self._mlm_logits(masked_texts, pairs, positions)
        loss_mlm = masked_language_loss(logits, labels.take(positions), _teacher_logits(teacher_outputs), alpha)
        return dataclasses.replace(outputs, loss=outputs.loss + loss_mlm, loss_mlm=loss_mlm, logits=logits)

    def _encode(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mlm_input_ids: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[EncodedPairs, torch.Tensor]:
        """Encode images, texts and masked texts, with one call of each encoder; return the masked texts separately."""
        if mlm_input_ids is None:
            raise ValueError("labels were passed without mlm_input_ids: use albef_hf.data.PretrainingCollator.")
        if input_ids.ndim == 3:  # word embeddings
            mlm_input_ids = self.get_input_embeddings()(mlm_input_ids)
        attention_mask = token_mask(input_ids, attention_mask)
        images = self.albef.vision_model(pixel_values, **kwargs).last_hidden_state
        both = self.albef.text_model(torch.cat([input_ids, mlm_input_ids]), attention_mask.repeat(2, 1))
        texts, masked_texts = both.last_hidden_state.chunk(2)
        return EncodedPairs(images, texts, attention_mask), masked_texts

    def _contrast_and_match(
        self,
        pairs: EncodedPairs,
        teacher_outputs: AlbefTeacherOutput | None,
        alpha: float,
        gather: Gather | None,
        hardness_strength: float,
        itm_negatives: int,
        itm_contrast_weight: float,
    ) -> AlbefForPreTrainingOutput:
        """Compute ITC, ITM, whose hard negatives are drawn by the contrastive logits, and the sum of their losses."""
        image_embeds = self.contrastive_head.project_image(pairs.images)
        text_embeds = self.contrastive_head.project_text(pairs.texts, pairs.attention_mask)
        positives = torch.arange(len(image_embeds), device=image_embeds.device)
        loss_itc, info_nce, logits = self.contrastive_head.loss(
            image_embeds, text_embeds, positives, teacher_outputs, alpha, gather
        )
        candidates = torch.arange(logits[0].shape[1], device=positives.device)
        is_negative = positives[:, None] != candidates
        loss_itm, itm_logits = match_hard_negatives(
            self, pairs, logits, is_negative, gather, hardness_strength, itm_negatives
        )
        outputs = AlbefForPreTrainingOutput(
            loss=loss_itc + loss_itm,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            info_nce=info_nce,
            itm_logits=itm_logits,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )
        return add_matching_contrast(self, outputs, pairs, positives, teacher_outputs, alpha, itm_contrast_weight)

    def _mlm_logits(self, masked_texts: torch.Tensor, pairs: EncodedPairs, positions: torch.Tensor) -> torch.Tensor:
        """Compute the logits of the masked tokens, (masked tokens of the batch, vocabulary)."""
        fused = self.albef.multimodal_model(masked_texts, pairs.attention_mask, pairs.image_key_values)
        return self.mlm_head(fused.last_hidden_state.flatten(0, 1).index_select(0, positions))

    def _inference_forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mlm_input_ids: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForPreTrainingOutput:
        """Compute matching logits, vocabulary logits and features of given pairs, without a loss."""
        if mlm_input_ids is not None or self.training:
            raise ValueError(f"Pretraining needs labels, which are missing. {NO_LABEL_SMOOTHING}")
        outputs = self.albef(input_ids, pixel_values, attention_mask, return_dict=True, **kwargs)
        return AlbefForPreTrainingOutput(
            itm_logits=self.itm_head(outputs.last_hidden_state[:, 0]),
            logits=self.mlm_head(outputs.last_hidden_state),
            image_embeds=self.contrastive_head.project_image(outputs.image_hidden_states),
            text_embeds=self.contrastive_head.project_text(outputs.text_hidden_states, attention_mask),
            **attention_outputs(outputs),
        )

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | None = None,
        text: str | None = None,
        *,
        vision_config: dict | None = None,
        text_config: dict | None = None,
        **config_kwargs,
    ) -> "AlbefForPreTraining":
        """Initialize from a pretrained image model and a pretrained BERT or RoBERTa; in the paper, a DeiT and a BERT.

        The lower `num_hidden_layers` of the text model (6 by default) become the text encoder, the next
        `num_multimodal_layers` (6) the multimodal encoder. Cross-attention and heads start from random weights, and so
        do layers that a shorter text model does not have; those of a deeper one are dropped. Warnings list both.

        Args:
            vision: Hub name or folder of an image model, or of a model of images and texts such as CLIP; None for a
                randomly initialized image encoder. A ViT or DeiT becomes the paper's ViT; others keep their own class.
            text: Hub name or folder of a BERT, RoBERTa, XLM-R or CamemBERT; None for randomly initialized text and
                multimodal encoders.
            vision_config: Settings of the image encoder to override, such as `{"image_size": 384}`; learned positions
                are interpolated. By default, another image model than a ViT has the size of its own image processor.
            text_config: Settings of the text side to override, such as `{"num_hidden_layers": 3}`.
            config_kwargs: Further settings of `AlbefConfig`.

        Raises:
            ValueError: If a model is of another kind, or an overridden setting contradicts its weights.

        Example:
            ```python
            model = AlbefForPreTraining.from_vision_text_pretrained(
                "facebook/deit-base-patch16-224", "google-bert/bert-base-uncased"
            )
            ```
        """
        if not isinstance(vision_config or {}, dict):
            raise ValueError(
                "vision_config has to be a dictionary of settings to override. For a whole configuration without "
                "pretrained weights, use AlbefForPreTraining(AlbefConfig(vision_config=...))."
            )
        vision_settings, vision_weights = read_vision_model(vision) if vision else ({}, {})
        preprocessing = read_preprocessing(vision) if vision else {}
        image_size = config_kwargs.pop("image_size", None)
        text_settings, text_weights = read_text_model(text) if text else ({}, {})
        config = AlbefConfig(
            **image_settings(vision_settings, vision_config or {}, preprocessing, image_size),
            text_config={**text_settings, **(text_config or {})},
            **config_kwargs,
        )
        model = cls(config)
        load_pretrained_weights(model, vision_weights, text_weights)
        return model


class AlbefForRetrieval(AlbefImageTextModel):
    """ALBEF for image-text retrieval by contrast (ITC) and matching (ITM); its matching score also grounds texts.

    Several texts may belong to one image: all of them are positives, and none is a negative of the others (the
    original's `models/model_retrieval.py`).
    """

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.post_init()

    @torch.no_grad()
    def get_teacher_outputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> AlbefTeacherOutput:
        """Compute the teacher's targets for a batch: features. Takes the batch that `forward` takes."""
        images = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True)
        texts = self.get_text_features(input_ids, attention_mask, return_dict=True)
        return AlbefTeacherOutput(image_embeds=images.pooler_output, text_embeds=texts.pooler_output, ids=labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        gather: Gather | None = None,
        hardness_strength: float = 1.0,
        itm_negatives: int = 1,
        itm_contrast_weight: float = 0.0,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForRetrievalOutput:
        """Compute the losses of fine-tuning if `labels` are given, else scores.

        Args:
            input_ids: Texts, (texts, tokens), `[CLS]` first.
            pixel_values: (images, channels, height, width). In training, the image of each text; at inference, there
                may be fewer images than texts, see `itm_logits` of the output.
            attention_mask: (texts, tokens), 1 for tokens and 0 for padding.
            labels: Id of the image of each text, (texts,); texts with equal ids are positives of each other's image.
            teacher_outputs: The outputs of a `MomentumTeacher` for the same batch.
            alpha: Weight of the teacher in the targets of ITC; 0.4 in the paper.
            gather: Joins the batches of all processes, such as `albef_hf.training.distributed.gather_with_gradient`;
                hard negatives are then drawn from all processes.
            hardness_strength: Exponent of the distribution of negatives; 1 as in the paper, 0 for uniform.
            itm_negatives: Negatives that are drawn for each image and for each text; 1 as in the paper.
            itm_contrast_weight: Weight of the contrast of matching scores, of every text with every image of the
                batch; 0 as in the paper.
            inputs_embeds: Instead of `input_ids`, their word embeddings, (texts, tokens, width).

        Raises:
            ValueError: If `labels` come with a batch of one pair.
        """
        input_ids, pixel_values = require_both(input_ids, pixel_values, inputs_embeds)
        if labels is None:
            return self._inference_forward(input_ids, pixel_values, attention_mask, **kwargs)
        attention_mask = token_mask(input_ids, attention_mask)
        images = self.get_image_features(pixel_values, return_dict=True, **kwargs)
        texts = self.get_text_features(input_ids, attention_mask, return_dict=True)
        outputs = self._contrast(images.pooler_output, texts.pooler_output, labels, teacher_outputs, alpha, gather)
        pairs = EncodedPairs(images.last_hidden_state, texts.last_hidden_state, attention_mask)
        logits = (outputs.logits_per_image, outputs.logits_per_text)
        is_negative = labels[:, None] != (labels if gather is None else gather(labels))
        loss_itm, scores = match_hard_negatives(
            self, pairs, logits, is_negative, gather, hardness_strength, itm_negatives
        )
        outputs = dataclasses.replace(outputs, loss=outputs.loss_itc + loss_itm, loss_itm=loss_itm, itm_logits=scores)
        return add_matching_contrast(self, outputs, pairs, labels, teacher_outputs, alpha, itm_contrast_weight)

    def _contrast(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        labels: torch.Tensor,
        teacher_outputs: AlbefTeacherOutput | None,
        alpha: float,
        gather: Gather | None,
    ) -> AlbefForRetrievalOutput:
        """Compute ITC, with all texts of an image as positives."""
        queue_ids = None if teacher_outputs is None else teacher_outputs.queue_ids
        targets = retrieval_targets(labels, queue_ids, image_embeds.dtype)
        loss_itc, info_nce, (per_image, per_text) = self.contrastive_head.loss(
            image_embeds, text_embeds, targets, teacher_outputs, alpha, gather
        )
        return AlbefForRetrievalOutput(
            loss_itc=loss_itc,
            info_nce=info_nce,
            logits_per_image=per_image,
            logits_per_text=per_text,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )

    def _inference_forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForRetrievalOutput:
        """Compare all images with all texts, and match text `i` with image `i % images` if that is even."""
        images = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        texts = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
        logits_per_image = self.contrastive_head(images.pooler_output, texts.pooler_output)
        itm_logits = None
        recorded = {}
        if input_ids.shape[0] % pixel_values.shape[0] == 0:
            image_key_values = self.albef.multimodal_model.project_images(images.last_hidden_state)
            fused = self.albef.multimodal_model(texts.last_hidden_state, attention_mask, image_key_values, **kwargs)
            itm_logits = self.itm_head(fused.last_hidden_state[:, 0])
            recorded = attention_outputs(fused)
        return AlbefForRetrievalOutput(
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            itm_logits=itm_logits,
            image_embeds=images.pooler_output,
            text_embeds=texts.pooler_output,
            **recorded,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Question answering
# ---------------------------------------------------------------------------------------------------------------------


class AlbefForQuestionAnswering(AlbefPreTrainedModel, GenerationMixin):
    """ALBEF for visual question answering: a question fused with its image, and a decoder for the answer.

    `generate` writes free-form answers, `rank_answers` chooses from a list as the paper does (section 5, VQA). If it
    is loaded from a pretraining checkpoint, the decoder starts as a copy of the multimodal encoder.
    """

    _tied_weights_keys = {"mlm_head.out_proj.weight": "decoder.embeddings.word_embeddings.weight"}
    _copied_modules = {
        "decoder.embeddings": "albef.text_model.embeddings",
        "decoder.layers": "albef.multimodal_model.layers",
    }

    def __init__(self, config: AlbefConfig):
        config = copy.deepcopy(config)
        config.is_encoder_decoder = True
        super().__init__(config)
        self.albef = AlbefModel(config)
        self.decoder = AlbefAnswerDecoder._from_config(config.get_text_config(decoder=True))
        self.mlm_head = AlbefMaskedLanguageHead(config.text_config)
        self.post_init()

    def set_attn_implementation(self, *args, **kwargs) -> None:
        """Set the attention as transformers does, even if that of the decoder was set before."""
        forget_attention_change(self.decoder.config)
        super().set_attn_implementation(*args, **kwargs)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """Resize the vocabulary of questions and of answers; takes the arguments of transformers."""
        self.decoder.resize_token_embeddings(*args, **kwargs)
        return super().resize_token_embeddings(*args, **kwargs)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the model that encodes question and image."""
        return self.albef

    def get_output_embeddings(self) -> nn.Module:
        """Return the last layer of the language head."""
        return self.mlm_head.out_proj

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the last layer of the language head."""
        self.mlm_head.out_proj = value

    @torch.no_grad()
    def get_teacher_outputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        answer_counts: torch.Tensor | None = None,
        answer_weights: torch.Tensor | None = None,
        target_positions: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> AlbefTeacherOutput:
        """Compute the teacher's targets for a batch: logits of the answers' tokens.

        Takes the batch that `forward` takes.
        """
        encoded = self._encode(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        questions = encoded.last_hidden_state
        answers = Answers(labels, answer_counts, answer_weights, target_positions)
        complete = complete_answers(answers, questions, self.config)
        return AlbefTeacherOutput(logits=self._answer_logits(complete, questions, attention_mask))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        answer_counts: torch.Tensor | None = None,
        answer_weights: torch.Tensor | None = None,
        target_positions: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: AlbefModelOutput | None = None,
        cache: EncoderDecoderCache | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        interpolate_pos_encoding: bool = False,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Compute the loss of given answers, or the logits of the next token.

        Args:
            input_ids: Questions, (questions, tokens), `[CLS]` first.
            pixel_values: The image of each question, (questions, channels, height, width).
            attention_mask: (questions, tokens), 1 for tokens and 0 for padding.
            labels: Answers, (answers, tokens), `[CLS]` first and `[SEP]` last, -100 for padding; the answers of a
                question one after the other.
            answer_counts: Number of answers of each question, (questions,); by default one each.
            answer_weights: Weight of each answer, (answers,); by default the answers of a question share 1.
            target_positions: Indices of the tokens after `[CLS]` in `labels.flatten()`; with them, nothing is checked.
            teacher_outputs: The outputs of a `MomentumTeacher` for the same batch.
            alpha: Weight of the teacher in the targets; 0.4 in the paper.
            decoder_input_ids: Answers so far, (questions, tokens); by default `[CLS]`.
            decoder_attention_mask: 1 for their tokens and 0 for padding.
            encoder_outputs: The output of `get_encoder()` for question and image.
            cache: Keys and values of earlier answer tokens, and of the question.
            past_key_values: The name of `cache` up to transformers 5.23.
            interpolate_pos_encoding: Resample the learned image positions to images of another size.
            inputs_embeds: Instead of `input_ids`, their word embeddings, (questions, tokens, width).

        Returns:
            `loss`: with `labels`, the negative log-likelihood of an answer, times its weight, summed over the answers
            of a question and averaged over the questions.
            `logits`: with `labels`, those of the answers' tokens, (answer tokens, vocabulary); else (questions,
            tokens, vocabulary).

        Raises:
            ValueError: If `answer_counts` does not fit the answers, or the labels are not encoded by
                `AlbefProcessor.encode_answers`; in training, or with `answer_counts` or `answer_weights`, if there are
                neither labels nor `decoder_input_ids`.
        """
        self._check_call(labels, decoder_input_ids, (answer_counts, answer_weights), kwargs)
        past = single_cache(cache, past_key_values)
        if encoder_outputs is None:
            texts = one_of(input_ids, inputs_embeds)
            encoder_outputs = self._encode(texts, pixel_values, attention_mask, interpolate_pos_encoding, **kwargs)
        if labels is not None:
            answers = Answers(labels, answer_counts, answer_weights, target_positions)
            return self._answer_loss(encoder_outputs, attention_mask, answers, teacher_outputs, alpha)
        return self._decode(encoder_outputs, attention_mask, decoder_input_ids, decoder_attention_mask, past, **kwargs)

    def _check_call(
        self,
        labels: torch.Tensor | None,
        decoder_input_ids: torch.Tensor | None,
        for_labels: Sequence[torch.Tensor | None],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Refuse unknown keywords, and a call without labels in training or with what belongs to labels."""
        needs_labels = self.training or any(value is not None for value in for_labels)
        if needs_labels and labels is None and decoder_input_ids is None:
            raise ValueError(f"Question answering is trained with labels, which are missing. {NO_LABEL_SMOOTHING}")
        refuse_unknown(kwargs)

    def _encode(
        self,
        input_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        interpolate_pos_encoding: bool,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefModelOutput:
        return self.albef(
            input_ids, pixel_values, attention_mask, interpolate_pos_encoding, return_dict=True, **kwargs
        )

    def _answer_loss(
        self,
        encoder_outputs: AlbefModelOutput,
        attention_mask: torch.Tensor | None,
        answers: Answers,
        teacher_outputs: AlbefTeacherOutput | None,
        alpha: float,
    ) -> Seq2SeqLMOutput:
        """Compute the weighted loss of the answers and the logits of their tokens."""
        questions = encoder_outputs.last_hidden_state
        complete = complete_answers(answers, questions, self.config)
        logits = self._answer_logits(complete, questions, attention_mask)
        losses = distilled_cross_entropy(logits, complete.targets, _teacher_logits(teacher_outputs), alpha)
        loss = (complete.token_weights * losses).sum() / len(questions)
        return Seq2SeqLMOutput(loss=loss, logits=logits, encoder_last_hidden_state=questions)

    def _answer_logits(
        self, answers: CompleteAnswers, questions: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the logits of the answers' tokens, (answer tokens, vocabulary), given each answer's question."""
        index = answers.question_index
        key_values = select_key_values(self.decoder.project_questions(questions), index)
        question_mask = None if attention_mask is None else attention_mask[index]
        return self._token_logits(answers.labels, answers.positions, key_values, question_mask)

    def _token_logits(
        self,
        labels: torch.Tensor,
        positions: torch.Tensor,
        question_key_values: list[KeyValues],
        question_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Compute the logits of the tokens at some positions of (answers, tokens) labels, (positions, vocabulary)."""
        is_token = labels != IGNORED
        answer_ids = labels.masked_fill(~is_token, self.config.text_config.pad_token_id or 0)
        states = self.decoder(answer_ids, is_token.long(), question_key_values, question_mask).last_hidden_state
        return self.mlm_head(states.flatten(0, 1).index_select(0, positions - 1))  # each is predicted one before it

    def _decode(
        self,
        encoder_outputs: AlbefModelOutput,
        attention_mask: torch.Tensor | None,
        answer_ids: torch.Tensor | None = None,
        answer_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Compute the logits of the token after each token of the answers so far, (questions, tokens, vocabulary)."""
        questions = encoder_outputs.last_hidden_state
        if answer_ids is None:
            bos_token_id = self.config.text_config.bos_token_id
            answer_ids = questions.new_full((questions.shape[0], 1), bos_token_id, dtype=torch.long)
        outputs = self.decoder(
            answer_ids,
            answer_mask,
            cached_key_values(cache, lambda: self.decoder.project_questions(questions)),
            attention_mask,
            None if cache is None else cache.self_attention_cache,
            **kwargs,
        )
        return Seq2SeqLMOutput(
            logits=self.mlm_head(outputs.last_hidden_state),
            **{CACHE_NAME: cache},
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=questions,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )

    def generate(
        self,
        *args,
        labels: torch.Tensor | None = None,
        answer_counts: torch.Tensor | None = None,
        answer_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor | ModelOutput:
        """Generate as transformers does; the answers of a batch, which `Seq2SeqTrainer` passes, are ignored."""
        return super().generate(*args, **kwargs)

    @renamed_arguments(k="top_k")
    @torch.no_grad()
    def rank_answers(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        answer_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        answer_attention_mask: torch.Tensor | None = None,
        top_k: int = 128,
        batch_size: int = 1024,
        interpolate_pos_encoding: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose from a list of answers (`rank_answer` in the original's `models/model_vqa.py`).

        The `top_k` answers whose first token has the highest probability are scored completely. As in the original,
        a score is the log-likelihood of the answer plus, once more, that of its first token.

        Args:
            input_ids: Questions, (questions, tokens).
            pixel_values: The image of each question, (questions, channels, height, width).
            answer_ids: The list, (answers, tokens), `[CLS]` first and `[SEP]` last, from
                `AlbefProcessor.encode_answers`.
            attention_mask: (questions, tokens); by default 0 for the padding token and 1 for all others.
            answer_attention_mask: (answers, tokens); by default 0 for the padding token and 1 for all others.
            top_k: Number of answers that are scored completely; 128 in the paper.
            batch_size: Answers scored at a time, of all questions together; at least one per question.
            interpolate_pos_encoding: Resample the learned image positions to images of another size.

        Returns:
            Rows of `answer_ids`, and their probabilities among the `top_k`, each (questions, top_k), best first.

        Raises:
            ValueError: If the list is empty or not encoded by `AlbefProcessor.encode_answers`, or top_k is below 1.
        """
        padding = self.config.text_config.pad_token_id
        if attention_mask is None:
            attention_mask = (input_ids != padding).long()
        if answer_attention_mask is None:
            answer_attention_mask = answer_ids != padding
        answers = answer_ids.masked_fill(answer_attention_mask == 0, IGNORED)
        check_answer_list(answers, top_k, self.config.text_config)
        encoded = self._encode(input_ids, pixel_values, attention_mask, interpolate_pos_encoding)
        start = EncoderDecoderCache(DynamicCache(), DynamicCache())  # of [CLS], the first token of all answers
        first_logits = self._decode(encoded, attention_mask, cache=start).logits[:, 0]
        first_scores = at_least_float32(first_logits).log_softmax(-1)[:, answer_ids[:, 1]]
        first_scores, rows = first_scores.topk(min(top_k, len(answers)), dim=1)
        by_length = answer_attention_mask.sum(1)[rows].argsort(dim=1)  # so that little is computed for padding
        first_scores = first_scores.gather(1, by_length)
        rows = rows.gather(1, by_length)
        rest_scores = score_continuations(self, answers, rows, start, attention_mask, batch_size)
        probabilities, order = (2 * first_scores + rest_scores).softmax(-1).sort(dim=1, descending=True)
        return rows.gather(1, order), probabilities

    def _log_likelihood(
        self, labels: torch.Tensor, question_key_values: list[KeyValues], question_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the log-likelihood of (groups * questions, tokens) answers, (groups * questions,)."""
        positions = answer_positions(labels)
        logits = self._token_logits(labels, positions, question_key_values, question_mask)
        losses = F.cross_entropy(at_least_float32(logits), labels.take(positions), reduction="none")
        return -losses.new_zeros(len(labels)).index_add(0, positions // labels.shape[1], losses)


# ---------------------------------------------------------------------------------------------------------------------
# Classification
# ---------------------------------------------------------------------------------------------------------------------


class AlbefForVisualReasoning(AlbefClassifier):
    """ALBEF for NLVR2: is a statement true of two images (the original's `models/model_nlvr.py`)?

    Classes are False and True, unless `num_labels` or `id2label` sets others.
    """

    default_classes = REASONING_CLASSES

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.albef = AlbefTwoImageModel(self.config)
        self.classifier = AlbefClassificationHead(self.config)
        self.post_init()


class AlbefForImageTextClassification(AlbefClassifier):
    """ALBEF for any classes of images with texts; `config.problem_type` and `config.id2label` say which.

    Two unnamed classes, unless `num_labels` or `id2label` sets others.
    """

    default_classes = ("LABEL_0", "LABEL_1")

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.albef = AlbefModel(self.config)
        self.classifier = AlbefClassificationHead(self.config)
        self.post_init()


class AlbefForVisualEntailment(AlbefForImageTextClassification):
    """ALBEF for SNLI-VE: does an image entail a sentence (the original's `models/model_ve.py`)?

    Classes are contradiction, neutral and entailment, unless `num_labels` or `id2label` sets others.
    """

    default_classes = ENTAILMENT_CLASSES


# ---------------------------------------------------------------------------------------------------------------------
# Text assignment
# ---------------------------------------------------------------------------------------------------------------------


class AlbefForTextAssignment(AlbefPreTrainedModel):
    """The step between pretraining and NLVR2: does a text describe the first image, the second, or neither?

    Section 5 of the paper; the original's `models/model_pretrain_nlvr.py`, which has no teacher. Beside its own image,
    or instead of it, a text gets images that are similar in the contrastive space.
    """

    def __init__(self, config: AlbefConfig):
        if config.classes_asked_for and config.num_labels != 3:
            raise ValueError(f"Text assignment has three classes (first, second, neither), not {config.num_labels}.")
        if config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"Text assignment does not support problem_type {config.problem_type}: remove it, or set it to "
                '"single_label_classification".'
            )
        super().__init__(config)
        self.albef = AlbefTwoImageModel(config)
        # The name of this projection in a pretraining checkpoint, where it comes from.
        self.contrastive_head = nn.ModuleDict(
            {"image_projection": AlbefFrozenProjection(config.image_hidden_size, config.projection_dim)}
        )
        self.assignment_head = nn.Linear(config.text_config.hidden_size, 3)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlbefFrozenProjection):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    @torch.no_grad()
    def get_teacher_outputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_pairs: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> AlbefTeacherOutput:
        """Compute the teacher's targets for a batch with given pairs of images: logits."""
        kwargs = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True}
        outputs = self(input_ids, pixel_values, attention_mask, image_pairs, **kwargs)
        return AlbefTeacherOutput(logits=outputs.logits)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_pairs: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        interpolate_pos_encoding: bool = False,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefClassifierOutput:
        """Assign each text to one of two images of the batch.

        Args:
            input_ids: Texts, (batch, tokens), `[CLS]` first.
            pixel_values: The image of each text, (batch, channels, height, width).
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            image_pairs: Indices of the two images of each text within the batch, (batch, 2); drawn together with the
                labels by default.
            labels: Position of the text's own image: 0 first, 1 second, 2 neither, (batch,).
            teacher_outputs: The outputs of a `MomentumTeacher` for the same pairs.
            alpha: Weight of the teacher in the targets.
            interpolate_pos_encoding: Resample the learned image positions to images of another size.
            inputs_embeds: Instead of `input_ids`, their word embeddings, (batch, tokens, width).

        Returns:
            `logits`, (batch, 3), and with `labels`, given or drawn, the `loss`.

        Raises:
            ValueError: If there are fewer than three images to draw from, labels or teacher outputs come without
                `image_pairs`, or the labels are not one integer per text.
        """
        if image_pairs is None and not (labels is None and teacher_outputs is None):
            raise ValueError("labels and teacher_outputs belong to pairs of images: pass image_pairs with them.")
        images = self.albef.vision_model(pixel_values, interpolate_pos_encoding, **kwargs).last_hidden_state
        if image_pairs is None:
            image_pairs, labels = sample_image_pairs(self._image_similarities(images))
        texts = self.albef.text_model(input_ids, attention_mask, inputs_embeds, **kwargs).last_hidden_state
        key_values = self.albef.multimodal_model.project_images(images)
        first = select_key_values(key_values, image_pairs[:, 0])
        second = select_key_values(key_values, image_pairs[:, 1])
        fused = self.albef.multimodal_model(texts, attention_mask, first, second, **kwargs)
        logits = self.assignment_head(fused.last_hidden_state[:, 0])
        loss = None
        if labels is not None:
            loss = assignment_loss(logits, labels, _teacher_logits(teacher_outputs), alpha)
        return AlbefClassifierOutput(loss=loss, logits=logits, **attention_outputs(fused))

    @torch.no_grad()
    def draw_image_pairs(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw two images for each text, and the labels, with `sample_image_pairs`."""
        images = self.albef.vision_model(pixel_values, interpolate_pos_encoding).last_hidden_state
        return sample_image_pairs(self._image_similarities(images))

    @torch.no_grad()
    def _image_similarities(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the cosine of every image with every other, (batch, batch)."""
        features = self.contrastive_head["image_projection"](images[:, 0])
        features = F.normalize(at_least_float32(features), dim=-1)
        return features @ features.T


MODEL_CLASSES: dict[str, type[AlbefPreTrainedModel]] = {
    model_class.__name__: model_class
    for model_class in (
        AlbefModel,
        AlbefTwoImageModel,
        AlbefForPreTraining,
        AlbefForTextAssignment,
        AlbefForRetrieval,
        AlbefForQuestionAnswering,
        AlbefForImageCaptioning,
        AlbefForImageTextClassification,
        AlbefForVisualEntailment,
        AlbefForVisualReasoning,
    )
}
# transformers saves the file that a class names, and what that file imports. This one has all heads.
AlbefForImageCaptioning.__module__ = __name__
for _auto_class, _names in AUTO_MODELS.items():
    for _name in _names:
        MODEL_CLASSES[_name].register_for_auto_class(_auto_class)


def __getattr__(name: str) -> Any:
    return renamed_attribute(globals(), RENAMED_CLASSES, name)


__all__ = [
    "MODEL_CLASSES",
    "AlbefForImageCaptioning",
    "AlbefForImageTextClassification",
    "AlbefForPreTraining",
    "AlbefForPreTrainingOutput",
    "AlbefForQuestionAnswering",
    "AlbefForRetrieval",
    "AlbefForRetrievalOutput",
    "AlbefForTextAssignment",
    "AlbefForVisualEntailment",
    "AlbefForVisualReasoning",
    "AlbefImageTextModel",
    "AlbefModel",
    "AlbefModelOutput",
    "AlbefMultimodalModel",
    "AlbefPreTrainedModel",
    "AlbefTeacherOutput",
    "AlbefTextModel",
    "AlbefTwoImageModel",
    "AlbefVisionModel",
]
