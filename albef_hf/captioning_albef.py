"""Image captioning: ALBEF's text layers as a causal decoder that reads the image.

The paper has no captioning. BLIP (arXiv 2201.12086) has, with a decoder in which only self-attention differs from the
encoder that attends to the image; here the decoder has the encoder's own weights, masked causally.
"""

import functools
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .compatibility_albef import CACHE_NAME, single_cache
from .configuration_albef import AlbefConfig, AlbefTextConfig
from .encoders_albef import (
    AlbefDecoderLayer,
    AlbefMultimodalModel,
    AlbefPreTrainedModel,
    AlbefTextLayer,
    AlbefTextModel,
    KeyValues,
    cached_key_values,
    check_texts,
    refuse_unknown,
)
from .head_layers_albef import AlbefMaskedLanguageHead
from .losses_albef import IGNORED, at_least_float32, masked_language_loss, positions_of_targets
from .masks_albef import causal_mask
from .outputs_albef import NO_LABEL_SMOOTHING, AlbefModelOutput, AlbefTeacherOutput, attention_outputs
from .unimodal_albef import AlbefUnimodalEncoders


class AlbefCausalTextLayer(AlbefTextLayer):
    """A text layer in which a token attends to those before it."""

    def __init__(self, config: AlbefTextConfig, index: int):
        super().__init__(config)
        self.index = index
        self.self_attn.is_causal = True

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        key_values = None  # those of these tokens, projected together with their queries
        if cache is not None:
            key_values = cache.update(*self.self_attn.project_key_values(hidden_states), self.index)
        return self.feed_forward(self.self_attention_block(hidden_states, attention_mask, key_values, **kwargs))


class AlbefCausalTextModel(AlbefTextModel):
    """The text encoder as the lower half of a decoder."""

    _can_record_outputs = {**AlbefTextModel._can_record_outputs, "hidden_states": AlbefCausalTextLayer}

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([AlbefCausalTextLayer(config, index) for index in range(config.num_hidden_layers)])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode tokens by those before them.

        Args:
            input_ids: (batch, tokens).
            attention_mask: The output of `causal_mask`, also for the tokens in the cache.
            positions: (batch, tokens); by default, the first token follows those in the cache.
            cache: Keys and values of earlier tokens; those of these tokens are added.

        Returns:
            `last_hidden_state`: (batch, tokens, width).
        """
        refuse_unknown(kwargs)
        check_texts(input_ids)
        start = 0 if cache is None else cache.get_seq_length()
        hidden_states = self.embeddings(input_ids, start, positions)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, cache=cache, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class AlbefCausalMultimodalModel(AlbefMultimodalModel):
    """The multimodal encoder as the upper half of a decoder."""

    def __init__(self, config: AlbefTextConfig):
        super().__init__(config)
        lower = config.num_hidden_layers
        indices = range(lower, lower + config.num_multimodal_layers)
        self.layers = nn.ModuleList([AlbefDecoderLayer(config, index) for index in indices])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_key_values: list[KeyValues],
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        """Fuse tokens with an image and with the tokens before them.

        Args:
            hidden_states: States of `AlbefCausalTextModel`, (groups * batch, tokens, width); text `i` belongs to image
                `i % batch`.
            attention_mask: The output of `causal_mask`, also for the tokens in the cache.
            image_key_values: The output of `project_images` for `batch` images.
            cache: Keys and values of earlier tokens; those of these tokens are added.

        Returns:
            `last_hidden_state`: (groups * batch, tokens, width).
        """
        refuse_unknown(kwargs)
        hidden_states = self.input_dropout(hidden_states)
        for layer, (key, value) in zip(self.layers, image_key_values, strict=True):
            hidden_states = layer(hidden_states, attention_mask, key, value, cache=cache, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)


class AlbefCausalModel(AlbefUnimodalEncoders):
    """The three encoders with causal text: a decoder of the weights of `AlbefModel`, without a head."""

    text_model_class = AlbefCausalTextModel

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.multimodal_model = AlbefCausalMultimodalModel._from_config(config.text_config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefModelOutput:
        """Decode texts about images; the arguments are those of `AlbefForImageCaptioning`."""
        images = BaseModelOutput()
        if cache is None or not cache.is_updated.get(0):
            images = self.vision_model(pixel_values, interpolate_pos_encoding, **kwargs)
        project_images = functools.partial(self.multimodal_model.project_images, images.last_hidden_state)
        image_key_values = cached_key_values(cache, project_images)
        past = None if cache is None else cache.self_attention_cache
        texts, fused = self.decode(input_ids, image_key_values, attention_mask, past, **kwargs)
        return self._make_output(images, texts, fused)

    def decode(
        self,
        input_ids: torch.Tensor,
        image_key_values: list[KeyValues],
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[BaseModelOutput, BaseModelOutputWithCrossAttentions]:
        """Decode texts about images that are projected; return the outputs of both halves of the decoder."""
        check_texts(input_ids)
        mask, positions = self._mask_and_positions(input_ids, attention_mask, cache)
        texts = self.text_model(input_ids, mask, positions, cache, **kwargs)
        return texts, self.multimodal_model(texts.last_hidden_state, mask, image_key_values, cache, **kwargs)

    def _mask_and_positions(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None
    ) -> tuple[Any, torch.Tensor | None]:
        """Return the causal mask as the attention function takes it, and positions that do not count padding."""
        like = torch.empty(*input_ids.shape, 0, dtype=self.dtype, device=input_ids.device)  # its shape is read
        mask = causal_mask(self.text_model.config, like, attention_mask, cache)
        if attention_mask is None:
            return mask, None
        if isinstance(mask, torch.Tensor) and mask.ndim == 4:
            # Padding on the left has nothing to attend to, and would become NaN, unless it attends to itself.
            mask.diagonal(mask.shape[-1] - mask.shape[-2], dim1=-2, dim2=-1).fill_(0)
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        return mask, positions[:, -input_ids.shape[1] :]


class AlbefForImageCaptioning(AlbefPreTrainedModel, GenerationMixin):
    """ALBEF writes captions: a language model that reads an image.

    All weights are those of the pretraining head: text and multimodal encoder are the decoder, and the masked-language
    head predicts the next token.

    Example:
        ```python
        model = AlbefForImageCaptioning.from_pretrained("you/albef-captioning")
        inputs = processor(images=image, text=processor.prompt, return_tensors="pt")
        print(processor.decode_answers(model.generate(**inputs, num_beams=3, max_new_tokens=20)))
        ```
    """

    _tied_weights_keys = {"mlm_head.out_proj.weight": "albef.text_model.embeddings.word_embeddings.weight"}

    def __init__(self, config: AlbefConfig):
        super().__init__(config)
        self.albef = AlbefCausalModel(config)
        self.mlm_head = AlbefMaskedLanguageHead(config.text_config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the last layer of the language head."""
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
        target_positions: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> AlbefTeacherOutput:
        """Compute the teacher's targets for a batch: logits of the tokens that bear loss.

        Takes the batch that `forward` takes.
        """
        kwargs = {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True}
        states = self.albef(input_ids, pixel_values, attention_mask, **kwargs).last_hidden_state
        return AlbefTeacherOutput(logits=self._target_logits(states, labels, target_positions)[0])

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        target_positions: torch.Tensor | None = None,
        teacher_outputs: AlbefTeacherOutput | None = None,
        alpha: float = 0.0,
        smoothing: float = 0.0,
        cache: EncoderDecoderCache | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithCrossAttentions:
        """Compute the loss of given captions, or the logits of the next token.

        Args:
            input_ids: Captions, or what there is of them, (texts, tokens), `[CLS]` first; by default `[CLS]` alone.
            pixel_values: (images, channels, height, width); text `i` is about image `i % images`. Not needed if the
                cache has the images.
            attention_mask: (texts, past and present tokens), 1 for tokens and 0 for padding, on either side.
            labels: `input_ids` with -100 for tokens that bear no loss: `[CLS]`, prompt and padding, (texts, tokens);
                from `AlbefProcessor.encode_captions`.
            target_positions: Indices of the other tokens in `labels.flatten()`; with them, nothing is checked.
            teacher_outputs: The outputs of a `MomentumTeacher` for the same batch.
            alpha: Weight of the teacher in the targets.
            smoothing: Label smoothing, the weight of the whole vocabulary in the targets; 0.1 in BLIP.
            cache: Keys and values of earlier tokens, and of the images.
            past_key_values: The name of `cache` up to transformers 5.23.
            interpolate_pos_encoding: Resample the learned image positions to images of another size.

        Returns:
            `loss`: with `labels`, the mean negative log-likelihood of the tokens that bear loss.
            `logits`: with `labels`, (tokens that bear loss, vocabulary), else (texts, tokens, vocabulary).

        Raises:
            ValueError: If labels are missing in training, or no token bears loss or the first one does.
        """
        if self.training and labels is None:
            raise ValueError(f"Captioning is trained with labels, which are missing. {NO_LABEL_SMOOTHING}")
        cache = single_cache(cache, past_key_values)
        input_ids = self._start(pixel_values) if input_ids is None else input_ids
        kwargs |= {"interpolate_pos_encoding": interpolate_pos_encoding, "return_dict": True}
        outputs = self.albef(input_ids, pixel_values, attention_mask, cache, **kwargs)
        if labels is None:
            loss, logits = None, self.mlm_head(outputs.last_hidden_state)
        else:
            logits, targets = self._target_logits(outputs.last_hidden_state, labels, target_positions)
            teacher_logits = None if teacher_outputs is None else teacher_outputs.logits
            loss = masked_language_loss(logits, targets, teacher_logits, alpha, smoothing)
        return CausalLMOutputWithCrossAttentions(
            loss=loss, logits=logits, **{CACHE_NAME: cache}, **attention_outputs(outputs)
        )

    def _start(self, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Return `[CLS]` for each image, (images, 1)."""
        if pixel_values is None:
            raise ValueError("There is neither image nor text: pass pixel_values, and optionally input_ids.")
        bos_token_id = self.config.text_config.bos_token_id
        return torch.full((pixel_values.shape[0], 1), bos_token_id, device=pixel_values.device)

    def _target_logits(
        self, states: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the tokens that bear loss, (tokens that bear loss, vocabulary), and these tokens."""
        if positions is None:
            positions = positions_of_targets(labels)
            if labels.shape != states.shape[:2] or not len(positions) or (positions % labels.shape[1] == 0).any():
                raise ValueError(
                    "labels must be input_ids with -100 for the first token, the prompt and padding, and at least one "
                    "other token: create both by processor.encode_captions(captions, prompt)."
                )
        logits = self.mlm_head(states.flatten(0, 1).index_select(0, positions - 1))  # each is predicted one before it
        return logits, labels.take(positions)

    def token_log_likelihoods(self, states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Compute the log-likelihood of all tokens but the first, (texts, tokens - 1).

        Args:
            states: The last hidden states of `AlbefCausalModel` for the same tokens, (texts, tokens, width).
            input_ids: (texts, tokens).
        """
        log_probabilities = at_least_float32(self.mlm_head(states[:, :-1])).log_softmax(-1)
        return log_probabilities.gather(2, input_ids[:, 1:, None])[..., 0]

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> torch.Tensor | ModelOutput:
        """Generate as transformers does.

        Args:
            inputs: Another name of `input_ids`.
            args: Further arguments of transformers.
            pixel_values: (images, channels, height, width); text `i` is about image `i % images`.
            input_ids: Prompts, (texts, tokens), `[CLS]` first, padded on either side, a `[SEP]` after them is removed;
                by default `[CLS]` alone.
            attention_mask: (texts, tokens), 1 for tokens and 0 for padding; by default 0 for the padding token.
            labels: As in `forward`: tokens that bear loss are removed from the prompts. `Seq2SeqTrainer` passes them.
            interpolate_pos_encoding: Resample the learned image positions to images of another size.
            kwargs: Further arguments of transformers.

        Returns:
            Prompts, padded on the left, and captions, (texts, tokens).

        Raises:
            ValueError: If the number of texts is not a multiple of that of images.
        """
        prompts = input_ids if inputs is None else inputs
        if pixel_values is not None:
            if prompts is None:
                prompts = self._start(pixel_values)
            # Encoded once, not for every beam.
            pixel_values = self.albef.vision_model(pixel_values, interpolate_pos_encoding).last_hidden_state
            pixel_values = _repeat(pixel_values, len(prompts))
        if prompts is not None:
            if attention_mask is None:
                attention_mask = (prompts != self.config.text_config.pad_token_id).long()
            if labels is not None:
                attention_mask = attention_mask * (labels == IGNORED)
            is_end = (prompts == self.config.text_config.eos_token_id) & (attention_mask.cumsum(1) > 1)
            attention_mask = attention_mask.masked_fill(is_end, 0)
            prompts, attention_mask = pad_left(prompts, attention_mask, self.config.text_config.pad_token_id or 0)
        return super().generate(prompts, *args, pixel_values=pixel_values, attention_mask=attention_mask, **kwargs)

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict, *args, **kwargs) -> Any:
        """Provide a cache with room for keys and values of all layers and of the images."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation is {generation_config.cache_implementation}: captions are generated with a "
                "dynamic cache; remove the setting."
            )
        if generation_config.use_cache is not False and model_kwargs.get(CACHE_NAME) is None:
            model_kwargs[CACHE_NAME] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


def _repeat(images: torch.Tensor, count: int) -> torch.Tensor:
    """Return an image for each text; beams would shuffle images that texts share."""
    if count % len(images):
        raise ValueError(f"There are {count} prompts for {len(images)} images: pass as many, or a multiple.")
    return images.repeat(count // len(images), 1, 1)


def pad_left(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move padding to the left, where generation needs it, and remove what all texts have.

    Args:
        input_ids: (texts, tokens).
        attention_mask: (texts, tokens), 1 for tokens and 0 for padding.
        pad_token_id: Takes the place of tokens that are masked.

    Returns:
        Both, each (texts, tokens of the longest text).
    """
    longest = int(attention_mask.sum(1).max())
    order = attention_mask.argsort(dim=1, stable=True)[:, -longest:]
    return input_ids.masked_fill(attention_mask == 0, pad_token_id).gather(1, order), attention_mask.gather(1, order)


__all__ = [
    "AlbefCausalModel",
    "AlbefForImageCaptioning",
    "pad_left",
]
