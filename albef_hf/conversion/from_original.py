"""Convert a checkpoint of the original code, or of code derived from it, to a folder that `from_pretrained` loads.

Every dropped key is reported. A key without a counterpart here, or a parameter without a key, is an error.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..compatibility_albef import follow_umask
from ..configuration_albef import AlbefConfig
from ..encoders_albef import interpolate_position_embeddings
from ..losses_albef import IGNORED
from ..model_card import CONVERSION_FILE, model_card, save_card
from ..momentum import MOMENTUM_FILE, mismatches
from ..processing_albef import AlbefProcessor
from ..utils.files import file_record, listed, new_folder
from ..utils.progress import progress
from .architecture import read_config
from .checkpoints import MODELS, Weights, check_origin, read_checkpoint, refuse_names
from .other_libraries import TORCHMULTIMODAL, Library, with_original_names
from .parameter_names import DROPPED, Names, name_table, queue_names, teacher_names
from .processors import make_task_processor

DROPPED_FILE = "dropped.safetensors"  # dropped weights under their original names, for the conversion back


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    task: str | None = None,
    config: AlbefConfig | str | os.PathLike | None = None,
    image_size: int | None = None,
    repo_id: str | None = None,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint to a folder that `from_pretrained` loads.

    The checkpoint is one of the original code, of TCL, LAVIS or TorchMultimodal; its names tell which.

    The folder contains the model in `model.safetensors`, the momentum model and the queues in
    `momentum.safetensors` for `MomentumTeacher.from_pretrained`, and the processor for the model's resolution. The
    original updates its momentum model at the start of a step, so the converted one is one update behind: call
    `teacher.update(student)` before training.

    Args:
        checkpoint: The `.pth` file.
        output_dir: Folder to write; created if it does not exist.
        task: What the checkpoint was trained for, a key of `MODELS`; its names tell by default.
        config: An `AlbefConfig`, or a JSON file with some of its settings, for what shapes do not determine; see
            `read_config`.
        image_size: Resolution in pixels to interpolate the image positions to; the checkpoint's by default.
        repo_id: Name of the model on the Hub, for its card; the name of the folder by default.
        source: What else is known of the file and belongs in `conversion.json`, such as its address.

    Returns:
        The content of `conversion.json`: name, size and SHA-256 of the file, the library and its address, task,
        resolution, attention heads of the image and of the text encoder, number of keys, dropped keys with reasons,
        notes, largest difference between a weight in the checkpoint and here, and whether positions were interpolated.

    Raises:
        ValueError: If the file is not a complete checkpoint for this task, if the configuration contradicts it, or if
            the folder is not empty.
        OSError: If the folder cannot be written, as on a full disk. In either case nothing is left behind.
    """
    output_dir = Path(output_dir)
    if task not in (*MODELS, None):
        raise ValueError(f"There is no task {task}. Choose one of {', '.join(MODELS)}.")
    refuse_used_folder(output_dir)
    own_state, dropped = read_checkpoint(checkpoint)
    state, library = with_original_names(own_state)
    task = check_origin(state, task)
    config = read_config(state, task, config, image_size)
    names = _find_names(state, task, config, library)
    names_of_teacher = teacher_names(task, names)
    names_of_queues = queue_names(task)
    dropped |= _check_keys(state, task, names, names_of_teacher, names_of_queues)
    kept = {name: state[name] for name in DROPPED.get(task, {}) if name in state}

    with progress(total=len(names) + len(names_of_teacher.keys() & state.keys()), desc="convert", unit="key") as bar:
        weights = _rename(state, names, bar)
        momentum = _rename(state, names_of_teacher, bar) | _convert_queues(state, names_of_queues)
    model = _load(MODELS[task], config, weights, names)
    _interpolate_positions(momentum, config)
    _check_momentum(momentum, model, names_of_teacher | {name: (our,) for name, our in names_of_queues.items()})
    summary = {
        **_describe_source(Path(checkpoint), library),
        **(source or {}),
        "task": task,
        **_summarize_architecture(config),
        "keys": len(own_state),
        "dropped": dropped,
        **_compare(model, names, state),
    }
    processor = make_task_processor(task, config, library)
    with new_folder(output_dir) as folder:
        _write(folder, model, processor, momentum, kept, summary)
        save_card(model_card(folder, repo_id or output_dir.name), folder)
    return summary


def refuse_used_folder(output_dir: Path) -> None:
    """Raise a `ValueError` if a folder is not empty, or not a folder."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} exists and is not empty. Remove it or choose another folder.")


def split(names: tuple[str, ...], tensor: torch.Tensor) -> Weights:
    """Split a parameter that the original fuses along its first dimension; `join` undoes it."""
    parts = tensor.chunk(len(names)) if len(names) > 1 else [tensor]
    return dict(zip(names, parts, strict=True))


def join(names: tuple[str, ...], weights: Weights) -> torch.Tensor:
    """Concatenate what `split` has split."""
    return torch.cat([weights[name] for name in names]) if len(names) > 1 else weights[names[0]]


def _check_keys(
    state: Weights, task: str, names: Names, names_of_teacher: Names, names_of_queues: dict[str, str]
) -> dict[str, str]:
    """Check that every key has a counterpart and every parameter a key; return dropped keys with reasons.

    A checkpoint may come without momentum model or without queues, but not with a part of them.
    """
    constants = {name for name in state if name.endswith(".embeddings.position_ids")}
    dropped = {name: reason for name, reason in DROPPED.get(task, {}).items() if name in state}
    dropped |= dict.fromkeys(constants, "constant: the indices of all positions")
    required = set(names)
    for optional in (names_of_teacher.keys(), names_of_queues.keys()):
        if optional & state.keys():
            required |= optional
    refuse_names(task, missing=required - state.keys(), unknown=state.keys() - required - dropped.keys())
    for name in constants:
        if not torch.equal(state[name].flatten(), torch.arange(state[name].numel())):
            raise ValueError(
                f"{name} is not 0, 1, 2, ... as in the original. albef_hf has no such table and cannot convert it."
            )
    return dropped


def _find_names(state: Weights, task: str, config: AlbefConfig, library: Library) -> Names:
    """Return the table of names; an output layer that TorchMultimodal has untied stays untied, in `config` too."""
    names = name_table(task, config)
    output = "text_decoder.cls.predictions.decoder.weight"
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    is_complete = output in names and output in state and words in state
    if library is TORCHMULTIMODAL and is_complete and not torch.equal(state[output], state[words]):
        names[output] = ("mlm_head.out_proj.weight",)
        config.tie_word_embeddings = False
    return names


def _rename(state: Weights, names: Names, bar: tqdm) -> Weights:
    """Rename, and split what the original fuses; raise if names that the original ties have different values."""
    weights: Weights = {}
    for original, ours in names.items():
        if original not in state:
            continue
        for name, part in split(ours, state[original]).items():
            if name not in weights:
                weights[name] = part.clone()  # reads it from the memory-mapped file, so that the bar shows the time
            elif not torch.equal(weights[name], part):
                raise ValueError(f"{original} differs from the parameter that the original ties it to ({name} here).")
        bar.update()
    return weights


def _convert_queues(state: Weights, names: dict[str, str]) -> Weights:
    """Transpose the queues to rows, and drop the dimension of 1 in front of ids and pointer."""
    for original in names.keys() & state.keys():
        shape = state[original].shape
        expected = {"queue_ptr": (1,), "idx_queue": (1, *shape[1:2])}.get(original, shape[:2])
        if shape != expected or not expected:
            raise ValueError(f"{original} has the shape {tuple(shape)}, which no queue of the original has.")
    queues = {
        name: state[original].T.contiguous() if name.endswith("_features") else state[original][0].clone()
        for original, name in names.items()
        if original in state
    }
    if queues:
        queues.setdefault("queue.ids", torch.full((len(queues["queue.image_features"]),), IGNORED))
    return queues


def _load(kind: type[PreTrainedModel], config: AlbefConfig, weights: Weights, names: Names) -> PreTrainedModel:
    """Return a model with these weights, its positions interpolated to the resolution of the configuration.

    Raises:
        ValueError: If a shape does not fit, or the weights are not exactly those of the model.
    """
    # With output_loading_info a pair comes back, and mismatched sizes are in the report instead of raising.
    loaded: Any = kind.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, report = loaded
    originals = {name: original for original, ours in names.items() for name in ours}
    mismatched = [f"{originals.get(line.split(' ')[0], '?')}: {line}" for line in sorted(mismatches(report))]
    if mismatched:
        raise ValueError(f"The shapes in the checkpoint do not fit together: {listed(mismatched)}.")
    others = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if others:
        raise ValueError(f"The weights are not those of the model: {listed(others)}.")
    return model


def _interpolate_positions(momentum: Weights, config: AlbefConfig) -> None:
    """Interpolate the momentum model's positions to the configured resolution, as loading does for the model."""
    name = "model.albef.vision_model.embeddings.position_embeddings"
    if name in momentum:
        momentum[name] = interpolate_position_embeddings(momentum[name], config.vision.grid)


def _check_momentum(momentum: Weights, model: PreTrainedModel, names: Names) -> None:
    """Refuse a momentum model whose shapes differ from the model's, and queues of different lengths."""
    rows = len(momentum.get("queue.image_features", ()))
    features = torch.Size((rows, model.config.projection_dim))
    expected = {f"model.{name}": weight.shape for name, weight in model.state_dict().items()}
    expected |= {"queue.image_features": features, "queue.text_features": features}
    expected |= {"queue.ids": torch.Size((rows,)), "queue.pointer": torch.Size(())}
    originals = {name: original for original, ours in names.items() for name in ours}
    for name, tensor in momentum.items():
        if tensor.shape != expected[name]:
            raise ValueError(
                f"The shapes in the checkpoint do not fit together: {originals.get(name, name)} of the momentum model "
                f"({name} here) is {tuple(tensor.shape)} instead of {tuple(expected[name])}."
            )


def _describe_source(checkpoint: Path, library: Library) -> dict[str, Any]:
    return {
        "source": checkpoint.name,
        **file_record(checkpoint),
        "library": library.name,
        "library_url": library.address,
        "notes": list(library.notes),
    }


def _summarize_architecture(config: AlbefConfig) -> dict[str, Any]:
    vision = config.vision
    text = config.text
    return {
        "image_size": vision.image_size,
        "attention_heads": [vision.num_attention_heads, text.num_attention_heads],
    }


def _compare(model: PreTrainedModel, names: Names, state: Weights) -> dict[str, Any]:
    """Return the largest difference between the weights of model and checkpoint, and whether some were interpolated.

    Interpolated positions have another shape and are not compared.
    """
    weights = model.state_dict()
    largest = 0.0
    interpolated = False
    for original, ours in names.items():
        weight = join(ours, weights)
        if weight.shape == state[original].shape:
            largest = max(largest, (weight.float() - state[original].float()).abs().max().item())
        else:
            interpolated = True
    return {"largest_difference": largest, "resampled": interpolated}


def _write(
    folder: Path,
    model: PreTrainedModel,
    processor: AlbefProcessor | None,
    momentum: Weights,
    dropped: Weights,
    summary: dict[str, Any],
) -> None:
    model.save_pretrained(folder)
    if processor:
        processor.save_pretrained(folder)
    for name, weights in ((MOMENTUM_FILE, momentum), (DROPPED_FILE, dropped)):
        if weights:
            save_file(weights, folder / name, metadata={"format": "pt"})
            follow_umask([folder / name])
    (folder / CONVERSION_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
