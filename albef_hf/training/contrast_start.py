"""Start matching from contrast: the first log-odds of a match follow the cosine of image and text.

A new multimodal layer has to learn again what contrast knows already, from the negatives of one batch at a time, and
with few images it does not get there. Here the layer is filled with what contrast knows; from there it learns what the
cosine does not tell. The paper has nothing of the kind.

With small random queries and keys, attention is about the mean of all tokens. Self-attention writes the projection of
the text into one half of the state of `[CLS]`, cross-attention that of the image into the other half, and the
feed-forward part multiplies them: gelu(x) + gelu(-x) is about 0.8 x ** 2 for small x, and the difference of
(a + b) ** 2 and (a - b) ** 2 is 4ab.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from ..calibration_albef import matching_log_odds
from ..configuration_albef import AlbefConfig
from ..data import InvalidSampleError
from ..encoders_albef import AlbefAttention, AlbefMLP
from ..matching_albef import EncodedPairs
from ..modeling_albef import AlbefForRetrieval

SAMPLE = 256  # pairs on which projections are measured
LEAST_CORRELATION = 0.7  # of the log-odds with the cosines of a sample
INITIAL_STD = 0.02  # of what is random, as in BERT
OVER_RESIDUAL = 20  # the projection of the text hides the state that it is added to
INPUT_SCALE = 0.3  # of what is squared, so that gelu is a parabola
SPREAD = 8  # of the product that the head reads, for cosines between 0 and 1


def start_from_rows(
    model: AlbefForRetrieval, task: Any, rows: Sequence[Any], seed: int, accelerator: Accelerator
) -> None:
    """Start the matching of a model from its contrast, measured on rows to train on; print how well it follows.

    Raises:
        ValueError: If it cannot, see `start_matching_from_contrast`, or fewer than two rows can be read.
    """
    pairs = read_pairs(model.to(accelerator.device).eval(), task, rows, seed)
    correlation = start_matching_from_contrast(model, pairs)
    accelerator.print(
        f"matching starts from contrast: among {len(pairs.images)} training pairs, the log-odds of a match correlate "
        f"with the cosine by {correlation:.2f}"
    )


@torch.no_grad()
def read_pairs(model: AlbefForRetrieval, task: Any, rows: Sequence[Any], seed: int) -> EncodedPairs:
    """Encode pairs of some rows, drawn at random; those that cannot be read are left out.

    Raises:
        ValueError: If fewer than two can be read.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for index in rng.permutation(len(rows))[:SAMPLE].tolist():
        try:
            samples.append(task.preprocess_train(rows[index], rng))
        except InvalidSampleError:
            continue
    if len(samples) < 2:
        raise ValueError("start_matching_from_contrast needs two rows that can be read: check train_files.")
    batch = task.collate(samples)
    images = [
        model.albef.vision_model(task.normalize(pixels[None]).to(model.device)).last_hidden_state
        for pixels in batch["pixel_values"]
    ]
    mask = batch["attention_mask"].to(model.device)
    texts = model.albef.text_model(batch["input_ids"].to(model.device), mask).last_hidden_state
    return EncodedPairs(torch.cat(images), texts, mask)


@torch.no_grad()
def start_matching_from_contrast(model: AlbefForRetrieval, pairs: EncodedPairs) -> float:
    """Replace the multimodal layer and the matching head by ones whose log-odds follow the cosine over temperature.

    Args:
        model: A model with one multimodal layer, in evaluation mode.
        pairs: At least two pairs, to measure the projections on.

    Returns:
        The correlation of log-odds and cosines among all images and texts of the pairs.

    Raises:
        ValueError: If the layer has another form, or its log-odds do not follow: contrast has to pool images and texts
            by the mean, as attention does.
    """
    check_form(model.config)
    layer, head = model.albef.multimodal_model.layers[0], model.contrastive_head
    width = model.config.text.hidden_size
    rank = min((width - 2) // 2, model.config.text.intermediate_size // 4, model.config.projection_dim)
    for weights in (*layer.modules(), model.itm_head):
        _initialize(weights)
    mask = pairs.attention_mask[:, :, None].to(pairs.texts.dtype)
    images = head.image_projection(pairs.images.mean(1))
    texts = head.text_projection((pairs.texts * mask).sum(1) / mask.sum(1))
    directions = main_directions(torch.cat([F.normalize(images, dim=-1), F.normalize(texts, dim=-1)]), rank)
    _write_projection(layer.self_attn, head.text_projection, directions, texts, 0, OVER_RESIDUAL * width**0.5)
    _write_projection(layer.cross_attn, head.image_projection, directions, images, rank, width**0.5)
    _write_products(layer.mlp, rank)
    model.itm_head.weight.zero_()
    model.itm_head.weight[:, -2:] = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])

    key_values = model.albef.multimodal_model.project_images(pairs.images)
    cls = model.albef.multimodal_model.encode_cls_of_all_pairs(pairs.texts, pairs.attention_mask, key_values)
    products = matching_log_odds(model.itm_head(cls))
    cosines = head.project_image(pairs.images) @ head.project_text(pairs.texts, pairs.attention_mask).T
    covariance = torch.cov(torch.stack([products.flatten(), cosines.flatten()]))
    correlation = float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt())
    if not correlation >= LEAST_CORRELATION:
        raise ValueError(
            f"The new matching does not follow contrast, their correlation is {correlation:.2f}: "
            "start_matching_from_contrast needs a trained contrast that pools images and texts by the mean "
            "(image_pooling, text_pooling)."
        )
    scale = covariance[1, 1] / covariance[0, 1] / head.temperature
    model.itm_head.weight *= scale
    model.itm_head.bias[1] = (
        -scale * (products.mean() + products.diagonal().mean()) / 2
    )  # even between wrong and right
    return correlation


def check_form(config: AlbefConfig) -> None:
    """Raise a `ValueError` for a multimodal encoder that cannot start from contrast."""
    text = config.text
    if text.num_multimodal_layers != 1 or not text.hidden_act.startswith("gelu"):
        raise ValueError(
            "start_matching_from_contrast needs a multimodal encoder of one layer with gelu, this one has "
            f"{text.num_multimodal_layers} with {text.hidden_act}: train matching without the option."
        )


def main_directions(features: torch.Tensor, rank: int) -> torch.Tensor:
    """Return orthonormal directions that keep most of the products of (pairs, projection) features, (rank, ...)."""
    _, directions = torch.linalg.eigh(features.T @ features)  # in ascending order
    return directions[:, -rank:].T


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INITIAL_STD)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def _write_projection(
    attention: AlbefAttention,
    projection: nn.Linear,
    directions: torch.Tensor,
    projected: torch.Tensor,
    start: int,
    length: float,
) -> None:
    """Let attention write the directions of a projection to the places of a state from `start` on.

    Args:
        attention: Its values and output are changed.
        projection: That of contrast.
        directions: (rank, projection).
        projected: What the projection returns, (pairs, projection); the mean of their norms becomes `length`.
        start: First place.
        length: Norm of what is written.
    """
    rank = len(directions)
    norm = (projected @ directions.T).norm(dim=1).mean()
    attention.v_proj.weight[:rank] = directions @ projection.weight / norm
    attention.v_proj.bias[:rank] = directions @ projection.bias / norm
    attention.out_proj.weight[:, :rank] = 0
    attention.out_proj.weight[start : start + rank, :rank] = length * torch.eye(rank, device=directions.device)


def _write_products(mlp: AlbefMLP, rank: int) -> None:
    """Let the feed-forward part write the product of the first `rank` places and the next to the last two places."""
    identity = INPUT_SCALE * torch.eye(rank, device=mlp.fc1.weight.device)
    width = mlp.fc1.in_features
    gain = SPREAD / (
        0.8 * INPUT_SCALE**2 * 2 * width
    )  # each half of a normalized state has a squared norm of width / 2
    for block, (text_sign, image_sign) in enumerate([(1, 1), (-1, -1), (1, -1), (-1, 1)]):
        units = slice(block * rank, (block + 1) * rank)
        mlp.fc1.weight[units] = 0
        mlp.fc1.weight[units, :rank] = text_sign * identity
        mlp.fc1.weight[units, rank : 2 * rank] = image_sign * identity
        mlp.fc2.weight[:, units] = 0
        mlp.fc2.weight[-1, units] = gain * text_sign * image_sign
        mlp.fc2.weight[-2, units] = -gain * text_sign * image_sign
