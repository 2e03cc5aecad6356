"""A pretraining of some steps at tiny size, for tests of all that a run leaves behind."""

import json
from pathlib import Path

from paths import REPOSITORY

SCRIPT = REPOSITORY / "train" / "pretrain.py"
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TINY_MODEL = {
    "projection_dim": 16,
    "vision_config": {**TINY, "image_size": 32},
    "text_config": {**TINY, "num_multimodal_layers": 1, "max_position_embeddings": 40},
}


def small_run(folder: Path, steps: int) -> list[str]:
    options = {
        "output_dir": folder,
        "overwrite_output_dir": True,
        "model_config": json.dumps(TINY_MODEL),
        "max_steps": steps,
        "scenes": 40,
        "batch_size": 8,
        "queue_size": 24,
        "warmup_steps": 2,
        "num_workers": 0,
        "log_every": 2,
        "validation_size": 6,
        "rerank": 3,
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def records_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
