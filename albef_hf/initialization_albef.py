"""Initialize ALBEF from a pretrained image model and a pretrained BERT or RoBERTa; in the paper, DeiT and BERT."""

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .compatibility_albef import PRETRAINED_NAMES, TEXT_MODEL_TYPES, without_load_report
from .configuration_albef import AlbefTextConfig, AlbefVisionConfig, read_vision_config, size_pair
from .encoders_albef import interpolate_position_embeddings

logger = logging.get_logger(f"transformers.{__name__}")

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
_POSITIONS = "albef.vision_model.embeddings.position_embeddings"

Weights = dict[str, torch.Tensor]


def read_vision_model(name: str) -> tuple[dict | PreTrainedConfig, Weights]:
    """Load an image model, and return its settings and its weights under ALBEF's names.

    A ViT or DeiT becomes the paper's ViT. Of a model of images and texts, such as CLIP, the image model is loaded.

    Returns:
        Settings of an `AlbefVisionConfig`, or the configuration of another image model; and the weights.

    Raises:
        ValueError: If the weights of the image model are not found.
    """
    config = read_vision_config(AutoConfig.from_pretrained(name))
    model, missing_keys = _load(AutoModel, name, config=config)
    missing = [key for key in missing_keys if not re.search(r"pooler\.|mask_token", key)]
    if missing:
        raise ValueError(
            f"{name} has no {sorted(missing)[0]} of its image model ({len(missing)} weights are missing). Save the "
            "image model alone, as in model.vision_model.save_pretrained(FOLDER), and pass that folder."
        )
    if config.model_type not in ("vit", "deit"):
        return config, {f"encoder.{key}": weight for key, weight in model.state_dict().items()}
    weights = {key: weight for key, weight in _rename(model.state_dict()).items() if not key.startswith("pooler.")}
    if weights.pop("embeddings.distillation_token", None) is not None:  # DeiT has a second token, ALBEF does not
        positions = weights["embeddings.position_embeddings"]
        weights["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    return {setting: getattr(config, setting) for setting in _VISION_SETTINGS}, weights


def image_settings(
    vision: dict | PreTrainedConfig, overrides: dict, preprocessing: dict[str, Any], given: int | Sequence[int] | None
) -> dict[str, Any]:
    """Return the settings of an `AlbefConfig` for the image encoder.

    Args:
        vision: From `read_vision_model`.
        overrides: Settings of the image model to change.
        preprocessing: From `read_preprocessing`, with the size that the image model was trained at.
        given: The size to use instead.
    """
    known = AlbefVisionConfig().to_dict() if isinstance(vision, dict) else vision.to_dict()
    unknown = [setting for setting in overrides if setting not in known and setting != "image_size"]
    if unknown:
        raise ValueError(f"The image model has no setting {', '.join(unknown)}: check the spelling or remove it.")
    if isinstance(vision, dict):
        return {"vision_config": {**vision, **overrides}, "image_size": given}
    vision = copy.deepcopy(vision)
    own_size = getattr(vision, "image_size", None)
    size = overrides.get("image_size", given or preprocessing.get("size") or own_size)
    for setting, value in overrides.items():
        if setting != "image_size":
            setattr(vision, setting, value)
    is_own_size = own_size is not None and size_pair(size) == size_pair(own_size)
    return {"vision_config": vision, "image_size": None if is_own_size else size}


def read_text_model(name: str) -> tuple[dict, Weights]:
    """Load a BERT or a model of the RoBERTa family and return its settings and its weights under ALBEF's names.

    The weights include the masked-language head if the checkpoint has one; its last layer shares the word embeddings.

    Raises:
        ValueError: If it is another kind of model.
    """
    config = AutoConfig.from_pretrained(name)
    if config.model_type not in TEXT_MODEL_TYPES:
        raise ValueError(
            f"{name} is a {config.model_type} model: start the text encoder from one of {', '.join(TEXT_MODEL_TYPES)}."
        )
    model, missing_keys = _load(AutoModelForMaskedLM, name)
    settings = {setting: getattr(config, setting) for setting in _TEXT_SETTINGS}
    if TEXT_MODEL_TYPES[config.model_type]:
        settings["position_offset"] = config.pad_token_id + 1
        settings |= {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    present = {key: weight for key, weight in model.state_dict().items() if key not in missing_keys}
    tied = ("cls.predictions.decoder.", "lm_head.decoder.")
    return settings, _rename({key: weight for key, weight in present.items() if not key.startswith(tied)})


def _load(kind: Any, name: str, **settings: Any) -> tuple[PreTrainedModel, set[str]]:
    """Load a model and return it with the keys that it lacks, which ALBEF replaces by layers of its own.

    `load_pretrained_weights` warns of what stays random, this function of what is not used.
    """
    with without_load_report():
        model, report = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **settings)
    unused = {key for key in report["unexpected_keys"] if "pooler." not in key}
    if unused:
        logger.warning_once(
            f"ALBEF does not use these weights of {name}: {', '.join(sorted({key.split('.')[0] for key in unused}))}."
        )
    return model, set(report["missing_keys"])


def _rename(state_dict: Weights) -> Weights:
    renamed = {}
    for name, weight in state_dict.items():
        for pattern, replacement in PRETRAINED_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    return renamed


def load_pretrained_weights(model: PreTrainedModel, vision_weights: Weights, text_weights: Weights) -> None:
    """Load weights of pretrained encoders, and warn of weights that stay random or that ALBEF does not use.

    Args:
        model: The model with the pretraining head.
        vision_weights: From `read_vision_model`; position embeddings are interpolated to the model's resolution.
        text_weights: From `read_text_model`.

    Raises:
        ValueError: If a weight has another shape than in the model.
    """
    weights = {f"albef.vision_model.{name}": weight for name, weight in vision_weights.items()}
    weights |= _place_text_weights(text_weights, model.config.text_config)
    expected = model.state_dict()
    if _POSITIONS in weights:
        grid = model.config.vision.grid
        weights[_POSITIONS] = interpolate_position_embeddings(weights[_POSITIONS], grid)
    for name, weight in weights.items():
        if name in expected and expected[name].shape != weight.shape:
            raise ValueError(
                f"{name} is {tuple(weight.shape)} in the pretrained model and {tuple(expected[name].shape)} in the "
                "configuration: do not change sizes of the pretrained model."
            )
    report = model.load_state_dict(weights, strict=False)
    missing = {name for name in report.missing_keys if name not in model.all_tied_weights_keys}
    logger.warning_once(f"Randomly initialized, to be trained: {', '.join(_group_by_module(missing))}.")
    if report.unexpected_keys:
        logger.warning_once(f"Not used by ALBEF: {', '.join(_group_by_module(report.unexpected_keys))}.")
    _compare_depth(text_weights, model.config.text_config)


def _place_text_weights(weights: Weights, config: AlbefTextConfig) -> Weights:
    """Assign the lower layers to the text encoder and the next ones to the multimodal encoder; drop the rest."""
    placed = {}
    for name, weight in weights.items():
        layer = re.match(r"layers\.(\d+)\.(.*)", name)
        if layer is None:
            placed[name if name.startswith("mlm_head.") else f"albef.text_model.{name}"] = weight
            continue
        index = int(layer[1])
        multimodal_index = index - config.num_hidden_layers
        if multimodal_index < 0:
            placed[f"albef.text_model.{name}"] = weight
        elif multimodal_index < config.num_multimodal_layers:
            placed[f"albef.multimodal_model.layers.{multimodal_index}.{layer[2]}"] = weight
    return placed


def _compare_depth(weights: Weights, config: AlbefTextConfig) -> None:
    """Warn if the pretrained text model has fewer or more layers than both encoders together."""
    depth = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    wanted = config.num_hidden_layers + config.num_multimodal_layers
    dropped = f"the upper {depth - wanted} layers are dropped"
    random = f"the upper {wanted - depth} layers of ALBEF start from random weights"
    if weights and depth != wanted:
        logger.warning_once(
            f"The pretrained text model has {depth} layers for num_hidden_layers={config.num_hidden_layers} of the "
            f"text encoder and num_multimodal_layers={config.num_multimodal_layers} of the multimodal encoder: "
            f"{dropped if depth > wanted else random}. Set these of text_config for another division."
        )


def _group_by_module(names: set[str] | list[str]) -> list[str]:
    """Return the modules of parameters, with a count of layers: `a.layers.0.b.weight` becomes `a.layers.*.b (1x)`."""
    modules: dict[str, set[str]] = {}
    for name in names:
        module = name.rpartition(".")[0] or name
        modules.setdefault(re.sub(r"\.\d+\.", ".*.", module), set()).add(module)
    return [f"{name} ({len(members)}x)" if "*" in name else name for name, members in sorted(modules.items())]


def add_adapters(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Add the LoRA adapters that a model was saved with, see `lora_config` of `AlbefConfig`.

    Raises:
        ModuleNotFoundError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise ModuleNotFoundError(
            "The model was saved with LoRA adapters, which need peft: pip install peft", name="peft"
        ) from error
    inject_adapter_in_model(LoraConfig(**settings), model)


__all__ = [
    "add_adapters",
    "image_settings",
    "load_pretrained_weights",
    "read_text_model",
    "read_vision_model",
]
