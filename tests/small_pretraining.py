"""A pretraining of a few steps at tiny size."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TINY_MODEL = {
    "projection_dim": 16,
    "vision_config": {**TINY, "image_size": 32},
    "text_config": {**TINY, "num_multimodal_layers": 1, "max_position_embeddings": 40},
}


def small_run(folder: Path, steps: int, model_config: dict | None = TINY_MODEL) -> list[str]:
    """Return the options of a small pretraining."""
    options = {
        "output_dir": folder,
        "overwrite_output_dir": True,
        "max_steps": steps,
        "scenes": 40,
        "per_device_train_batch_size": 8,
        "queue_size": 24,
        "warmup_steps": 2,
        "dataloader_num_workers": 0,
        "logging_steps": 2,
        "validation_size": 6,
        "rerank_k": 3,
    }
    if model_config is not None:
        options["model_config"] = json.dumps(model_config)
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def records_of(folder: Path) -> list[dict]:
    """Return the records of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """Return the weights of a part of a saved model."""
    return {name: weight for name, weight in load_file(folder / "model.safetensors").items() if name.startswith(part)}
