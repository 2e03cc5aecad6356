"""Former names of training options: refused on the command line, understood in saved runs."""

from collections.abc import Mapping
from typing import Any

RENAMED_OPTIONS = {
    "attention": "attn_implementation",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "eval_every": "eval_steps",
    "hub_private": "hub_private_repo",
    "log_every": "logging_steps",
    "negative_hardness": "hardness_strength",
    "num_workers": "dataloader_num_workers",
    "rerank": "rerank_k",
    "resume": "resume_from_checkpoint",
    "save_every": "save_steps",
    "share_keys": "gather_keys",
    "share_negatives": "gather_negatives",
}


def with_present_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a saved run under their present names."""
    renamed = {RENAMED_OPTIONS.get(name, name): value for name, value in options.items()}
    if renamed.get("max_steps") == 0:  # formerly the default
        renamed["max_steps"] = -1
    size = renamed.get("image_size")
    if isinstance(size, int):  # formerly of squares alone, 0 for the model's own
        renamed["image_size"] = [size] if size else []
    return renamed
