"""ALBEF in PyTorch: image encoder, text encoder, multimodal encoder, and the heads with their losses.

Align before Fuse, Li et al. 2021, arXiv 2107.07651; the original code is github.com/salesforce/ALBEF.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithCrossAttentions,
    BaseModelOutputWithPooling,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_albef import AlbefConfig, AlbefTextConfig, AlbefVisionConfig

logger = logging.get_logger(__name__)

KeyValues = tuple[torch.Tensor, torch.Tensor]  # each (batch, heads, tokens, head width)

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
    """

    last_hidden_state: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    text_hidden_states: torch.Tensor | None = None
    vision_model_output: BaseModelOutput | None = None
    text_model_output: BaseModelOutput | None = None
    multimodal_model_output: BaseModelOutputWithCrossAttentions | None = None

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
        logits: Logits of the masked tokens, (masked tokens, vocabulary), in the row order of `labels != -100`.
    """

    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_queue: torch.Tensor | None = None
    text_queue: torch.Tensor | None = None
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
        groups = texts // key.shape[0]
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Self-attention, (batch, tokens, width) to the same."""
        attended, _ = self.self_attn(hidden_states, attention_mask, **kwargs)
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

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_key: torch.Tensor,
        image_value: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        hidden_states = self.attend(hidden_states, attention_mask, **kwargs)
        attended, _ = self.cross_attn(hidden_states, None, (image_key, image_value), **kwargs)
        return self.feed_forward(self.cross_attn_norm(hidden_states + self.dropout(attended)))


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
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + positions


class AlbefTextEmbeddings(nn.Module):
    """Words, positions and token type 0, which ALBEF always adds."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        tokens, longest = input_ids.shape[1], self.position_embeddings.num_embeddings
        if tokens > longest:
            raise ValueError(
                f"The text has {tokens} tokens, the model takes {longest} at most: truncate it when tokenizing "
                "(truncation=True, max_length=...)."
            )
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        embeddings = embeddings + self.position_embeddings.weight[:tokens]
        return self.dropout(self.norm(embeddings))


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


# ---------------------------------------------------------------------------------------------------------------------
# Encoders
# ---------------------------------------------------------------------------------------------------------------------


class AlbefPreTrainedModel(PreTrainedModel):
    """Weight initialisation and what transformers has to know about all ALBEF models."""

    config: AlbefConfig
    base_model_prefix = "albef"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # Losses are means over the batch: Trainer has to divide them by the number of accumulation steps itself.
    accepts_loss_kwargs = False
    _no_split_modules = [
        "AlbefVisionEmbeddings",
        "AlbefTextEmbeddings",
        "AlbefVisionLayer",
        "AlbefTextLayer",
        "AlbefMultimodalLayer",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlbefVisionEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, AlbefContrastiveHead):
            init.constant_(module.temperature, module.initial_temperature)


class AlbefVisionModel(AlbefPreTrainedModel):
    """The image encoder: a vision transformer that keeps every patch."""

    config: AlbefVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _can_record_outputs = {"hidden_states": AlbefVisionLayer, "attentions": AlbefAttention}

    def __init__(self, config: AlbefVisionConfig):
        super().__init__(config)
        self.embeddings = AlbefVisionEmbeddings(config)
        self.layers = nn.ModuleList([AlbefVisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch projection."""
        return self.embeddings.patch_embedding

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
            ValueError: If the pictures have another size and `interpolate_pos_encoding` is off.
        """
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class AlbefTextModel(AlbefPreTrainedModel):
    """The text encoder: the lower half of BERT."""

    config: AlbefTextConfig
    input_modalities = ("text",)
    _can_record_outputs = {"hidden_states": AlbefTextLayer, "attentions": AlbefAttention}

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.embeddings = AlbefTextEmbeddings(config)
        self.layers = nn.ModuleList([AlbefTextLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

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
            ValueError: If a text is longer than the model has positions.
        """
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
        """
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer, (image_key, image_value) in zip(self.layers, image_key_values, strict=True):
            hidden_states = layer(hidden_states, attention_mask, image_key, image_value, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)


class AlbefModel(AlbefPreTrainedModel):
    """The three encoders without a head."""

    # A checkpoint of a head is a fine source of the encoders.
    _keys_to_ignore_on_load_unexpected = [r"^(contrastive|itm|mlm)_head\."]

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.vision_model = AlbefVisionModel._from_config(config.vision_config)
        self.text_model = AlbefTextModel._from_config(config.text_config)
        self.multimodal_model = AlbefMultimodalModel._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
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
        images = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        texts = self.text_model(input_ids, attention_mask, **kwargs)
        image_key_values = self.multimodal_model.project_images(images.last_hidden_state)
        fused = self.multimodal_model(texts.last_hidden_state, attention_mask, image_key_values, **kwargs)
        return AlbefModelOutput(
            last_hidden_state=fused.last_hidden_state,
            image_hidden_states=images.last_hidden_state,
            text_hidden_states=texts.last_hidden_state,
            vision_model_output=images,
            text_model_output=texts,
            multimodal_model_output=fused,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Heads and losses
# ---------------------------------------------------------------------------------------------------------------------


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
        The mean over the rows, a scalar; zero, with a gradient of zero, where there is no row.
    """
    rows = max(len(logits), 1)
    loss = F.cross_entropy(logits, targets, reduction="sum") / rows
    if teacher_logits is None or alpha == 0:
        return loss
    soft_targets = teacher_logits.detach().softmax(-1)
    return (1 - alpha) * loss + alpha * F.cross_entropy(logits, soft_targets, reduction="sum") / rows


@torch.no_grad()
def sample_hard_negatives(
    logits_per_image: torch.Tensor, logits_per_text: torch.Tensor, candidates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a hard negative for every text and every image, likelier the more similar it is (section 3.2 of the paper).

    Args:
        logits_per_image: Images against the texts of the batch, (batch, batch).
        logits_per_text: Texts against the images of the batch, (batch, batch).
        candidates: Whether image i and text j may serve as a negative pair, (batch, batch), symmetric.

    Returns:
        Index of an image for each text and of a text for each image, each (batch,).

    Raises:
        ValueError: If the batch holds a single pair.
    """
    if len(candidates) < 2:
        raise ValueError(
            "A batch of one pair holds no negative, so image-text matching cannot be learned from it: "
            "use a batch size of at least 2 per process, and drop the last incomplete batch of an epoch."
        )

    def draw(logits: torch.Tensor) -> torch.Tensor:
        # At a small temperature every candidate may underflow to zero; the floor turns that into a uniform draw. So do
        # logits that are not a number: the loss will say so, where an error here would only stop one process.
        weights = logits.softmax(-1).nan_to_num(0).clamp_min(1e-30).masked_fill(~candidates, 0)
        return torch.multinomial(weights, 1).squeeze(-1)

    return draw(logits_per_text), draw(logits_per_image)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


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
        return F.normalize(_at_least_float32(self.image_projection(image_hidden_states[:, 0])), dim=-1)

    def project_text(self, text_hidden_states: torch.Tensor) -> torch.Tensor:
        """Unit-length features, (batch, projection), of (batch, text tokens, text width) states."""
        return F.normalize(_at_least_float32(self.text_projection(text_hidden_states[:, 0])), dim=-1)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Similarity over temperature, (queries, keys), of features (queries, projection) and (keys, projection).

        Never below float32: at a temperature of 0.07 the 8 bits of a bfloat16 move a logit by up to 0.06.
        """
        with torch.autocast(queries.device.type, enabled=False):
            return queries @ keys.to(queries.dtype).T / self.temperature.to(queries.dtype)

    def loss(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        teacher_outputs: AlbefTeacherOutput | None,
        alpha: float,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Image-text contrastive loss, equations 1, 2 and 6 of the paper.

        The keys are the teacher's features of the batch, then its queues; without a teacher, the batch itself.
        Teacher similarities are divided by the student's temperature, as in the original's `model_pretrain.py`.

        Returns:
            The loss, the InfoNCE without distillation, and the logits of images against the texts and of texts against
            the images of the batch, each (batch, batch).
        """
        batch = len(image_embeds)
        image_keys, text_keys = image_embeds, text_embeds
        teacher_per_image = teacher_per_text = None
        if teacher_outputs is not None:
            image_keys = torch.cat([teacher_outputs.image_embeds, teacher_outputs.image_queue])
            text_keys = torch.cat([teacher_outputs.text_embeds, teacher_outputs.text_queue])
            if alpha > 0:
                with torch.no_grad():
                    teacher_per_image = self(teacher_outputs.image_embeds, text_keys)
                    teacher_per_text = self(teacher_outputs.text_embeds, image_keys)
        per_image, per_text = self(image_embeds, text_keys), self(text_embeds, image_keys)  # (batch, batch + queue)
        targets = torch.arange(batch, device=image_embeds.device)
        loss = (
            distilled_cross_entropy(per_image, targets, teacher_per_image, alpha)
            + distilled_cross_entropy(per_text, targets, teacher_per_text, alpha)
        ) / 2
        with torch.no_grad():
            info_nce = (F.cross_entropy(per_image, targets) + F.cross_entropy(per_text, targets)) / 2
        return loss, info_nce, (per_image[:, :batch], per_text[:, :batch])


class AlbefMaskedLanguageHead(nn.Module):
    """BERT's masked-language head; its decoder shares the word embeddings."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(self.activation(self.dense(hidden_states))))


class AlbefForPreTraining(AlbefPreTrainedModel):
    """ALBEF with the three objectives of its pretraining: contrast (ITC), matching (ITM), masked language (MLM).

    Without `teacher_outputs` it is an ordinary model: the batch alone supplies negatives and no target is softened.
    With those of an `albef_hf.momentum.MomentumTeacher`, it is the paper's.
    """

    _tied_weights_keys = {"mlm_head.decoder.weight": "albef.text_model.embeddings.word_embeddings.weight"}

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.albef = AlbefModel(config)
        self.contrastive_head = AlbefContrastiveHead(config)
        self.itm_head = nn.Linear(config.text_config.hidden_size, 2)
        self.mlm_head = AlbefMaskedLanguageHead(config.text_config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The decoder of the masked-language head."""
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder of the masked-language head."""
        self.mlm_head.decoder = value

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the learned temperature within [0.001, 0.5]; to be called after every optimizer step."""
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

    @torch.no_grad()
    def get_teacher_outputs(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor,
        mlm_input_ids: torch.Tensor,
        labels: torch.Tensor,
    ) -> AlbefTeacherOutput:
        """What this model, as a teacher, has to say of a batch: features, and logits of the masked tokens.

        Takes the batch that `forward` takes; the queues are the `MomentumTeacher`'s to add.
        """
        images, texts, masked_texts = self._encode(input_ids, pixel_values, attention_mask, mlm_input_ids)
        image_key_values = self.albef.multimodal_model.project_images(images)
        masked = self.albef.multimodal_model(masked_texts, attention_mask, image_key_values).last_hidden_state
        return AlbefTeacherOutput(
            image_embeds=self.contrastive_head.project_image(images),
            text_embeds=self.contrastive_head.project_text(texts),
            logits=self.mlm_head(masked[labels != -100]),
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

        Raises:
            ValueError: If `labels` come without `mlm_input_ids`, or with a batch of one pair.
        """
        if labels is None:
            return self._predict(input_ids, pixel_values, attention_mask, **kwargs)
        if mlm_input_ids is None:
            raise ValueError("labels came without mlm_input_ids: collate with albef_hf.data.PretrainingCollator.")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        images, texts, masked_texts = self._encode(input_ids, pixel_values, attention_mask, mlm_input_ids)
        image_embeds = self.contrastive_head.project_image(images)
        text_embeds = self.contrastive_head.project_text(texts)
        loss_itc, info_nce, logits = self.contrastive_head.loss(image_embeds, text_embeds, teacher_outputs, alpha)
        matching, masked = self._fuse(images, texts, masked_texts, attention_mask, logits)
        itm_logits = self.itm_head(matching)
        itm_labels = (torch.arange(len(matching), device=matching.device) < len(images)).long()
        loss_itm = F.cross_entropy(itm_logits, itm_labels)
        mlm_logits = self.mlm_head(masked[labels != -100])
        mlm_teacher = None if teacher_outputs is None else teacher_outputs.logits
        loss_mlm = distilled_cross_entropy(mlm_logits, labels[labels != -100], mlm_teacher, alpha)
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
        mlm_input_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """States of the pictures, of the texts, and of the texts with masked tokens, one encoder call each kind."""
        images = self.albef.vision_model(pixel_values).last_hidden_state
        both = self.albef.text_model(torch.cat([input_ids, mlm_input_ids]), attention_mask.repeat(2, 1))
        return images, *both.last_hidden_state.chunk(2)

    def _fuse(
        self,
        images: torch.Tensor,
        texts: torch.Tensor,
        masked_texts: torch.Tensor,
        attention_mask: torch.Tensor,
        logits: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Multimodal states for ITM, (3 batch, width) of `[CLS]`, and for MLM, (batch, tokens, width).

        Three texts read each picture (its own, a hard negative, its own with masked tokens), so they share the
        picture's keys and values; each text then reads a hard negative picture.
        """
        own_pairs = torch.eye(len(images), dtype=torch.bool, device=images.device)
        image_for_text, text_for_image = sample_hard_negatives(*logits, ~own_pairs)
        fuse = self.albef.multimodal_model
        key_values = fuse.project_images(images)
        readers = torch.cat([texts, texts[text_for_image], masked_texts])
        readers_mask = torch.cat([attention_mask, attention_mask[text_for_image], attention_mask])
        matched, wrong_text, masked = fuse(readers, readers_mask, key_values).last_hidden_state.chunk(3)
        negatives = [(key[image_for_text], value[image_for_text]) for key, value in key_values]
        wrong_image = fuse(texts, attention_mask, negatives).last_hidden_state
        return torch.cat([matched[:, 0], wrong_image[:, 0], wrong_text[:, 0]]), masked

    def _predict(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefForPreTrainingOutput:
        """Match, fill and embed given pairs, without any loss."""
        outputs = self.albef(input_ids, pixel_values, attention_mask, **kwargs)
        return AlbefForPreTrainingOutput(
            itm_logits=self.itm_head(outputs.last_hidden_state[:, 0]),
            logits=self.mlm_head(outputs.last_hidden_state),
            image_embeds=self.contrastive_head.project_image(outputs.image_hidden_states),
            text_embeds=self.contrastive_head.project_text(outputs.text_hidden_states),
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


# ---------------------------------------------------------------------------------------------------------------------
# Pretrained ViT, DeiT and BERT
# ---------------------------------------------------------------------------------------------------------------------

# Names of transformers' ViT, DeiT and BERT, old and new (they moved between 5.17 and 5.23), to those of this file.
# Order matters: attention first, so that what is left of `output` belongs to the feed-forward part.
_PRETRAINED_NAMES = [
    (r"^(?:vit|deit|bert)\.", ""),
    (r"^(?:encoder\.)?layers?\.", "layers."),
    (r"^embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embedding."),
    (r"\.attention\.(?:self\.|attention\.)?(?:query|q_proj)\.", ".self_attn.q_proj."),
    (r"\.attention\.(?:self\.|attention\.)?(?:key|k_proj)\.", ".self_attn.k_proj."),
    (r"\.attention\.(?:self\.|attention\.)?(?:value|v_proj)\.", ".self_attn.v_proj."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".self_attn.out_proj."),
    (r"\.(?:attention\.output\.LayerNorm|layernorm_before)\.", ".self_attn_norm."),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    (r"\.(?:output\.LayerNorm|layernorm_after)\.", ".mlp_norm."),
    (r"^embeddings\.LayerNorm\.", "embeddings.norm."),
    (r"^layernorm\.", "norm."),
    (r"^cls\.predictions\.transform\.dense\.", "mlm_head.dense."),
    (r"^cls\.predictions\.transform\.LayerNorm\.", "mlm_head.norm."),
    (r"^cls\.predictions\.bias$", "mlm_head.decoder.bias"),
]

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
        for pattern, replacement in _PRETRAINED_NAMES:
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
    logger.warning(f"Freshly initialised, to be trained: {', '.join(_modules_of(fresh))}.")
    if report.unexpected_keys:
        logger.warning(f"Not used by ALBEF: {', '.join(_modules_of(report.unexpected_keys))}.")


def _modules_of(names: set[str] | list[str]) -> list[str]:
    """Parameter names without their last part, layers counted: `a.layers.0.b.weight` becomes `a.layers.*.b (1x)`."""
    counts: dict[str, set[str]] = {}
    for name in names:
        module = name.rpartition(".")[0] or name
        counts.setdefault(re.sub(r"\.\d+\.", ".*.", module), set()).add(module)
    return [f"{module} ({len(found)}x)" if "*" in module else module for module, found in sorted(counts.items())]


__all__ = [
    "AlbefForPreTraining",
    "AlbefForPreTrainingOutput",
    "AlbefModel",
    "AlbefModelOutput",
    "AlbefMultimodalModel",
    "AlbefPreTrainedModel",
    "AlbefTeacherOutput",
    "AlbefTextModel",
    "AlbefVisionModel",
]
