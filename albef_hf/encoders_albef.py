"""ALBEF's encoders in PyTorch: attention and layers, image, text and multimodal encoder, and the answer decoder.

Align before Fuse, Li et al. 2021, arXiv 2107.07651; the original code is github.com/salesforce/ALBEF.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache, EncoderDecoderCache, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compatibility_albef import follow_umask, renamed_attribute
from .configuration_albef import (
    AUTO_MAP,
    AUTO_MODELS,
    RENAMED_CLASSES,
    AlbefConfig,
    AlbefTextConfig,
    AlbefVisionConfig,
    size_pair,
)
from .masks_albef import bidirectional_mask, causal_mask
from .shared_inputs_albef import autocast_dtype, linear_together

logger = logging.get_logger(f"transformers.{__name__}")

KeyValues = tuple[torch.Tensor, torch.Tensor]  # each (batch, heads, tokens, head width)

_KEYWORDS = {*TransformersKwargs.__annotations__, "return_dict", "use_cache"} - {"position_ids"}
_RENAMED_KEYWORDS = {"negative_hardness": "hardness_strength"}


def require_both(
    input_ids: torch.Tensor | None, pixel_values: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts, as ids or as word embeddings, and images if both are there.

    Raises:
        ValueError: If one is missing: transformers' pipelines for features pass only one of them. If texts are passed
            twice.
    """
    texts = one_of(input_ids, inputs_embeds)
    if texts is None or pixel_values is None:
        raise ValueError(
            "input_ids and pixel_values are needed together. For features of images or texts alone, load the model as "
            "AlbefForRetrieval and call get_image_features or get_text_features."
        )
    return texts, pixel_values


def one_of(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor | None:
    """Return the texts as they were passed, as ids or as word embeddings; raise a `ValueError` if it is both."""
    if input_ids is not None and inputs_embeds is not None:
        raise ValueError("input_ids and inputs_embeds are the same texts twice: pass one of them.")
    return input_ids if inputs_embeds is None else inputs_embeds


def token_mask(texts: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mask of texts, (batch, tokens); by default nothing is padding."""
    return texts.new_ones(texts.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask


def refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    """Raise an error for keywords that would have no effect, such as misspelled ones.

    `return_loss=False` and token types of zero are accepted: some tokenizers and pipelines pass them.

    Raises:
        ValueError: If a keyword is unknown or was renamed.
    """
    for name in _RENAMED_KEYWORDS.keys() & kwargs.keys():
        raise ValueError(f"{name} was renamed: pass {_RENAMED_KEYWORDS[name]} instead.")
    unknown = [name for name, value in kwargs.items() if value is not None and name not in _KEYWORDS]
    if "return_loss" in unknown and kwargs["return_loss"] is False:
        unknown.remove("return_loss")
    if "token_type_ids" in unknown:
        unknown.remove("token_type_ids")
        if (kwargs["token_type_ids"] != 0).any():
            raise ValueError("ALBEF uses token type 0 for every text: do not pass token_type_ids.")
    if unknown:
        raise ValueError(
            f"forward does not accept {', '.join(unknown)}: check the spelling or remove it. The loss is returned "
            "whenever labels are passed."
        )


def check_texts(input_ids: torch.Tensor | None) -> None:
    """Raise a `ValueError` if there is no text, or no token."""
    if input_ids is None:
        raise ValueError("input_ids is None: pass at least one text, (batch, tokens).")
    if 0 in input_ids.shape:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}: pass at least one text of at least one token, [CLS]."
        )


def check_images(pixel_values: torch.Tensor | None) -> None:
    """Raise a `ValueError` if there is no image, or if its pixels are bytes, which have to be normalized first."""
    if pixel_values is None:
        raise ValueError("pixel_values is None: pass at least one image, (batch, channels, height, width).")
    if pixel_values.shape[0] == 0:
        raise ValueError("There is no image: pass at least one, (batch, channels, height, width).")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values are {pixel_values.dtype}: normalize them with the processor, or what the package's readers "
            "yield with albef_hf.data.Normalization."
        )


def check_states(states: torch.Tensor, tokens: int | None, width: int) -> torch.Tensor:
    """Return states of images that were encoded before.

    Raises:
        ValueError: If they have another shape than those of the encoder; without `tokens`, any number is accepted.
    """
    if states.shape[-1] != width or tokens not in (None, states.shape[1]):
        raise ValueError(
            f"pixel_values has shape {tuple(states.shape)}: pass images, (batch, channels, height, width), or states "
            f"that this encoder returned before, (batch, {tokens or '1 + patches'}, {width}). A single image needs a "
            "batch dimension: pixel_values[None]."
        )
    return states


def wrong_size(pixel_values: torch.Tensor, expected: tuple[int, int]) -> str:
    """Return what to do about images of another height and width than the model expects."""
    height, width = pixel_values.shape[-2:]
    return (
        f"The images are {height}x{width} pixels, the model expects {expected[0]}x{expected[1]}: resize them "
        "(AlbefProcessor does), or pass interpolate_pos_encoding=True."
    )


def to_weight_device(weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Move states to the device of a weight, for methods that are called without `forward` and its hooks.

    Two kinds of weights have no device to move to: one that accelerate offloaded is on the meta device and will be
    loaded to where the states are, and that of a dynamically quantized layer is a method.
    """
    return states.to(weight.device) if isinstance(weight, torch.Tensor) and not weight.is_meta else states


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention step by step, so that its probabilities can be returned.

    Takes (batch, heads, tokens, head width); returns (batch, tokens, heads, head width) and the probabilities,
    (batch, heads, query tokens, key tokens).
    """
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


class AlbefAttention(nn.Module):
    """Multi-head attention over the states themselves, or over keys and values that were projected before.

    Texts can share keys and values: for `groups * batch` texts and `batch` images, text `i` attends to image
    `i % batch`. The texts of one image become queries of one attention call, so nothing is projected or copied twice.
    """

    is_causal = False

    def __init__(self, config: AlbefVisionConfig | AlbefTextConfig, key_value_size: int | None = None):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(key_value_size or config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(key_value_size or config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.is_cross_attention = key_value_size is not None

    @property
    def joined_layers(self) -> list[nn.Module]:
        """Return the layers that are applied to the same states: those of keys and values, and mostly of queries."""
        names = ("k_proj", "v_proj") if self.is_cross_attention else ("k_proj", "v_proj", "q_proj")
        return [layer for name in names if (layer := getattr(self, name, None)) is not None]

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, tokens, head width)

    def project_key_values(self, hidden_states: torch.Tensor) -> KeyValues:
        """Project (batch, tokens, width) states to a key and a value, each (batch, heads, tokens, head width)."""
        hidden_states = to_weight_device(self.k_proj.weight, hidden_states)
        key, value = linear_together([self.k_proj, self.v_proj], hidden_states)
        return self._split_heads(key), self._split_heads(value)

    def _project(
        self, hidden_states: torch.Tensor, key_values: KeyValues | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return key, value and query; key and value are of the states, unless they were projected before."""
        if key_values is None:
            projections = linear_together([self.k_proj, self.v_proj, self.q_proj], hidden_states)
            key, value, query = map(self._split_heads, projections)
            return key, value, query
        return *key_values, self._split_heads(self.q_proj(hidden_states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_values: KeyValues | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return states, (batch, tokens, width), and the attention probabilities if the implementation has them."""
        texts, tokens, _ = hidden_states.shape
        key, value, query = self._project(hidden_states, key_values)
        images = key.shape[0]
        groups = texts // images
        if texts % images:
            raise ValueError(f"{texts} texts cannot share {images} images evenly: pass one image, or one per text.")
        if groups > 1:
            query = query.unflatten(0, (groups, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout if self.training else 0.0
        output, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )  # output: (batch, groups * tokens, heads, head width)
        if groups > 1:
            output = output.unflatten(1, (groups, tokens)).transpose(0, 1).flatten(0, 1)
            if weights is not None:
                weights = weights.unflatten(2, (groups, tokens)).permute(2, 0, 1, 3, 4).flatten(0, 1)
        return self.out_proj(output.reshape(texts, tokens, -1)), weights

    @property
    def can_absorb(self) -> bool:
        """Return False for quantized, LoRA-adapted or offloaded layers: `.weight` is not their effective weight.

        torchao quantizes the weight of an `nn.Linear` to a tensor of its own class.
        """
        return all(
            type(part) is nn.Linear and type(part.weight) is nn.Parameter and not part.weight.is_meta
            for part in (self.k_proj, self.v_proj)
        )

    def forward_absorbed(
        self, hidden_states: torch.Tensor, context: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute what `forward` returns for the keys and values of a context, without projecting the context.

        (q W) (c V)^T = (q W V^T) c^T: the key and value projections are absorbed into query and output, so they run
        on the few query tokens. The bias of the keys shifts all scores of a query alike and cancels in the softmax.
        This is cheaper if there are fewer queries than a head is wide, and for inference only.

        Args:
            hidden_states: (batch, tokens, width).
            context: (batch, context tokens, context width).
            attention_mask: (batch, context tokens), 1 for tokens and 0 for padding.

        Returns:
            (batch, tokens, width).
        """
        context = to_weight_device(self.q_proj.weight, context)
        key_weight = self.k_proj.weight.unflatten(0, (-1, self.head_dim))  # (heads, head width, context width)
        value_weight = self.v_proj.weight.unflatten(0, (-1, self.head_dim))
        query = _by_head(self._split_heads(self.q_proj(hidden_states)), key_weight)
        # All heads in one product: (batch, heads * tokens, context tokens).
        scores = query.flatten(1, 2) @ context.transpose(1, 2) * self.scaling
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None] == 0, torch.finfo(scores.dtype).min)
        attended = (scores.softmax(-1) @ context).unflatten(1, query.shape[1:3])  # as the query
        output = _by_head(attended, value_weight.transpose(1, 2)).transpose(1, 2).flatten(2)  # (batch, tokens, width)
        return self.out_proj(output + self.v_proj.bias)


def _by_head(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply the states of each head by a weight of its own; a broadcast product would copy it for each text.

    Args:
        states: (batch, heads, tokens, width).
        weight: (heads, width, other width).

    Returns:
        (batch, heads, tokens, other width).
    """
    product = states.transpose(0, 1).flatten(1, 2) @ weight  # (heads, batch * tokens, other width)
    return product.unflatten(1, (states.shape[0], -1)).transpose(0, 1)


class AlbefMLP(nn.Module):
    """The feed-forward part of a layer."""

    def __init__(self, config: AlbefVisionConfig | AlbefTextConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class AlbefVisionLayer(GradientCheckpointingLayer):
    """A ViT layer, with the layer norm before attention and feed-forward."""

    def __init__(self, config: AlbefVisionConfig):
        super().__init__()
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = AlbefAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AlbefMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.self_attn_norm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class AlbefTextLayer(GradientCheckpointingLayer):
    """A BERT layer, with the layer norm after attention and feed-forward."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.self_attn = AlbefAttention(config)
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AlbefMLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def self_attention_block(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        key_values: KeyValues | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Apply self-attention with residual and norm to (batch, tokens, width) states."""
        attended, _ = self.self_attn(hidden_states, attention_mask, key_values, **kwargs)
        return self.self_attn_norm(hidden_states + self.dropout(attended))

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the feed-forward part with residual and norm to (batch, tokens, width) states."""
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        return self.feed_forward(self.self_attention_block(hidden_states, attention_mask, **kwargs))


class AlbefMultimodalLayer(AlbefTextLayer):
    """A BERT layer with cross-attention to the image between self-attention and feed-forward."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.cross_attn = AlbefAttention(config, key_value_size=config.encoder_hidden_size)
        self.cross_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def cross_attention_block(
        self,
        hidden_states: torch.Tensor,
        key_values: KeyValues,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Apply cross-attention with residual and norm to (batch, tokens, width) states."""
        attended, _ = self.cross_attn(hidden_states, attention_mask, key_values, **kwargs)
        return self.cross_attn_norm(hidden_states + self.dropout(attended))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_key: torch.Tensor,
        image_value: torch.Tensor,
        context: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Apply the layer; with `context`, which includes the states, self-attention attends to all of its tokens."""
        key_values = None if context is None else self.self_attn.project_key_values(context)
        hidden_states = self.self_attention_block(hidden_states, attention_mask, key_values, **kwargs)
        return self.feed_forward(self.cross_attention_block(hidden_states, (image_key, image_value), **kwargs))


class AlbefSecondImageLayer(AlbefMultimodalLayer):
    """A multimodal layer for the second image of a text, with the keys and values of the layer before it.

    The original's `xbert.py` shares key and value weights between the two layers (`share_cross_attention`).
    """

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        del self.cross_attn.k_proj, self.cross_attn.v_proj


class AlbefDecoderLayer(AlbefMultimodalLayer):
    """A causal layer with cross-attention, to a question or to an image."""

    def __init__(self, config: AlbefTextConfig, index: int):
        super().__init__(config)
        self.index = index
        self.self_attn.is_causal = True

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        context_key: torch.Tensor,
        context_value: torch.Tensor,
        context_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        key_values = None  # those of these tokens, projected together with their queries
        if cache is not None:
            key_values = cache.update(*self.self_attn.project_key_values(hidden_states), self.index)
        hidden_states = self.self_attention_block(hidden_states, attention_mask, key_values, **kwargs)
        hidden_states = self.cross_attention_block(
            hidden_states, (context_key, context_value), context_attention_mask, **kwargs
        )
        return self.feed_forward(hidden_states)


class AlbefVisionEmbeddings(nn.Module):
    """Embed patches, with a `[CLS]` token in front and learned positions."""

    def __init__(self, config: AlbefVisionConfig):
        super().__init__()
        self.image_size = size_pair(config.image_size)
        self.grid = config.grid
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid), config.hidden_size))

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        if not interpolate_pos_encoding and tuple(pixel_values.shape[-2:]) != self.image_size:
            raise ValueError(wrong_size(pixel_values, self.image_size))
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        positions = self.position_embeddings
        if interpolate_pos_encoding:
            positions = interpolate_position_embeddings(positions, patches.shape[-2:], self.grid)
        tokens = patches.flatten(2).transpose(1, 2)  # (batch, patches, width)
        # Not len(): an exported graph would keep the batch size it was traced with.
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + positions


class AlbefTextEmbeddings(nn.Module):
    """Embed words, positions and token type 0, which ALBEF adds to every token."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.position_offset = config.position_offset
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, start: int = 0, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Embed (batch, tokens) ids, the first at position `start` or each at its own, as (batch, tokens, width).

        What has this shape already are word embeddings, to which the others are added.
        """
        tokens = start + input_ids.shape[1]
        max_tokens = self.position_embeddings.num_embeddings - self.position_offset
        if tokens > max_tokens:
            raise ValueError(
                f"The text has {tokens} tokens, the model takes at most {max_tokens}: truncate it when tokenizing "
                "(truncation=True, max_length=...)."
            )
        offset = self.position_offset
        if positions is None:
            positions = torch.arange(offset + start, offset + tokens, device=input_ids.device)
        else:
            positions = positions + offset
        try:
            words = input_ids if input_ids.ndim == 3 else self.word_embeddings(input_ids)
            embeddings = words + self.token_type_embeddings(positions.new_zeros(1))
        except IndexError as error:
            raise ValueError(
                f"input_ids must be below the size of the vocabulary, {self.word_embeddings.num_embeddings}: after "
                "adding tokens to the tokenizer, call model.resize_token_embeddings(len(tokenizer))."
            ) from error
        return self.dropout(self.norm(embeddings + self.position_embeddings(positions)))


def interpolate_position_embeddings(
    positions: torch.Tensor, grid: tuple[int, int], own_grid: tuple[int, int] | None = None
) -> torch.Tensor:
    """Resample learned positions of a grid to another grid, but not the `[CLS]` row (the original's `vit.py`).

    Args:
        positions: (1, 1 + own rows * own columns, width).
        grid: Rows and columns of patches after resampling.
        own_grid: Rows and columns before; by default those of a square.

    Returns:
        (1, 1 + rows * columns, width).

    Raises:
        ValueError: If the grid is not given and not a square.
    """
    if own_grid is None:
        side = math.isqrt(positions.shape[1] - 1)
        own_grid = (side, side)
    if own_grid == tuple(grid):
        return positions
    if math.prod(own_grid) != positions.shape[1] - 1:
        raise ValueError(
            f"The image positions are of {positions.shape[1] - 1} patches, which is not a square: load the model at "
            "its own image_size, and pass interpolate_pos_encoding=True for images of another size."
        )
    patches = positions[:, 1:].unflatten(1, own_grid).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class ResampleImagePositions(ConversionOps):
    """Resample the image positions of a checkpoint to the model's resolution while `from_pretrained` loads them."""

    def convert(
        self,
        input_dict: dict[str, list[torch.Tensor]],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str,
        model: PreTrainedModel,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        (positions,) = next(iter(input_dict.values()))
        config = _vision_config(model.config)
        saved_grid = getattr(config, "saved_grid", None)  # unknown if another configuration was passed
        if saved_grid and math.prod(saved_grid) != positions.shape[1] - 1:
            saved_grid = None  # a frozen encoder's, which a teacher takes from its student
        if saved_grid or positions.shape != model.get_parameter(full_layer_name).shape:
            positions = interpolate_position_embeddings(positions, config.grid, saved_grid)
        return {target_patterns[0]: positions}

    @property
    def reverse_op(self) -> ConversionOps:
        """Return the operation for saving, which changes nothing."""
        return KeepImagePositions()


class KeepImagePositions(ConversionOps):
    """Save the image positions as they are in the model."""

    def convert(
        self,
        input_dict: dict[str, list[torch.Tensor]],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        (positions,) = next(iter(input_dict.values()))
        return {target_patterns[0]: positions}

    @property
    def reverse_op(self) -> ConversionOps:
        """Return the operation for loading."""
        return ResampleImagePositions()


def _vision_config(config: AlbefConfig | AlbefVisionConfig) -> AlbefVisionConfig:
    return config.vision if config.model_type == AlbefConfig.model_type else config


_POSITIONS = r"embeddings\.position_embeddings(?!\.weight)"  # those of texts are the weight of an nn.Embedding
_RESAMPLING = WeightConverter(_POSITIONS, _POSITIONS, [ResampleImagePositions()])

# An encoder alone can be loaded from the folder of a whole model: its weights have the base_model_prefix there if the
# model has a head, and a shorter prefix if not.
for _name, _conversions in (("vision", [_RESAMPLING]), ("text", []), ("multimodal", [])):
    register_checkpoint_conversion_mapping(
        f"Albef{_name.title()}Model",
        [WeightRenaming(rf"^{_name}_model\.", f"albef.{_name}_model."), *_conversions],
        overwrite=True,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Encoders
# ---------------------------------------------------------------------------------------------------------------------


class AlbefPreTrainedModel(PreTrainedModel):
    """Base class of all ALBEF models: initialization, copied weights, and what transformers needs to know."""

    config: AlbefConfig
    base_model_prefix = "albef"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # Losses are means over the batch: Trainer has to divide them by the number of accumulation steps itself.
    accepts_loss_kwargs = False
    # A whole model stays on one device if it fits, since heads share what encoders project; else whole layers do.
    _no_split_modules = [
        "AlbefModel",
        "AlbefTwoImageModel",
        "AlbefVisionModel",
        "AlbefTextModel",
        "AlbefMultimodalModel",
        "AlbefAnswerDecoder",
        "AlbefCausalModel",
        "AlbefCausalTextModel",
        "AlbefCausalMultimodalModel",
        "AlbefVisionEmbeddings",
        "AlbefVisionLayer",
        "AlbefTextEmbeddings",
        "AlbefTextLayer",
        "AlbefCausalTextLayer",
        "AlbefMultimodalLayer",
        "AlbefDecoderLayer",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # A model can start from the checkpoint of any other, so weights of other heads are expected.
    _keys_to_ignore_on_load_unexpected = [r"^(contrastive|itm|mlm|assignment)_head\.", r"^classifier\.", r"^decoder\."]
    # Modules that start as copies of other modules if the checkpoint does not have them: {name: name of the other}.
    _copied_modules: dict[str, str] = {}
    # Names of submodules that are not trained, and stay in evaluation mode.
    frozen_modules: tuple[str, ...] = ()

    def freeze(self, *names: str) -> None:
        """Stop training submodules: they get no gradient, and stay in evaluation mode after `train()`.

        Args:
            names: Names of submodules, such as `albef.vision_model`.
        """
        for name in names:
            self.get_submodule(name).requires_grad_(False)
        self.frozen_modules = (*self.frozen_modules, *names)
        self.train(self.training)

    def train(self, mode: bool = True) -> "AlbefPreTrainedModel":
        """Set training or evaluation mode; submodules that `freeze` named stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen_modules:
            self.get_submodule(name).eval()
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlbefVisionEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)

    def initialize_weights(self) -> None:
        """Initialize the weights that the checkpoint does not have, and then those that are copies of others."""
        super().initialize_weights()
        self._copied_weights: set[str] = set()
        for prefix, model in self.named_modules():
            for name, other_name in getattr(model, "_copied_modules", {}).items():
                other = dict(model.get_submodule(other_name).named_parameters())
                copied = _copy_if_fresh(model.get_submodule(name), other)
                # A copy of weights that the checkpoint does not have either is still reported as missing.
                copied = [key for key in copied if getattr(other[key], "_is_hf_initialized", False)]
                self._copied_weights |= {f"{prefix}.{name}.{key}".removeprefix(".") for key in copied}
                if copied:
                    logger.warning_once(f"The checkpoint has no {name}: matching weights of {other_name} are copied.")
        self._copied_weights |= self._copy_untied_weights()

    def enable_input_require_grads(self) -> None:
        """Let the word and patch embeddings have a gradient, as transformers does for activation checkpointing.

        transformers would also ask an image model of its own, whose embeddings may be a tuple.
        """
        self._require_grads_hooks = []
        for module in self.modules():
            is_encoder = isinstance(module, (AlbefVisionModel, AlbefTextModel, AlbefAnswerDecoder))
            if is_encoder and any(weight.requires_grad for weight in module.parameters()):
                embeddings = module.get_input_embeddings()
                self._require_grads_hooks.append(embeddings.register_forward_hook(_require_gradient))

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """Set the attention as transformers does; an image model without attention, such as a CNN, has no other."""
        others = [module for module in self.modules() if isinstance(module, PreTrainedModel)]
        others = [module for module in others if not isinstance(module, AlbefPreTrainedModel)]
        if isinstance(attn_implementation, str) and not all(map(has_attention, others)):
            parts = {"vision_config": "eager", "text_config": attn_implementation}
            attn_implementation = {"": attn_implementation, **parts}
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Save as transformers does, with this code and with an `auto_map` for all Auto classes.

        `tie_word_embeddings` of the saved configuration is True if weights are tied. PEFT sets it to False when it
        merges, because the output of the answers is tied to the decoder's embeddings instead of the input embeddings.
        """
        weights = dict(self.named_parameters(remove_duplicate=False))
        for name, other_name in (self._tied_weights_keys or {}).items():
            if name in weights and weights[name] is weights.get(other_name):
                self.config.tie_word_embeddings = True
        self.config.auto_map = self._auto_map()
        super().save_pretrained(save_directory, *args, **kwargs)  # adds this class to the auto_map
        follow_umask(Path(save_directory).glob("model*.safetensors"))

    def _auto_map(self) -> dict[str, str]:
        """Return what each Auto class loads from the folder; transformers adds the class that is saved."""
        if self.config.model_type != AlbefConfig.model_type:
            return {}
        name = type(self).__name__
        return AUTO_MAP | ({"AutoModel": f"modeling_albef.{name}"} if name in AUTO_MODELS["AutoModel"] else {})

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie weights; those that were copied from other modules are not reported as missing."""
        if missing_keys is not None:
            missing_keys -= getattr(self, "_copied_weights", set())
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    def _copy_untied_weights(self) -> set[str]:
        """Fill weights that are untied now from the weights that they were tied to in the checkpoint.

        Returns:
            Names of the weights that were filled.
        """
        copied = set()
        for name, other_name in (self._tied_weights_keys or {}).items():
            weight = self.get_parameter(name)
            other = self.get_parameter(other_name)
            is_loaded = getattr(other, "_is_hf_initialized", False) or other_name in self._copied_weights
            if is_loaded and not (self.config.tie_word_embeddings or getattr(weight, "_is_hf_initialized", False)):
                init.copy_(weight, other)
                copied.add(name)
        return copied


def has_attention(model: PreTrainedModel | type[PreTrainedModel]) -> bool:
    """Return whether an image model of transformers has attention that can be computed in several ways."""
    return model._supports_sdpa or model._supports_flash_attn


def _require_gradient(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
    output.requires_grad_()


def _copy_if_fresh(module: nn.Module, others: dict[str, torch.Tensor]) -> list[str]:
    """Copy weights of the same name and shape to a module, unless the checkpoint has some of its weights.

    Returns:
        Names of the weights that were copied.
    """
    weights = dict(module.named_parameters())
    if any(getattr(weight, "_is_hf_initialized", False) for weight in weights.values()):
        return []
    copied = [name for name, weight in weights.items() if weight.shape == others[name].shape]
    for name in copied:
        init.copy_(weights[name], others[name])
    return copied


class AlbefVisionModel(AlbefPreTrainedModel):
    """The image encoder: a vision transformer that returns all patches."""

    config: AlbefVisionConfig
    base_model_prefix = "albef.vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "patch_embedding"
    _can_record_outputs = {"hidden_states": AlbefVisionLayer, "attentions": AlbefAttention}

    def __init__(self, config: AlbefVisionConfig):
        super().__init__(config)
        self.embeddings = AlbefVisionEmbeddings(config)
        self.layers = nn.ModuleList([AlbefVisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), normalized as `AlbefProcessor` does; or states that this
                encoder returned before, (batch, 1 + patches, width), which are returned in the precision of the model.
            interpolate_pos_encoding: Resample the learned positions to images of another size.

        Returns:
            `last_hidden_state`: (batch, 1 + patches, width), the `[CLS]` token first.

        Raises:
            ValueError: If there is no image, or an image has another size and `interpolate_pos_encoding` is off, or
                states have another width.
        """
        refuse_unknown(kwargs)
        check_images(pixel_values)
        if pixel_values.ndim == 3:
            states = check_states(pixel_values, 1 + math.prod(self.config.grid), self.config.hidden_size)
            return BaseModelOutput(last_hidden_state=states.to(self.dtype))
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class AlbefTextModel(AlbefPreTrainedModel):
    """The text encoder: the lower half of BERT."""

    config: AlbefTextConfig
    base_model_prefix = "albef.text_model"
    input_modalities = ("text",)
    _input_embed_layer = "word_embeddings"
    _can_record_outputs = {"hidden_states": AlbefTextLayer, "attentions": AlbefAttention}

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.embeddings = AlbefTextEmbeddings(config)
        self.layers = nn.ModuleList([AlbefTextLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode texts.

        Args:
            input_ids: (batch, tokens), `[CLS]` first.
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            inputs_embeds: Instead of `input_ids`, their word embeddings, (batch, tokens, width), as those of
                `get_input_embeddings()`: to change them, or for gradients.

        Returns:
            `last_hidden_state`: (batch, tokens, width).

        Raises:
            ValueError: If there is no text, a text is longer than the model has positions, or texts are passed twice.
        """
        refuse_unknown(kwargs)
        input_ids = one_of(input_ids, inputs_embeds)
        check_texts(input_ids)
        hidden_states = self.embeddings(input_ids)
        attention_mask = bidirectional_mask(self.config, hidden_states, attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class AlbefTokenDropout(nn.Module):
    """Drop tokens at random in training, but never the first one, which stands for the whole.

    FLIP (arXiv 2212.00794) drops image patches to save time. Few images are also harder to learn by heart then.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(
        self, states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tokens of (batch, tokens, width) that remain, as many in each row, and their mask if any."""
        if not self.training or not self.probability:
            return states, attention_mask
        batch, tokens, width = states.shape
        order = torch.rand(batch, tokens, device=states.device)
        order[:, 0] = -1
        kept = 1 + round((1 - self.probability) * (tokens - 1))
        index = order.argsort(dim=1)[:, :kept]
        states = states.gather(1, index[:, :, None].expand(-1, -1, width))
        return states, None if attention_mask is None else attention_mask.gather(1, index)


class AlbefMultimodalModel(AlbefPreTrainedModel):
    """The multimodal encoder: the upper half of BERT, with cross-attention to the image tokens.

    Text tokens are the queries, image tokens are keys and values. Keys and values depend on the image alone, so
    `project_images` computes them once for all texts that are paired with the image.
    """

    config: AlbefTextConfig
    base_model_prefix = "albef.multimodal_model"
    main_input_name = "hidden_states"
    _can_record_outputs = {
        "hidden_states": AlbefMultimodalLayer,
        "attentions": OutputRecorder(AlbefAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(AlbefAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([AlbefMultimodalLayer(config) for _ in range(config.num_multimodal_layers)])
        self.input_dropout = nn.Dropout(config.input_dropout_prob)
        self.image_token_dropout = AlbefTokenDropout(config.image_token_dropout_prob)
        self.text_token_dropout = AlbefTokenDropout(config.text_token_dropout_prob)
        self.post_init()

    def project_images(self, image_hidden_states: torch.Tensor) -> list[KeyValues]:
        """Project (batch, image tokens, image width) states to keys and values, one pair per layer."""
        image_hidden_states, _ = self.image_token_dropout(image_hidden_states)
        image_hidden_states = self.input_dropout(image_hidden_states)
        image_hidden_states = image_hidden_states.to(autocast_dtype(image_hidden_states))  # once instead of in each
        return [layer.cross_attn.project_key_values(image_hidden_states) for layer in self.layers]

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_key_values: list[KeyValues],
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        """Fuse texts with images.

        Args:
            hidden_states: States of the text encoder, (groups * batch, tokens, width); text `i` belongs to image
                `i % batch`.
            attention_mask: (groups * batch, tokens), 1 for tokens and 0 for padding.
            image_key_values: The output of `project_images` for `batch` images.

        Returns:
            `last_hidden_state`: (groups * batch, tokens, width).

        Raises:
            ValueError: If the number of texts is not a multiple of the number of images.
        """
        refuse_unknown(kwargs)
        hidden_states = self.input_dropout(hidden_states)
        hidden_states = self._run_layers(self.layers, hidden_states, attention_mask, image_key_values, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)

    def encode_cls(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, image_key_values: list[KeyValues]
    ) -> torch.Tensor:
        """Compute the `[CLS]` token that `forward` returns for the same arguments, (groups * batch, width).

        Matching uses this token alone, so the last layer computes nothing else. Unlike `forward`, which is for every
        token, this drops text tokens in training if the configuration has a `text_token_dropout_prob`.
        """
        hidden_states, attention_mask = self.text_token_dropout(hidden_states, attention_mask)
        hidden_states = self.input_dropout(hidden_states)
        return self._run_layers_for_cls(self.layers, hidden_states, attention_mask, image_key_values)

    def encode_cls_of_all_pairs(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, image_key_values: list[KeyValues]
    ) -> torch.Tensor:
        """Compute the `[CLS]` token of every text with every image, (images, texts, width).

        The first self-attention comes before all images, so it runs once for each text. What follows it runs for each
        pair: in a model of one layer, that is for `[CLS]` alone. The first layer's activations are not checkpointed.

        Args:
            hidden_states: States of the text encoder, (texts, tokens, width).
            attention_mask: (texts, tokens), 1 for tokens and 0 for padding.
            image_key_values: The output of `project_images` for all images.
        """
        first, others = self.layers[0], self.layers[1:]
        hidden_states, attention_mask = self.text_token_dropout(hidden_states, attention_mask)
        hidden_states = self.input_dropout(hidden_states)
        images = image_key_values[0][0].shape[0]
        queries = hidden_states if others else hidden_states[:, :1]
        mask = bidirectional_mask(self.config, queries, attention_mask, hidden_states)
        context = first.self_attn.project_key_values(hidden_states)
        attended = first.self_attention_block(queries, mask, context).repeat_interleave(images, 0)
        states = first.feed_forward(first.cross_attention_block(attended, image_key_values[0]))
        cls = states[:, 0]
        if others:
            masks = attention_mask.repeat_interleave(images, 0)
            cls = self._run_layers_for_cls(others, states, masks, image_key_values[1:])
        return cls.unflatten(0, (-1, images)).transpose(0, 1)

    def first_self_attention(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Apply the first layer's self-attention, which comes before all images, (texts, tokens, width)."""
        return self.layers[0].self_attention_block(
            hidden_states, bidirectional_mask(self.config, hidden_states, attention_mask)
        )

    def encode_cls_padding_free(
        self, attended: torch.Tensor, attention_mask: torch.Tensor, image_key_values: list[KeyValues]
    ) -> torch.Tensor:
        """Compute what `encode_cls` returns for several texts with the same image, for inference only.

        The tokens of all texts are packed into one row, so that nothing is computed for padding. They are unpacked
        only for self-attention, where every text attends to itself alone.

        Args:
            attended: The output of `first_self_attention`, (texts, tokens, width).
            attention_mask: (texts, tokens), 1 for tokens and 0 for padding.
            image_key_values: The output of `project_images` for one image.

        Returns:
            (texts, width).
        """
        first, *others = self.layers
        if not others:
            return first.feed_forward(first.cross_attention_block(attended[:, :1], image_key_values[0]))[:, 0]
        token_indices = attention_mask.flatten().nonzero()[:, 0]
        mask = bidirectional_mask(self.config, attended, attention_mask)

        def pack(padded: torch.Tensor) -> torch.Tensor:
            return padded.flatten(0, 1)[token_indices][None]  # (1, tokens of all texts, width)

        def unpack(packed: torch.Tensor) -> torch.Tensor:
            padded = packed.new_zeros(attended.shape).flatten(0, 1)
            return padded.index_copy(0, token_indices, packed[0]).view(attended.shape)

        packed = first.feed_forward(first.cross_attention_block(pack(attended), image_key_values[0]))
        *middle, last = others
        for layer, key_values in zip(middle, image_key_values[1:-1], strict=True):
            queries = pack(layer.self_attention_block(unpack(packed), mask))
            packed = layer.feed_forward(layer.cross_attention_block(queries, key_values))
        cls = self._cls_self_attention_block(last, unpack(packed), attention_mask)
        return last.feed_forward(last.cross_attention_block(cls, image_key_values[-1]))[:, 0]

    def encode_cls_over_images(self, attended: torch.Tensor, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute what `encode_cls` returns for one text with many images, without projecting the images.

        Args:
            attended: The output of `first_self_attention`, (1, tokens, width), without padding.
            image_hidden_states: (images, image tokens, image width).

        Returns:
            (images, width).
        """
        states = attended.expand(len(image_hidden_states), -1, -1)
        last = self.layers[-1]
        for index, layer in enumerate(self.layers):
            if index == 0:  # `attended` has passed its self-attention
                queries = states[:, :1] if layer is last else states
            elif layer is last:  # [CLS] alone, as in `encode_cls`
                queries = self._cls_self_attention_block(layer, states, None)
            else:
                queries = layer.self_attention_block(states, None)
            cross_attended = layer.cross_attn.forward_absorbed(queries, image_hidden_states)
            states = layer.feed_forward(layer.cross_attn_norm(queries + cross_attended))
        return states[:, 0]

    def _cls_self_attention_block(
        self, layer: AlbefMultimodalLayer, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Apply self-attention to the `[CLS]` token alone, (batch, tokens, width) to (batch, 1, width)."""
        cls = hidden_states[:, :1]
        if layer.self_attn.can_absorb:
            return layer.self_attn_norm(cls + layer.self_attn.forward_absorbed(cls, hidden_states, attention_mask))
        key_values = layer.self_attn.project_key_values(hidden_states)
        mask = bidirectional_mask(self.config, cls, attention_mask, hidden_states)
        return layer.self_attention_block(cls, mask, key_values)

    def _run_layers_for_cls(
        self,
        layers: Sequence[AlbefMultimodalLayer],
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_key_values: list[KeyValues],
    ) -> torch.Tensor:
        hidden_states = self._run_layers(layers[:-1], hidden_states, attention_mask, image_key_values[:-1])
        cls = hidden_states[:, :1]
        mask = bidirectional_mask(self.config, cls, attention_mask, hidden_states)
        key, value = image_key_values[-1]
        return layers[-1](cls, mask, key, value, hidden_states)[:, 0]

    def _run_layers(
        self,
        layers: Sequence[AlbefMultimodalLayer],
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_key_values: list[KeyValues],
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attention_mask = bidirectional_mask(self.config, hidden_states, attention_mask)
        for layer, (image_key, image_value) in zip(layers, image_key_values, strict=True):
            hidden_states = layer(hidden_states, attention_mask, image_key, image_value, **kwargs)
        return hidden_states


class AlbefTwoImageEncoder(AlbefMultimodalModel):
    """The multimodal encoder for two images: each layer for the first image is followed by one for the second.

    The second layers have weights of their own, except for keys and values, which they share (section 5 of the paper).
    """

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.second_layers = nn.ModuleList([AlbefSecondImageLayer(config) for _ in self.layers])
        self._copied_modules = {"second_layers": "layers"}
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        first_key_values: list[KeyValues],
        second_key_values: list[KeyValues],
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        """Fuse texts with two images each.

        Args:
            hidden_states: States of the text encoder, (batch, tokens, width).
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            first_key_values: The output of `project_images` for the first images.
            second_key_values: The output of `project_images` for the second images.

        Returns:
            `last_hidden_state`: (batch, tokens, width). Recorded states and attentions alternate between the images.
        """
        refuse_unknown(kwargs)
        hidden_states = self.input_dropout(hidden_states)
        attention_mask = bidirectional_mask(self.config, hidden_states, attention_mask)
        for layer, (first_key, first_value), second_layer, (second_key, second_value) in zip(
            self.layers, first_key_values, self.second_layers, second_key_values, strict=True
        ):
            hidden_states = layer(hidden_states, attention_mask, first_key, first_value, **kwargs)
            hidden_states = second_layer(hidden_states, attention_mask, second_key, second_value, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)


def select_key_values(key_values: list[KeyValues], index: torch.Tensor) -> list[KeyValues]:
    """Select rows of projected keys and values, in order to repeat or reorder their images."""
    return [(key[index.to(key.device)], value[index.to(key.device)]) for key, value in key_values]


def cached_key_values(cache: EncoderDecoderCache | None, project: Callable[[], list[KeyValues]]) -> list[KeyValues]:
    """Return projected keys and values of a context, from the cache if it has them, else adding them to it.

    Args:
        cache: A cache for the context and for the tokens that attend to it, if any.
        project: Returns the keys and values, one pair per layer.
    """
    if cache is None:
        return project()
    if not cache.is_updated.get(0):
        for index, (key, value) in enumerate(project()):
            cache.cross_attention_cache.update(key, value, index)
            cache.is_updated[index] = True
    return [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]


def _without_flash(attn_implementation: str | None) -> str | None:
    uses_flash = attn_implementation is not None and "flash" in attn_implementation
    return "sdpa" if uses_flash else attn_implementation


class AlbefAnswerDecoder(AlbefPreTrainedModel):
    """A causal decoder over the tokens of an answer, with cross-attention to a fused question (figure 3 of the paper).

    It has the shape of the multimodal encoder and starts as a copy of it.
    """

    config: AlbefTextConfig
    input_modalities = ("text",)
    _input_embed_layer = "word_embeddings"
    _can_record_outputs = {
        "hidden_states": AlbefDecoderLayer,
        "attentions": OutputRecorder(AlbefAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(AlbefAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.embeddings = AlbefTextEmbeddings(config)
        self.layers = nn.ModuleList([AlbefDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.post_init()

    def get_correct_attn_implementation(self, requested_attention: str | None, *args, **kwargs) -> str:
        """Choose the attention as transformers does, but SDPA instead of flash attention.

        Flash attention has no mask for keys alone: it would apply the padding of the questions to the answers.
        """
        return super().get_correct_attn_implementation(_without_flash(requested_attention), *args, **kwargs)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        return super()._check_and_adjust_attn_implementation(_without_flash(attn_implementation), *args, **kwargs)

    def project_questions(self, question_states: torch.Tensor) -> list[KeyValues]:
        """Project (questions, question tokens, width) states to keys and values, one pair per layer."""
        return [layer.cross_attn.project_key_values(question_states) for layer in self.layers]

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        question_key_values: list[KeyValues],
        question_attention_mask: torch.Tensor | None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        """Decode the answers so far.

        Args:
            input_ids: Answers, (groups * questions, tokens); answer `i` belongs to question `i % questions`.
            attention_mask: (groups * questions, past and present tokens), 1 for tokens and 0 for padding.
            question_key_values: The output of `project_questions`.
            question_attention_mask: (questions, question tokens), 1 for tokens and 0 for padding.
            cache: Keys and values of earlier tokens; those of the present tokens are added.

        Returns:
            `last_hidden_state`: (groups * questions, tokens, width).
        """
        refuse_unknown(kwargs)
        hidden_states = self.embeddings(input_ids, start=0 if cache is None else cache.get_seq_length())
        attention_mask = causal_mask(self.config, hidden_states, attention_mask, cache)
        question_key = question_key_values[0][0]
        question_attention_mask = self._question_mask(hidden_states, question_key, question_attention_mask)
        for layer, (key, value) in zip(self.layers, question_key_values, strict=True):
            hidden_states = layer(
                hidden_states, attention_mask, key, value, question_attention_mask, cache=cache, **kwargs
            )
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)

    def _question_mask(
        self, hidden_states: torch.Tensor, question_key: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the mask of the questions' tokens, for the answers of each question as queries of one call."""
        context = question_key[:, 0]  # (questions, question tokens, head width)
        queries = hidden_states.reshape(context.shape[0], -1, hidden_states.shape[-1])
        return bidirectional_mask(self.config, queries, attention_mask, context)


for _encoder in (AlbefVisionModel, AlbefTextModel, AlbefMultimodalModel):
    _encoder.register_for_auto_class("AutoModel")


def __getattr__(name: str) -> Any:
    return renamed_attribute(globals(), RENAMED_CLASSES, name)


__all__ = [
    "AlbefAnswerDecoder",
    "AlbefAttention",
    "AlbefMultimodalModel",
    "AlbefPreTrainedModel",
    "AlbefTextModel",
    "AlbefTwoImageEncoder",
    "AlbefVisionModel",
    "KeyValues",
    "cached_key_values",
    "check_texts",
    "interpolate_position_embeddings",
    "refuse_unknown",
    "select_key_values",
    "to_weight_device",
]
