"""Checkpoints of the original code (github.com/salesforce/ALBEF) to albef_hf, and back.

    python -m albef_hf.conversion.convert ALBEF.pth albef --task pretraining
    python -m albef_hf.conversion.convert albef again.pth --reverse

`name_table` holds what every parameter is called on both sides; it is read in one direction to convert a checkpoint
and in the other to write its weights again, bit for bit. No key of a checkpoint is left out without a word.
"""

import argparse
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import BlipImageProcessorPil, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from ..compatibility_albef import follow_umask
from ..configuration_albef import AlbefConfig
from ..data import embedded_tokenizer
from ..model_card import CONVERSION_FILE, model_card, save_card
from ..modeling_albef import (
    IGNORED,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    interpolate_position_embeddings,
)
from ..momentum import MOMENTUM_FILE, mismatches
from ..processing_albef import AlbefProcessor, without_separator
from ..utils.files import digest, listed, load_weights, write_errors_named
from ..utils.progress import log_library_progress, progress

logger = logging.get_logger(f"transformers.{__name__}")

MODELS: dict[str, type[PreTrainedModel]] = {
    "pretraining": AlbefForPreTraining,
    "retrieval": AlbefForRetrieval,
    "vqa": AlbefForQuestionAnswering,
    "nlvr2": AlbefForVisualReasoning,
    "nlvr2-pretraining": AlbefForTextAssignment,
    "entailment": AlbefForVisualEntailment,
}
BASE_WIDTH = 768
# How the original cuts texts when it evaluates: words, then tokens, 30 each where nothing else is said here.
MAX_WORDS = {"vqa": 50}
UNLIMITED_TOKENS = ("vqa", "nlvr2", "entailment")
INTEGERS = ("position_ids", "queue_ptr", "idx_queue")  # names of what is not a weight
DROPPED_FILE = "dropped.safetensors"  # under the original names, for the way back

CROSS_KEY = r"text_encoder\.encoder\.layer\.\d+\.crossattention\.self\.key\.weight"

Weights = dict[str, torch.Tensor]
Names = dict[str, tuple[str, ...]]  # an original name, and ours: several where the original fuses what we keep apart

# ---------------------------------------------------------------------------------------------------------------------
# The table of names
# ---------------------------------------------------------------------------------------------------------------------

VISION_LAYER = {
    "norm1": ("self_attn_norm",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("mlp_norm",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
TEXT_LAYER = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "self_attn_norm",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "mlp_norm",
}
CROSS_ATTENTION = {
    "crossattention.self.query": "cross_attn.q_proj",
    "crossattention.self.key": "cross_attn.k_proj",
    "crossattention.self.value": "cross_attn.v_proj",
    "crossattention.output.dense": "cross_attn.out_proj",
    "crossattention.output.LayerNorm": "cross_attn_norm",
}
CONTRAST = {"vision_proj": "contrastive_head.image_projection", "text_proj": "contrastive_head.text_projection"}
CLASSIFIER = {"cls_head.0": "classifier.dense", "cls_head.2": "classifier.out_proj"}
HEADS = {
    "pretraining": {**CONTRAST, "itm_head": "itm_head"},
    "retrieval": {**CONTRAST, "itm_head": "itm_head"},
    "vqa": {},
    "nlvr2": CLASSIFIER,
    "nlvr2-pretraining": {"vision_proj": CONTRAST["vision_proj"], "ta_head": "assignment_head"},
    "entailment": CLASSIFIER,
}
NO_TEACHER = ("temp", "itm_head.")  # what the original's momentum model does without
QUEUES = {
    "image_queue": "queue.image_features",
    "text_queue": "queue.text_features",
    "queue_ptr": "queue.pointer",
    "idx_queue": "queue.ids",
}
DROPPED = {
    "nlvr2-pretraining": {
        "temp": "the draw of image pairs has a constant temperature",
        "text_proj.weight": "texts are not compared",
        "text_proj.bias": "texts are not compared",
    },
}


def name_table(task: str, config: AlbefConfig) -> Names:
    """The parameters of one of the original's models, and what they are called here.

    Two original names may stand for one parameter, where the original ties them. The momentum model's are the same
    with `_m` after their first part, and `model.` before ours.
    """
    text = config.text_config
    bert = "text_encoder.bert" if task == "pretraining" else "text_encoder"
    names = _vision_names(config.vision_config.num_hidden_layers) | _embedding_names(
        bert, "albef.text_model.embeddings"
    )
    for index, layer in enumerate(_text_layers(task, config)):
        names |= _modules(f"{bert}.encoder.layer.{index}", layer)
    if task == "pretraining":
        names |= _language_head_names("text_encoder", "albef.text_model.embeddings")
    elif task == "vqa":
        names |= _embedding_names("text_decoder.bert", "decoder.embeddings")
        names |= _language_head_names("text_decoder", "decoder.embeddings")
        for index in range(text.num_multimodal_layers):
            layer = _prefixed(TEXT_LAYER | CROSS_ATTENTION, f"decoder.layers.{index}")
            names |= _modules(f"text_decoder.bert.encoder.layer.{index}", layer)
    names |= _modules("", HEADS[task])
    if "text_proj" in HEADS[task]:
        names["temp"] = ("contrastive_head.temperature",)
    return names


def _modules(original: str, modules: dict[str, str]) -> Names:
    """Weight and bias of modules, below an original prefix."""
    start = f"{original}." if original else ""
    return {
        f"{start}{theirs}.{part}": (f"{ours}.{part}",)
        for theirs, ours in modules.items()
        for part in ("weight", "bias")
    }


def _prefixed(modules: dict[str, str], prefix: str) -> dict[str, str]:
    return {theirs: f"{prefix}.{ours}" for theirs, ours in modules.items()}


def _vision_names(layers: int) -> Names:
    model = "albef.vision_model"
    names = {
        "visual_encoder.cls_token": (f"{model}.embeddings.cls_token",),
        "visual_encoder.pos_embed": (f"{model}.embeddings.position_embeddings",),
    }
    stem = {"patch_embed.proj": f"{model}.embeddings.patch_embedding", "norm": f"{model}.norm"}
    names |= _modules("visual_encoder", stem)
    for index in range(layers):
        for theirs, ours in VISION_LAYER.items():
            for part in ("weight", "bias"):
                names[f"visual_encoder.blocks.{index}.{theirs}.{part}"] = tuple(
                    f"{model}.layers.{index}.{name}.{part}" for name in ours
                )
    return names


def _embedding_names(original: str, ours: str) -> Names:
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    names = {f"{original}.embeddings.{table}.weight": (f"{ours}.{table}.weight",) for table in tables}
    return names | _modules(f"{original}.embeddings", {"LayerNorm": f"{ours}.norm"})


def _language_head_names(original: str, embeddings: str) -> Names:
    """The masked-language head, whose decoder is tied to the word embeddings, and to its own bias."""
    head = f"{original}.cls.predictions"
    names = _modules(head, {"transform.dense": "mlm_head.dense", "transform.LayerNorm": "mlm_head.norm"})
    return names | {
        f"{head}.bias": ("mlm_head.out_proj.bias",),
        f"{head}.decoder.bias": ("mlm_head.out_proj.bias",),
        f"{head}.decoder.weight": (f"{embeddings}.word_embeddings.weight",),
    }


def _text_layers(task: str, config: AlbefConfig) -> Iterable[dict[str, str]]:
    """Modules of each layer of the original's BERT; from its first fusion layer on with cross-attention."""
    for index in range(config.text_config.num_hidden_layers):
        yield _prefixed(TEXT_LAYER, f"albef.text_model.layers.{index}")
    for index in range(config.text_config.num_multimodal_layers):
        layer = _prefixed(TEXT_LAYER | CROSS_ATTENTION, f"albef.multimodal_model.layers.{index}")
        yield layer
        if task.startswith("nlvr2"):  # a second layer reads the second image, through the same keys and values
            shared = {name: layer[name] for name in ("crossattention.self.key", "crossattention.self.value")}
            yield _prefixed(TEXT_LAYER | CROSS_ATTENTION, f"albef.multimodal_model.second_layers.{index}") | shared


def _teacher_names(task: str, names: Names) -> Names:
    """The same table for the momentum model; the text assignment has none."""
    if task == "nlvr2-pretraining":
        return {}
    return {
        re.sub(r"^(\w+)\.", r"\1_m.", name): tuple(f"model.{our}" for our in ours)
        for name, ours in names.items()
        if not name.startswith(NO_TEACHER)
    }


def _queue_names(task: str) -> dict[str, str]:
    names = QUEUES if task == "retrieval" else {name: ours for name, ours in QUEUES.items() if name != "idx_queue"}
    return names if task in ("pretraining", "retrieval") else {}


# ---------------------------------------------------------------------------------------------------------------------
# Reading a checkpoint
# ---------------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | os.PathLike) -> tuple[Weights, dict[str, str]]:
    """Read the tensors of a `.pth` file without running anything that it may contain.

    Args:
        path: A file that `torch.save` has written, of a state dict or of a dictionary with one under `model`.

    Returns:
        The state dict, mapped from the file where it can be, and why other entries of the file are dropped.

    Raises:
        ValueError: If the file is not a checkpoint, is incomplete, or holds code.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; from a folder of ours to a file of the original goes --reverse.")
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty: download it again.")
    if start.startswith(b"PK"):
        _check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the original saves its arguments so
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if unsafe:
            raise ValueError(
                f"{path} asks for {unsafe[1]} when it is loaded, which weights have no need of and which may do harm. "
                "Nothing of it was run. Take the file from its authors; whoever has trained it can leave out all but "
                'the weights: torch.save({"model": model.state_dict()}, ...).'
            ) from None
        raise ValueError(f"{path} is not a torch checkpoint; it starts with {start[:16]!r}.") from None
    except Exception as error:  # damaged bytes raise whatever they happen to spell
        raise ValueError(
            f"{path} cannot be read as a torch checkpoint ({type(error).__name__}); its {path.stat().st_size:,} bytes "
            f"start with {start[:16]!r}. Download it again."
        ) from None
    return _state_dict_of(path, content)


def _check_archive(path: Path) -> None:
    """Refuse an archive that is not whole."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} breaks off after {path.stat().st_size:,} bytes: download it again.")
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"{path} is damaged in {damaged}: download it again.")


def _state_dict_of(path: Path, content: object) -> tuple[Weights, dict[str, str]]:
    dropped = {}
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        dropped = {str(name): "state of a training, not of a model" for name in content if name != "model"}
        content = content["model"]
    if not isinstance(content, dict) or not content:
        what = f"a {type(content).__name__}" if content else f"an empty {type(content).__name__}"
        raise ValueError(f"{path} holds {what}, not a state dict.")
    others = [
        name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        raise ValueError(f"{path} holds a dictionary with {', '.join(map(str, others[:5]))}, not a state dict.")
    types = {tensor.dtype for name, tensor in content.items() if not name.endswith(INTEGERS)}
    if len(types) > 1 or not all(dtype.is_floating_point for dtype in types):
        raise ValueError(
            f"{path} holds weights of {' and '.join(sorted(map(str, types)))}; a model has one floating type: convert "
            "all of them to it first."
        )
    return content, dropped


def _task_of(state: Weights) -> str | None:
    """Which of the original's models the names belong to."""
    if "ta_head.weight" in state:
        return "nlvr2-pretraining"
    if any(name.startswith("text_decoder.") for name in state):
        return "vqa"
    if "cls_head.2.weight" in state:
        keys = [state[name] for name in sorted(state, key=_natural) if re.fullmatch(CROSS_KEY, name)]
        # The two layers of a pair share their keys, which no two layers of another model do.
        pairs = zip(keys[::2], keys[1::2], strict=False)
        return "nlvr2" if any(torch.equal(first, second) for first, second in pairs) else "entailment"
    if "text_encoder.cls.predictions.bias" in state:
        return "pretraining"
    return "retrieval" if "itm_head.weight" in state else None


def _natural(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _check_origin(state: Weights, task: str) -> None:
    """Refuse what the original did not write, or wrote for another task."""
    if not any(name.startswith("visual_encoder.blocks.") for name in state):
        raise ValueError(
            f"None of the original's names is among the {len(state)} in the checkpoint, such as {next(iter(state))}: "
            "only files of github.com/salesforce/ALBEF can be converted."
        )
    if not any(name.endswith("embeddings.token_type_embeddings.weight") for name in state):
        raise ValueError(
            "The checkpoint has no token-type embeddings. LAVIS and BLIP leave them out, so that every text feature "
            "differs from the original's: convert the file of github.com/salesforce/ALBEF instead."
        )
    found = _task_of(state)
    if found is None:
        _refuse_names(task, _modules("", HEADS[task]).keys() - state.keys(), _unknown_names(state, task))
        raise ValueError(f"The checkpoint is of no task of the original, not of {task}.")
    if found != task:
        advice = f": convert it with --task {found}"
        if found == "pretraining":
            advice += f", then {MODELS[task].__name__}.from_pretrained(the folder) starts from it"
        raise ValueError(f"The checkpoint is of the task {found}, not of {task}{advice}.")


def _unknown_names(state: Weights, task: str) -> list[str]:
    """Return the names that no checkpoint of a task has, of whatever size."""
    base = name_table(task, AlbefConfig())
    known = {*base, *_teacher_names(task, base), *_queue_names(task), *DROPPED.get(task, {})}
    anywhere = {re.sub(r"\d+", "0", name) for name in known}
    return [n for n in state if re.sub(r"\d+", "0", n) not in anywhere and not n.endswith(".position_ids")]


def _refuse_names(task: str, missing: Iterable[str], unknown: Iterable[str]) -> None:
    """Raise a `ValueError` for names that a checkpoint lacks, and those that it has instead."""
    halves = {"has no": sorted(missing), "has an unknown": sorted(unknown)}
    faults = " and ".join(f"{what} {listed(names)}" for what, names in halves.items() if names)
    if faults:
        raise ValueError(f"The checkpoint {faults}: it is not one of {task}.")


def read_config(
    state: Weights, task: str, config: AlbefConfig | str | os.PathLike | None = None, image_size: int | None = None
) -> AlbefConfig:
    """The architecture that the shapes of a checkpoint tell.

    Args:
        state: The checkpoint.
        task: Its task.
        config: What shapes cannot say, first of all the number of attention heads; by default one for every 64 of
            width, as in ViT-B/16 and BERT-base, and the original's dropout.
        image_size: Resolution wanted, in pixels, if another than the checkpoint's.

    Raises:
        ValueError: If the configuration contradicts the shapes, or the number of heads cannot be told.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"The image size is {image_size}; it is a positive number of pixels.")
    found = _settings_of_shapes(state, task)
    given = _flat(_read_settings(config))
    for part in ("vision_config", "text_config"):
        width = found[f"{part}.hidden_size"]
        if f"{part}.num_attention_heads" not in given and width % 64:
            raise ValueError(
                f"Shapes do not tell the number of attention heads, and a width of {width} is no multiple of the "
                f"usual 64 a head: give num_attention_heads of the {part} with --config."
            )
        heads = given.setdefault(f"{part}.num_attention_heads", width // 64)
        if width == BASE_WIDTH and heads != BASE_WIDTH // 64:
            raise ValueError(
                f"The configuration gives the {part} {heads} attention heads; at a width of {width}, that of ViT-B/16 "
                f"and BERT-base, the original has {BASE_WIDTH // 64}: leave num_attention_heads out."
            )
    if image_size is not None:
        given.pop("vision_config.image_size", None)
    wrong = [
        f"{name} is {given[name]} there, and {value} in the checkpoint"
        for name, value in found.items()
        if given.get(name, value) != value
    ]
    if not given.get("tie_word_embeddings", True):
        wrong.append("tie_word_embeddings is false there, and the original ties them")
    if wrong:
        raise ValueError(f"The configuration does not fit the checkpoint: {'; '.join(wrong)}.")
    if image_size is not None:
        found["vision_config.image_size"] = image_size
    try:
        return AlbefConfig.from_dict(_nested(given | found))
    except StrictDataclassError as error:
        raise ValueError(f"The configuration does not fit the checkpoint: {error.__cause__ or error}") from None


def _read_settings(config: AlbefConfig | str | os.PathLike | None) -> dict:
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
    _check_names(settings, AlbefConfig())
    return settings


def _check_names(settings: dict, known: PreTrainedConfig, prefix: str = "") -> None:
    """Refuse a setting that the configuration does not have."""
    for name, value in settings.items():
        part = getattr(known, name, None)
        if isinstance(part, PreTrainedConfig) and isinstance(value, dict):
            _check_names(value, part, f"{name}.")
        elif not hasattr(known, name) and name not in ("auto_map", "custom_pipelines", "transformers_version"):
            inside = [part for part in known.sub_configs if hasattr(getattr(known, part), name)]
            hint = f": it belongs into {' or '.join(inside)}" if inside else ""
            raise ValueError(f"An AlbefConfig has no setting {prefix}{name}{hint}.")


def _flat(settings: dict) -> dict:
    """`{"text_config": {"hidden_size": 768}}` as `{"text_config.hidden_size": 768}`."""
    flat = {}
    for name, value in settings.items():
        inner = value if name in AlbefConfig.sub_configs and isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": entry for key, entry in inner.items()}
    return flat


def _nested(flat: dict) -> dict:
    settings = {name: {} for name in AlbefConfig.sub_configs}
    for name, value in flat.items():
        part, _, setting = name.rpartition(".")
        (settings[part] if part else settings)[setting] = value
    return settings


def _settings_of_shapes(state: Weights, task: str) -> dict[str, int]:
    """Settings of `AlbefConfig`, by their dotted names."""
    bert = "text_encoder.bert" if task == "pretraining" else "text_encoder"
    layers = _count(state, rf"{re.escape(bert)}\.encoder\.layer\.(\d+)\..*")
    fusing = _count(state, rf"{re.escape(bert)}\.encoder\.layer\.(\d+)\.crossattention\..*")
    width, channels, patch, _ = _shape(state, task, "visual_encoder.patch_embed.proj.weight", 4)
    side = _grid_side(state, task, "visual_encoder.pos_embed")
    if "visual_encoder_m.pos_embed" in state:
        _grid_side(state, task, "visual_encoder_m.pos_embed")
    vocabulary, text_width = _shape(state, task, f"{bert}.embeddings.word_embeddings.weight")
    settings = {
        "vision_config.hidden_size": width,
        "vision_config.num_hidden_layers": _count(state, r"visual_encoder\.blocks\.(\d+)\..*"),
        "vision_config.intermediate_size": _shape(state, task, "visual_encoder.blocks.0.mlp.fc1.weight")[0],
        "vision_config.image_size": side * patch,
        "vision_config.patch_size": patch,
        "vision_config.num_channels": channels,
        "text_config.vocab_size": vocabulary,
        "text_config.hidden_size": text_width,
        "text_config.num_hidden_layers": layers - fusing,
        "text_config.num_multimodal_layers": fusing // 2 if task.startswith("nlvr2") else fusing,
        "text_config.intermediate_size": _shape(state, task, f"{bert}.encoder.layer.0.intermediate.dense.weight")[0],
        "text_config.max_position_embeddings": _shape(state, task, f"{bert}.embeddings.position_embeddings.weight")[0],
        "text_config.type_vocab_size": _shape(state, task, f"{bert}.embeddings.token_type_embeddings.weight")[0],
    }
    if "vision_proj" in HEADS[task]:
        settings["projection_dim"] = _shape(state, task, "vision_proj.weight")[0]
    return settings


def _shape(state: Weights, task: str, name: str, dimensions: int = 2) -> torch.Size:
    """Return the shape of a tensor that has to be there, with so many dimensions."""
    if name not in state:
        _refuse_names(task, [name], _unknown_names(state, task))
    shape = state[name].shape
    if len(shape) != dimensions:
        raise ValueError(f"{name} has the shape {tuple(shape)}, and should have {dimensions} dimensions.")
    return shape


def _grid_side(state: Weights, task: str, name: str) -> int:
    """Return the number of patches on a side of the image that positions are for."""
    shape = _shape(state, task, name, 3)
    side = round(max(shape[1] - 1, 0) ** 0.5)
    if side == 0 or shape[1] != side**2 + 1:
        raise ValueError(
            f"{name} has the shape {tuple(shape)}; a square image has one position for each patch, and one for [CLS]."
        )
    return side


def _count(state: Weights, pattern: str) -> int:
    return len({match[1] for name in state if (match := re.fullmatch(pattern, name))})


# ---------------------------------------------------------------------------------------------------------------------
# Converting
# ---------------------------------------------------------------------------------------------------------------------


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    task: str,
    config: AlbefConfig | str | os.PathLike | None = None,
    image_size: int | None = None,
    repo_id: str | None = None,
) -> dict:
    """Convert a checkpoint of the original code to a folder that `from_pretrained` loads.

    The model goes to `model.safetensors`, momentum model and queues to `momentum.safetensors`, for
    `MomentumTeacher.from_pretrained`; the processor says the resolution. The original averages at the start of a step,
    so its momentum model is one update behind: `teacher.update(student)` before training makes up for it.

    Args:
        checkpoint: The `.pth` file.
        output_dir: Folder to write; created where it does not exist.
        task: What the checkpoint was trained for, one of `MODELS`.
        config: An `AlbefConfig` or a JSON file with settings of one, for what shapes cannot say; see `read_config`.
        image_size: Resolution to interpolate the image positions to, in pixels; by default that of the checkpoint.
        repo_id: Name that the model is to have on the Hub, for its card.

    Returns:
        What `conversion.json` holds: source, its SHA-256, task, resolution, attention heads of the image and of the
        text side, number of keys, keys dropped and why, largest difference between a weight there and here, whether
        positions were resampled.

    Raises:
        ValueError: If the file is no checkpoint of the original, is of another task or incomplete, if the
            configuration contradicts it, or the folder is not empty. Nothing is written then.
    """
    if task not in MODELS:
        raise ValueError(f"There is no task {task}; there are {', '.join(MODELS)}.")
    if Path(output_dir).exists() and (not Path(output_dir).is_dir() or any(Path(output_dir).iterdir())):
        raise ValueError(f"{output_dir} exists and is not empty: remove it, or name another folder.")
    state, dropped = read_checkpoint(checkpoint)
    _check_origin(state, task)
    config = read_config(state, task, config, image_size)
    names = name_table(task, config)
    teacher_names, queue_names = _teacher_names(task, names), _queue_names(task)
    dropped |= _account(state, task, names, teacher_names, queue_names)
    kept = {name: state[name] for name in DROPPED.get(task, {}) if name in state}

    with progress(total=len(names) + len(teacher_names.keys() & state.keys()), desc="convert", unit="key") as bar:
        weights = _to_ours(state, names, bar)
        momentum = _to_ours(state, teacher_names, bar) | _queues_to_ours(state, queue_names)
    model = _fill(MODELS[task], config, weights, names)
    _resize_positions(momentum, config)
    _check_momentum(momentum, model, teacher_names | {name: (our,) for name, our in queue_names.items()})
    summary = {
        "source": Path(checkpoint).name,
        "sha256": digest(Path(checkpoint)),
        "task": task,
        "image_size": config.vision_config.image_size,
        "attention_heads": [part.num_attention_heads for part in (config.vision_config, config.text_config)],
        "keys": len(state),
        "dropped": dropped,
        "largest_difference": _largest_difference(model, names, state),
        "resampled": any(_joined(ours, model.state_dict()).shape != state[name].shape for name, ours in names.items()),
    }
    with write_errors_named(Path(output_dir)):
        _write(Path(output_dir), model, momentum, kept, summary)
    save_card(model_card(Path(output_dir), repo_id or Path(output_dir).name), Path(output_dir))
    return summary


def _account(
    state: Weights, task: str, names: Names, teacher_names: Names, queue_names: dict[str, str]
) -> dict[str, str]:
    """Check that every key has a place and every place a key; return the keys that are dropped, and why.

    A checkpoint may come without momentum model and without queues, but not with a part of them.
    """
    constants = {name for name in state if name.endswith(".embeddings.position_ids")}
    reasons = {name: reason for name, reason in DROPPED.get(task, {}).items() if name in state}
    reasons |= {name: "counts the positions" for name in constants}
    wanted = set(names)
    for optional in (set(teacher_names), set(queue_names)):
        wanted |= optional if optional & state.keys() else set()
    _refuse_names(task, wanted - state.keys(), state.keys() - wanted - reasons.keys())
    for name in constants:
        if not torch.equal(state[name].flatten(), torch.arange(state[name].numel())):
            raise ValueError(
                f"{name} does not count the positions, as the original's does; albef_hf has no such table."
            )
    return reasons


def _fill(kind: type[PreTrainedModel], config: AlbefConfig, weights: Weights, names: Names) -> PreTrainedModel:
    """A model with these weights, all of which it needs, its positions at the resolution of the configuration."""
    settings = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # so that the report names them
    model, report = kind.from_pretrained(None, config=config, state_dict=weights, **settings)
    theirs = {our: name for name, ours in names.items() for our in ours}
    wrong = [f"{theirs.get(fault.split(' ')[0], '?')}: {fault}" for fault in sorted(mismatches(report))]
    if wrong:
        raise ValueError(f"The shapes in the checkpoint do not go together: {listed(wrong)}.")
    wrong = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if wrong:
        raise ValueError(f"The weights do not fill the model: {listed(wrong)}.")
    return model


def _largest_difference(model: PreTrainedModel, names: Names, state: Weights) -> float:
    """Between the weights of the model and of the checkpoint, but for positions that had to be interpolated."""
    weights, largest = model.state_dict(), 0.0
    for name, ours in names.items():
        here = _joined(ours, weights)
        if here.shape == state[name].shape:
            largest = max(largest, (here.float() - state[name].float()).abs().max().item())
    return largest


def _check_momentum(momentum: Weights, model: PreTrainedModel, names: Names) -> None:
    """Refuse a momentum model of other shapes than the model's, and queues that do not go together."""
    shapes = {f"model.{name}": weight.shape for name, weight in model.state_dict().items()}
    rows = len(momentum.get("queue.image_features", ()))
    for name in ("queue.image_features", "queue.text_features"):
        shapes[name] = torch.Size((rows, model.config.projection_dim))
    shapes |= {"queue.ids": torch.Size((rows,)), "queue.pointer": torch.Size(())}
    theirs = {our: name for name, ours in names.items() for our in ours}
    for name, tensor in momentum.items():
        if tensor.shape != shapes[name]:
            raise ValueError(
                f"The shapes in the checkpoint do not go together: of the momentum model, {name} is "
                f"{tuple(tensor.shape)} where {tuple(shapes[name])} fits. It comes from {theirs.get(name, name)}."
            )


def _to_ours(state: Weights, names: Names, bar: tqdm) -> Weights:
    """Rename, and split what the original fuses; names that the original ties have to hold the same."""
    weights = {}
    for name, ours in names.items():
        if name not in state:
            continue
        for our, part in split(ours, state[name]).items():
            if our not in weights:
                weights[our] = part.clone()  # which reads it from the file, while somebody watches
            elif not torch.equal(weights[our], part):
                raise ValueError(f"{name} differs from the parameter that it is tied to in the original, {our} here.")
        bar.update()
    return weights


def _joined(ours: tuple[str, ...], weights: Weights) -> torch.Tensor:
    """What `split` has taken apart."""
    return torch.cat([weights[our] for our in ours]) if len(ours) > 1 else weights[ours[0]]


def split(ours: tuple[str, ...], tensor: torch.Tensor) -> Weights:
    """What the original fuses, under our names; joined along the first dimension it is the same again."""
    return dict(zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else [tensor], strict=True))


def _queues_to_ours(state: Weights, names: dict[str, str]) -> Weights:
    """Queues as rows, and without the dimension of 1 that the original puts before ids and pointer."""
    for name in names.keys() & state.keys():
        fits = {"queue_ptr": (1,), "idx_queue": (1, *state[name].shape[1:2])}.get(name, state[name].shape[:2])
        if state[name].shape != fits or not fits:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, which is none of a queue.")
    queues = {
        ours: state[name].T.contiguous() if ours.endswith("_features") else state[name][0].clone()
        for name, ours in names.items()
        if name in state
    }
    if queues:
        queues.setdefault("queue.ids", torch.full((len(queues["queue.image_features"]),), IGNORED))
    return queues


def _resize_positions(momentum: Weights, config: AlbefConfig) -> None:
    """Fit the momentum model's positions to the resolution, as loading does the model's."""
    name = "model.albef.vision_model.embeddings.position_embeddings"
    if name in momentum:
        side = config.vision_config.image_size // config.vision_config.patch_size
        momentum[name] = interpolate_position_embeddings(momentum[name], (side, side))


def _write(folder: Path, model: PreTrainedModel, momentum: Weights, dropped: Weights, summary: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if momentum:
        save_file(momentum, folder / MOMENTUM_FILE, metadata={"format": "pt"})
    if dropped:
        save_file(dropped, folder / DROPPED_FILE, metadata={"format": "pt"})
    follow_umask(folder / name for name in (MOMENTUM_FILE, DROPPED_FILE) if (folder / name).exists())
    size, tokenizer = summary["image_size"], embedded_tokenizer()
    if len(tokenizer) == model.config.text_config.vocab_size:
        images = BlipImageProcessorPil(size={"height": size, "width": size})
        if summary["task"] in UNLIMITED_TOKENS:
            tokenizer = without_separator(tokenizer, max_length=model.config.text_config.max_position_embeddings)
        words = MAX_WORDS.get(summary["task"], 30)
        AlbefProcessor(images, tokenizer, max_words=words).save_pretrained(folder)
    else:
        logger.warning(
            f"No processor is written: the vocabulary has {model.config.text_config.vocab_size} words, that of "
            f"BERT-base uncased {len(tokenizer)}. Save an AlbefProcessor with the right tokenizer to {folder}."
        )
    (folder / CONVERSION_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The way back
# ---------------------------------------------------------------------------------------------------------------------


def revert_checkpoint(folder: str | os.PathLike, checkpoint: str | os.PathLike) -> None:
    """Write a model of this package as a `.pth` file that the original code loads.

    Args:
        folder: Folder or Hub repository with one of the models in `MODELS`; `momentum.safetensors` is used where it
            exists.
        checkpoint: File to write, `{"model": state dict}`.

    Raises:
        ValueError: If the model is none that the original has, lacks weights, or the file exists.
    """
    checkpoint = Path(checkpoint)
    if checkpoint.exists():
        raise ValueError(f"{checkpoint} exists: remove it, or name another file.")
    config = AlbefConfig.from_pretrained(folder)
    tasks = {kind.__name__: task for task, kind in MODELS.items()}
    architecture = (config.architectures or ["nothing"])[0]
    if architecture not in tasks:
        raise ValueError(f"{folder} holds {architecture}; the original has {', '.join(tasks)}.")
    task = tasks[architecture]
    try:
        model, report = MODELS[task].from_pretrained(folder, config=config, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"The weights in {folder} cannot be read ({error}): download or write them again.") from None
    if report["missing_keys"] or not config.tie_word_embeddings:
        lacking = ", ".join(sorted(report["missing_keys"])[:5]) or "tied word embeddings, which the original has"
        raise ValueError(f"{folder} has no {lacking}.")
    names = name_table(task, config)
    state = _to_theirs(model.state_dict(), names)
    momentum = _optional_file(folder, MOMENTUM_FILE)
    if any(name.startswith("model.") for name in momentum):
        state |= _to_theirs(momentum, _teacher_names(task, names))
    for name, ours in _queue_names(task).items():
        if ours in momentum:
            queue = momentum[ours]
            state[name] = queue.T.contiguous() if queue.ndim == 2 else queue[None]
    for name in [name for name in state if name.endswith(".embeddings.position_embeddings.weight")]:
        positions = torch.arange(len(state[name]))[None]
        state[name.replace("position_embeddings.weight", "position_ids")] = positions
    state |= _optional_file(folder, DROPPED_FILE)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    unfinished = checkpoint.with_name(f"{checkpoint.name}.unfinished")
    torch.save({"model": state}, unfinished)
    unfinished.rename(checkpoint)


def _to_theirs(weights: Weights, names: Names) -> Weights:
    state, tied = {}, {}
    for name, ours in progress(names.items(), desc="revert", unit="key"):
        missing = [our for our in ours if our not in weights]
        if missing:
            raise ValueError(f"{missing[0]} is missing: {MOMENTUM_FILE} may belong to another model; remove it.")
        if ours not in tied:
            tied[ours] = _joined(ours, weights)
        state[name] = tied[ours]
    return state


def _optional_file(folder: str | os.PathLike, name: str) -> Weights:
    path = cached_file(str(folder), name, _raise_exceptions_for_missing_entries=False)
    return {} if path is None else load_weights(path)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m albef_hf.conversion.convert",
        description="Convert a checkpoint of the original ALBEF code to a folder that from_pretrained loads, or back.",
    )
    parser.add_argument("source", help="the .pth file; with --reverse the folder or Hub name of a model")
    parser.add_argument("output", help="the folder to write; with --reverse the .pth file")
    parser.add_argument(
        "--task", choices=MODELS, help="what the checkpoint was trained for; refcoco.pth is of retrieval"
    )
    parser.add_argument(
        "--config",
        help="JSON file of an AlbefConfig, or of some of its settings, for what shapes cannot say: attention heads "
        "(default: one for every 64 of width), dropout",
    )
    parser.add_argument("--image-size", type=int, help="interpolate the image positions to this resolution, in pixels")
    parser.add_argument(
        "--repo-id", help="name that the model is to have on the Hub, for its card; default: the folder"
    )
    parser.add_argument("--reverse", action="store_true", help="from albef_hf to the original")
    options = parser.parse_args(arguments)
    if options.reverse and (options.task or options.config or options.image_size or options.repo_id):
        parser.error(
            "--task, --config, --image-size and --repo-id are of no use with --reverse; the folder says what it holds"
        )
    if not options.reverse and options.task is None:
        parser.error("--task is needed, one of " + ", ".join(MODELS))
    log_library_progress()
    try:
        if options.reverse:
            revert_checkpoint(options.source, options.output)
            return
        summary = convert_checkpoint(
            options.source,
            options.output,
            task=options.task,
            config=options.config,
            image_size=options.image_size,
            repo_id=options.repo_id,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for name, reason in summary["dropped"].items():
        print(f"dropped {name}: {reason}")
    image_heads, text_heads = summary["attention_heads"]
    print(
        f"{summary['keys']} keys of {summary['source']} are in {options.output}: {summary['image_size']} pixels, "
        f"{image_heads} attention heads for images, {text_heads} for texts."
    )


if __name__ == "__main__":
    main()
