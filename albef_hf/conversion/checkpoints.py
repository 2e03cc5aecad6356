"""Read the checkpoints of the original code: untrusted files, from which only tensors are taken.

No pickled code is executed. A file that is damaged, incomplete, or belongs to another model or task is refused with
what is wrong and what to do.
"""

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..configuration_albef import AlbefConfig
from ..modeling_albef import (
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
)
from ..utils.files import listed
from .parameter_names import DROPPED, HEADS, module_names, name_table, queue_names, teacher_names

# The tasks that the original has a checkpoint for, each with the class that the checkpoint becomes.
MODELS: dict[str, type[PreTrainedModel]] = {
    "pretraining": AlbefForPreTraining,
    "retrieval": AlbefForRetrieval,
    "vqa": AlbefForQuestionAnswering,
    "nlvr2": AlbefForVisualReasoning,
    "nlvr2-pretraining": AlbefForTextAssignment,
    "entailment": AlbefForVisualEntailment,
}
INTEGER_NAMES = ("position_ids", "queue_ptr", "idx_queue")  # endings of the names of integer tensors
CROSS_ATTENTION_KEY = r"text_encoder\.encoder\.layer\.\d+\.crossattention\.self\.key\.weight"

Weights = dict[str, torch.Tensor]


def read_checkpoint(path: str | os.PathLike) -> tuple[Weights, dict[str, str]]:
    """Read the tensors of a `.pth` file without executing any code that it may contain.

    Args:
        path: A file written by `torch.save`: a state dict, or a dictionary that has one under `model`.

    Returns:
        The state dict, memory-mapped where possible, and the other entries of the file with the reason why each is
        dropped.

    Raises:
        ValueError: If the file is not a checkpoint, is incomplete, or contains pickled code.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Use --reverse to convert a folder to a checkpoint of the original.")
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist.")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty. Download it again.")
    if start.startswith(b"PK"):
        check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the original saves its arguments as one
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if unsafe:
            raise ValueError(
                f"{path} contains pickled code ({unsafe[1]}), which could be malicious, and was not loaded. Download "
                "the file from its authors. If you trained the model, save its weights alone: "
                'torch.save({"model": model.state_dict()}, ...).'
            ) from None
        raise ValueError(f"{path} is not a torch checkpoint; it starts with {start[:16]!r}.") from None
    except Exception as error:  # damaged bytes raise errors of any type
        raise ValueError(
            f"{path} cannot be read as a torch checkpoint ({type(error).__name__}); its {path.stat().st_size:,} bytes "
            f"start with {start[:16]!r}. Download it again."
        ) from None
    return _extract_state_dict(path, content)


def check_archive(path: Path) -> None:
    """Raise a `ValueError` if a zip archive is truncated or damaged; this reads the whole file."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is truncated after {path.stat().st_size:,} bytes. Download it again.")
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"{path} is damaged in {damaged}. Download it again.")


def _extract_state_dict(path: Path, content: object) -> tuple[Weights, dict[str, str]]:
    dropped = {}
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        dropped = {str(name): "training state, not part of the model" for name in content if name != "model"}
        content = content["model"]
    if not isinstance(content, dict) or not content:
        kind = type(content).__name__
        raise ValueError(f"{path} contains {f'a {kind}' if content else f'an empty {kind}'}, not a state dict.")
    others = [
        name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        raise ValueError(f"{path} contains a dictionary with {listed(others)}, not a state dict.")
    dtypes = {tensor.dtype for name, tensor in content.items() if not name.endswith(INTEGER_NAMES)}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(
            f"{path} contains weights of {' and '.join(sorted(map(str, dtypes)))}. Convert all of them to one "
            "floating-point dtype first."
        )
    return content, dropped


def check_origin(state: Weights, task: str | None) -> str:
    """Return the task of a checkpoint under the original's names.

    Args:
        state: The checkpoint.
        task: The task that it should have.

    Raises:
        ValueError: If the code that wrote it is not known, or it is for another task or none.
    """
    if not any(name.startswith("visual_encoder.blocks.") for name in state):
        raise ValueError(
            f"None of the {len(state)} names in the checkpoint, such as {next(iter(state))}, is the original's. "
            "Only files of github.com/salesforce/ALBEF, TCL, LAVIS and TorchMultimodal can be converted."
        )
    if not any(name.endswith("embeddings.token_type_embeddings.weight") for name in state):
        raise ValueError(
            "The checkpoint has no token-type embeddings, and cross-attention in every layer: it is one of BLIP, "
            "which is another model. Load it with the Blip classes of transformers."
        )
    actual = _find_task(state)
    if actual is None:
        task = task or "retrieval"
        refuse_names(task, module_names(HEADS[task]).keys() - state.keys(), unknown_names(state, task))
        raise ValueError(f"The checkpoint belongs to none of the original's tasks, and so not to {task}.")
    if task not in (actual, None):
        advice = f"Convert it with --task {actual}"
        if actual == "pretraining":
            advice += f", then load the folder with {MODELS[str(task)].__name__}.from_pretrained"
        raise ValueError(f"The checkpoint is for the task {actual}, not for {task}. {advice}.")
    return actual


def _find_task(state: Weights) -> str | None:
    """Return the task whose model has these names."""
    if "ta_head.weight" in state:
        return "nlvr2-pretraining"
    if any(name.startswith("text_decoder.") for name in state):
        return "vqa"
    if "cls_head.2.weight" in state:
        keys = [state[name] for name in sorted(state, key=_layer_indices) if re.fullmatch(CROSS_ATTENTION_KEY, name)]
        # For NLVR2, pairs of successive layers share the projection of keys; in other models no two layers do.
        pairs = zip(keys[::2], keys[1::2], strict=False)
        return "nlvr2" if any(torch.equal(first, second) for first, second in pairs) else "entailment"
    if "text_encoder.cls.predictions.bias" in state:
        return "pretraining"
    return "retrieval" if "itm_head.weight" in state else None


def _layer_indices(name: str) -> list[int]:
    return [int(index) for index in re.findall(r"\d+", name)]


def unknown_names(state: Weights, task: str) -> list[str]:
    """Return the names that no checkpoint of the task has, whatever its number of layers."""
    base = name_table(task, AlbefConfig())
    known = {*base, *teacher_names(task, base), *queue_names(task), *DROPPED.get(task, {})}
    known_in_any_layer = {re.sub(r"\d+", "0", name) for name in known}
    return [
        name
        for name in state
        if re.sub(r"\d+", "0", name) not in known_in_any_layer and not name.endswith(".position_ids")
    ]


def refuse_names(task: str, missing: Iterable[str], unknown: Iterable[str]) -> None:
    """Raise a `ValueError` if a checkpoint of the task has missing or unknown names."""
    problems = {"has no": sorted(missing), "has an unknown": sorted(unknown)}
    differences = " and ".join(f"{problem} {listed(names)}" for problem, names in problems.items() if names)
    if differences:
        raise ValueError(f"The checkpoint {differences}. It is not a checkpoint for {task}.")
