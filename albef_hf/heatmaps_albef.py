"""Where a model looks: Grad-CAM heat maps of a score over the image, per word and per sentence, and what follows.

Grad-CAM (arXiv 1610.02391) on attention, as in figures 4 to 6 of the paper: attention to each patch times the positive
part of the score's gradient there. Cell 14 of the original's `visualization.ipynb`, and `Grounding.py`.
"""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .modeling_albef import AlbefAlignedModel, AlbefForQuestionAnswering

logger = logging.get_logger(f"transformers.{__name__}")

Box = Sequence[float]  # left, top, width and height in pixels, as in COCO
HeadReduction = Callable[[torch.Tensor], torch.Tensor]  # (batch, heads, ...) to (batch, ...)
TALLEST = 4  # a panel's height at most, as a multiple of its width


def _mean_of_heads(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean(1)


def matching_heatmaps(
    model: AlbefAlignedModel,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    layer: int | None = None,
    reduce_heads: HeadReduction = _mean_of_heads,
) -> torch.Tensor:
    """Where each token looks to see whether text and image match: Grad-CAM of the logit of a match, as the original's.

    Args:
        model: Has the multimodal encoder and the matching head.
        input_ids: (batch, tokens).
        pixel_values: The picture of each text, (batch, channels, height, width), of any resolution.
        attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
        layer: Of the multimodal encoder, counted from 0; by default at a third of its depth, which is layer 8 as the
            original counts them.
        reduce_heads: Makes one map of those of all heads.

    Returns:
        (batch, tokens, rows, columns) of patches, not negative; zero for padding. The mean over the tokens is the map
        of the sentence.

    Raises:
        ValueError: If there is no such layer, or the model has no matching head or is dynamically quantized.
    """

    _require_part(model, "itm_head", "AlbefForRetrieval or AlbefForPreTraining")

    def score(model: PreTrainedModel, attended: torch.Tensor) -> torch.Tensor:
        return model.itm_head(attended[:, 0])[:, 1]

    return _cross_attention_heatmaps(model, input_ids, pixel_values, attention_mask, layer, reduce_heads, score)


def answer_heatmaps(
    model: AlbefForQuestionAnswering,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    answer_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    layer: int | None = None,
    reduce_heads: HeadReduction = _mean_of_heads,
) -> torch.Tensor:
    """Where each token of a question looks for an answer: Grad-CAM of the answer's log-likelihood.

    Args:
        model: Answers questions.
        input_ids: Questions, (questions, tokens).
        pixel_values: The picture of each question, (questions, channels, height, width).
        answer_ids: An answer to each, (questions, tokens), `[CLS]` first; from `AlbefProcessor.encode_answers` or
            `generate`.
        attention_mask: (questions, tokens), 1 for tokens and 0 for padding.
        layer: As in `matching_heatmaps`.
        reduce_heads: As in `matching_heatmaps`.

    Returns:
        (questions, tokens, rows, columns), as `matching_heatmaps`.
    """

    _require_part(model, "decoder", "AlbefForQuestionAnswering")

    def score(model: PreTrainedModel, attended: torch.Tensor) -> torch.Tensor:
        labels = answer_ids.masked_fill(answer_ids == model.config.text_config.pad_token_id, -100)
        return model._log_likelihood(labels, model.decoder.project_questions(attended), attention_mask)

    return _cross_attention_heatmaps(model, input_ids, pixel_values, attention_mask, layer, reduce_heads, score)


def contrastive_heatmaps(
    model: AlbefAlignedModel,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    layer: int = -1,
    reduce_heads: HeadReduction = _mean_of_heads,
) -> torch.Tensor:
    """Where the image encoder looks for what a text says: Grad-CAM of the ITC score.

    Args:
        model: Has the joint space.
        input_ids: (batch, tokens).
        pixel_values: The picture of each text, (batch, channels, height, width), of any resolution.
        attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
        layer: Of the image encoder, counted from 0.
        reduce_heads: As in `matching_heatmaps`.

    Returns:
        (batch, rows, columns) of patches, not negative.
    """
    _require_part(model, "get_image_features", "AlbefForRetrieval or AlbefForPreTraining")
    with _gradients():
        model, pixel_values = _eager_copy(model), pixel_values.detach().clone().requires_grad_()
        images = model.get_image_features(pixel_values, interpolate_pos_encoding=True, output_attentions=True)
        texts = model.get_text_features(_differentiable(input_ids), attention_mask)
        similarity = model.contrastive_head(images.pooler_output, texts.pooler_output).diagonal()
        maps = _grad_cam(_of_layer(images.attentions, layer), similarity, reduce_heads)[:, 0]
    return maps.unflatten(-1, _grid(model, pixel_values))


def _cross_attention_heatmaps(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layer: int | None,
    reduce_heads: HeadReduction,
    score: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    with _gradients():
        model, pixel_values = _eager_copy(model), pixel_values.detach().clone().requires_grad_()
        input_ids = _differentiable(input_ids)
        outputs = model.albef(
            input_ids, pixel_values, attention_mask, interpolate_pos_encoding=True, output_attentions=True
        )
        attentions = outputs.multimodal_model_output.cross_attentions
        if layer is None:  # not the last, in which no word has a part in the score
            layer = max(min(round(len(attentions) / 3), len(attentions) - 2), 0)
        maps = _grad_cam(_of_layer(attentions, layer), score(model, outputs.last_hidden_state), reduce_heads)
    if attention_mask is not None:
        maps = maps * attention_mask[..., None]
    return maps.unflatten(-1, _grid(model, pixel_values))


@contextlib.contextmanager
def _gradients() -> Iterator[None]:
    """Compute gradients, even if the caller does not."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _eager_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy modules and configurations, but share weights and hooks; without dropout, and with attention returned.

    The model itself stays as it is, since other threads may be using it.
    """
    parts = list(model.modules())
    if any(callable(getattr(part, "weight", None)) for part in parts):
        raise ValueError(
            "The model is dynamically quantized, and no gradient passes its layers: give the model that it was made "
            "of."
        )
    tensors = itertools.chain(model.parameters(), model.buffers())
    tables = (table for part in parts for name, table in vars(part).items() if name.endswith("_hooks") and table)
    shared = {id(hook): hook for table in tables if isinstance(table, dict) for hook in table.values()}
    private = copy.deepcopy(model, shared | {id(tensor): _differentiable(tensor) for tensor in tensors}).eval()
    for part in private.modules():  # one by one: `set_attn_implementation` of transformers 5.17 may skip a decoder
        if isinstance(part, PreTrainedModel):
            part.config._attn_implementation = "eager"
    return private


def _require_part(model: PreTrainedModel, name: str, remedy: str) -> None:
    if not hasattr(model, name):
        raise ValueError(f"{type(model).__name__} has no {name}: give {remedy}.")


def _differentiable(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor that was made in inference mode, which no gradient can pass."""
    return tensor.clone() if tensor.is_inference() else tensor


def _of_layer(attentions: Sequence[torch.Tensor], layer: int) -> torch.Tensor:
    try:
        return attentions[layer]
    except (IndexError, TypeError) as error:
        layers = len(attentions)
        raise ValueError(f"layer is {layer!r:.100}; it has to be a whole number from 0 to {layers - 1}.") from error


def _grad_cam(attention: torch.Tensor, score: torch.Tensor, reduce_heads: HeadReduction) -> torch.Tensor:
    """Attention (batch, heads, tokens, patches + 1) and scores (batch,) to maps, (batch, tokens, patches)."""
    (gradient,) = torch.autograd.grad(score.sum(), attention)
    return reduce_heads((attention.detach() * gradient.clamp(min=0))[..., 1:])


def _grid(model: PreTrainedModel, pixel_values: torch.Tensor) -> tuple[int, int]:
    patch = model.config.vision_config.patch_size
    return pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch


def word_heatmaps(
    tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor, heatmaps: torch.Tensor
) -> tuple[list[str], torch.Tensor]:
    """Put the pieces of words together again.

    Args:
        tokenizer: A BERT tokenizer, whose pieces within a word start with `##`.
        input_ids: Of one text, (tokens,).
        heatmaps: Of its tokens, (tokens, rows, columns).

    Returns:
        The words, without special tokens, and the mean map of the pieces of each, (words, rows, columns). A warning is
        logged if all of these maps are zero, as in the last multimodal layer, though that of the sentence is not.
    """
    words: list[str] = []
    members: list[list[int]] = []
    for position, (number, token) in enumerate(
        zip(input_ids.tolist(), tokenizer.convert_ids_to_tokens(input_ids.tolist()), strict=True)
    ):
        if number in tokenizer.all_special_ids:
            continue
        if token.startswith("##") and words:
            words[-1] += token.removeprefix("##")
            members[-1].append(position)
        else:
            words.append(token)
            members.append([position])
    if not words:
        return [], heatmaps[:0]
    maps = torch.stack([heatmaps[positions].mean(0) for positions in members])
    if heatmaps.any() and not maps.any():
        logger.warning_once(
            "The maps of all words are zero: none of them adds to the score. After the last multimodal layer only "
            "[CLS] is read: if the maps are of that layer, choose a layer below it; if there is no other, pass each "
            "word as a text to contrastive_heatmaps."
        )
    return words, maps


def resize_heatmap(heatmap: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A map of (rows, columns) patches at the picture's resolution, (height, width); bicubic, as the original's."""
    return F.interpolate(heatmap[None, None].float(), size=(height, width), mode="bicubic")[0, 0]


def score_boxes(
    heatmap: torch.Tensor, boxes: Sequence[Box], image_size: tuple[int, int], alpha: float = 0.5
) -> torch.Tensor:
    """How much of the heat each box holds: its sum over the area to the power alpha (`grounding_eval` in `utils.py`).

    Args:
        heatmap: Of a sentence, (rows, columns).
        boxes: Left, top, width and height in pixels.
        image_size: Width and height of the picture in pixels.
        alpha: 0 favours large boxes, 1 small and hot ones; the original's 0.5.

    Returns:
        (boxes,); the highest is the box that the sentence means.
    """
    heat = resize_heatmap(heatmap, image_size[1], image_size[0])
    scores = [
        heat[_span(top, height), _span(left, width)].sum() / max(width * height, 1) ** alpha
        for left, top, width, height in boxes
    ]
    return torch.stack(scores) if scores else heat.new_zeros(0)


def _span(start: float, length: float) -> slice:
    """Pixels of a box along one side; what lies outside of the picture has none."""
    return slice(max(int(start), 0), max(int(start + length), 0))


def overlay(image: Image.Image, heatmap: torch.Tensor, opacity: float = 0.6) -> Image.Image:
    """The picture in grey under its heat, from blue over yellow to red; the hottest patch is red."""
    heat = resize_heatmap(heatmap.cpu(), image.height, image.width).clamp(min=0)
    heat = (heat / heat.max().clamp(min=1e-12)).numpy()[..., None]
    cold, warm, hot = (np.array(color, dtype=np.float32) for color in ((40, 60, 160), (250, 220, 60), (200, 20, 30)))
    color = np.where(heat < 0.5, cold + (warm - cold) * 2 * heat, warm + (hot - warm) * (2 * heat - 1))
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    share = opacity * (0.25 + 0.75 * heat)
    return Image.fromarray(((1 - share) * grey + share * color).clip(0, 255).astype(np.uint8))


def panels(
    image: Image.Image, words: Sequence[str], heatmaps: torch.Tensor, columns: int = 4, size: int = 240
) -> Image.Image:
    """The picture, and beside it one overlay a word, as in figures 4 to 6 of the paper.

    Args:
        image: The picture.
        words: What to write above each overlay.
        heatmaps: (words, rows, columns).
        columns: Panels in a row.
        size: Width of a panel in pixels; an image that is too narrow or too wide for it is distorted.
    """
    height, caption = max(round(size * min(image.height / image.width, TALLEST)), 1), 24
    pictures = [image.convert("RGB"), *(overlay(image, heatmap) for heatmap in heatmaps)]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (size + 8) + 8, rows * (height + caption + 8) + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (picture, title) in enumerate(zip(pictures, ["", *words], strict=True)):
        left, top = 8 + number % columns * (size + 8), 8 + number // columns * (height + caption + 8)
        draw.text((left, top + 2), title, fill="black", font=font)
        sheet.paste(picture.resize((size, height), Image.Resampling.BICUBIC), (left, top + caption))
    return sheet


__all__ = [
    "answer_heatmaps",
    "contrastive_heatmaps",
    "matching_heatmaps",
    "overlay",
    "panels",
    "resize_heatmap",
    "score_boxes",
    "word_heatmaps",
]
