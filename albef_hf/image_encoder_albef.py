"""Any image model of transformers as ALBEF's image encoder.

States are (batch, 1 + patches, width) for every model. The first one is contrasted with texts: the class token, the
pooled output, or the mean of the patches. Feature maps are flattened row by row.
"""

import copy
import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_albef import AlbefConfig, size_pair
from .encoders_albef import check_images, check_states, has_attention, refuse_unknown, wrong_size

# Learned tokens before the patches, under their names in transformers and timm; the class token is the first.
_CLASS_TOKENS = {"cls_token", "class_embedding"}
_OTHER_PREFIX_TOKENS = {"distillation_token", "dist_token", "register_tokens", "reg_token"}
# Models whose pooled output is their first state already, not a learned token.
_POOLED_FIRST = {"dinov3_convnext"}
# Models with a class token whose pooled output is better: CLIP normalizes it, BEiT was trained with the mean.
_POOLERS = {"beit", "chinese_clip_vision_model", "clip_vision_model", "data2vec-vision", "mlcd_vision_model"}
# Modules that only the pooled output uses; in most models, `pooler`.
_POOLING_MODULES = {
    "aimv2_vision_model": "head",
    "chinese_clip_vision_model": "post_layernorm",
    "clip_vision_model": "post_layernorm",
    "convnext": "layernorm",
    "convnextv2": "layernorm",
    "mlcd_vision_model": "post_layernorm",
    "siglip_vision_model": "head",
}
# Models that do not return one state for each patch of each image: some are masked, joined or added.
_UNSUITABLE = {"pixtral", "vit_mae", "yolos"}


@dataclass
class AlbefImageEncoderOutput(BaseModelOutput):
    """Output of an image model as ALBEF reads it.

    Args:
        last_hidden_state: (batch, 1 + registers + patches, width).
        hidden_states: As the image model returns them, with `output_hidden_states`, if it can.
        attentions: As the image model returns them, with `output_attentions`, if it can.
        features: The image model's own last hidden state, which the others are made of.
    """

    features: torch.Tensor | None = None


class AlbefImageEncoder(nn.Module):
    """An image model of transformers, or one that is registered with `AutoConfig` and `AutoModel`.

    Args:
        config: With the configuration of the image model as `vision_config`, and `input_size`, `image_pooling` and
            `image_registers`.

    Raises:
        ValueError: If it is not a model of images alone.
    """

    def __init__(self, config: AlbefConfig):
        super().__init__()
        self.input_size = config.input_size
        self.width = config.image_hidden_size
        self.num_channels = getattr(config.vision_config, "num_channels", 3)
        self.encoder = _build(config.vision_config)
        self.is_native_size = self.input_size == _native_size(config.vision_config, self.input_size)
        class_tokens, other_tokens = _count_prefix_tokens(self.encoder)
        self.num_prefix_tokens = class_tokens + other_tokens
        self.num_registers = other_tokens if config.image_registers else 0
        has_better_pooler = config.vision_config.model_type in _POOLERS
        self.pooling = config.image_pooling or ("cls" if class_tokens and not has_better_pooler else "pooler")
        self.must_have_pooler = config.image_pooling == "pooler"
        if self.pooling == "cls" and not class_tokens:
            raise ValueError(f"{type(self.encoder).__name__} has no class token: set image_pooling to mean.")
        unused = {"mask_token"}  # of its own pretraining
        if self.pooling != "pooler":
            unused.add(_POOLING_MODULES.get(config.vision_config.model_type, "pooler"))
        for name, weight in self.encoder.named_parameters():
            if unused & set(name.split(".")):
                weight.requires_grad_(False)

    @property
    def config(self) -> PreTrainedConfig:
        """Return the configuration of the image model."""
        return self.encoder.config

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the weights."""
        return self.encoder.dtype

    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AlbefImageEncoderOutput:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width), normalized as `AlbefProcessor` does; or the states that
                this function returned for them, (batch, 1 + registers + patches, width), which are returned.
            interpolate_pos_encoding: Accept images of another size, if the image model can.

        Returns:
            `last_hidden_state`: (batch, 1 + registers + patches, width), the pooled state first.

        Raises:
            ValueError: If there is no image, or one without a batch dimension, or an image has another size and
                `interpolate_pos_encoding` is off, or the model does not return a state for each patch, as wide as the
                configuration says.
        """
        refuse_unknown(kwargs)
        check_images(pixel_values)
        if pixel_values.ndim == 3:
            may_be_image = pixel_values.shape[0] == self.num_channels and pixel_values.shape[2] == self.width
            states = check_states(pixel_values, self.num_states if may_be_image else None, self.width)
            return AlbefImageEncoderOutput(last_hidden_state=states.to(self.dtype))
        is_input_size = tuple(pixel_values.shape[-2:]) == self.input_size
        if not (interpolate_pos_encoding or is_input_size):
            raise ValueError(wrong_size(pixel_values, self.input_size))
        settings = self._settings(kwargs, interpolate=not (is_input_size and self.is_native_size))
        outputs = self.encoder(pixel_values.to(self.dtype), **settings)
        states = self.flatten(outputs.last_hidden_state)
        self._check_states(states, pixel_values.shape[0])  # not len(): an exported graph would keep it
        patches = states[:, self.num_prefix_tokens :]
        registers = states[:, self.num_prefix_tokens - self.num_registers : self.num_prefix_tokens]
        first = self._pool(states, patches, outputs)
        return AlbefImageEncoderOutput(
            last_hidden_state=torch.cat([first[:, None], registers, patches], dim=1),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            features=outputs.last_hidden_state,
        )

    @functools.cached_property
    @torch.no_grad()
    def num_states(self) -> int:
        """Return the number of states of an image of the input size, found with a blank one."""
        blank = torch.zeros(1, self.num_channels, *self.input_size, dtype=self.dtype, device=self.device)
        return copy.deepcopy(self).eval()(blank).last_hidden_state.shape[1]

    def _settings(self, kwargs: TransformersKwargs, interpolate: bool) -> dict[str, Any]:
        """Return the keywords of the image model's own forward pass."""
        recorded = getattr(self.encoder, "_can_record_outputs", None) or {}
        settings: dict[str, Any] = {
            f"output_{name}": kwargs[f"output_{name}"]
            for name in ("hidden_states", "attentions")
            if name in recorded and kwargs.get(f"output_{name}") is not None
        }
        if interpolate and "interpolate_pos_encoding" in inspect.signature(self.encoder.forward).parameters:
            settings["interpolate_pos_encoding"] = True
        return settings

    def flatten(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states of a feature map, with channels first or last, as (batch, patches, width)."""
        if states.ndim != 4:
            return states
        is_channels_last = states.shape[-1] == self.width != states.shape[1]
        return states.flatten(1, 2) if is_channels_last else states.flatten(2).transpose(1, 2)

    def _check_states(self, states: torch.Tensor, images: int) -> None:
        if states.ndim != 3 or states.shape[0] != images:
            raise ValueError(
                f"{type(self.encoder).__name__} returns states of shape {tuple(states.shape)} for {images} images: "
                "choose an image model that returns a state for each patch."
            )
        if states.shape[-1] != self.width:
            raise ValueError(
                f"{type(self.encoder).__name__} returns states of width {states.shape[-1]}, the configuration says "
                f"{self.width}: correct the size of vision_config that gives the width, or set its hidden_size."
            )

    def _pool(self, states: torch.Tensor, patches: torch.Tensor, outputs: BaseModelOutput) -> torch.Tensor:
        """Return the state that stands for the image, (batch, width)."""
        if self.pooling == "cls":
            return states[:, 0]
        pooled = outputs.get("pooler_output") if self.pooling == "pooler" else None
        if pooled is not None:
            return pooled.flatten(1)  # ResNet's is (batch, width, 1, 1)
        if self.must_have_pooler:
            raise ValueError(f"{type(self.encoder).__name__} has no pooled output: set image_pooling to cls or mean.")
        return patches.mean(1)


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    """Return an image model with random weights; refuse what needs more than pixels."""
    if config.model_type in _UNSUITABLE:
        raise ValueError(
            f"{config.model_type} cannot be the image encoder: it does not return a state for each patch of each "
            "image. Choose another image model."
        )
    if type(config) not in MODEL_MAPPING:
        raise ValueError(
            f"No model is registered for {type(config).__name__}: call AutoModel.register({type(config).__name__}, "
            "your_model_class) first, or choose an image model of transformers."
        )
    classes = MODEL_MAPPING[type(config)]
    if not all(map(has_attention, classes if isinstance(classes, tuple) else [classes])):
        config._attn_implementation = "eager"
    model = AutoModel.from_config(config)
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    required = [one.name for one in parameters if one.default is one.empty and one.kind not in kinds]
    others = [name for name in required if name != "pixel_values"]
    if others or model.main_input_name != "pixel_values":
        inputs = ", ".join(others) or model.main_input_name
        raise ValueError(
            f"{type(model).__name__} cannot be the image encoder: it takes {inputs}. Choose a model that takes "
            "pixel_values alone."
        )
    return model


def _native_size(config: PreTrainedConfig, default: tuple[int, int]) -> tuple[int, int]:
    size = getattr(config, "image_size", None)
    return size_pair(size) if size else default


def _count_prefix_tokens(model: PreTrainedModel) -> tuple[int, int]:
    """Return the number of class tokens, and of other tokens that come between them and the patches."""
    named = ((name.split("."), weight) for name, weight in model.named_parameters())
    weights = {path[-1]: weight for path, weight in named if "head" not in path}  # AIMv2 pools with a token
    class_tokens = int(bool(_CLASS_TOKENS & weights.keys()) or model.config.model_type in _POOLED_FIRST)
    # Each is (1, tokens, width); DeiT's distillation token is one of them.
    return class_tokens, sum(weights[name].shape[-2] for name in _OTHER_PREFIX_TOKENS & weights.keys())


__all__ = ["AlbefImageEncoder", "AlbefImageEncoderOutput"]
