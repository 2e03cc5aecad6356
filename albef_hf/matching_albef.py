"""Image-text matching (ITM) in training: hard negatives as in the paper, and the contrast of all pairs of a batch."""

from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from .calibration_albef import matching_log_odds
from .encoders_albef import KeyValues, select_key_values
from .head_layers_albef import Gather
from .losses_albef import (
    distilled_cross_entropy,
    matching_loss,
    retrieval_targets,
    sample_hard_negatives,
)
from .outputs_albef import AlbefForPreTrainingOutput, AlbefForRetrievalOutput, AlbefTeacherOutput

TrainingOutput = TypeVar("TrainingOutput", AlbefForPreTrainingOutput, AlbefForRetrievalOutput)


@dataclass
class EncodedPairs:
    """Image-text pairs of a training batch, before fusion.

    Args:
        images: States of the image encoder, (batch, patches + 1, image width).
        texts: States of the text encoder, (batch, tokens, text width).
        attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
        image_key_values: The images projected by `AlbefMultimodalModel.project_images`; empty until they are.
    """

    images: torch.Tensor
    texts: torch.Tensor
    attention_mask: torch.Tensor
    image_key_values: list[KeyValues] = field(default_factory=list)


def match_hard_negatives(
    model: PreTrainedModel,
    pairs: EncodedPairs,
    logits: tuple[torch.Tensor, torch.Tensor],
    is_negative: torch.Tensor,
    gather: Gather | None,
    hardness_strength: float,
    itm_negatives: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matching loss of pairs and hard negatives, and its logits, ((1 + 2 * itm_negatives) * batch, 2).

    Each image has several texts as queries, its own and wrong ones, which share the image's keys and values; then
    each text has wrong images.

    Args:
        model: A model with the multimodal encoder and the matching head.
        pairs: The batch. Its images are projected here, after the contrast: gradients are summed in this order.
        logits: Contrastive logits of the images with all texts and of the texts with all images, each (batch, all).
        is_negative: As in `sample_hard_negatives`, (batch, all).
        gather: Joins the batches of all processes.
        hardness_strength: Exponent of the contrastive distribution that negatives are drawn from.
        itm_negatives: Negatives for each image and for each text.
    """
    pairs.image_key_values = model.albef.multimodal_model.project_images(pairs.images)
    per_image, per_text = logits
    image_for_text, text_for_image = sample_hard_negatives(
        per_image, per_text, is_negative, hardness_strength, itm_negatives
    )
    texts, mask = pairs.texts, pairs.attention_mask
    if gather is None:
        wrong_images = select_key_values(pairs.image_key_values, image_for_text)
    else:  # of the images of other processes, only the drawn ones are projected
        wrong_images = model.albef.multimodal_model.project_images(gather(pairs.images)[image_for_text])
        texts, mask = gather(texts), gather(mask)  # those of this process first, padded to the longest of all
    this_process = slice(len(pairs.images))
    queries = torch.cat([texts[this_process], texts[text_for_image]])
    query_mask = torch.cat([mask[this_process], mask[text_for_image]])
    encode_cls = model.albef.multimodal_model.encode_cls
    with_own_image = encode_cls(queries, query_mask, pairs.image_key_values)
    matched, wrong_text = with_own_image.split([len(pairs.images), len(text_for_image)])
    # Sliced a second time, since gradients are summed in this order.
    repeated_texts = texts[this_process].repeat(itm_negatives, 1, 1)
    wrong_image = encode_cls(repeated_texts, mask[this_process].repeat(itm_negatives, 1), wrong_images)
    itm_logits = model.itm_head(torch.cat([matched, wrong_image, wrong_text]))
    rows = torch.arange(len(pairs.images), device=is_negative.device).repeat(2 * itm_negatives)
    drawn_negatives = is_negative[rows, torch.cat([image_for_text, text_for_image])]
    return matching_loss(itm_logits, drawn_negatives), itm_logits


def add_matching_contrast(
    model: PreTrainedModel,
    outputs: TrainingOutput,
    pairs: EncodedPairs,
    ids: torch.Tensor,
    teacher_outputs: AlbefTeacherOutput | None,
    alpha: float,
    weight: float,
) -> TrainingOutput:
    """Add the contrast of the matching scores to the loss, if it has a weight."""
    if not weight:
        return outputs
    loss = contrast_matching_scores(model, pairs, ids, teacher_outputs, alpha)
    return replace(outputs, loss=outputs.loss + weight * loss, loss_itm_contrast=loss)


def contrast_matching_scores(
    model: PreTrainedModel,
    pairs: EncodedPairs,
    ids: torch.Tensor,
    teacher_outputs: AlbefTeacherOutput | None,
    alpha: float,
) -> torch.Tensor:
    """Return the contrastive loss of a batch by the log-odds of a match instead of the cosines; not in the paper.

    Hard negatives are those that contrast cannot tell from the right ones, so they teach matching little of what
    contrast knows. Here every text is matched with every image.

    Args:
        model: A model with the multimodal encoder and both heads.
        pairs: The batch, with the projected images.
        ids: Id of the image of each text, (batch,); texts with equal ids are positives of each other's image.
        teacher_outputs: Its contrastive similarities soften the targets, as in ITC.
        alpha: Weight of the teacher in the targets.
    """
    encode = model.albef.multimodal_model.encode_cls_of_all_pairs
    cls = encode(pairs.texts, pairs.attention_mask, pairs.image_key_values)
    per_image = matching_log_odds(model.itm_head(cls))  # (images, texts)
    targets = retrieval_targets(ids, None, per_image.dtype)
    teacher_per_image = teacher_per_text = None
    if teacher_outputs is not None and alpha > 0:
        teacher_per_image = model.contrastive_head(teacher_outputs.image_embeds, teacher_outputs.text_embeds)
        teacher_per_text = teacher_per_image.T
    image_losses = distilled_cross_entropy(per_image, targets, teacher_per_image, alpha)
    text_losses = distilled_cross_entropy(per_image.T, targets, teacher_per_text, alpha)
    return (image_losses + text_losses).mean() / 2
