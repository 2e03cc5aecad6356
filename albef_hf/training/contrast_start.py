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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from ..configuration_albef import AlbefConfig
from ..data import InvalidSampleError
from ..encoders_albef import AlbefAttention, AlbefMLP
from ..matching_albef import EncodedPairs
from ..modeling_albef import AlbefForRetrieval
from ..momentum import MomentumTeacher

if TYPE_CHECKING:
    from ..tasks.retrieval import PairTask

SAMPLE = 256  # pairs on which projections are measured
LEAST_CORRELATION = 0.8  # of the log-odds with the cosines of a sample
INITIAL_STD = 0.02  # of what is random, as in BERT
OVER_RESIDUAL = 20  # the projection of the text hides the state that it is added to
INPUT_SCALE = 0.3  # of what is squared, so that gelu is a parabola
SPREAD = 8  # of the product that the head reads, for cosines between 0 and 1


def start_from_rows(
    model: AlbefForRetrieval,
    teacher: MomentumTeacher | None,
    task: "PairTask",
    rows: Sequence[Any],
    accelerator: Accelerator,
) -> None:
    """Start the matching of a model from its contrast, measured on rows to train on; print how well it follows.

    The teacher's matching is replaced, too: no loss of retrieval uses it, but it is saved as the model's average.

    Raises:
        ValueError: If it cannot, see `start_matching_from_contrast`, or fewer than two rows can be read.
    """
    pairs = read_pairs(model.to(accelerator.device).eval(), task, rows, task.args.seed)
    correlation = start_matching_from_contrast(model, pairs)
    if teacher is not None:
        for part in ("albef.multimodal_model", "itm_head"):
            teacher.model.get_submodule(part).load_state_dict(model.get_submodule(part).state_dict())
    accelerator.print(
        f"matching starts from contrast: among {len(pairs.images)} training pairs, the log-odds of a match correlate "
        f"with the cosine by {correlation:.2f}"
    )


@torch.no_grad()
def read_pairs(model: AlbefForRetrieval, task: "PairTask", rows: Sequence[Any], seed: int) -> EncodedPairs:
    """Encode pairs of some rows, drawn at random; those that cannot be read are left out.

    Raises:
        ValueError: If fewer than two can be read.
    """
    rng = np.random.default_rng(seed)
    samples: list[dict[str, Any]] = []
    problem: InvalidSampleError | None = None
    for index in rng.permutation(len(rows))[:SAMPLE].tolist():
        try:
            samples.append(task.preprocess_train(rows[index], rng))
        except InvalidSampleError as error:
            problem = error
    if len(samples) < 2:
        raise ValueError(
            f"start_matching_from_contrast needs two rows that can be used ({problem or 'there are not as many'}). "
            "Check image_root, and the columns or keys of the rows."
        )
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
        ValueError: If the model has another form, or the log-odds do not follow the cosine: contrast has to pool
            images by the mean, as attention does.
    """
    check_form(model.config)
    model.albef.multimodal_model.layers[0].apply(_initialize)
    _write_layer(model, pairs)
    key_values = model.albef.multimodal_model.project_images(pairs.images)
    cls = model.albef.multimodal_model.encode_cls_of_all_pairs(pairs.texts, pairs.attention_mask, key_values)
    products = cls[..., -1] - cls[..., -2]
    image_embeds = model.contrastive_head.project_image(pairs.images)
    cosines = image_embeds @ model.contrastive_head.project_text(pairs.texts, pairs.attention_mask).T
    covariance = torch.cov(torch.stack([products.flatten(), cosines.flatten()]))
    correlation = float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt())
    if not correlation >= LEAST_CORRELATION:
        raise ValueError(
            f"The new matching does not follow contrast, their correlation is {correlation:.2f}: "
            "start_matching_from_contrast needs a contrast that pools images by the mean of their patches "
            "(image_pooling), at the size that it was trained with."
        )
    scale = float(covariance[1, 1] / covariance[0, 1] / model.contrastive_head.temperature)
    model.itm_head.weight.zero_()
    model.itm_head.weight[:, -2:] = scale / 2 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # (no match, match)
    middle = (products.mean() + products.diagonal().mean()) / 2  # of wrong and right pairs, where odds are even
    model.itm_head.bias[1] = -scale * middle
    return correlation


def check_form(config: AlbefConfig) -> None:
    """Raise a `ValueError` for a model whose matching cannot start from contrast."""
    text = config.text
    if config.text_pooling != "mean":
        raise ValueError(
            "start_matching_from_contrast needs a contrast that was trained with a text_pooling of mean, this one has "
            f"{config.text_pooling}: train matching without the option."
        )
    if text.num_multimodal_layers != 1 or not text.hidden_act.startswith("gelu"):
        raise ValueError(
            "start_matching_from_contrast needs a multimodal encoder of one layer with gelu, this one has "
            f"{text.num_multimodal_layers} with {text.hidden_act}: train matching without the option."
        )


def _write_layer(model: AlbefForRetrieval, pairs: EncodedPairs) -> None:
    """Let the last two places of the layer's output be the product of text and image, and its negative."""
    layer, head = model.albef.multimodal_model.layers[0], model.contrastive_head
    text = model.config.text
    rank = min((text.hidden_size - 2) // 2, text.intermediate_size // 4, model.config.projection_dim)
    length = text.hidden_size**0.5  # of a normalized state
    mask = pairs.attention_mask[:, :, None].to(pairs.texts.dtype)
    texts = head.text_projection((pairs.texts * mask).sum(1) / mask.sum(1))
    images = head.image_projection(pairs.images.mean(1))
    directions = main_directions(torch.cat([F.normalize(images, dim=-1), F.normalize(texts, dim=-1)]), rank)
    _write_projection(layer.self_attn, head.text_projection, directions, texts, 0, OVER_RESIDUAL * length)
    _write_projection(layer.cross_attn, head.image_projection, directions, images, rank, length)
    _write_products(layer.mlp, rank)


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
    # Each half of a normalized state has a squared norm of width / 2.
    gain = SPREAD / (0.8 * INPUT_SCALE**2 * 4 * width / 2)
    for block, (text_sign, image_sign) in enumerate([(1, 1), (-1, -1), (1, -1), (-1, 1)]):
        units = slice(block * rank, (block + 1) * rank)
        mlp.fc1.weight[units] = 0
        mlp.fc1.weight[units, :rank] = text_sign * identity
        mlp.fc1.weight[units, rank : 2 * rank] = image_sign * identity
        mlp.fc2.weight[:, units] = 0
        mlp.fc2.weight[-1, units] = gain * text_sign * image_sign
        mlp.fc2.weight[-2, units] = -gain * text_sign * image_sign
