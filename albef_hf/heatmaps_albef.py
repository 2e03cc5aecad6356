"""Grad-CAM heat maps of a score over the image, per token, word or sentence; boxes and overlays.

Grad-CAM (arXiv 1610.02391) on attention, as in figures 4 to 6 of the paper: attention to each patch times the positive
part of the score's gradient there. Cell 14 of the original's `visualization.ipynb`, and `Grounding.py`.
"""

import contextlib
import copy
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput, logging

from .compatibility_albef import renamed_attribute
from .processing_albef import is_wordpiece

logger = logging.get_logger(f"transformers.{__name__}")

Box = Sequence[float]  # left, top, width and height in pixels, as in COCO
HeadReduction = Callable[[torch.Tensor], torch.Tensor]  # (batch, heads, ...) to (batch, ...)
WORD_BEGINNINGS = ("▁", "Ġ")  # the space in tokens of SentencePiece and of byte-level BPE
MAX_ASPECT_RATIO = 4  # of an overlay in a grid: taller images are squeezed
OPACITY = 0.7  # of full heat
MARGIN = 8  # of a grid, in pixels
TITLE_HEIGHT = 24
FONT_SIZE = 15

# English articles, pronouns, auxiliaries, conjunctions and prepositions.
_FUNCTION_WORDS = """
a an the
i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours
ourselves they them their theirs themselves this that these those who whom whose which what there each other another
some any both
am is are was were be been being has have having had do does did can could will would shall should may might must
and or but nor so yet if while as than because when where though although
about above across after against along alongside among amid around at atop before behind below beneath beside besides
between beyond by down during for from in inside into near next of off on onto out outside over past through to
together toward towards under underneath until up upon via with within without
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def _mean_of_heads(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean(1)


def matching_heatmaps(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    layer: int | None = None,
    reduce_heads: HeadReduction = _mean_of_heads,
) -> torch.Tensor:
    """Compute Grad-CAM of the matching logit for each token, as the original does.

    Args:
        model: A model with the multimodal encoder and the matching head.
        input_ids: (batch, tokens).
        pixel_values: The image of each text, (batch, channels, height, width), of any resolution.
        attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
        layer: Index of a layer of the multimodal encoder; by default at a third of its depth, which is layer 8 in the
            original's count.
        reduce_heads: Reduces the maps of all heads to one.

    Returns:
        (batch, tokens, rows, columns) of patches, not negative; zero for padding. The mean over the tokens is the map
        of the sentence.

    Raises:
        ValueError: If there is no such layer, or the model has no matching head or is dynamically quantized.
    """
    _require_part(model, "itm_head", "AlbefForRetrieval or AlbefForPreTraining")

    def score(model: PreTrainedModel, fused: torch.Tensor) -> torch.Tensor:
        return model.itm_head(fused[:, 0])[:, 1]

    return _cross_attention_heatmaps(model, input_ids, pixel_values, attention_mask, layer, reduce_heads, score)


def answer_heatmaps(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    answer_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    layer: int | None = None,
    reduce_heads: HeadReduction = _mean_of_heads,
) -> torch.Tensor:
    """Compute Grad-CAM of an answer's log-likelihood for each token of its question.

    Args:
        model: An `AlbefForQuestionAnswering`.
        input_ids: Questions, (questions, tokens).
        pixel_values: The image of each question, (questions, channels, height, width).
        answer_ids: An answer to each question, (questions, tokens), `[CLS]` first; from
            `AlbefProcessor.encode_answers` or `generate`.
        attention_mask: (questions, tokens), 1 for tokens and 0 for padding.
        layer: As in `matching_heatmaps`.
        reduce_heads: As in `matching_heatmaps`.

    Returns:
        (questions, tokens, rows, columns), as in `matching_heatmaps`.
    """
    _require_part(model, "decoder", "AlbefForQuestionAnswering")

    def score(model: PreTrainedModel, fused: torch.Tensor) -> torch.Tensor:
        labels = answer_ids.masked_fill(answer_ids == model.config.text_config.pad_token_id, -100)
        return model._log_likelihood(labels, model.decoder.project_questions(fused), attention_mask)

    return _cross_attention_heatmaps(model, input_ids, pixel_values, attention_mask, layer, reduce_heads, score)


def caption_heatmaps(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    layer: int | None = None,
    reduce_heads: HeadReduction = _mean_of_heads,
) -> torch.Tensor:
    """Compute Grad-CAM of each token's log-likelihood, on the attention of the token before it, which predicts it.

    Args:
        model: An `AlbefForImageCaptioning`.
        input_ids: Captions, (captions, tokens), `[CLS]` first; from `AlbefProcessor.encode_captions` or `generate`.
        pixel_values: The image of each caption, (captions, channels, height, width), of any resolution.
        attention_mask: (captions, tokens), 1 for tokens and 0 for padding.
        layer: As in `matching_heatmaps`.
        reduce_heads: As in `matching_heatmaps`.

    Returns:
        (captions, tokens, rows, columns), as in `matching_heatmaps`; zero for the first token, which is given.
    """
    _require_part(model, "token_log_likelihoods", "AlbefForImageCaptioning")
    with _gradients():
        model = _eager_copy(model)
        input_ids = _differentiable(input_ids)
        attention, outputs, grid = _cross_attention(model, input_ids, pixel_values, attention_mask, layer)
        scores = model.token_log_likelihoods(outputs.last_hidden_state, input_ids)
        maps = [
            _grad_cam(attention, scores[:, token], reduce_heads, grid, retain_graph=True)[:, token]
            for token in range(scores.shape[1])
        ]
    maps = torch.stack([torch.zeros_like(maps[0]), *maps], dim=1)
    if attention_mask is not None:
        maps = maps * attention_mask[..., None]
    return maps.unflatten(-1, grid)


def contrastive_heatmaps(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    layer: int = -1,
    reduce_heads: HeadReduction = _mean_of_heads,
) -> torch.Tensor:
    """Compute Grad-CAM of the ITC score in the image encoder: on attention, or on the states of the last layer.

    Attention of a class token, if the score depends on it alone; the states of the patches, if they are pooled.

    Args:
        model: A model with the joint space.
        input_ids: (batch, tokens).
        pixel_values: The image of each text, (batch, channels, height, width), of any resolution.
        attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
        layer: Index of a layer of the image encoder; only the last if patches are pooled.
        reduce_heads: As in `matching_heatmaps`.

    Returns:
        (batch, rows, columns) of patches, not negative.
    """
    _require_part(model, "get_image_features", "AlbefForRetrieval or AlbefForPreTraining")
    with _gradients():
        model = _eager_copy(model)
        pixel_values = pixel_values.detach().clone().requires_grad_()
        images = model.albef.vision_model(pixel_values, interpolate_pos_encoding=True, output_attentions=True)
        texts = model.get_text_features(_differentiable(input_ids), attention_mask)
        image_embeds = model.contrastive_head.project_image(images.last_hidden_state)
        similarity = model.contrastive_head(image_embeds, texts.pooler_output).diagonal()
        grid = _grid(model, pixel_values, images.last_hidden_state)
        if images.get("features") is not None:
            encoder = model.albef.vision_model
            (gradient,) = torch.autograd.grad(similarity.sum(), images.features, retain_graph=True)
            gradient = encoder.flatten(gradient)[:, -math.prod(grid) :]
            if gradient.any():  # the score depends on patches themselves, not on a class token that attends to them
                patches = encoder.flatten(images.features.detach())[:, -math.prod(grid) :]
                return _feature_heatmaps(patches, gradient, layer).unflatten(-1, grid)
        if images.attentions is None:
            raise ValueError(
                f"{type(model.albef.vision_model.encoder).__name__} does not return its attention, so the contrastive "
                "score has no heat map: use matching_heatmaps, or set image_pooling to mean."
            )
        maps = _grad_cam(_select_layer(images.attentions, layer), similarity, reduce_heads, grid)[:, 0]
    return maps.unflatten(-1, grid)


def _feature_heatmaps(patches: torch.Tensor, gradient: torch.Tensor, layer: int) -> torch.Tensor:
    """Compute Grad-CAM as its paper does, on last states and gradients, (batch, patches, width)."""
    if layer != -1:
        raise ValueError(
            f"layer is {layer}: the contrastive score depends on the patches of the last layer themselves, so leave "
            "layer at -1."
        )
    return (patches * gradient.mean(1, keepdim=True)).sum(-1).clamp(min=0)


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
        model = _eager_copy(model)
        attention, outputs, grid = _cross_attention(model, input_ids, pixel_values, attention_mask, layer)
        maps = _grad_cam(attention, score(model, outputs.last_hidden_state), reduce_heads, grid)
    if attention_mask is not None:
        maps = maps * attention_mask[..., None]
    return maps.unflatten(-1, grid)


def _cross_attention(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layer: int | None,
) -> tuple[torch.Tensor, ModelOutput, tuple[int, int]]:
    """Return the attention of a multimodal layer to the image, with its gradient, all outputs, and the grid."""
    pixel_values = pixel_values.detach().clone().requires_grad_()
    outputs = model.albef(
        _differentiable(input_ids),
        pixel_values,
        attention_mask,
        interpolate_pos_encoding=True,
        output_attentions=True,
    )
    attentions = outputs.multimodal_model_output.cross_attentions
    if layer is None:  # not the last layer, where a score of [CLS] has no gradient for words
        layer = max(min(round(len(attentions) / 3), len(attentions) - 2), 0)
    return _select_layer(attentions, layer), outputs, _grid(model, pixel_values, outputs.image_hidden_states)


@contextlib.contextmanager
def _gradients() -> Iterator[None]:
    """Compute gradients, even if the caller disabled them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _eager_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model to evaluation mode with eager attention, which can return its probabilities.

    Modules and configurations are copied, weights and hooks are shared. The model itself does not change, since other
    threads may be using it.

    Raises:
        ValueError: If the model is dynamically quantized.
    """
    parts = list(model.modules())
    if any(callable(getattr(part, "weight", None)) for part in parts):
        raise ValueError(
            "The model is dynamically quantized, and its layers have no gradient: pass the model that was quantized."
        )
    tensors = itertools.chain(model.parameters(), model.buffers())
    hooks = (table for part in parts for name, table in vars(part).items() if name.endswith("_hooks") and table)
    shared = {id(hook): hook for table in hooks if isinstance(table, dict) for hook in table.values()}
    shared |= {id(tensor): _differentiable(tensor) for tensor in tensors}
    private = copy.deepcopy(model, shared).eval()
    for part in private.modules():  # one by one: `set_attn_implementation` of transformers 5.17 may skip a decoder
        if isinstance(part, PreTrainedModel):
            part.config._attn_implementation = "eager"
    return private


def _require_part(model: PreTrainedModel, name: str, remedy: str) -> None:
    if not hasattr(model, name):
        raise ValueError(f"{type(model).__name__} has no {name}: pass {remedy}.")


def _differentiable(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor that was created in inference mode, which cannot have gradients."""
    return tensor.clone() if tensor.is_inference() else tensor


def _select_layer(attentions: Sequence[torch.Tensor], layer: int) -> torch.Tensor:
    try:
        return attentions[layer]
    except (IndexError, TypeError) as error:
        last = len(attentions) - 1
        raise ValueError(f"layer is {layer!r:.100}: it must be a whole number from 0 to {last}.") from error


def _grad_cam(
    attention: torch.Tensor,
    score: torch.Tensor,
    reduce_heads: HeadReduction,
    grid: tuple[int, int],
    retain_graph: bool = False,
) -> torch.Tensor:
    """Convert attention (batch, heads, tokens, image tokens) and scores (batch,) to maps, (batch, tokens, patches).

    The patches are the last of the image tokens; a class token and registers come before them.
    """
    (gradient,) = torch.autograd.grad(score.sum(), attention, retain_graph=retain_graph)
    return reduce_heads((attention.detach() * gradient.clamp(min=0))[..., -math.prod(grid) :])


def _grid(model: PreTrainedModel, pixel_values: torch.Tensor, image_hidden_states: torch.Tensor) -> tuple[int, int]:
    """Return the rows and columns of patches: of all factors of their number, the closest to the image's shape."""
    count = image_hidden_states.shape[1] - 1 - getattr(model.albef.vision_model, "num_registers", 0)
    height, width = pixel_values.shape[-2:]
    grids = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return min(grids, key=lambda grid: abs(math.log(grid[0] * width / (grid[1] * height))))


def word_heatmaps(
    tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor, heatmaps: torch.Tensor
) -> tuple[list[str], torch.Tensor]:
    """Join the pieces of words and average their maps.

    A warning is logged if all maps of words are zero and the map of the sentence is not, as in the last layer.

    Args:
        tokenizer: The tokenizer of the processor. If it is not a BERT's, words are what is between spaces.
        input_ids: Ids of one text, (tokens,).
        heatmaps: Maps of its tokens, (tokens, rows, columns).

    Returns:
        The words, without special tokens, and the mean map of each, (words, rows, columns).
    """
    token_ids = input_ids.tolist()
    positions = _word_positions(tokenizer, token_ids)
    if not positions:
        return [], heatmaps[:0]
    words = [_word(tokenizer, [token_ids[position] for position in word_positions]) for word_positions in positions]
    maps = torch.stack([heatmaps[word_positions].mean(0) for word_positions in positions])
    if heatmaps.any() and not maps.any():
        logger.warning_once(
            "The maps of all words are zero: the score does not depend on them. After the last multimodal layer only "
            "[CLS] is used: if the maps are of that layer, choose a lower one; if the model has only one, pass each "
            "word as a text to contrastive_heatmaps."
        )
    return words, maps


def _word_positions(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[list[int]]:
    """Return the positions of the tokens of each word, without special tokens."""
    positions: list[list[int]] = []
    wordpiece = is_wordpiece(tokenizer)
    for position, token in enumerate(tokenizer.convert_ids_to_tokens(token_ids)):
        if token_ids[position] in tokenizer.all_special_ids:
            continue
        begins = not token.startswith("##") if wordpiece else token.startswith(WORD_BEGINNINGS)
        if begins or not positions:
            positions.append([])
        positions[-1].append(position)
    return positions


def _word(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Return the word that tokens form."""
    if not is_wordpiece(tokenizer):
        return tokenizer.decode(token_ids).strip()
    first, *others = tokenizer.convert_ids_to_tokens(token_ids)
    return first + "".join(token.removeprefix("##") for token in others)


def resize_heatmap(heatmap: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize a map of (rows, columns) patches to the image's (height, width), bicubic as in the original."""
    return F.interpolate(heatmap[None, None].float(), size=(height, width), mode="bicubic")[0, 0]


def score_boxes(
    heatmap: torch.Tensor, boxes: Sequence[Box], image_size: tuple[int, int], alpha: float = 0.5
) -> torch.Tensor:
    """Score boxes by the sum of their heat over their area to the power alpha (`grounding_eval` in `utils.py`).

    Args:
        heatmap: Map of a sentence, (rows, columns).
        boxes: Left, top, width and height in pixels.
        image_size: Width and height of the image in pixels.
        alpha: 0 favors large boxes, 1 small and hot ones; 0.5 in the original.

    Returns:
        (boxes,); the box that the sentence describes best has the highest score.
    """
    image_width, image_height = image_size
    heat = resize_heatmap(heatmap, image_height, image_width)
    scores = [
        heat[_pixel_slice(top, height), _pixel_slice(left, width)].sum() / max(width * height, 1) ** alpha
        for left, top, width, height in boxes
    ]
    return torch.stack(scores) if scores else heat.new_zeros(0)


def _pixel_slice(start: float, length: float) -> slice:
    """Return the pixels of a box along one axis, without those outside of the image."""
    return slice(max(int(start), 0), max(int(start + length), 0))


@torch.no_grad()
def match_probabilities(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the probability that text and image match, calibrated if the model is; their heat maps fade with it.

    Args:
        model: A model with the matching head, in evaluation mode.
        input_ids: (batch, tokens).
        pixel_values: The image of each text, (batch, channels, height, width), of any resolution.
        attention_mask: (batch, tokens), 1 for tokens and 0 for padding.

    Returns:
        (batch,), in float32 or better.
    """
    _require_part(model, "itm_head", "AlbefForRetrieval or AlbefForPreTraining")
    outputs = model(input_ids, pixel_values, attention_mask, interpolate_pos_encoding=True)
    return model.match_probability(outputs)


def content_words(words: Sequence[str]) -> list[int]:
    """Return the indices of the words that are neither English function words (`FUNCTION_WORDS`) nor punctuation.

    Words of other languages are all returned, except those that are spelled as an English function word.

    Args:
        words: The words of a text, from `word_heatmaps`.

    Returns:
        Indices in ascending order; of all words, if there are only function words and punctuation.
    """
    omitted = [word.lower() in FUNCTION_WORDS or _is_punctuation(word) for word in words]
    everything = range(len(words))
    return [index for index in everything if not omitted[index]] or list(everything)


def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in word)


def overlay(
    image: Image.Image,
    heatmap: torch.Tensor,
    opacity: float = OPACITY,
    scale: float | None = None,
    probability: float = 1.0,
) -> Image.Image:
    """Draw a heat map over the image in gray: from no color over yellow to red, which is full heat.

    Args:
        image: The image.
        heatmap: (rows, columns).
        opacity: Opacity of full heat, from 0 to 1.
        scale: Heat that is drawn as full heat; by default the map's own maximum, with which any map has red, however
            little heat it has. Pass the maximum of all words to compare the words of a text.
        probability: Factor of the opacity, from 0 to 1, such as the probability that image and text match.

    Returns:
        The drawing, in RGB; the image in gray if there is no heat or the probability is 0.

    Raises:
        ValueError: If `scale` is negative or not a number, or `probability` is not from 0 to 1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}: it must be from 0 to 1.")
    heat = resize_heatmap(heatmap.cpu(), image.height, image.width).clamp(min=0)
    full = _max_heat(heatmap) if scale is None else scale
    if not full >= 0:
        raise ValueError(f"scale is {full}: it must be a heat, which is not negative.")
    gray = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    return _blend(gray, (heat / (full or 1)).clamp(max=1).numpy(), opacity * probability)


def overlays(
    image: Image.Image, heatmaps: torch.Tensor, scale: float | None = None, probability: float = 1.0
) -> list[Image.Image]:
    """Draw heat maps over an image on one scale, so that a word with little heat has little color.

    The heat of the words of one text has one unit: attention, a share of 1, times the gradient of the same score. It
    is how much a word weighs in the score, not whether it is in the image. That is what the probability of a match
    says, of the text as a whole; a text of a single word has no other measure. In `contrastive_heatmaps`, words that
    are texts of their own have scores of their own, but with the same unit: cosines with one image, over one
    temperature.

    Args:
        image: The image.
        heatmaps: (maps, rows, columns).
        scale: Heat that is drawn as full heat; by default the maximum of all maps.
        probability: As in `overlay`; see `match_probabilities`.
    """
    full = _max_heat(heatmaps) if scale is None else scale
    return [overlay(image, heatmap, scale=full, probability=probability) for heatmap in heatmaps]


def _max_heat(heatmaps: torch.Tensor) -> float:
    """Return the heat of the hottest patch, 0 if there is no map."""
    return heatmaps.max().clamp(min=0).item() if len(heatmaps) else 0.0


def _blend(gray: np.ndarray, heat: np.ndarray, opacity: float) -> Image.Image:
    """Color pixels, (height, width, 3), by heat from 0 to 1, (height, width), which is color and opacity in one."""
    heat = heat[..., None]
    warm, hot = (np.array(color, dtype=np.float32) for color in ((250, 220, 60), (200, 20, 30)))
    color = warm + (hot - warm) * (2 * heat - 1).clip(0)
    weight = opacity * heat
    return Image.fromarray(((1 - weight) * gray + weight * color).clip(0, 255).astype(np.uint8))


def heatmap_grid(
    image: Image.Image,
    words: Sequence[str],
    heatmaps: torch.Tensor,
    columns: int = 4,
    size: int = 240,
    scale: float | None = None,
    probability: float | None = None,
) -> Image.Image:
    """Draw the image and one overlay per word in a grid, as in figures 4 to 6 of the paper, above a color bar.

    All words have one scale, see `overlays`.

    Args:
        image: The image.
        words: Titles of the overlays; `content_words` finds those that are not function words.
        heatmaps: (words, rows, columns).
        columns: Columns of the grid.
        size: Width of a cell in pixels; images that are much taller or wider are distorted.
        scale: Heat that is drawn as full heat; by default the maximum of `heatmaps`.
        probability: Probability that image and text match, with which the colors fade; by default they do not fade.
    """
    full = _max_heat(heatmaps) if scale is None else scale
    strength = 1.0 if probability is None else probability
    cells = [image.convert("RGB"), *overlays(image, heatmaps, full, strength)]
    titles = ["" if probability is None else f"match {probability:.0%}", *words]
    height = max(round(size * min(image.height / image.width, MAX_ASPECT_RATIO)), 1)
    grid = _grid_of_cells(cells, titles, columns, (size, height))
    sheet = ImageOps.expand(grid, (0, 0, 0, TITLE_HEIGHT), "white")
    sheet.paste(color_bar(size, full, strength), (MARGIN, grid.height - MARGIN // 2))
    return sheet


def _grid_of_cells(
    cells: Sequence[Image.Image], titles: Sequence[str], columns: int, size: tuple[int, int]
) -> Image.Image:
    """Draw images of one size, in pixels, below their titles."""
    width, height = size[0] + MARGIN, size[1] + TITLE_HEIGHT + MARGIN
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (cell, title) in enumerate(zip(cells, titles, strict=True)):
        left = MARGIN + index % columns * width
        top = MARGIN + index // columns * height
        draw.text((left, top + 2), title, fill="black", font=ImageFont.load_default(FONT_SIZE))
        sheet.paste(cell.resize(size, Image.Resampling.BICUBIC), (left, top + TITLE_HEIGHT))
    return sheet


def color_bar(width: int, scale: float, probability: float = 1.0) -> Image.Image:
    """Draw the colors of heat from 0 to `scale`, as `overlay` has them on light gray, between both numbers."""
    bar = Image.new("RGB", (width, TITLE_HEIGHT), "white")
    draw = ImageDraw.Draw(bar)
    font = ImageFont.load_default(FONT_SIZE)
    label = f"{scale:.2g}"
    left = math.ceil(draw.textlength("0", font)) + MARGIN
    right = width - math.ceil(draw.textlength(label, font)) - MARGIN
    draw.text((0, 2), "0", fill="black", font=font)
    draw.text((right + MARGIN, 2), label, fill="black", font=font)
    heat = np.linspace(0, 1, max(right - left, 1), dtype=np.float32)[None].repeat(TITLE_HEIGHT // 2, 0)
    gray = np.full((*heat.shape, 3), 230, dtype=np.float32)
    bar.paste(_blend(gray, heat, OPACITY * probability), (left, TITLE_HEIGHT // 4))
    return bar


_RENAMED = {"panels": "heatmap_grid"}


def __getattr__(name: str) -> Any:
    return renamed_attribute(globals(), _RENAMED, name)


__all__ = [
    "answer_heatmaps",
    "caption_heatmaps",
    "color_bar",
    "content_words",
    "contrastive_heatmaps",
    "heatmap_grid",
    "match_probabilities",
    "matching_heatmaps",
    "overlay",
    "overlays",
    "resize_heatmap",
    "score_boxes",
    "word_heatmaps",
]
