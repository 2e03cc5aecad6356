"""ALBEF in PyTorch: image encoder, text encoder, multimodal encoder, and the heads with their losses.

Align before Fuse, Li et al. 2021, arXiv 2107.07651; the original code is github.com/salesforce/ALBEF.
"""

import copy
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import ModelCard, create_repo, upload_file
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithCrossAttentions,
    BaseModelOutputWithPooling,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compatibility_albef import (
    CACHE_NAME,
    PRETRAINED_NAMES,
    VERSIONS,
    follow_umask,
    forget_attention_change,
    single_cache,
)
from .configuration_albef import (
    ENTAILMENT_CLASSES,
    REASONING_CLASSES,
    AlbefConfig,
    AlbefTextConfig,
    AlbefVisionConfig,
)

if TYPE_CHECKING:  # never run: transformers reads here which files a saved model takes along, beside those above
    from .heatmaps_albef import overlay  # noqa: F401
    from .images_albef import read_image  # noqa: F401
    from .pipeline_albef import AlbefPipeline  # noqa: F401
    from .processing_albef import AlbefProcessor  # noqa: F401
    from .retrieval_albef import match  # noqa: F401

logger = logging.get_logger(f"transformers.{__name__}")

KeyValues = tuple[torch.Tensor, torch.Tensor]  # each (batch, heads, tokens, head width)

# Makes of a tensor of this process, (batch, ...), that of all processes, (all, ...): the rows of this one first, the
# second axis padded with zeros to the longest. Gradients flow through it.
Gather = Callable[[torch.Tensor], torch.Tensor]

IGNORED = -100  # label of what has no target, as in torch's and transformers' losses

NO_LABEL_SMOOTHING = (
    "Give labels; with the Trainer of transformers, leave label_smoothing_factor at 0, since smoothing takes the "
    "labels from the batch."
)

# ALBEF.forward in the original's models/model_pretrain.py clamps to this range before every step.
TEMPERATURE_RANGE = (0.001, 0.5)


@dataclass
class AlbefModelOutput(ModelOutput):
    """What the three encoders make of image-text pairs.

    Args:
        last_hidden_state: Multimodal states, (batch, text tokens, text width).
        image_hidden_states: States of the image encoder, (batch, patches + 1, image width).
        text_hidden_states: States of the text encoder, (batch, text tokens, text width).
        vision_model_output: Everything the image encoder returned.
        text_model_output: Everything the text encoder returned.
        multimodal_model_output: Everything the multimodal encoder returned.
        hidden_states: Its states after each layer, where asked for.
        attentions: Of its tokens to each other, (batch, heads, text tokens, text tokens) a layer, where asked for.
        cross_attentions: Of its tokens to the image, (batch, heads, text tokens, patches + 1) a layer, likewise.
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
    """What a momentum teacher hands to a student: features and logits, never losses.

    Args:
        image_embeds: Momentum image features, unit length, (batch, projection).
        text_embeds: Momentum text features, unit length, (batch, projection).
        image_queue: Earlier momentum image features, (queue, projection).
        text_queue: Earlier momentum text features, (queue, projection).
        ids: Number of the picture of each pair, (batch,), where it is known.
        queue_ids: The same of each queued pair, -100 where unknown, (queue,).
        logits: Logits of what the student predicts: in pretraining of the masked tokens, in question answering of the
            answers' tokens, (tokens, vocabulary), in the row order of the labels; in classification (batch, classes).
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
        loss: Sum of the three losses, a scalar; with `labels` only, like the next four.
        loss_itc: Image-text contrastive loss, equation 6 of the paper.
        loss_itm: Image-text matching loss, equation 4.
        loss_mlm: Masked-language loss, equation 7.
        info_nce: InfoNCE of the pairs against the same keys without distillation, which is what bounds the mutual
            information of image and text (section 4 of the paper): I >= log(keys) - info_nce, in nats.
        itm_logits: Logits of (no match, match). In training (3 batch, 2): the pairs, each text with a hard negative
            image, each image with a hard negative text. At inference (batch, 2).
        logits: Vocabulary logits. In training of masked tokens, (masked tokens, vocabulary); at inference of all,
            (batch, text tokens, vocabulary).
        image_embeds: Image features, unit length, (batch, projection).
        text_embeds: Text features, unit length, (batch, projection).
        hidden_states: As in `AlbefModelOutput`, at inference, like the next two.
        attentions: Likewise.
        cross_attentions: Likewise.
    """

    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
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
        loss: Sum of the two losses, a scalar; with `labels` only, like the next three.
        loss_itc: Image-text contrastive loss, equation 6 of the paper.
        loss_itm: Image-text matching loss, equation 4.
        info_nce: The contrastive loss without distillation.
        logits_per_image: Cosine over temperature of every image with every text, (images, texts). In training with a
            teacher, the texts are its features.
        logits_per_text: The same of every text with every image, (texts, images).
        itm_logits: Logits of (no match, match). At inference (texts, 2): text `i` with image `i % images`; None where
            the images do not go evenly into the texts. In training (3 batch, 2): the pairs, each text with a hard
            negative image, each image with a hard negative text.
        image_embeds: Image features, unit length, (images, projection).
        text_embeds: Text features, unit length, (texts, projection).
        hidden_states: As in `AlbefModelOutput`, at inference, like the next two.
        attentions: Likewise.
        cross_attentions: Likewise.
    """

    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
    info_nce: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None

    def __getitem__(self, key: str | int | slice) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """As in transformers, whose label smoothing asks for `logits`, of which retrieval has two kinds."""
        if key == "logits":
            raise ValueError(f"Retrieval has no `logits` to smooth labels of. {NO_LABEL_SMOOTHING}")
        return super().__getitem__(key)


@dataclass
class AlbefClassifierOutput(SequenceClassifierOutput):
    """What transformers' classifiers return, and where the tokens of the text look.

    Args:
        cross_attentions: As in `AlbefModelOutput`; with two images, those to the first and to the second by turns.
    """

    cross_attentions: tuple[torch.Tensor, ...] | None = None


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
    """Attention spelled out, for when its probabilities are to be seen.

    Takes (batch, heads, tokens, head width); returns (batch, tokens, heads, head width) and the probabilities,
    (batch, heads, query tokens, key tokens).
    """
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


_KEYWORDS = {*TransformersKwargs.__annotations__, "return_dict", "use_cache"} - {"position_ids"}


def _refuse_unknown(kwargs: dict) -> None:
    """Refuse keywords that would change nothing, such as misspelt ones.

    `return_loss=False` and token types of zero, which some tokenizers and pipelines give, ask for nothing else.
    """
    unknown = [name for name, value in kwargs.items() if value is not None and name not in _KEYWORDS]
    if "return_loss" in unknown and kwargs["return_loss"] is False:
        unknown.remove("return_loss")
    if "token_type_ids" in unknown:
        unknown.remove("token_type_ids")
        if (kwargs["token_type_ids"] != 0).any():
            raise ValueError("ALBEF adds token type 0 to all texts by itself: leave token_type_ids out.")
    if unknown:
        raise ValueError(
            f"forward takes no {', '.join(unknown)}: check the spelling, or leave it out. The loss is returned "
            "wherever labels are given."
        )


def _beside(weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """States on the device of a weight, where a call does not go through the `forward` to which they are brought.

    A weight that accelerate keeps on a disk says meta, and is fetched to where the states are. A dynamically quantized
    layer has a method of that name, and no device but the CPU.
    """
    return states.to(weight.device) if isinstance(weight, torch.Tensor) and not weight.is_meta else states


class AlbefAttention(nn.Module):
    """Multi-head attention over the states themselves, or over keys and values projected beforehand.

    Keys and values may be shared: for `groups * batch` texts and `batch` images, text `i` reads image `i % batch`.
    The texts of one image are then queries of one attention call, so that nothing is projected or copied twice.
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

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, tokens, head width)

    def project_key_values(self, hidden_states: torch.Tensor) -> KeyValues:
        """Project (batch, tokens, width) to a key and a value, each (batch, heads, tokens, head width)."""
        hidden_states = _beside(self.k_proj.weight, hidden_states)
        return self._split_heads(self.k_proj(hidden_states)), self._split_heads(self.v_proj(hidden_states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_values: KeyValues | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        texts, tokens, _ = hidden_states.shape
        key, value = self.project_key_values(hidden_states) if key_values is None else key_values
        query = self._split_heads(self.q_proj(hidden_states))
        images = key.shape[0]
        groups = texts // images
        if texts % images:
            raise ValueError(f"{texts} texts cannot share {images} images evenly: give one image, or one a text.")
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
    def can_read(self) -> bool:
        """Whether `read` will do: of a quantized, adapted or offloaded layer, the weight is not the whole truth."""
        return all(type(part) is nn.Linear and not part.weight.is_meta for part in (self.k_proj, self.v_proj))

    def read(
        self, hidden_states: torch.Tensor, context: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `forward` with the keys and values of a context, (batch, context tokens, context width), unprojected.

        (q W) (c V)^T = (q W V^T) c^T: instead of the many tokens of the context, the few queries pass the weights of
        the keys, and what is read those of the values. The keys' bias, which shifts all scores of a query alike, is
        lost in the softmax. Cheaper where there are fewer queries than a head is wide; for inference.

        Args:
            hidden_states: (batch, tokens, width).
            context: (batch, context tokens, context width).
            attention_mask: (batch, context tokens), 1 for tokens and 0 for padding.

        Returns:
            (batch, tokens, width).
        """
        context = _beside(self.q_proj.weight, context)
        keys, values = (part.weight.unflatten(0, (-1, self.head_dim)) for part in (self.k_proj, self.v_proj))
        query = self._split_heads(self.q_proj(hidden_states)) @ keys  # (batch, heads, tokens, context width)
        scores = query.flatten(1, 2) @ context.transpose(1, 2) * self.scaling  # every head's tokens, to the context's
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None] == 0, torch.finfo(scores.dtype).min)
        found = (scores.softmax(-1) @ context).unflatten(1, query.shape[1:3]) @ values.transpose(1, 2)
        return self.out_proj(found.transpose(1, 2).flatten(2) + self.v_proj.bias)  # (batch, tokens, width)


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
    """A ViT layer: normalise, then attend or feed forward, then add."""

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
    """A BERT layer: attend or feed forward, then add, then normalise."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.self_attn = AlbefAttention(config)
        self.self_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AlbefMLP(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def attend(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        key_values: KeyValues | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Self-attention, (batch, tokens, width) to the same."""
        attended, _ = self.self_attn(hidden_states, attention_mask, key_values, **kwargs)
        return self.self_attn_norm(hidden_states + self.dropout(attended))

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The feed-forward part, (batch, tokens, width) to the same."""
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        return self.feed_forward(self.attend(hidden_states, attention_mask, **kwargs))


class AlbefMultimodalLayer(AlbefTextLayer):
    """A BERT layer whose tokens look at the image between self-attention and feed-forward."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.cross_attn = AlbefAttention(config, key_value_size=config.encoder_hidden_size)
        self.cross_attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def look(
        self,
        hidden_states: torch.Tensor,
        key_values: KeyValues,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Cross-attention, (batch, tokens, width) to the same."""
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
        """Tokens attend to each other; where `context` is given, to its tokens, of which they are some."""
        key_values = None if context is None else self.self_attn.project_key_values(context)
        hidden_states = self.attend(hidden_states, attention_mask, key_values, **kwargs)
        return self.feed_forward(self.look(hidden_states, (image_key, image_value), **kwargs))


class AlbefSecondImageLayer(AlbefMultimodalLayer):
    """A multimodal layer that reads the second image of a pair, through the projection of the layer before it.

    The original's `xbert.py` shares key and value weights between the two layers of a pair (`share_cross_attention`).
    """

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        del self.cross_attn.k_proj, self.cross_attn.v_proj


class AlbefDecoderLayer(AlbefMultimodalLayer):
    """A causal layer whose tokens look at a question instead of an image."""

    def __init__(self, config: AlbefTextConfig, index: int):
        super().__init__(config)
        self.index = index
        self.self_attn.is_causal = True

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        question_key: torch.Tensor,
        question_value: torch.Tensor,
        question_attention_mask: torch.Tensor | None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        key_values = self.self_attn.project_key_values(hidden_states)
        if cache is not None:
            key_values = cache.update(*key_values, self.index)
        hidden_states = self.attend(hidden_states, attention_mask, key_values, **kwargs)
        return self.feed_forward(
            self.look(hidden_states, (question_key, question_value), question_attention_mask, **kwargs)
        )


class AlbefVisionEmbeddings(nn.Module):
    """Patches, a `[CLS]` token in front, and learned positions."""

    def __init__(self, config: AlbefVisionConfig):
        super().__init__()
        self.image_size = config.image_size
        self.grid_size = config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + self.grid_size**2, config.hidden_size))

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        if not interpolate_pos_encoding and (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"The pictures are {height}x{width} pixels, the model expects {self.image_size}x{self.image_size}: "
                "resize them (AlbefProcessor does), or pass interpolate_pos_encoding=True."
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        positions = self.position_embeddings
        if interpolate_pos_encoding:
            positions = interpolate_position_embeddings(positions, patches.shape[-2:])
        tokens = patches.flatten(2).transpose(1, 2)  # (batch, patches, width)
        # Not len(): in an exported graph that would be the one batch size which it has been traced with.
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + positions


class AlbefTextEmbeddings(nn.Module):
    """Words, positions and token type 0, which ALBEF always adds."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Embed (batch, tokens) ids whose first stands at position `start`, as (batch, tokens, width)."""
        tokens, longest = start + input_ids.shape[1], self.position_embeddings.num_embeddings
        if tokens > longest:
            raise ValueError(
                f"The text has {tokens} tokens, the model takes {longest} at most: truncate it when tokenizing "
                "(truncation=True, max_length=...)."
            )
        positions = torch.arange(start, tokens, device=input_ids.device)
        try:
            embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings(input_ids.new_zeros(1))
        except IndexError as error:
            raise ValueError(
                f"input_ids have to be below the size of the vocabulary, {self.word_embeddings.num_embeddings}: after "
                "adding tokens to the tokenizer, call model.resize_token_embeddings(len(tokenizer))."
            ) from error
        return self.dropout(self.norm(embeddings + self.position_embeddings(positions)))


def interpolate_position_embeddings(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Resample learned positions of a square grid to another grid; the `[CLS]` row stays (the original's `vit.py`).

    Args:
        positions: (1, 1 + side * side, width).
        grid: Rows and columns of patches wanted.

    Returns:
        (1, 1 + rows * columns, width).
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if (side, side) == tuple(grid):
        return positions
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


class ResampleImagePositions(ConversionOps):
    """Fits the image positions of a checkpoint to the model's resolution while `from_pretrained` loads them."""

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
        side = round((model.get_parameter(full_layer_name).shape[1] - 1) ** 0.5)
        return {target_patterns[0]: interpolate_position_embeddings(positions, (side, side))}

    @property
    def reverse_op(self) -> ConversionOps:
        """A model is saved with the positions that it has, which the same operation leaves alone."""
        return self


_POSITIONS = r"embeddings\.position_embeddings(?!\.weight)"  # those of texts are the weight of an nn.Embedding
_RESAMPLING = WeightConverter(_POSITIONS, _POSITIONS, [ResampleImagePositions()])

# An encoder alone is found in the folder of a whole model: by its base_model_prefix there, or by less without a head.
for _name, _conversions in (("vision", [_RESAMPLING]), ("text", []), ("multimodal", [])):
    register_checkpoint_conversion_mapping(
        f"Albef{_name.title()}Model",
        [WeightRenaming(rf"^{_name}_model\.", f"albef.{_name}_model."), *_conversions],
        overwrite=True,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Encoders
# ---------------------------------------------------------------------------------------------------------------------


# For who pushes a model by hand; albef_hf.model_card writes one of all that is known of a training.
SHORT_CARD = """---
library_name: transformers
tags:
- albef
- vision-language
---
# {name}

`{kind}`: ALBEF ([Align before Fuse](https://arxiv.org/abs/2107.07651)), an image encoder and a text encoder that are
aligned by contrast, and a multimodal encoder in which the text attends to the image.

```python
from transformers import {auto}, AutoProcessor

model = {auto}.from_pretrained("{repo}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{repo}", trust_remote_code=True)
```

What it was trained on and how good it is, who pushed it has not written down here.

## Versions

{versions}
"""


class AlbefPreTrainedModel(PreTrainedModel):
    """Weight initialisation and what transformers has to know about all ALBEF models."""

    config: AlbefConfig
    base_model_prefix = "albef"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # Losses are means over the batch: Trainer has to divide them by the number of accumulation steps itself.
    accepts_loss_kwargs = False
    # Whole where one device has the room, since heads share what encoders project; of an encoder alone, whole layers.
    _no_split_modules = [
        "AlbefModel",
        "AlbefPairModel",
        "AlbefVisionModel",
        "AlbefTextModel",
        "AlbefMultimodalModel",
        "AlbefAnswerDecoder",
        "AlbefVisionEmbeddings",
        "AlbefVisionLayer",
        "AlbefTextEmbeddings",
        "AlbefTextLayer",
        "AlbefMultimodalLayer",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # A model starts from the checkpoint of any other: heads that it does not have are no news.
    _keys_to_ignore_on_load_unexpected = [r"^(contrastive|itm|mlm|assignment)_head\.", r"^classifier\.", r"^decoder\."]
    # Modules that start as copies of others, {name: name of the other}, where a checkpoint does not have them.
    _copied_modules: dict[str, str] = {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlbefVisionEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, AlbefContrastiveHead):
            init.constant_(module.temperature, module.initial_temperature)
        elif isinstance(module, AlbefFrozenProjection):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    def initialize_weights(self) -> None:
        """Initialise what no checkpoint has filled; copies come last, when what they copy is there."""
        super().initialize_weights()
        self._copied_weights: set[str] = set()
        for prefix, model in self.named_modules():
            for name, other_name in getattr(model, "_copied_modules", {}).items():
                other = dict(model.get_submodule(other_name).named_parameters())
                copied = _copy_if_fresh(model.get_submodule(name), other)
                # A copy of what the checkpoint does not have either is as new as that.
                copied = [key for key in copied if getattr(other[key], "_is_hf_initialized", False)]
                self._copied_weights |= {f"{prefix}.{name}.{key}".removeprefix(".") for key in copied}
                if copied:
                    logger.warning_once(f"The checkpoint has no {name}: what fits of {other_name} is copied there.")
        self._copied_weights |= self._copy_what_was_tied()

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in transformers; the folder brings this code along and says what each Auto class loads from it.

        The folder's configuration says that weights are tied wherever they are. PEFT declares the answers' output
        untied when it merges, since it is tied to the embeddings of the decoder instead of those of the questions.
        """
        weights = dict(self.named_parameters(remove_duplicate=False))
        for name, other_name in (self._tied_weights_keys or {}).items():
            if name in weights and weights[name] is weights.get(other_name):
                self.config.tie_word_embeddings = True
        self.config.auto_map = self._auto_map()
        super().save_pretrained(save_directory, *args, **kwargs)  # which enters the class that is being saved
        follow_umask(Path(save_directory).glob("model*.safetensors"))

    def _auto_map(self) -> dict[str, str]:
        """Return what each Auto class loads from the folder; transformers adds the class that is saved."""
        return dict(AUTO_MAP) if self.config.model_type == AlbefConfig.model_type else {}

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """As in transformers; where the repository's card says nothing, it is told how to load the model."""
        if kwargs.get("create_pr"):  # to somebody else's repository, whose card is theirs
            return super().push_to_hub(repo_id, **kwargs)
        token = kwargs.get("token")
        repo_id = create_repo(repo_id, private=kwargs.get("private"), token=token, exist_ok=True).repo_id
        try:
            known = "[More Information Needed]" not in ModelCard.load(repo_id, token=token).content
        except EntryNotFoundError:
            known = False
        if not known:
            kind = type(self)
            auto_class = next((name for name, models in AUTO_MODELS.items() if kind in models), "AutoModel")
            name = repo_id.split("/")[-1]
            card = SHORT_CARD.format(name=name, kind=kind.__name__, auto=auto_class, repo=repo_id, versions=VERSIONS)
            upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo_id, token=token)
        return super().push_to_hub(repo_id, **kwargs)

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Share what is tied; what has just been copied is not missing, so that only what is new is reported."""
        if missing_keys is not None:
            missing_keys -= getattr(self, "_copied_weights", set())
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    def _copy_what_was_tied(self) -> set[str]:
        """Fill weights that are no longer tied from those that they were tied to in the checkpoint.

        Returns:
            Names of the weights that were filled.
        """
        copied = set()
        for name, other_name in (self._tied_weights_keys or {}).items():
            weight, other = self.get_parameter(name), self.get_parameter(other_name)
            known = getattr(other, "_is_hf_initialized", False) or other_name in self._copied_weights
            if known and not (self.config.tie_word_embeddings or getattr(weight, "_is_hf_initialized", False)):
                init.copy_(weight, other)
                copied.add(name)
        return copied


def _copy_if_fresh(module: nn.Module, others: dict[str, torch.Tensor]) -> list[str]:
    """Give a module the weights of another, those of the same shape, unless a checkpoint has filled some of it."""
    weights = dict(module.named_parameters())
    if any(getattr(weight, "_is_hf_initialized", False) for weight in weights.values()):
        return []
    copied = [name for name, weight in weights.items() if weight.shape == others[name].shape]
    for name in copied:
        init.copy_(weights[name], others[name])
    return copied


class AlbefVisionModel(AlbefPreTrainedModel):
    """The image encoder: a vision transformer that keeps every patch."""

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
        """Encode pictures.

        Args:
            pixel_values: (batch, channels, height, width), normalised as `AlbefProcessor` does.
            interpolate_pos_encoding: Resample the learned positions to pictures of another size.

        Returns:
            `last_hidden_state`: (batch, 1 + patches, width), the `[CLS]` token first.

        Raises:
            ValueError: If there is none, or they have another size and `interpolate_pos_encoding` is off.
        """
        _refuse_unknown(kwargs)
        if pixel_values is None:
            raise ValueError("pixel_values is None: give at least one image, (batch, channels, height, width).")
        if pixel_values.shape[0] == 0:
            raise ValueError("There is no image: give at least one, (batch, channels, height, width).")
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
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode texts.

        Args:
            input_ids: (batch, tokens), `[CLS]` first.
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.

        Returns:
            `last_hidden_state`: (batch, tokens, width).

        Raises:
            ValueError: If there is no text, or a text is longer than the model has positions.
        """
        _refuse_unknown(kwargs)
        if input_ids is None:
            raise ValueError("input_ids is None: give at least one text, (batch, tokens).")
        if 0 in input_ids.shape:
            raise ValueError(
                f"input_ids are {tuple(input_ids.shape)}: give at least one text, of at least one token, [CLS]."
            )
        hidden_states = self.embeddings(input_ids)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class AlbefMultimodalModel(AlbefPreTrainedModel):
    """The multimodal encoder: the upper half of BERT, its tokens attending to the image tokens.

    Text is the query, image tokens are key and value. Keys and values depend on the image alone, so they are projected
    by `project_images` once and serve every text that is paired with the image.
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
        self.post_init()

    def project_images(self, image_hidden_states: torch.Tensor) -> list[KeyValues]:
        """Keys and values of (batch, image tokens, image width) states, one pair a layer."""
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
            image_key_values: What `project_images` made of `batch` images.

        Returns:
            `last_hidden_state`: (groups * batch, tokens, width).

        Raises:
            ValueError: If the images do not go evenly into the texts.
        """
        _refuse_unknown(kwargs)
        hidden_states = self._run(self.layers, hidden_states, attention_mask, image_key_values, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)

    def summarize(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, image_key_values: list[KeyValues]
    ) -> torch.Tensor:
        """The `[CLS]` token that `forward` returns, (groups * batch, width), for the same arguments.

        It is all that matching reads, so the last layer computes nothing else.
        """
        hidden_states = self._run(self.layers[:-1], hidden_states, attention_mask, image_key_values[:-1])
        cls = hidden_states[:, :1]
        mask = self._mask(cls, attention_mask, hidden_states)
        return self.layers[-1](cls, mask, *image_key_values[-1], hidden_states)[:, 0]

    def prepare_texts(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """What the first layer makes of texts before it looks at an image, (texts, tokens, width)."""
        return self.layers[0].attend(hidden_states, self._mask(hidden_states, attention_mask))

    def summarize_prepared(
        self, prepared: torch.Tensor, attention_mask: torch.Tensor, image_key_values: list[KeyValues]
    ) -> torch.Tensor:
        """As `summarize`, of texts that are all read with the same image, and in inference.

        Their tokens stand in one row, like those of a single long text, so that nothing is computed for padding;
        only where they attend to each other does every text stand alone.

        Args:
            prepared: From `prepare_texts`, (texts, tokens, width).
            attention_mask: (texts, tokens), 1 for tokens and 0 for padding.
            image_key_values: What `project_images` made of one image.

        Returns:
            (texts, width).
        """
        (first, *others), (keys, *other_keys) = self.layers, image_key_values
        if not others:
            return first.feed_forward(first.look(prepared[:, :1], keys))[:, 0]
        places, mask = attention_mask.flatten().nonzero()[:, 0], self._mask(prepared, attention_mask)

        def apart(row: torch.Tensor) -> torch.Tensor:
            return row.new_zeros(prepared.shape).flatten(0, 1).index_copy(0, places, row[0]).view(prepared.shape)

        row = first.feed_forward(first.look(prepared.flatten(0, 1)[places][None], keys))
        for layer, layer_keys in zip(others[:-1], other_keys[:-1], strict=True):
            attended = layer.attend(apart(row), mask).flatten(0, 1)[places][None]
            row = layer.feed_forward(layer.look(attended, layer_keys))
        cls = self._attend_cls(others[-1], apart(row), attention_mask)
        return others[-1].feed_forward(others[-1].look(cls, other_keys[-1]))[:, 0]

    def summarize_images(self, prepared: torch.Tensor, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """As `summarize`, of one text and many images, whose keys and values are then not worth projecting.

        Args:
            prepared: From `prepare_texts`, (1, tokens, width), without padding.
            image_hidden_states: (images, image tokens, image width).

        Returns:
            (images, width).
        """
        states = prepared.expand(len(image_hidden_states), -1, -1)
        for number, layer in enumerate(self.layers):
            if layer is not self.layers[-1]:
                queries = layer.attend(states, None) if number else states  # the first layer has attended already
            else:  # [CLS] alone, as in `summarize`
                queries = self._attend_cls(layer, states, None) if number else states[:, :1]
            read = layer.cross_attn.read(queries, image_hidden_states)
            states = layer.feed_forward(layer.cross_attn_norm(queries + read))
        return states[:, 0]

    def _attend_cls(
        self, layer: AlbefMultimodalLayer, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Self-attention of the `[CLS]` token alone, (batch, tokens, width) to (batch, 1, width), in inference."""
        cls = hidden_states[:, :1]
        if layer.self_attn.can_read:
            return layer.self_attn_norm(cls + layer.self_attn.read(cls, hidden_states, attention_mask))
        key_values = layer.self_attn.project_key_values(hidden_states)
        return layer.attend(cls, self._mask(cls, attention_mask, hidden_states), key_values)

    def _mask(
        self, queries: torch.Tensor, attention_mask: torch.Tensor | None, context: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """The mask of a text's tokens in the form that the attention takes, for all tokens as queries or for some."""
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=queries,
            attention_mask=attention_mask,
            encoder_hidden_states=context,
        )

    def _run(
        self,
        layers: Sequence[AlbefMultimodalLayer],
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_key_values: list[KeyValues],
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attention_mask = self._mask(hidden_states, attention_mask)
        for layer, (image_key, image_value) in zip(layers, image_key_values, strict=True):
            hidden_states = layer(hidden_states, attention_mask, image_key, image_value, **kwargs)
        return hidden_states


class AlbefPairMultimodalModel(AlbefMultimodalModel):
    """The multimodal encoder for two images: every layer reads the first, then a twin of it reads the second.

    The twins have their own weights, but for the keys and values, which they share (section 5 of the paper).
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
            first_key_values: What `project_images` made of the first images.
            second_key_values: The same of the second images.

        Returns:
            `last_hidden_state`: (batch, tokens, width). Recorded states and attentions alternate between the images.
        """
        _refuse_unknown(kwargs)
        attention_mask = self._mask(hidden_states, attention_mask)
        for layer, first, second_layer, second in zip(
            self.layers, first_key_values, self.second_layers, second_key_values, strict=True
        ):
            hidden_states = layer(hidden_states, attention_mask, *first, **kwargs)
            hidden_states = second_layer(hidden_states, attention_mask, *second, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)


def select_key_values(key_values: list[KeyValues], index: torch.Tensor) -> list[KeyValues]:
    """Rows of projected keys and values, which repeats or reorders the images that they belong to."""
    return [(key[index.to(key.device)], value[index.to(key.device)]) for key, value in key_values]


def _without_flash(attention: str | None) -> str | None:
    return "sdpa" if attention is not None and "flash" in attention else attention


class AlbefAnswerDecoder(AlbefPreTrainedModel):
    """A causal decoder over the tokens of an answer, which attends to a fused question (figure 3 of the paper).

    It has the shape of the multimodal encoder, from which it starts.
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
        """As in transformers; but SDPA instead of flash attention, which has no mask for keys alone.

        It would take the padding of the questions for that of the answers.
        """
        return super().get_correct_attn_implementation(_without_flash(requested_attention), *args, **kwargs)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        return super()._check_and_adjust_attn_implementation(_without_flash(attn_implementation), *args, **kwargs)

    def project_questions(self, question_states: torch.Tensor) -> list[KeyValues]:
        """Keys and values of (questions, question tokens, width) states, one pair a layer."""
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
        """Read answers as far as they go.

        Args:
            input_ids: Answers, (groups * questions, tokens); answer `i` belongs to question `i % questions`.
            attention_mask: (groups * questions, past and present tokens), 1 for tokens and 0 for padding.
            question_key_values: What `project_questions` made of the questions.
            question_attention_mask: (questions, question tokens), 1 for tokens and 0 for padding.
            cache: Keys and values of earlier tokens, to which those of the present ones are added.

        Returns:
            `last_hidden_state`: (groups * questions, tokens, width).
        """
        _refuse_unknown(kwargs)
        past = 0 if cache is None else cache.get_seq_length()
        hidden_states = self.embeddings(input_ids, past)
        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            **{CACHE_NAME: cache},
        )
        question_keys = question_key_values[0][0][:, 0]  # (questions, question tokens, head width)
        question_attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states.reshape(question_keys.shape[0], -1, hidden_states.shape[-1]),
            attention_mask=question_attention_mask,
            encoder_hidden_states=question_keys,
        )
        for layer, (key, value) in zip(self.layers, question_key_values, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask,
                key,
                value,
                question_attention_mask,
                cache=cache,
                **kwargs,
            )
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)


def _recorded(outputs: ModelOutput) -> dict[str, tuple[torch.Tensor, ...] | None]:
    """What `output_hidden_states` and `output_attentions` have asked of the multimodal encoder."""
    return {name: outputs.get(name) for name in ("hidden_states", "attentions", "cross_attentions")}


class AlbefUnimodalModels(AlbefPreTrainedModel):
    """The image encoder and the text encoder, which the models of one image and of two have in common."""

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.vision_model = AlbefVisionModel._from_config(config.vision_config)
        self.text_model = AlbefTextModel._from_config(config.text_config)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.text_model.set_input_embeddings(value)

    @staticmethod
    def _join(
        images: BaseModelOutput, texts: BaseModelOutput, fused: BaseModelOutputWithCrossAttentions
    ) -> AlbefModelOutput:
        """What the three encoders have returned, as one output."""
        return AlbefModelOutput(
            last_hidden_state=fused.last_hidden_state,
            image_hidden_states=images.last_hidden_state,
            text_hidden_states=texts.last_hidden_state,
            vision_model_output=images,
            text_model_output=texts,
            multimodal_model_output=fused,
            **_recorded(fused),
        )


class AlbefModel(AlbefUnimodalModels):
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefModelOutput:
        """Encode image-text pairs.

        Args:
            input_ids: (batch, tokens), `[CLS]` first.
            pixel_values: (batch, channels, height, width). Fewer pictures than texts are shared: of `n` pictures, text
                `i` reads picture `i % n`.
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            interpolate_pos_encoding: Resample the learned image positions to pictures of another size.

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
        if input_ids is None or pixel_values is None:  # as transformers' pipelines for features call it
            raise ValueError(
                "AlbefModel takes input_ids and pixel_values together. For features of images or texts alone, load "
                "the model as AlbefForRetrieval and call get_image_features or get_text_features."
            )
        images = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        texts = self.text_model(input_ids, attention_mask, **kwargs)
        image_key_values = self.multimodal_model.project_images(images.last_hidden_state)
        fused = self.multimodal_model(texts.last_hidden_state, attention_mask, image_key_values, **kwargs)
        return self._join(images, texts, fused)


class AlbefPairModel(AlbefUnimodalModels):
    """The three encoders for a text about two images, without a head (section 5 of the paper, NLVR2)."""

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.multimodal_model = AlbefPairMultimodalModel._from_config(config.text_config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefModelOutput:
        """Encode texts with two images each.

        Args:
            input_ids: (batch, tokens), `[CLS]` first.
            pixel_values: (batch, 2, channels, height, width).
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            interpolate_pos_encoding: Resample the learned image positions to pictures of another size.

        Returns:
            As `AlbefModel`, but `image_hidden_states` are (2 batch, patches + 1, image width), the two images of a
            text one after the other.

        Raises:
            ValueError: If `pixel_values` are not pairs.
        """
        if pixel_values is None or pixel_values.ndim != 5 or pixel_values.shape[1] != 2:
            given = None if pixel_values is None else tuple(pixel_values.shape)
            raise ValueError(
                f"pixel_values are {given}; a text about two images needs both of them, "
                "(batch, 2, channels, height, width): torch.stack([first, second], dim=1)."
            )
        images = self.vision_model(
            pixel_values.flatten(0, 1), interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        texts = self.text_model(input_ids, attention_mask, **kwargs)
        key_values = self.multimodal_model.project_images(images.last_hidden_state)
        first = torch.arange(0, images.last_hidden_state.shape[0], 2, device=pixel_values.device)
        fused = self.multimodal_model(
            texts.last_hidden_state,
            attention_mask,
            select_key_values(key_values, first),
            select_key_values(key_values, first + 1),
            **kwargs,
        )
        return self._join(images, texts, fused)


# ---------------------------------------------------------------------------------------------------------------------
# Heads and losses
# ---------------------------------------------------------------------------------------------------------------------


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _require_share(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: give the teacher's share of the target, between 0 and 1.")


def distilled_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, teacher_logits: torch.Tensor | None, alpha: float
) -> torch.Tensor:
    """Cross-entropy against `(1 - alpha) * targets + alpha * softmax(teacher_logits)`, equations 6 and 7 of the paper.

    Args:
        logits: (rows, classes).
        targets: Class indices, (rows,), or probabilities, (rows, classes).
        teacher_logits: (rows, classes), or None for the plain cross-entropy.
        alpha: Share of the teacher in the target, between 0 and 1.

    Returns:
        The loss of each row, (rows,).

    Raises:
        ValueError: If alpha is not between 0 and 1, or (on a CPU) a target is not one of the classes.
    """
    _require_share(alpha)
    logits = _at_least_float32(logits)
    try:
        losses = F.cross_entropy(logits, targets, reduction="none")
    except IndexError as error:
        raise ValueError(f"{error} Labels have to be between 0 and {logits.shape[-1] - 1}, or -100.") from error
    if teacher_logits is None or alpha == 0:
        return losses
    soft_targets = _at_least_float32(teacher_logits.detach()).softmax(-1)
    return (1 - alpha) * losses + alpha * F.cross_entropy(logits, soft_targets, reduction="none")


def _teacher_logits(teacher_outputs: AlbefTeacherOutput | None) -> torch.Tensor | None:
    return None if teacher_outputs is None else teacher_outputs.logits


@torch.no_grad()
def sample_hard_negatives(
    logits_per_image: torch.Tensor, logits_per_text: torch.Tensor, candidates: torch.Tensor, hardness: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a hard negative for every text and every image, likelier the more similar it is (section 3.2 of the paper).

    Args:
        logits_per_image: Images of the batch against all texts, (batch, all); all are those of the batch, and then
            those of other processes, if they are to be drawn too.
        logits_per_text: Texts of the batch against all images, (batch, all).
        candidates: Whether image i and text j, and text i and image j, may serve as a negative pair, (batch, all).
        hardness: Power of the distribution that they are drawn from; 1: the paper, 0: all alike.

    Returns:
        Index of an image for each text and of a text for each image, each (batch,); any, where there is no candidate,
        which `matching_loss` leaves out.

    Raises:
        ValueError: If the batch holds a single pair, or the hardness is negative or not finite.
    """
    if candidates.shape[1] < 2:
        raise ValueError(
            "A batch of one pair holds no negative, so image-text matching cannot be learned from it: use a batch "
            "size of at least 2 per process, and drop the last incomplete batch, also in evaluation (the Trainer of "
            "transformers does so with dataloader_drop_last=True)."
        )
    if not 0 <= hardness < torch.inf:
        raise ValueError(
            f"negative_hardness is {hardness}: give a number of at least 0, where 0 draws any wrong pair alike and 1 "
            "draws as in the paper."
        )

    def draw(logits: torch.Tensor) -> torch.Tensor:
        # At a small temperature every candidate may underflow to zero; the floor turns that into a uniform draw. So do
        # logits that are not a number: the loss will say so, where an error here would only stop one process.
        weights = (hardness * logits).softmax(-1).nan_to_num(0).clamp_min(1e-30)
        weights = weights.masked_fill(~candidates & candidates.any(1, keepdim=True), 0)
        return torch.multinomial(weights, 1).squeeze(-1)

    return draw(logits_per_text), draw(logits_per_image)


def matching_loss(itm_logits: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Image-text matching loss, equation 4 of the paper.

    Args:
        itm_logits: (3 batch, 2): of the pairs, of each text with a wrong image, of each image with a wrong text.
        candidates: As for `sample_hard_negatives`; a row without any has no negative to learn from.

    Returns:
        The mean cross-entropy, a scalar.
    """
    wrong = torch.where(candidates.any(1), 0, IGNORED)
    labels = torch.cat([torch.ones_like(wrong), wrong, wrong])
    return F.cross_entropy(itm_logits, labels, ignore_index=IGNORED)


class AlbefContrastiveHead(nn.Module):
    """The joint space of images and texts: two projections and the temperature of their similarities."""

    def __init__(self, config: AlbefConfig):
        super().__init__()
        self.image_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.initial_temperature = config.initial_temperature
        self.temperature = nn.Parameter(torch.tensor(float(config.initial_temperature)))

    def project_image(self, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """Unit-length features, (batch, projection), of (batch, image tokens, image width) states."""
        return self._project(self.image_projection, image_hidden_states)

    def project_text(self, text_hidden_states: torch.Tensor) -> torch.Tensor:
        """Unit-length features, (batch, projection), of (batch, text tokens, text width) states."""
        return self._project(self.text_projection, text_hidden_states)

    @staticmethod
    def _project(projection: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
        features = projection(_beside(projection.weight, hidden_states[:, 0]))
        return F.normalize(_at_least_float32(features), dim=-1)

    def forward(self, queries: torch.Tensor, *keys: torch.Tensor) -> torch.Tensor:
        """Similarity over temperature, (queries, all keys), of features (queries, projection) and (keys, projection).

        Never below float32: at a temperature of 0.07 the 8 bits of a bfloat16 move a logit by up to 0.06.
        """
        with torch.autocast(queries.device.type, enabled=False):
            # Logits are joined rather than keys: of a queue, a copy would be 67 megabytes.
            similarities = torch.cat([queries @ some.to(queries.dtype).T for some in keys], dim=1)
            return similarities / self.temperature.to(queries.dtype)

    def loss(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        targets: torch.Tensor,
        teacher_outputs: AlbefTeacherOutput | None,
        alpha: float,
        gather: Gather | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Image-text contrastive loss, equations 1, 2 and 6 of the paper.

        The keys are the teacher's features of the batch, then its queues; without a teacher, the batch itself.
        Teacher similarities are divided by the student's temperature, as in the original's `model_pretrain.py`.

        Args:
            image_embeds: Unit features of the images, (batch, projection).
            text_embeds: Unit features of the texts, (batch, projection).
            targets: The right key of each image and of each text, (batch,), or the share of each key in it, (batch,
                batch + queue).
            teacher_outputs: Features and queues of a teacher.
            alpha: Share of the teacher in the targets.
            gather: Joins the batches of all processes, for the logits alone.

        Returns:
            The loss, the InfoNCE without distillation, and the logits of images against the texts and of texts against
            the images of the batch, or of the gathered batches, each (batch, batch) or (batch, all).
        """
        batch = len(image_embeds)
        image_keys, text_keys = (image_embeds,), (text_embeds,)
        teacher_per_image = teacher_per_text = None
        if teacher_outputs is not None:
            image_keys = (teacher_outputs.image_embeds, teacher_outputs.image_queue)
            text_keys = (teacher_outputs.text_embeds, teacher_outputs.text_queue)
            if alpha > 0:
                with torch.no_grad():
                    teacher_per_image = self(teacher_outputs.image_embeds, *text_keys)
                    teacher_per_text = self(teacher_outputs.text_embeds, *image_keys)
        per_image, per_text = self(image_embeds, *text_keys), self(text_embeds, *image_keys)  # (batch, batch + queue)
        loss = (
            distilled_cross_entropy(per_image, targets, teacher_per_image, alpha)
            + distilled_cross_entropy(per_text, targets, teacher_per_text, alpha)
        ).mean() / 2
        with torch.no_grad():
            info_nce = (F.cross_entropy(per_image, targets) + F.cross_entropy(per_text, targets)) / 2
            if gather is not None:
                logits = self(image_embeds, gather(text_keys[0])), self(text_embeds, gather(image_keys[0]))
                return loss, info_nce, logits
        return loss, info_nce, (per_image[:, :batch], per_text[:, :batch])


class AlbefMaskedLanguageHead(nn.Module):
    """BERT's masked-language head; its last layer shares the word embeddings."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # Not `decoder`, as in BERT: by that name accelerate takes it for a part of the answer decoder.
        self.out_proj = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.norm(self.activation(self.dense(hidden_states))))


class AlbefAlignedModel(AlbefPreTrainedModel):
    """What pretraining and retrieval share: the joint space of images and texts, and the matching of pairs."""

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.albef = AlbefModel(config)
        self.contrastive_head = AlbefContrastiveHead(config)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the learned temperature within [0.001, 0.5]; to be called after every optimizer step of pretraining."""
        self.contrastive_head.temperature.clamp_(*TEMPERATURE_RANGE)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Image states, (batch, patches + 1, width), and in `pooler_output` unit features, (batch, projection)."""
        outputs = self.albef.vision_model(pixel_values, interpolate_pos_encoding, **kwargs)
        features = self.contrastive_head.project_image(outputs.last_hidden_state)
        return BaseModelOutputWithPooling(pooler_output=features, **outputs)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Text states, (batch, tokens, width), and in `pooler_output` unit features, (batch, projection)."""
        outputs = self.albef.text_model(input_ids, attention_mask, **kwargs)
        features = self.contrastive_head.project_text(outputs.last_hidden_state)
        return BaseModelOutputWithPooling(pooler_output=features, **outputs)

    def _match_hard_negatives(
        self,
        images: torch.Tensor,
        image_key_values: list[KeyValues],
        texts: torch.Tensor,
        attention_mask: torch.Tensor,
        logits: tuple[torch.Tensor, torch.Tensor],
        others_pairs: torch.Tensor,
        gather: Gather | None,
        negative_hardness: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Matching loss and its logits, (3 batch, 2), of the pairs and of hard negatives.

        Two texts read each picture, its own and a wrong one, and share its keys and values; then each text reads a
        wrong picture.
        """
        image_for_text, text_for_image = sample_hard_negatives(*logits, others_pairs, negative_hardness)
        if gather is None:
            wrong_images = select_key_values(image_key_values, image_for_text)
        else:  # of the others' pictures, only those that were drawn are worth projecting
            wrong_images = self.albef.multimodal_model.project_images(gather(images)[image_for_text])
            texts, attention_mask = gather(texts), gather(attention_mask)
        summarize, own = self.albef.multimodal_model.summarize, slice(len(images))
        readers = torch.cat([texts[own], texts[text_for_image]])
        mask = torch.cat([attention_mask[own], attention_mask[text_for_image]])
        matched, wrong_text = summarize(readers, mask, image_key_values).chunk(2)
        wrong_image = summarize(texts[own], attention_mask[own], wrong_images)
        itm_logits = self.itm_head(torch.cat([matched, wrong_image, wrong_text]))
        return matching_loss(itm_logits, others_pairs), itm_logits


class AlbefForPreTraining(AlbefAlignedModel):
    """ALBEF with the three objectives of its pretraining: contrast (ITC), matching (ITM), masked language (MLM).

    Without `teacher_outputs` it is an ordinary model: the batch alone supplies negatives and no target is softened.
    With those of an `albef_hf.momentum.MomentumTeacher`, it is the paper's.
    """

    _tied_weights_keys = {"mlm_head.out_proj.weight": "albef.text_model.embeddings.word_embeddings.weight"}

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.mlm_head = AlbefMaskedLanguageHead(config.text_config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The last layer of the masked-language head."""
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
        interpolate_pos_encoding: bool = False,
    ) -> AlbefTeacherOutput:
        """What this model, as a teacher, has to say of a batch: features, and logits of the masked tokens.

        Takes the batch that `forward` takes; the queues are the `MomentumTeacher`'s to add.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        images, texts, masked_texts = self._encode(
            input_ids,
            pixel_values,
            attention_mask,
            mlm_input_ids,
            interpolate_pos_encoding=interpolate_pos_encoding,
        )
        image_key_values = self.albef.multimodal_model.project_images(images)
        return AlbefTeacherOutput(
            image_embeds=self.contrastive_head.project_image(images),
            text_embeds=self.contrastive_head.project_text(texts),
            logits=self._fill(masked_texts, attention_mask, image_key_values, labels),
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mlm_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        gather: Gather | None = None,
        negative_hardness: float = 1.0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForPreTrainingOutput:
        """The pretraining losses where `labels` are given (equation 8 of the paper), else predictions.

        Args:
            input_ids: Texts, (batch, tokens), `[CLS]` first.
            pixel_values: The picture of each text, (batch, channels, height, width).
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            mlm_input_ids: The same texts with some tokens masked, as `PretrainingCollator` makes them.
            labels: The token that was masked, -100 elsewhere, (batch, tokens).
            teacher_outputs: What a `MomentumTeacher` made of the same batch.
            alpha: Share of the teacher in the targets of ITC and MLM; the paper ramps it from 0 to 0.4.
            gather: Brings together what the processes of a distributed training have, such as
                `albef_hf.training.distributed.gather_with_gradient`; then hard negatives are drawn from all of them.
            negative_hardness: Power of the contrast's distribution that negatives are drawn from; 1: the paper, 0: any
                wrong pair alike.

        Raises:
            ValueError: If only one of `labels` and `mlm_input_ids` is given, or labels come with a batch of one pair.
        """
        if labels is None and mlm_input_ids is not None:
            raise ValueError(f"mlm_input_ids came without labels. {NO_LABEL_SMOOTHING}")
        if labels is None:
            return self._predict(input_ids, pixel_values, attention_mask, **kwargs)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        images, texts, masked_texts = self._encode(input_ids, pixel_values, attention_mask, mlm_input_ids, **kwargs)
        head, own = self.contrastive_head, torch.arange(len(images), device=images.device)
        image_embeds, text_embeds = head.project_image(images), head.project_text(texts)
        loss_itc, info_nce, logits = head.loss(image_embeds, text_embeds, own, teacher_outputs, alpha, gather)
        others_pairs = own[:, None] != torch.arange(logits[0].shape[1], device=own.device)
        image_key_values = self.albef.multimodal_model.project_images(images)
        pairs = images, image_key_values, texts, attention_mask
        loss_itm, itm_logits = self._match_hard_negatives(*pairs, logits, others_pairs, gather, negative_hardness)
        mlm_logits = self._fill(masked_texts, attention_mask, image_key_values, labels)
        loss_mlm = self._masked_language_loss(mlm_logits, labels, teacher_outputs, alpha)
        return AlbefForPreTrainingOutput(
            loss=loss_itc + loss_itm + loss_mlm,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            loss_mlm=loss_mlm,
            info_nce=info_nce,
            itm_logits=itm_logits,
            logits=mlm_logits,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )

    def _encode(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor,
        mlm_input_ids: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """States of the pictures, of the texts, and of the texts with masked tokens, one encoder call each kind."""
        if mlm_input_ids is None:
            raise ValueError("labels came without mlm_input_ids: collate with albef_hf.data.PretrainingCollator.")
        images = self.albef.vision_model(pixel_values, **kwargs).last_hidden_state
        both = self.albef.text_model(torch.cat([input_ids, mlm_input_ids]), attention_mask.repeat(2, 1))
        return images, *both.last_hidden_state.chunk(2)

    def _fill(
        self,
        masked_texts: torch.Tensor,
        attention_mask: torch.Tensor,
        image_key_values: list[KeyValues],
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of the masked tokens, (masked tokens of the batch, vocabulary)."""
        states = self.albef.multimodal_model(masked_texts, attention_mask, image_key_values).last_hidden_state
        return self.mlm_head(states[labels != IGNORED])

    @staticmethod
    def _masked_language_loss(
        logits: torch.Tensor, labels: torch.Tensor, teacher_outputs: AlbefTeacherOutput | None, alpha: float
    ) -> torch.Tensor:
        """Equation 7 of the paper; zero where no token is masked."""
        losses = distilled_cross_entropy(logits, labels[labels != IGNORED], _teacher_logits(teacher_outputs), alpha)
        return losses.sum() / max(len(losses), 1)

    def _predict(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForPreTrainingOutput:
        """Match, fill and embed given pairs, without any loss."""
        outputs = self.albef(input_ids, pixel_values, attention_mask, return_dict=True, **kwargs)
        return AlbefForPreTrainingOutput(
            itm_logits=self.itm_head(outputs.last_hidden_state[:, 0]),
            logits=self.mlm_head(outputs.last_hidden_state),
            image_embeds=self.contrastive_head.project_image(outputs.image_hidden_states),
            text_embeds=self.contrastive_head.project_text(outputs.text_hidden_states),
            **_recorded(outputs),
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
        """Start from a pretrained ViT or DeiT and a pretrained BERT, as the paper does.

        The lower layers of the BERT become the text encoder, the next ones the multimodal encoder; cross-attention and
        the heads start fresh, and so do layers for which a shorter BERT has no weights. A warning lists all of them.

        Args:
            vision: Hub name or folder of a ViT or DeiT; None starts the image encoder fresh.
            text: Hub name or folder of a BERT; None starts the text side fresh.
            vision_config: Settings to change in the image encoder, such as `{"image_size": 384}`, to which the learned
                positions are interpolated.
            text_config: Settings to change on the text side, such as `{"num_hidden_layers": 3}`.
            config_kwargs: Further settings of `AlbefConfig`.

        Raises:
            ValueError: If a model is of another kind, or a changed setting contradicts its weights.

        Example:
            ```python
            model = AlbefForPreTraining.from_vision_text_pretrained(
                "facebook/deit-base-patch16-224", "google-bert/bert-base-uncased"
            )
            ```
        """
        vision_settings, vision_weights = _read_vision_model(vision) if vision else ({}, {})
        text_settings, text_weights = _read_text_model(text) if text else ({}, {})
        config = AlbefConfig(
            vision_config={**vision_settings, **(vision_config or {})},
            text_config={**text_settings, **(text_config or {})},
            **config_kwargs,
        )
        model = cls(config)
        weights = {f"albef.vision_model.{name}": weight for name, weight in vision_weights.items()}
        weights |= _place_text_weights(text_weights, config.text_config)
        _load_partly(model, weights)
        return model


class AlbefForRetrieval(AlbefAlignedModel):
    """ALBEF for image-text retrieval: contrast (ITC) and matching (ITM); grounding explains its matching score.

    Several texts may belong to one picture: all of them are right answers, and none is a negative of the others
    (the original's `models/model_retrieval.py`).
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
        """What this model, as a teacher, has to say of a batch: features. Takes the batch that `forward` takes."""
        return AlbefTeacherOutput(
            image_embeds=self.get_image_features(
                pixel_values, interpolate_pos_encoding, return_dict=True
            ).pooler_output,
            text_embeds=self.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output,
            ids=labels,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        gather: Gather | None = None,
        negative_hardness: float = 1.0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForRetrievalOutput:
        """The losses of fine-tuning where `labels` are given, else scores.

        Args:
            input_ids: Texts, (texts, tokens), `[CLS]` first.
            pixel_values: (images, channels, height, width). In training the picture of each text; at inference fewer
                pictures than texts are shared, see `itm_logits` of the output.
            attention_mask: (texts, tokens), 1 for tokens and 0 for padding.
            labels: Number of the picture of each text, (texts,); texts with equal numbers are all right for it.
            teacher_outputs: What a `MomentumTeacher` made of the same batch.
            alpha: Share of the teacher in the targets of ITC; the paper's is 0.4.
            gather: Brings together what the processes of a distributed training have, such as
                `albef_hf.training.distributed.gather_with_gradient`; then hard negatives are drawn from all of them.
            negative_hardness: Power of the contrast's distribution that negatives are drawn from; 1: the paper, 0: any
                wrong pair alike.

        Raises:
            ValueError: If `labels` come with a batch of one pair.
        """
        if labels is None:
            return self._predict(input_ids, pixel_values, attention_mask, **kwargs)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        images = self.get_image_features(pixel_values, return_dict=True, **kwargs)
        texts = self.get_text_features(input_ids, attention_mask, return_dict=True)
        embeds = images.pooler_output, texts.pooler_output
        targets = _shared_targets(labels, teacher_outputs, embeds[0].dtype)
        loss_itc, info_nce, logits = self.contrastive_head.loss(*embeds, targets, teacher_outputs, alpha, gather)
        others_pairs = labels[:, None] != (labels if gather is None else gather(labels))
        image_key_values = self.albef.multimodal_model.project_images(images.last_hidden_state)
        pairs = images.last_hidden_state, image_key_values, texts.last_hidden_state, attention_mask
        loss_itm, itm_logits = self._match_hard_negatives(*pairs, logits, others_pairs, gather, negative_hardness)
        return AlbefForRetrievalOutput(
            loss=loss_itc + loss_itm,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            info_nce=info_nce,
            logits_per_image=logits[0],
            logits_per_text=logits[1],
            itm_logits=itm_logits,
            image_embeds=images.pooler_output,
            text_embeds=texts.pooler_output,
        )

    def _predict(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForRetrievalOutput:
        """Compare all images with all texts, and match text `i` with image `i % images` where that comes out even."""
        images = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        texts = self.get_text_features(input_ids, attention_mask, return_dict=True, **kwargs)
        logits_per_image = self.contrastive_head(images.pooler_output, texts.pooler_output)
        itm_logits, recorded = None, {}
        if input_ids.shape[0] % pixel_values.shape[0] == 0:
            image_key_values = self.albef.multimodal_model.project_images(images.last_hidden_state)
            fused = self.albef.multimodal_model(texts.last_hidden_state, attention_mask, image_key_values, **kwargs)
            itm_logits, recorded = self.itm_head(fused.last_hidden_state[:, 0]), _recorded(fused)
        return AlbefForRetrievalOutput(
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            itm_logits=itm_logits,
            image_embeds=images.pooler_output,
            text_embeds=texts.pooler_output,
            **recorded,
        )


def _shared_targets(
    labels: torch.Tensor, teacher_outputs: AlbefTeacherOutput | None, dtype: torch.dtype
) -> torch.Tensor:
    """The right keys of each row, in equal shares, (batch, batch + queue): all that belong to the same picture."""
    keys = labels if teacher_outputs is None else torch.cat([labels, teacher_outputs.queue_ids])
    same = ((labels[:, None] == keys) & (keys != IGNORED)).to(dtype).fill_diagonal_(1)  # unknown: its own pair alone
    return same / same.sum(1, keepdim=True)


class AlbefForQuestionAnswering(AlbefPreTrainedModel, GenerationMixin):
    """ALBEF for visual question answering: a question fused with its image, and a decoder that writes the answer.

    `generate` writes open answers, `rank_answers` chooses from a list as the paper does (section 5, VQA). From a
    pretraining checkpoint, the decoder starts as a copy of the multimodal encoder.
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
        """As in transformers, also for a decoder whose implementation was set before."""
        forget_attention_change(self.decoder.config)
        super().set_attn_implementation(*args, **kwargs)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """Change the vocabulary of questions and of answers; arguments as in transformers."""
        self.decoder.resize_token_embeddings(*args, **kwargs)
        return super().resize_token_embeddings(*args, **kwargs)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """What reads question and image."""
        return self.albef

    def get_output_embeddings(self) -> nn.Module:
        """The last layer of the language head."""
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
        interpolate_pos_encoding: bool = False,
    ) -> AlbefTeacherOutput:
        """What this model, as a teacher, has to say of a batch: logits of the answers' tokens.

        Takes the batch that `forward` takes.
        """
        read = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True}
        questions = self.albef(input_ids, pixel_values, attention_mask, **read).last_hidden_state
        question_of = _question_of_answers(labels, answer_counts, answer_weights, len(questions), self.config)
        return AlbefTeacherOutput(logits=self._answer_logits(labels, questions, attention_mask, question_of))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        answer_counts: torch.Tensor | None = None,
        answer_weights: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        cache: EncoderDecoderCache | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """The loss of given answers, or logits of the next token.

        Args:
            input_ids: Questions, (questions, tokens), `[CLS]` first.
            pixel_values: The picture of each question, (questions, channels, height, width).
            attention_mask: (questions, tokens), 1 for tokens and 0 for padding.
            labels: Answers, (answers, tokens), `[CLS]` first and `[SEP]` last, -100 for padding; those of a question
                one after the other.
            answer_counts: How many answers each question has, (questions,); one each by default.
            answer_weights: Weight of each answer, (answers,); by default those of a question share 1.
            teacher_outputs: What a `MomentumTeacher` made of the same batch.
            alpha: Share of the teacher in the targets; the paper's is 0.4.
            decoder_input_ids: Answers so far, (questions, tokens); `[CLS]` by default.
            decoder_attention_mask: 1 for their tokens and 0 for padding.
            encoder_outputs: What `get_encoder()` made of question and image.
            cache: Keys and values of answer tokens read before, and of the question.
            past_key_values: The same; the name of `cache` up to transformers 5.23.
            interpolate_pos_encoding: Resample the learned image positions to pictures of another size.

        Returns:
            `loss`: with `labels`, the negative log-likelihood of an answer, times its weight, summed over the answers
            of a question and averaged over the questions.
            `logits`: with `labels` of their tokens, (answer tokens, vocabulary); else (questions, tokens, vocabulary).

        Raises:
            ValueError: If there are not as many answers as `answer_counts` says, or if the labels are not encoded as
                `AlbefProcessor.encode_answers` does; in training, without labels and `decoder_input_ids`.
        """
        if self.training and labels is None and decoder_input_ids is None:
            raise ValueError(f"Question answering learns from labels, which are missing. {NO_LABEL_SMOOTHING}")
        _refuse_unknown(kwargs)
        cache = single_cache(cache, past_key_values)
        if encoder_outputs is None:
            read = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True, **kwargs}
            encoder_outputs = self.albef(input_ids, pixel_values, attention_mask, **read)
        if labels is None:
            return self._next_tokens(
                encoder_outputs, attention_mask, decoder_input_ids, decoder_attention_mask, cache, **kwargs
            )
        questions = encoder_outputs.last_hidden_state
        question_of = _question_of_answers(labels, answer_counts, answer_weights, len(questions), self.config)
        logits = self._answer_logits(labels, questions, attention_mask, question_of)
        answer_of, token = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        losses = distilled_cross_entropy(logits, labels[answer_of, token + 1], _teacher_logits(teacher_outputs), alpha)
        if answer_weights is None:
            shared_by = torch.bincount(question_of, minlength=len(questions))[question_of]
            answer_weights = 1 / shared_by.to(losses.dtype)
        loss = (answer_weights.to(losses.dtype)[answer_of] * losses).sum() / len(questions)
        return Seq2SeqLMOutput(loss=loss, logits=logits, encoder_last_hidden_state=questions)

    def _answer_logits(
        self,
        labels: torch.Tensor,
        questions: torch.Tensor,
        attention_mask: torch.Tensor | None,
        question_of: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of the tokens of answers to some of the questions, (answer tokens, vocabulary)."""
        key_values = select_key_values(self.decoder.project_questions(questions), question_of)
        question_mask = None if attention_mask is None else attention_mask[question_of]
        return self._token_logits(labels, key_values, question_mask)

    def _token_logits(
        self, labels: torch.Tensor, question_key_values: list[KeyValues], question_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits of the tokens of (answers, tokens) labels, (answer tokens, vocabulary); padding has none."""
        answered = labels != IGNORED
        answer_ids = labels.masked_fill(~answered, self.config.text_config.pad_token_id or 0)
        states = self.decoder(answer_ids, answered.long(), question_key_values, question_mask).last_hidden_state
        return self.mlm_head(states[:, :-1][answered[:, 1:]])

    def _next_tokens(
        self,
        encoder_outputs: ModelOutput,
        attention_mask: torch.Tensor | None,
        answer_ids: torch.Tensor | None = None,
        answer_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Logits of what follows each token of answers so far, (questions, tokens, vocabulary)."""
        questions = encoder_outputs.last_hidden_state
        if answer_ids is None:
            answer_ids = questions.new_full(
                (questions.shape[0], 1), self.config.text_config.bos_token_id, dtype=torch.long
            )
        outputs = self.decoder(
            answer_ids,
            answer_mask,
            self._question_key_values(questions, cache),
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

    def _question_key_values(self, questions: torch.Tensor, cache: EncoderDecoderCache | None) -> list[KeyValues]:
        """Projected keys and values of the questions: those of the cache, which is filled by the first token."""
        if cache is None:
            return self.decoder.project_questions(questions)
        if not cache.is_updated.get(0):
            for index, (key, value) in enumerate(self.decoder.project_questions(questions)):
                cache.cross_attention_cache.update(key, value, index)
                cache.is_updated[index] = True
        return [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]

    def generate(
        self,
        *args,
        labels: torch.Tensor | None = None,
        answer_counts: torch.Tensor | None = None,
        answer_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor | ModelOutput:
        """As in transformers; of a batch with answers, which `Seq2SeqTrainer` gives, the answers are not read."""
        return super().generate(*args, **kwargs)

    @torch.no_grad()
    def rank_answers(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        answer_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        answer_attention_mask: torch.Tensor | None = None,
        k: int = 128,
        batch_size: int = 1024,
        interpolate_pos_encoding: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose from a list of answers (`rank_answer` in the original's `models/model_vqa.py`).

        The k answers with the likeliest first token are scored whole. As in the original, a score is the
        log-likelihood of the answer plus, once more, that of its first token.

        Args:
            input_ids: Questions, (questions, tokens).
            pixel_values: The picture of each question, (questions, channels, height, width).
            answer_ids: The list, (answers, tokens), `[CLS]` first and `[SEP]` last, as `AlbefProcessor.encode_answers`
                makes it.
            attention_mask: (questions, tokens); by default 0 for the padding token and 1 for all others.
            answer_attention_mask: (answers, tokens); the same of the answers.
            k: Answers that are scored whole; the paper's is 128.
            batch_size: Answers scored at a time, of all questions together; at least one of each.
            interpolate_pos_encoding: Resample the learned image positions to images of another size.

        Returns:
            Row of `answer_ids`, and probability among the k, each (questions, k), the likeliest first.

        Raises:
            ValueError: If the list is empty or not encoded as `AlbefProcessor.encode_answers` does, or k is below 1.
        """
        if len(answer_ids) == 0:
            raise ValueError("The list of answers is empty: give at least one, or call generate() for open answers.")
        if k < 1:
            raise ValueError(f"k is {k}: at least one answer has to be scored.")
        padding = self.config.text_config.pad_token_id
        if attention_mask is None:
            attention_mask = (input_ids != padding).long()
        if answer_attention_mask is None:
            answer_attention_mask = answer_ids != padding
        answers = answer_ids.masked_fill(answer_attention_mask == 0, IGNORED)
        _require_encoded_answers(int(_are_encoded_answers(answers, self.config.text_config)), self.config.text_config)
        read = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True}
        encoder_outputs = self.albef(input_ids, pixel_values, attention_mask, **read)
        questions = len(encoder_outputs.last_hidden_state)
        start = EncoderDecoderCache(DynamicCache(), DynamicCache())  # of [CLS], with which all answers begin
        first = self._next_tokens(encoder_outputs, attention_mask, cache=start).logits[:, 0]
        first = _at_least_float32(first).log_softmax(-1)
        first, rows = first[:, answer_ids[:, 1]].topk(min(k, len(answers)), dim=1)  # (questions, k)
        lengths, by_length = answer_attention_mask.sum(1)[rows].sort(dim=1)
        first, rows = first.gather(1, by_length), rows.gather(1, by_length)
        rest, step = [], max(batch_size // questions, 1)
        for some, longest in zip(rows.split(step, 1), lengths.split(step, 1), strict=True):
            others = self._continue(answers[some.T.flatten(), : int(longest.max())], start, attention_mask)
            rest.append(others.unflatten(0, (-1, questions)).T)
        probabilities, order = (2 * first + torch.cat(rest, dim=1)).softmax(-1).sort(dim=1, descending=True)
        return rows.gather(1, order), probabilities

    def _log_likelihood(
        self, labels: torch.Tensor, question_key_values: list[KeyValues], question_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Log-likelihood of each of (groups * questions, tokens) answers, (groups * questions,)."""
        answer_of, token = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        logits = self._token_logits(labels, question_key_values, question_mask)
        losses = F.cross_entropy(_at_least_float32(logits), labels[answer_of, token + 1], reduction="none")
        return -losses.new_zeros(len(labels)).index_add(0, answer_of, losses)

    def _continue(
        self, answers: torch.Tensor, start: EncoderDecoderCache, question_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Log-likelihood of all but the first token of (groups * questions, tokens) answers, (groups * questions,).

        `[CLS]` is read already, and what follows the last token nobody asks.
        """
        inputs, targets = answers[:, 1:-1], answers[:, 2:]
        known = targets != IGNORED
        answer_of, token = known.nonzero(as_tuple=True)
        if len(token) == 0:
            return answers.new_zeros(len(answers), dtype=torch.float32)
        past = DynamicCache()
        for index, layer in enumerate(start.self_attention_cache.layers):
            groups = len(answers) // len(layer.keys)
            past.update(layer.keys.repeat(groups, 1, 1, 1), layer.values.repeat(groups, 1, 1, 1), index)
        question_key_values = [(layer.keys, layer.values) for layer in start.cross_attention_cache.layers]
        mask = torch.cat([known.new_ones(len(known), 1), known], dim=1).long()
        ids = inputs.masked_fill(~known, self.config.text_config.pad_token_id or 0)
        states = self.decoder(ids, mask, question_key_values, question_mask, past).last_hidden_state
        logits = _at_least_float32(self.mlm_head(states[answer_of, token]))
        found = logits.gather(1, targets[answer_of, token, None])[:, 0] - logits.logsumexp(-1)
        return found.new_zeros(len(answers)).index_add(0, answer_of, found)


def _are_encoded_answers(labels: torch.Tensor, config: AlbefTextConfig) -> torch.Tensor:
    """Whether (answers, tokens) labels begin, end and are padded as the decoder reads them, 1 or 0, a scalar."""
    if labels.ndim != 2:
        return labels.new_zeros((), dtype=torch.long)
    known = labels != IGNORED
    last = (known * torch.arange(labels.shape[1], device=labels.device)).argmax(1, keepdim=True)
    right = torch.ones_like(known)
    if config.bos_token_id is not None:
        right &= labels[:, :1] == config.bos_token_id
    if config.eos_token_id is not None:
        right &= labels.gather(1, last) == config.eos_token_id
    if config.pad_token_id not in (None, config.eos_token_id):
        right &= labels != config.pad_token_id
    return (right | ~known).all().long()


def _require_encoded_answers(encoded: int, config: AlbefTextConfig) -> None:
    if not encoded:
        raise ValueError(
            "Answers have to be (answers, tokens) ids that begin with [CLS] and end with [SEP] (the configuration's "
            f"bos_token_id {config.bos_token_id} and eos_token_id {config.eos_token_id}), with -100 as the label of "
            'padding: make them by processor.encode_answers(answers)["labels"].'
        )


def _question_of_answers(
    labels: torch.Tensor,
    answer_counts: torch.Tensor | None,
    answer_weights: torch.Tensor | None,
    questions: int,
    config: AlbefConfig,
) -> torch.Tensor:
    """Number of the question that each answer belongs to, (answers,), after a check of the answers."""
    counts = torch.ones(questions, dtype=torch.long) if answer_counts is None else torch.as_tensor(answer_counts)
    counts = counts.to(labels.device)
    # Read from the device together, which costs one wait.
    total, encoded = torch.stack([counts.sum(), _are_encoded_answers(labels, config.text_config)]).tolist()
    _require_encoded_answers(encoded, config.text_config)
    if len(counts) != questions or total != len(labels):
        raise ValueError(
            f"{len(labels)} answers for {questions} questions do not fit answer_counts {counts.tolist()}: give the "
            "number of answers of each question."
        )
    if answer_weights is not None and len(answer_weights) != len(labels):
        raise ValueError(f"There are {len(answer_weights)} answer_weights for {len(labels)} answers: give one each.")
    return torch.repeat_interleave(counts, output_size=len(labels))


class AlbefClassificationHead(nn.Module):
    """Two layers on the `[CLS]` token (`cls_head` in the original's `model_ve.py` and `model_nlvr.py`)."""

    def __init__(self, config: AlbefConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.dense = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, config.num_labels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.out_proj(F.relu(self.dense(hidden_states[:, 0])))


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: AlbefConfig,
    teacher_logits: torch.Tensor | None = None,
    alpha: float = 0.0,
) -> torch.Tensor:
    """Compute the loss that `config.problem_type` asks for, as transformers' sequence classification heads do.

    Args:
        logits: (batch, classes).
        labels: Class indices, (batch,), where -100 is no label; for regression and several labels numbers, (batch,
            classes), or (batch,) of one class.
        config: Without a `problem_type`, it is inferred from the number of classes and the type of the labels.
        teacher_logits: (batch, classes), to distill single labels from.
        alpha: Share of the teacher in the target.

    Returns:
        The mean loss, a scalar.

    Raises:
        ValueError: If the labels do not fit the problem type, or it is one that cannot be distilled, or alpha is not
            between 0 and 1.
    """
    _require_share(alpha)
    indices = labels.dtype in (torch.long, torch.int)
    inferred = "single_label_classification" if indices else "multi_label_classification"
    problem_type = config.problem_type or ("regression" if config.num_labels == 1 else inferred)
    single = problem_type == "single_label_classification"
    fits = indices and labels.numel() == len(logits)
    if not single:
        fits = labels.shape == logits.shape or (labels.shape == logits.shape[:1] and logits.shape[1] == 1)
    if not fits:
        raise ValueError(
            f"labels of {labels.dtype}, {tuple(labels.shape)}, do not fit {problem_type} with logits "
            f"{tuple(logits.shape)}: give integer class indices, (batch,), or set config.problem_type to "
            '"multi_label_classification" or "regression" and give a number for each logit.'
        )
    if single:
        labels = labels.flatten().long()
        losses, known = distilled_cross_entropy(logits, labels, teacher_logits, alpha), labels != IGNORED
        return losses.masked_fill(~known, 0).mean() * (len(known) / known.sum().clamp(min=1).to(losses.dtype))
    if teacher_logits is not None and alpha != 0:
        raise ValueError(f"{problem_type} cannot be distilled: leave teacher_outputs out, or set alpha to 0.")
    logits = _at_least_float32(logits)
    loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    return loss(logits, labels.view_as(logits).to(logits.dtype))


class AlbefClassifier(AlbefPreTrainedModel):
    """What visual reasoning and visual entailment have in common: a class for a text and what it is said of."""

    albef: AlbefPreTrainedModel
    classifier: AlbefClassificationHead
    own_classes: tuple[str, ...]

    def __init__(self, config: AlbefConfig):
        super().__init__(config.with_classes(self.own_classes, [kind.__name__ for kind in type(self).__mro__]))

    @torch.no_grad()
    def get_teacher_outputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> AlbefTeacherOutput:
        """What this model, as a teacher, has to say of a batch: logits. Takes the batch that `forward` takes."""
        read = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True}
        return AlbefTeacherOutput(logits=self(input_ids, pixel_values, attention_mask, **read).logits)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefClassifierOutput:
        """Classify texts by their images.

        Args:
            input_ids: Texts, (batch, tokens), `[CLS]` first.
            pixel_values: The picture of each text, (batch, channels, height, width); for visual reasoning both of
                them, (batch, 2, channels, height, width).
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            labels: Class of each text, (batch,); for regression and several labels numbers, (batch, classes), as
                `config.problem_type` says, or else their type and the number of classes.
            teacher_outputs: What a `MomentumTeacher` made of the same batch.
            alpha: Share of the teacher in the targets; the paper's is 0.4.

        Returns:
            `logits`, (batch, classes), in the order of `config.id2label`, and with `labels` the `loss`.

        Raises:
            ValueError: If the labels do not fit the problem type, or it is one that cannot be distilled.
        """
        outputs = self.albef(input_ids, pixel_values, attention_mask, return_dict=True, **kwargs)
        logits = self.classifier(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config, _teacher_logits(teacher_outputs), alpha)
        return AlbefClassifierOutput(loss=loss, logits=logits, **_recorded(outputs))


class AlbefForVisualReasoning(AlbefClassifier):
    """ALBEF for NLVR2: is a statement true of a pair of images (the original's `models/model_nlvr.py`)?

    Classes are named False and True, unless `num_labels` or `id2label` asks for others.
    """

    own_classes = REASONING_CLASSES

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.albef = AlbefPairModel(self.config)
        self.classifier = AlbefClassificationHead(self.config)
        self.post_init()


class AlbefForVisualEntailment(AlbefClassifier):
    """ALBEF for SNLI-VE: does an image entail a sentence (the original's `models/model_ve.py`)?

    Classes are named contradiction, neutral and entailment, unless `num_labels` or `id2label` asks for others.
    """

    own_classes = ENTAILMENT_CLASSES

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.albef = AlbefModel(self.config)
        self.classifier = AlbefClassificationHead(self.config)
        self.post_init()


class AlbefFrozenProjection(nn.Module):
    """A linear map that no loss reaches, hence of buffers; until a checkpoint fills it, all is alike to it."""

    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(output_size, input_size))
        self.register_buffer("bias", torch.zeros(output_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states, self.weight, self.bias)


class AlbefForTextAssignment(AlbefPreTrainedModel):
    """The step between pretraining and NLVR2: is a text about the first image, the second, or neither?

    Section 5 of the paper, the original's `models/model_pretrain_nlvr.py`, which has no teacher. Beside its own
    picture, or instead of it, a text is shown pictures that the contrastive projection takes for similar.
    """

    def __init__(self, config: AlbefConfig):
        if config.classes_asked_for and config.num_labels != 3:
            raise ValueError(f"Text assignment has three classes (first, second, neither), not {config.num_labels}.")
        if config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"Text assignment is no {config.problem_type}: leave config.problem_type out, or set it to "
                '"single_label_classification".'
            )
        super().__init__(config)
        self.albef = AlbefPairModel(config)
        # Under the name that it has in a pretraining checkpoint, from which it comes.
        self.contrastive_head = nn.ModuleDict(
            {"image_projection": AlbefFrozenProjection(config.vision_config.hidden_size, config.projection_dim)}
        )
        self.assignment_head = nn.Linear(config.text_config.hidden_size, 3)
        self.post_init()

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
        """What this model, as a teacher, has to say of given pairs of pictures: logits."""
        read = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True}
        outputs = self(input_ids, pixel_values, attention_mask, image_pairs, **read)
        return AlbefTeacherOutput(logits=outputs.logits)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_pairs: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefClassifierOutput:
        """Show each text two pictures of the batch.

        Args:
            input_ids: Texts, (batch, tokens), `[CLS]` first.
            pixel_values: The picture of each text, (batch, channels, height, width).
            attention_mask: (batch, tokens), 1 for tokens and 0 for padding.
            image_pairs: The two pictures that each text is shown, (batch, 2) numbers within the batch; drawn together
                with the labels where not given.
            labels: Where the text's own picture is: 0 first, 1 second, 2 neither, (batch,).
            teacher_outputs: What a `MomentumTeacher` made of the same pairs.
            alpha: Share of the teacher in the targets.
            interpolate_pos_encoding: Resample the learned image positions to pictures of another size.

        Returns:
            `logits`, (batch, 3), and with `labels`, given or drawn, the `loss`.

        Raises:
            ValueError: If there are fewer than three pictures to draw from, or labels or a teacher's outputs without
                the pairs that they belong to, or the labels are not one integer for each text.
        """
        if image_pairs is None and not (labels is None and teacher_outputs is None):
            raise ValueError("labels and teacher_outputs belong to pairs of pictures: give image_pairs with them.")
        images = self.albef.vision_model(pixel_values, interpolate_pos_encoding, **kwargs).last_hidden_state
        if image_pairs is None:
            image_pairs, labels = sample_image_pairs(self._image_similarities(images))
        texts = self.albef.text_model(input_ids, attention_mask, **kwargs).last_hidden_state
        key_values = self.albef.multimodal_model.project_images(images)
        first, second = (select_key_values(key_values, index) for index in image_pairs.unbind(1))
        fused = self.albef.multimodal_model(texts, attention_mask, first, second, **kwargs)
        logits = self.assignment_head(fused.last_hidden_state[:, 0])
        loss = None
        if labels is not None:
            if labels.shape != logits.shape[:1] or labels.dtype not in (torch.long, torch.int):
                raise ValueError(
                    f"labels are {labels.dtype}, {tuple(labels.shape)}: give 0, 1 or 2 as an integer for each of the "
                    f"{len(logits)} texts."
                )
            loss = distilled_cross_entropy(logits, labels.long(), _teacher_logits(teacher_outputs), alpha).mean()
        return AlbefClassifierOutput(loss=loss, logits=logits, **_recorded(fused))

    @torch.no_grad()
    def draw_image_pairs(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs of pictures to show with each text, and their labels, as `sample_image_pairs` draws them."""
        images = self.albef.vision_model(pixel_values, interpolate_pos_encoding).last_hidden_state
        return sample_image_pairs(self._image_similarities(images))

    @torch.no_grad()
    def _image_similarities(self, images: torch.Tensor) -> torch.Tensor:
        """Cosine of every image with every other, (batch, batch)."""
        features = self.contrastive_head["image_projection"](images[:, 0])
        features = F.normalize(_at_least_float32(features), dim=-1)
        return features @ features.T


ASSIGNMENT_TEMPERATURE = 0.07  # a constant in the original, where the learned temperature plays no part


@torch.no_grad()
def sample_image_pairs(similarities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the pictures that each text is shown: its own and a similar one in either order, or two similar ones.

    Args:
        similarities: Cosine of every picture with every other, (batch, batch).

    Returns:
        Numbers of two pictures for each text, (batch, 2), and where its own is, (batch,): 0 first, 1 second, 2
        neither, each in a third of the cases.

    Raises:
        ValueError: If there are fewer than three pictures.
    """
    batch, device = len(similarities), similarities.device
    if batch < 3:
        raise ValueError(
            f"A batch of {batch} has no two wrong pictures for a text: use a batch size of at least 3 per process, "
            "and drop the last incomplete batch, also in evaluation (the Trainer of transformers does so with "
            "dataloader_drop_last=True)."
        )
    weights = (similarities / ASSIGNMENT_TEMPERATURE).softmax(1).nan_to_num(0).clamp_min(1e-30)
    pairs = torch.multinomial(weights.fill_diagonal_(0), 2)  # without replacement: two different wrong pictures
    labels = torch.randint(3, (batch,), device=device)
    own = torch.arange(batch, device=device)
    # Where one picture suffices, it is the one drawn first, whose chances are the weights.
    pairs = torch.where(labels[:, None] == 0, pairs.flip(1), pairs)
    return torch.where(labels[:, None] == torch.arange(2, device=device), own[:, None], pairs), labels


# ---------------------------------------------------------------------------------------------------------------------
# The Auto classes
# ---------------------------------------------------------------------------------------------------------------------

# What each Auto class loads from the folder of any head: of two, the one that was saved there, else the first.
AUTO_MODELS = {
    "AutoModel": (AlbefModel, AlbefPairModel),
    "AutoModelForPreTraining": (AlbefForPreTraining, AlbefForTextAssignment),
    "AutoModelForZeroShotImageClassification": (AlbefForRetrieval,),
    "AutoModelForVisualQuestionAnswering": (AlbefForQuestionAnswering,),
    "AutoModelForSequenceClassification": (AlbefForVisualEntailment, AlbefForVisualReasoning),
}
AUTO_MAP = {name: f"modeling_albef.{models[0].__name__}" for name, models in AUTO_MODELS.items()}

for _name, _models in [*AUTO_MODELS.items(), ("AutoModel", (AlbefVisionModel, AlbefTextModel, AlbefMultimodalModel))]:
    for _model in _models:
        _model.register_for_auto_class(_name)


# ---------------------------------------------------------------------------------------------------------------------
# Pretrained ViT, DeiT and BERT
# ---------------------------------------------------------------------------------------------------------------------

_SHARED_SETTINGS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
_VISION_SETTINGS = (*_SHARED_SETTINGS, "image_size", "patch_size", "num_channels", "layer_norm_eps")
_TEXT_SETTINGS = (
    *(name for name in _SHARED_SETTINGS if name != "num_hidden_layers"),
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)


def _rename(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, weight in state_dict.items():
        for pattern, replacement in PRETRAINED_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    return renamed


def _read_vision_model(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Settings and renamed weights of a ViT or DeiT."""
    model = AutoModel.from_pretrained(name, dtype=torch.float32)
    if model.config.model_type not in ("vit", "deit"):
        raise ValueError(f"{name} is a {model.config.model_type} model; the image encoder starts from a ViT or DeiT.")
    weights = {key: weight for key, weight in _rename(model.state_dict()).items() if not key.startswith("pooler.")}
    if weights.pop("embeddings.distillation_token", None) is not None:  # DeiT's second token has no place in ALBEF
        positions = weights["embeddings.position_embeddings"]
        weights["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    return {setting: getattr(model.config, setting) for setting in _VISION_SETTINGS}, weights


def _read_text_model(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Settings and renamed weights of a BERT, its masked-language head included where the checkpoint has one."""
    model, report = AutoModelForMaskedLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    if model.config.model_type != "bert":
        raise ValueError(f"{name} is a {model.config.model_type} model; the text side starts from a BERT.")
    present = {key: weight for key, weight in model.state_dict().items() if key not in report["missing_keys"]}
    present = {key: weight for key, weight in present.items() if not key.startswith("cls.predictions.decoder.")}
    return {setting: getattr(model.config, setting) for setting in _TEXT_SETTINGS}, _rename(present)


def _place_text_weights(weights: dict[str, torch.Tensor], config: AlbefTextConfig) -> dict[str, torch.Tensor]:
    """Give BERT's lower layers to the text encoder, the next to the multimodal encoder, and drop those above."""
    placed = {}
    for name, weight in weights.items():
        layer = re.match(r"layers\.(\d+)\.(.*)", name)
        if layer is None:
            placed[name if name.startswith("mlm_head.") else f"albef.text_model.{name}"] = weight
        elif (index := int(layer[1])) < config.num_hidden_layers:
            placed[f"albef.text_model.{name}"] = weight
        elif (index := index - config.num_hidden_layers) < config.num_multimodal_layers:
            placed[f"albef.multimodal_model.layers.{index}.{layer[2]}"] = weight
    return placed


def _load_partly(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Load what there is, interpolate positions, and warn of what is fresh and of what found no place."""
    own = model.state_dict()
    positions = "albef.vision_model.embeddings.position_embeddings"
    if positions in weights:
        grid = model.albef.vision_model.embeddings.grid_size
        weights[positions] = interpolate_position_embeddings(weights[positions], (grid, grid))
    for name, weight in weights.items():
        if name in own and own[name].shape != weight.shape:
            raise ValueError(
                f"{name} is {tuple(weight.shape)} in the pretrained model and {tuple(own[name].shape)} in the "
                "configuration: leave sizes that come from the pretrained model unchanged."
            )
    report = model.load_state_dict(weights, strict=False)
    fresh = {name for name in report.missing_keys if name not in model.all_tied_weights_keys}
    logger.warning_once(f"Freshly initialised, to be trained: {', '.join(_modules_of(fresh))}.")
    if report.unexpected_keys:
        logger.warning_once(f"Not used by ALBEF: {', '.join(_modules_of(report.unexpected_keys))}.")


def _modules_of(names: set[str] | list[str]) -> list[str]:
    """Parameter names without their last part, layers counted: `a.layers.0.b.weight` becomes `a.layers.*.b (1x)`."""
    counts: dict[str, set[str]] = {}
    for name in names:
        module = name.rpartition(".")[0] or name
        counts.setdefault(re.sub(r"\.\d+\.", ".*.", module), set()).add(module)
    return [f"{module} ({len(found)}x)" if "*" in module else module for module, found in sorted(counts.items())]


__all__ = [
    "AUTO_MODELS",
    "AlbefForPreTraining",
    "AlbefForPreTrainingOutput",
    "AlbefForQuestionAnswering",
    "AlbefForRetrieval",
    "AlbefForRetrievalOutput",
    "AlbefForTextAssignment",
    "AlbefForVisualEntailment",
    "AlbefForVisualReasoning",
    "AlbefModel",
    "AlbefModelOutput",
    "AlbefMultimodalModel",
    "AlbefPairModel",
    "AlbefPreTrainedModel",
    "AlbefTeacherOutput",
    "AlbefTextModel",
    "AlbefVisionModel",
]
