"""Infer the configuration of a model from the shapes in a checkpoint, which does not store it."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..configuration_albef import AlbefConfig
from ..utils.spelling import refuse_unknown
from .checkpoints import Weights, refuse_names, unknown_names
from .parameter_names import HEADS, bert_prefix

HEAD_WIDTH = 64  # of ViT-B/16 and BERT-base
BASE_WIDTH = 768
# Further ones that a saved configuration may have.
OTHER_SETTINGS = ("auto_map", "custom_pipelines", "id2label", "label2id", "torch_dtype", "transformers_version")

# Settings by their dotted names, such as "text_config.hidden_size".
Settings = dict[str, Any]


def read_config(
    state: Weights, task: str, config: AlbefConfig | str | os.PathLike | None = None, image_size: int | None = None
) -> AlbefConfig:
    """Return the configuration of the model in a checkpoint.

    Args:
        state: The checkpoint.
        task: Its task.
        config: What shapes do not determine, above all the number of attention heads. The defaults are one head for
            every 64 of width, as in ViT-B/16 and BERT-base, and the original's dropout.
        image_size: Resolution in pixels, if it should differ from the checkpoint's.

    Raises:
        ValueError: If the configuration contradicts the shapes, or the number of attention heads is not given and the
            width is not a multiple of 64.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"The image size is {image_size}. It must be a positive number of pixels.")
    inferred = _infer_settings(state, task)
    given = _flatten(_read_settings(config))
    for part in ("vision_config", "text_config"):
        _add_attention_heads(given, part, inferred[f"{part}.hidden_size"])
    if image_size is not None:
        given.pop("vision_config.image_size", None)
    conflicts = [
        f"{name} is {given[name]} in the configuration and {value} in the checkpoint"
        for name, value in inferred.items()
        if given.get(name, value) != value
    ]
    if not given.get("tie_word_embeddings", True):
        conflicts.append("tie_word_embeddings is false in the configuration, but the original ties them")
    if conflicts:
        raise ValueError(f"The configuration does not fit the checkpoint: {'; '.join(conflicts)}.")
    if image_size is not None:
        inferred["vision_config.image_size"] = image_size
    try:
        return AlbefConfig.from_dict(_unflatten(given | inferred))
    except StrictDataclassError as error:
        raise ValueError(f"The configuration does not fit the checkpoint: {error.__cause__ or error}") from None


def _add_attention_heads(given: Settings, part: str, width: int) -> None:
    """Add the default number of attention heads, or check the one that was given."""
    name = f"{part}.num_attention_heads"
    if name not in given and width % HEAD_WIDTH:
        raise ValueError(
            f"The number of attention heads cannot be inferred: the width of {width} is not a multiple of "
            f"{HEAD_WIDTH}. Set num_attention_heads of the {part} in a file for --config."
        )
    heads = given.setdefault(name, width // HEAD_WIDTH)
    if width == BASE_WIDTH and heads != BASE_WIDTH // HEAD_WIDTH:
        raise ValueError(
            f"The configuration sets {heads} attention heads in the {part}, but the original has "
            f"{BASE_WIDTH // HEAD_WIDTH} at a width of {width} (ViT-B/16, BERT-base). Remove num_attention_heads."
        )


def _read_settings(config: AlbefConfig | str | os.PathLike | None) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, AlbefConfig):
        return config.to_dict()
    try:
        settings = json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"The configuration {config} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"The configuration {config} is not a JSON object, as the config.json of an AlbefConfig is.")
    refuse_unknown(settings, AlbefConfig().to_dict() | dict.fromkeys(OTHER_SETTINGS))
    return settings


def _flatten(settings: dict[str, Any]) -> Settings:
    """Turn `{"text_config": {"hidden_size": 768}}` into `{"text_config.hidden_size": 768}`."""
    flat: Settings = {}
    for name, value in settings.items():
        if name in AlbefConfig.sub_configs and isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return flat


def _unflatten(flat: Settings) -> dict[str, Any]:
    settings: dict[str, Any] = {name: {} for name in AlbefConfig.sub_configs}
    for name, value in flat.items():
        part, _, setting = name.rpartition(".")
        (settings[part] if part else settings)[setting] = value
    return settings


def _infer_settings(state: Weights, task: str) -> Settings:
    bert = bert_prefix(task)
    layers = _count_layers(state, rf"{re.escape(bert)}\.encoder\.layer\.(\d+)\..*")
    fusion_layers = _count_layers(state, rf"{re.escape(bert)}\.encoder\.layer\.(\d+)\.crossattention\..*")
    width, channels, patch, _ = _shape(state, task, "visual_encoder.patch_embed.proj.weight", dimensions=4)
    side = _grid_side(state, task, "visual_encoder.pos_embed")
    if "visual_encoder_m.pos_embed" in state:
        _grid_side(state, task, "visual_encoder_m.pos_embed")  # refuses a shape that cannot be interpolated
    vocabulary, text_width = _shape(state, task, f"{bert}.embeddings.word_embeddings.weight")
    settings = {
        "vision_config.hidden_size": width,
        "vision_config.num_hidden_layers": _count_layers(state, r"visual_encoder\.blocks\.(\d+)\..*"),
        "vision_config.intermediate_size": _shape(state, task, "visual_encoder.blocks.0.mlp.fc1.weight")[0],
        "vision_config.image_size": side * patch,
        "vision_config.patch_size": patch,
        "vision_config.num_channels": channels,
        "text_config.vocab_size": vocabulary,
        "text_config.hidden_size": text_width,
        "text_config.num_hidden_layers": layers - fusion_layers,
        "text_config.num_multimodal_layers": fusion_layers // 2 if task.startswith("nlvr2") else fusion_layers,
        "text_config.intermediate_size": _shape(state, task, f"{bert}.encoder.layer.0.intermediate.dense.weight")[0],
        "text_config.max_position_embeddings": _shape(state, task, f"{bert}.embeddings.position_embeddings.weight")[0],
        "text_config.type_vocab_size": _shape(state, task, f"{bert}.embeddings.token_type_embeddings.weight")[0],
    }
    if "vision_proj" in HEADS[task]:
        settings["projection_dim"] = _shape(state, task, "vision_proj.weight")[0]
    return settings


def _shape(state: Weights, task: str, name: str, dimensions: int = 2) -> torch.Size:
    """Return the shape of a tensor; raise if it is missing or does not have that many dimensions."""
    if name not in state:
        refuse_names(task, [name], unknown_names(state, task))
    shape = state[name].shape
    if len(shape) != dimensions:
        raise ValueError(f"{name} has the shape {tuple(shape)}. It must have {dimensions} dimensions.")
    return shape


def _grid_side(state: Weights, task: str, name: str) -> int:
    """Return the number of patches along one side of the image that position embeddings were trained for."""
    shape = _shape(state, task, name, dimensions=3)
    side = round(max(shape[1] - 1, 0) ** 0.5)
    if side == 0 or shape[1] != side**2 + 1:
        raise ValueError(
            f"{name} has the shape {tuple(shape)}. A square image has one position for each patch and one for [CLS]."
        )
    return side


def _count_layers(state: Weights, pattern: str) -> int:
    return len({match[1] for name in state if (match := re.fullmatch(pattern, name))})
