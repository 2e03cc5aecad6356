"""Convert a model of this package to a `.pth` file that the original code (github.com/salesforce/ALBEF) loads."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from ..configuration_albef import AlbefConfig
from ..momentum import MOMENTUM_FILE, shared_names
from ..utils.files import atomic_write, listed, load_weights, write_errors_named
from ..utils.progress import progress
from .checkpoints import MODELS, Weights
from .from_original import DROPPED_FILE, join
from .parameter_names import Names, name_table, queue_names, teacher_names


def revert_checkpoint(folder: str | os.PathLike, checkpoint: str | os.PathLike) -> None:
    """Write a model of this package as a `.pth` file that the original code loads.

    Args:
        folder: Folder or Hub repository with one of `MODELS`. Its `momentum.safetensors` is used if it exists.
        checkpoint: File to write, `{"model": state dict}`.

    Raises:
        ValueError: If the original has no such model, weights are missing, or the file exists.
        OSError: If the file cannot be written, as on a full disk. Nothing is left behind.
    """
    checkpoint = Path(checkpoint)
    if checkpoint.exists():
        raise ValueError(f"{checkpoint} exists. Remove it or choose another file.")
    config = AlbefConfig.from_pretrained(folder)
    task = _find_task(folder, config)
    names = name_table(task, config)
    weights = _load(folder, task, config).state_dict()
    state = _rename(weights, names)
    momentum = _load_momentum(folder, weights)
    if any(name.startswith("model.") for name in momentum):
        state |= _rename(momentum, teacher_names(task, names))
    for original, name in queue_names(task).items():
        if name in momentum:
            queue = momentum[name]
            state[original] = queue.T.contiguous() if queue.ndim == 2 else queue[None]
    for name in [name for name in state if name.endswith(".embeddings.position_embeddings.weight")]:
        positions = torch.arange(len(state[name]))[None]
        state[name.replace("position_embeddings.weight", "position_ids")] = positions
    state |= _load_optional(folder, DROPPED_FILE)
    with write_errors_named(checkpoint):
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(checkpoint) as unfinished:
            torch.save({"model": state}, unfinished)


def _find_task(folder: str | os.PathLike, config: AlbefConfig) -> str:
    """Return the task that the saved model is for."""
    tasks = {kind.__name__: task for task, kind in MODELS.items()}
    architecture = (config.architectures or ["no model"])[0]
    if architecture not in tasks:
        raise ValueError(f"{folder} contains {architecture}. The original has {', '.join(tasks)}.")
    return tasks[architecture]


def _load(folder: str | os.PathLike, task: str, config: AlbefConfig) -> PreTrainedModel:
    """Load a model; raise if weights are missing or untied, which the original cannot represent."""
    try:
        loaded: Any = MODELS[task].from_pretrained(folder, config=config, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"The weights in {folder} cannot be read ({error}). Download or save them again.") from None
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"{folder} has no {listed(sorted(report['missing_keys']))}.")
    if config.lora_config:
        raise ValueError(
            f"{folder} has LoRA adapters, but the original has none: save the model with its adapters merged, by "
            "albef_hf.training.lora.merge_lora."
        )
    if not config.tie_word_embeddings:
        raise ValueError(f"{folder} has no tied word embeddings, but the original ties them.")
    if not config.has_albef_vit:
        raise ValueError(
            f"{folder} has a {config.vision.model_type} as its image encoder, but the original has its own ViT."
        )
    if config.text_pooling != "cls" or config.text.position_offset:
        raise ValueError(
            f"{folder} has text_pooling={config.text_pooling} and position_offset={config.text.position_offset}, but "
            "the original reads [CLS] and counts positions from 0."
        )
    return model


def _rename(weights: Weights, names: Names) -> Weights:
    """Return the weights under their original names; parameters that the original ties share their memory."""
    state: Weights = {}
    joined: dict[tuple[str, ...], torch.Tensor] = {}
    for original, ours in progress(names.items(), desc="revert", unit="key"):
        missing = [name for name in ours if name not in weights]
        if missing:
            raise ValueError(f"{missing[0]} is missing. {MOMENTUM_FILE} may belong to another model; remove it.")
        if ours not in joined:
            joined[ours] = join(ours, weights)
        state[original] = joined[ours]
    return state


def _load_momentum(folder: str | os.PathLike, weights: Weights) -> Weights:
    """Load the momentum model, with the model's weights where it was saved without them."""
    path = cached_file(str(folder), MOMENTUM_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return {}
    momentum = load_weights(path)
    shared = {name: name.removeprefix("model.") for name in shared_names(path)}
    return momentum | {name: weights[own] for name, own in shared.items() if own in weights}


def _load_optional(folder: str | os.PathLike, name: str) -> Weights:
    path = cached_file(str(folder), name, _raise_exceptions_for_missing_entries=False)
    return {} if path is None else load_weights(path)
