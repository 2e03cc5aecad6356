"""The loss functions of the ALBEF paper (arXiv 2107.07651) and its two samplers of negatives."""

from typing import Literal

import torch
from torch.nn import functional as F

from .configuration_albef import AlbefConfig

IGNORED = -100  # label of tokens and rows without a target, as in the losses of torch and transformers
ASSIGNMENT_TEMPERATURE = 0.07  # a constant in the original, which does not use the learned temperature here


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_weights(alpha: float, smoothing: float = 0.0) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: pass the teacher's weight in the targets, between 0 and 1.")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}: pass the weight of all classes, at least 0 and less than 1.")


def distilled_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    alpha: float,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Compute the cross-entropy against `(1 - alpha) * targets + alpha * softmax(teacher_logits)`.

    These are equations 6 and 7 of the paper.

    Args:
        logits: (rows, classes).
        targets: Class indices, (rows,), or probabilities, (rows, classes).
        teacher_logits: (rows, classes), or None for the plain cross-entropy.
        alpha: Weight of the teacher in the targets, between 0 and 1.
        smoothing: Label smoothing of the given targets, the weight of equal probabilities in them, between 0 and 1.

    Returns:
        The loss of each row, (rows,).

    Raises:
        ValueError: If alpha or smoothing is not between 0 and 1, or (on a CPU) a target is not one of the classes.
    """
    _check_weights(alpha, smoothing)
    return distill(at_least_float32(logits).log_softmax(-1), targets, teacher_logits, alpha, smoothing)


def distill(
    log_probabilities: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    alpha: float,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Compute what `distilled_cross_entropy` does, from logarithms of probabilities that have other uses, too."""
    losses = cross_entropy(log_probabilities, targets)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * log_probabilities.mean(-1)
    if teacher_logits is None or alpha == 0:
        return losses
    soft_targets = at_least_float32(teacher_logits.detach()).softmax(-1)
    return (1 - alpha) * losses + alpha * cross_entropy(log_probabilities, soft_targets)


def cross_entropy(
    log_probabilities: torch.Tensor, targets: torch.Tensor, reduction: Literal["none", "mean"] = "none"
) -> torch.Tensor:
    """Compute what `torch.nn.functional.cross_entropy` does from logits, to the same bits.

    Args:
        log_probabilities: (rows, classes).
        targets: Class indices, (rows,), or probabilities, (rows, classes).
        reduction: As in torch: the loss of each row, (rows,), or the mean, a scalar.

    Raises:
        ValueError: If (on a CPU) a target is not one of the classes.
    """
    if targets.is_floating_point():
        losses = log_probabilities * targets
        return -losses.sum(-1) if reduction == "none" else -losses.sum() / len(losses)
    try:
        return F.nll_loss(log_probabilities, targets, reduction=reduction)
    except IndexError as error:
        classes = log_probabilities.shape[-1]
        raise ValueError(f"{error} Labels must be between 0 and {classes - 1}, or -100.") from error


def positions_of_targets(labels: torch.Tensor) -> torch.Tensor:
    """Return the indices of the labels that are not -100 in `labels.flatten()`; on a GPU, the host waits for them."""
    return (labels.flatten() != IGNORED).nonzero()[:, 0]


def masked_language_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    alpha: float,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Compute the masked-language loss, equation 7 of the paper; zero if no token is masked.

    That of the next token is the same.

    Args:
        logits: Logits of the masked tokens, (masked tokens, vocabulary).
        targets: The tokens that were masked, (masked tokens,); rows whose target is -100 have no weight.
        teacher_logits: The teacher's logits of the same tokens.
        alpha: Weight of the teacher in the targets, between 0 and 1.
        smoothing: Label smoothing, between 0 and 1.

    Returns:
        The mean over the masked tokens, a scalar.
    """
    losses = distilled_cross_entropy(logits, targets, teacher_logits, alpha, smoothing)
    has_target = targets != IGNORED
    return losses.masked_fill(~has_target, 0).sum() / has_target.sum().clamp(min=1)


def retrieval_targets(ids: torch.Tensor, queue_ids: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return the contrastive targets of fine-tuning: equal weights for all keys of the same image.

    Args:
        ids: Id of the image of each text, (batch,).
        queue_ids: Id of the image of each queued pair, -100 if unknown, (queue,); None without a queue.
        dtype: Data type of the targets.

    Returns:
        Weight of each key in each row, (batch, batch + queue).
    """
    keys = ids if queue_ids is None else torch.cat([ids, queue_ids])
    is_positive = (ids[:, None] == keys) & (keys != IGNORED)
    weights = is_positive.to(dtype).fill_diagonal_(1)  # a pair with an unknown id is its own positive
    return weights / weights.sum(1, keepdim=True)


def multinomial(weights: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Draw from each row without replacement, the same as `torch.multinomial` would.

    `torch.multinomial` reads whether the weights are valid: on a GPU, the host would wait twice for each call.

    Args:
        weights: At least 0, with `num_samples` positive ones in each row, (rows, choices).
        num_samples: Different choices that are drawn for each row.

    Returns:
        Indices of choices, (rows, num_samples).
    """
    return (weights / torch.empty_like(weights).exponential_()).topk(num_samples).indices


@torch.no_grad()
def sample_hard_negatives(
    logits_per_image: torch.Tensor,
    logits_per_text: torch.Tensor,
    is_negative: torch.Tensor,
    hardness: float = 1.0,
    num_negatives: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw hard negatives for every text and every image, the more similar the likelier (section 3.2 of the paper).

    Args:
        logits_per_image: Contrastive logits of the batch's images with all texts, (batch, all). Those of the batch
            come first; those of other processes follow if negatives are drawn from them, too.
        logits_per_text: Contrastive logits of the batch's texts with all images, (batch, all).
        is_negative: Whether image i and text j, and text i and image j, are a negative pair, (batch, all).
        hardness: Exponent of the distribution that negatives are drawn from; 1 as in the paper, 0 for uniform.
        num_negatives: Different negatives that are drawn for each text and each image; 1 as in the paper.

    Returns:
        Indices of images for the texts and of texts for the images, each (num_negatives * batch,): first one negative
        of each row, then another of each. In rows with fewer negatives than are drawn, some indices are of no
        negative; `matching_loss` ignores them.

    Raises:
        ValueError: If the batch has a single pair or fewer negatives than are to be drawn, or the hardness is negative
            or not finite.
    """
    if is_negative.shape[1] < 2:
        raise ValueError(
            "A batch of one pair has no negatives for image-text matching: use a batch size of at least 2 per "
            "process, and drop the last incomplete batch, also in evaluation (dataloader_drop_last=True of "
            "transformers' Trainer)."
        )
    if not 0 <= hardness < torch.inf:
        raise ValueError(
            f"hardness_strength is {hardness}: pass a number of at least 0. 0 draws negatives uniformly, 1 as in the "
            "paper."
        )
    if not 1 <= num_negatives < is_negative.shape[1]:
        raise ValueError(
            f"itm_negatives is {num_negatives}: a batch of {is_negative.shape[1]} pairs has 1 to "
            f"{is_negative.shape[1] - 1} negatives for each image and text. Lower it, or raise the batch size."
        )
    has_enough = is_negative.sum(1, keepdim=True) >= num_negatives

    def draw(logits: torch.Tensor) -> torch.Tensor:
        # At a small temperature every weight may underflow to zero; the floor makes that a uniform draw. NaN becomes
        # zero, too: the loss will be NaN and is checked on all processes, an error here would stop only this one.
        weights = (hardness * logits).softmax(-1).nan_to_num(0).clamp_min(1e-30)
        weights = weights.masked_fill(~is_negative & has_enough, 0)
        return multinomial(weights, num_negatives).T.flatten()

    return draw(logits_per_text), draw(logits_per_image)


def matching_loss(itm_logits: torch.Tensor, is_negative: torch.Tensor) -> torch.Tensor:
    """Compute the image-text matching loss, equation 4 of the paper.

    However many negatives there are, they have twice the weight of the pairs, as with the paper's two for each pair.

    Args:
        itm_logits: Logits of the pairs, then of what was drawn by `sample_hard_negatives`: each text with wrong
            images, and each image with wrong texts, ((1 + 2 * num_negatives) * batch, 2).
        is_negative: Whether what was drawn is a negative, (2 * num_negatives * batch,); what is not is ignored.

    Returns:
        The mean cross-entropy, a scalar.
    """
    batch = len(itm_logits) - len(is_negative)
    labels = torch.cat([is_negative.new_ones(batch, dtype=torch.long), torch.where(is_negative, 0, IGNORED)])
    weights = itm_logits.new_ones(2)
    weights[:1].fill_(2 * batch / len(is_negative))  # assigning to weights[0] would copy from the host
    return F.cross_entropy(itm_logits, labels, weights, ignore_index=IGNORED)


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: AlbefConfig,
    teacher_logits: torch.Tensor | None = None,
    alpha: float = 0.0,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the loss for `config.problem_type`, as transformers' sequence classification heads do.

    The teacher softens the targets as in equations 6 and 7 of the paper: by its softmax, by its sigmoids if there are
    several labels, or by its numbers.

    Args:
        logits: (batch, classes).
        labels: Class indices, (batch,), where -100 is ignored. For regression and multi-label classification, numbers,
            (batch, classes), or (batch,) if there is one class.
        config: If it has no `problem_type`, the number of classes and the type of the labels decide.
        teacher_logits: Logits of the teacher, (batch, classes).
        alpha: Weight of the teacher in the targets, between 0 and 1.
        class_weights: Weight of each class, (classes,), as `weight` of `torch.nn.functional.cross_entropy`, or
            `pos_weight` of `binary_cross_entropy_with_logits`.

    Returns:
        The mean loss, a scalar.

    Raises:
        ValueError: If the labels do not fit the problem type, a regression has weights of classes, or alpha is not
            between 0 and 1.
    """
    _check_weights(alpha)
    problem_type = _problem_type(logits, labels, config)
    if problem_type == "single_label_classification":
        labels = labels.flatten().long()
        losses = distilled_cross_entropy(logits, labels, teacher_logits, alpha)
        is_known = labels != IGNORED
        if class_weights is not None:
            weights = class_weights.to(losses.dtype)[labels.clamp(min=0)] * is_known
            return (weights * losses).sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)
        scale = len(is_known) / is_known.sum().clamp(min=1).to(losses.dtype)
        return losses.masked_fill(~is_known, 0).mean() * scale
    is_regression = problem_type == "regression"
    logits = at_least_float32(logits)
    targets = labels.view_as(logits).to(logits.dtype)
    if teacher_logits is not None and alpha != 0:
        soft_targets = at_least_float32(teacher_logits.detach())
        targets = (1 - alpha) * targets + alpha * (soft_targets if is_regression else soft_targets.sigmoid())
    if not is_regression:
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights)
    if class_weights is not None:
        raise ValueError("A regression has no classes to weigh: remove class_weights.")
    return F.mse_loss(logits, targets)


def _problem_type(logits: torch.Tensor, labels: torch.Tensor, config: AlbefConfig) -> str:
    """Return the configured or inferred problem type after checking that the labels fit it."""
    has_indices = labels.dtype in (torch.long, torch.int)
    inferred = "single_label_classification" if has_indices else "multi_label_classification"
    problem_type = config.problem_type or ("regression" if config.num_labels == 1 else inferred)
    if problem_type == "single_label_classification":
        fits = has_indices and labels.numel() == len(logits)
    else:
        fits = labels.shape == logits.shape or (labels.shape == logits.shape[:1] and logits.shape[1] == 1)
    if not fits:
        raise ValueError(
            f"labels of {labels.dtype}, {tuple(labels.shape)}, do not fit {problem_type} with logits "
            f"{tuple(logits.shape)}: pass integer class indices, (batch,), or set config.problem_type to "
            '"multi_label_classification" or "regression" and pass a number for each logit.'
        )
    return problem_type


def assignment_loss(
    logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None, alpha: float
) -> torch.Tensor:
    """Compute the loss of text assignment, a mean cross-entropy.

    Args:
        logits: (batch, 3).
        labels: Position of the text's own image: 0 first, 1 second, 2 neither, (batch,).
        teacher_logits: The teacher's logits of the same pairs of images.
        alpha: Weight of the teacher in the targets, between 0 and 1.

    Raises:
        ValueError: If the labels are not one integer per text.
    """
    if labels.shape != logits.shape[:1] or labels.dtype not in (torch.long, torch.int):
        raise ValueError(
            f"labels are {labels.dtype}, {tuple(labels.shape)}: pass 0, 1 or 2 as an integer for each of the "
            f"{len(logits)} texts."
        )
    return distilled_cross_entropy(logits, labels.long(), teacher_logits, alpha).mean()


@torch.no_grad()
def sample_image_pairs(similarities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw two images for each text: its own and a similar one in either order, or two similar ones.

    Args:
        similarities: Cosine of every image with every other, (batch, batch).

    Returns:
        Indices of two images for each text, (batch, 2), and the labels, (batch,): 0 if the text's own image is the
        first, 1 if it is the second, 2 if it is neither, with equal probabilities.

    Raises:
        ValueError: If there are fewer than three images.
    """
    batch = len(similarities)
    device = similarities.device
    if batch < 3:
        raise ValueError(
            f"A batch of {batch} does not have two wrong images per text: use a batch size of at least 3 per process, "
            "and drop the last incomplete batch, also in evaluation (dataloader_drop_last=True of "
            "transformers' Trainer)."
        )
    weights = (similarities / ASSIGNMENT_TEMPERATURE).softmax(1).nan_to_num(0).clamp_min(1e-30)
    pairs = multinomial(weights.fill_diagonal_(0), 2)  # two different wrong images
    labels = torch.randint(3, (batch,), device=device)
    # If one wrong image is needed, it is the one drawn first, whose probabilities are the weights.
    pairs = torch.where(labels[:, None] == 0, pairs.flip(1), pairs)
    own = torch.arange(batch, device=device)[:, None]
    is_own = labels[:, None] == torch.arange(2, device=device)
    return torch.where(is_own, own, pairs), labels


__all__ = [
    "IGNORED",
    "assignment_loss",
    "at_least_float32",
    "classification_loss",
    "cross_entropy",
    "distill",
    "distilled_cross_entropy",
    "masked_language_loss",
    "matching_loss",
    "multinomial",
    "retrieval_targets",
    "sample_hard_negatives",
    "sample_image_pairs",
    "positions_of_targets",
]
