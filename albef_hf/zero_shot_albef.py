"""Classification without training: classes are named in texts, contrasted with images (ITC), the best matched (ITM).

The features of a class are the mean over several prompts, as in CLIP (arXiv 2103.00020, section 3.1.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .calibration_albef import MatchCalibration, matching_log_odds
from .processing_albef import AlbefProcessor
from .retrieval_albef import TextFeatures, best_matches, encode_texts, match

PLACE = "{}"  # of the class in a template
DEFAULT_TEMPLATES = ("a photo of a {}",)


@dataclass
class ClassPrompts:
    """Classes, encoded once.

    Args:
        embeds: Unit features, (classes, projection).
        prompts: The prompts of all classes, one class after the other.
    """

    embeds: torch.Tensor
    prompts: TextFeatures

    @property
    def prompts_per_class(self) -> int:
        """Return the number of templates."""
        return len(self.prompts.embeds) // len(self.embeds)


@dataclass
class ClassRanking:
    """The classes of each image, from the highest cosine to the lowest.

    Args:
        indices: Indices of the classes, (images, classes).
        similarities: Cosines, (images, classes).
        logits: Log-odds of a match of the first k classes, the mean over the prompts, (images, k); calibrated if the
            model is.
    """

    indices: torch.Tensor
    similarities: torch.Tensor
    logits: torch.Tensor

    def reranked(self) -> torch.Tensor:
        """Return indices of the classes, (images, classes): the k best by matching, the others by their cosines."""
        matched = self.logits.shape[1]
        order = self.logits.argsort(dim=1, descending=True, stable=True)
        return torch.cat([self.indices[:, :matched].gather(1, order), self.indices[:, matched:]], dim=1)


def encode_classes(
    model: PreTrainedModel,
    processor: AlbefProcessor,
    names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 64,
) -> ClassPrompts:
    """Encode the prompts of classes in evaluation mode.

    Args:
        model: A model with the joint space and the matching head.
        processor: The model's processor.
        names: What the classes are called.
        templates: Texts with `{}` in the place of the class.
        batch_size: Prompts encoded at a time.

    Raises:
        ValueError: If there is no class or no template, or a template has no place for the class.
    """
    if not names or not templates:
        raise ValueError("There is nothing to choose from: pass at least one class and one template.")
    for template in templates:
        if PLACE not in template:
            raise ValueError(f"The template {template!r:.100} has no {PLACE}, which is the place of the class.")
    prompts = [template.replace(PLACE, name) for name in names for template in templates]
    features = encode_texts(model, processor, prompts, batch_size)
    means = features.embeds.unflatten(0, (len(names), len(templates))).mean(1)
    return ClassPrompts(F.normalize(means, dim=-1), features)


@torch.no_grad()
def rank_classes(
    model: PreTrainedModel, images: BaseModelOutputWithPooling, classes: ClassPrompts, rerank_k: int = 0
) -> ClassRanking:
    """Contrast images with all classes, and match the best.

    Args:
        model: The model, in evaluation mode.
        images: From `get_image_features`.
        classes: From `encode_classes`.
        rerank_k: Classes of each image that are matched; 0: none.
    """
    similarities, indices = best_matches(images.pooler_output, classes.embeds, len(classes.embeds))
    logits = [
        _class_logits(model, states, embeds, classes, best)
        for states, embeds, best in zip(
            images.last_hidden_state.split(1), images.pooler_output, indices[:, :rerank_k], strict=True
        )
    ]
    return ClassRanking(indices, similarities, torch.stack(logits))


def _class_logits(
    model: PreTrainedModel, states: torch.Tensor, embeds: torch.Tensor, classes: ClassPrompts, best: torch.Tensor
) -> torch.Tensor:
    """Compute the mean log-odds of a match of one image with the prompts of some classes, (classes,)."""
    if not len(best):
        return classes.embeds.new_zeros(0)
    count = classes.prompts_per_class
    prompts = (best[:, None] * count + torch.arange(count, device=best.device)).flatten()
    log_odds = matching_log_odds(match(model, states, classes.prompts, prompts))
    cosines = classes.prompts.embeds[prompts] @ embeds
    return MatchCalibration.from_config(model.config).logit(log_odds, cosines).unflatten(0, (-1, count)).mean(1)


__all__ = ["DEFAULT_TEMPLATES", "PLACE", "ClassPrompts", "ClassRanking", "encode_classes", "rank_classes"]
