"""Rows of every task, valid and invalid ones, and options for small models."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from albef_hf.tasks import find_task, task_names

HAS_CAPTION_SCORES = importlib.util.find_spec("pycocoevalcap") is not None
NEEDS_CAPTION_SCORES = pytest.mark.skipif(not HAS_CAPTION_SCORES, reason="pycocoevalcap is not installed")
TASKS = [pytest.param(name, marks=NEEDS_CAPTION_SCORES) if name == "captioning" else name for name in task_names()]


def small_evaluation(model: Path, folder: Path, **options: object) -> list[object]:
    """Return the options of a small evaluation."""
    settings = {"model": model, "output_dir": folder, "scenes": 24, "validation_size": 10, **options}
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def small(pretrained: Path, folder: Path, **options: object) -> list[object]:
    """Return the options of a small fine-tuning."""
    settings = {
        "per_device_train_batch_size": 6,
        "num_train_epochs": 1,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "warmup_steps": 1,
        "learning_rate": 1e-3,
        "eval_steps": 2,
    }
    return small_evaluation(pretrained, folder, **{**settings, **options})


def results_of(folder: Path) -> tuple[dict, list[dict]]:
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return json.loads((folder / "metrics.json").read_text()), [json.loads(line) for line in lines]


def write(folder: Path, name: str, rows: list) -> Path:
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def make_task(name: str, processor, **options: object):
    kind = find_task(name)
    return kind(kind.arguments_class(model="m", **options), processor)


def evaluated(task, config, rows) -> tuple[dict, list[dict]]:
    torch.manual_seed(0)
    return task.evaluate(task.head(config), rows, Accelerator(cpu=True))


CAPTIONED = [{"image": f"{name}.png", "caption": f"a picture called {name}"} for name in "abcd"]
FILES = {
    "text_assignment": CAPTIONED,
    "captioning": CAPTIONED[:2],
    "vqa": [
        {
            "question_id": 1,
            "image": "a.png",
            "question": "What color?",
            "answer": ["red"] * 9 + ["pink"],
            "dataset": "vqa",
        },
        {"image": "b.png", "question": "What color is it?", "answer": "blue", "dataset": "vg"},
    ],
    "entailment": [
        {"image": "a.png", "sentence": "It is red.", "label": "entailment"},
        {"image": "b.png", "sentence": "It is red.", "label": "Contradiction "},
    ],
    "classification": [
        {"image": "a.png", "text": "what is it?", "label": ["big", "red"]},
        {"image": "b.png", "label": "big|blue"},
    ],
    "nlvr2": [
        {"images": ["a.png", "b.png"], "sentence": "One is red.", "label": "True"},
        {"images": ["c.png", "d.png"], "sentence": "One is red.", "label": "false"},
    ],
    "retrieval": [
        {"image": "a.png", "caption": ["a red picture", "all red"], "image_id": 7},
        {"image": "b.png", "caption": "a blue picture", "image_id": 8},
    ],
    "grounding": [
        {
            "image": "a.png",
            "text": "the red thing",
            "ref_id": 1,
            "bbox": [0, 0, 20, 20],
            "boxes": [[0, 0, 20, 20], [20, 20, 20, 20]],
        },
        {"image": "b.png", "text": "the blue thing", "ref_id": 2, "bbox": [0, 0, 20, 20], "boxes": [[20, 20, 20, 20]]},
    ],
}
BAD = {
    "captioning": [
        {"image": "broken.png", "caption": "a picture"},
        {"image": "../a.png", "caption": "a picture"},
        {"image": "c.png", "caption": ["", None]},
    ],
    "text_assignment": [
        {"image": "broken.png", "caption": "a picture"},
        {"image": "../a.png", "caption": "a picture"},
        {"image": "c.png", "caption": ["", None]},
    ],
    "vqa": [
        {"image": "missing.png", "question": "What?", "answer": ["red"]},
        {"image": "../a.png", "question": "What?", "answer": ["red"]},
        {"image": "a.png", "question": " ?", "answer": ["red"]},
    ],
    "entailment": [
        {"image": "/etc/passwd", "sentence": "It is red.", "label": "entailment"},
        {"image": "a.png", "sentence": "It is red.", "label": "perhaps"},
        {"image": "broken.png", "sentence": "It is red.", "label": "neutral"},
    ],
    "classification": [
        {"image": "/etc/passwd", "label": ["red"]},
        {"image": "a.png", "label": None},
        {"image": "broken.png", "label": []},
    ],
    "nlvr2": [
        {"images": ["a.png", "broken.png"], "sentence": "One is red.", "label": "True"},
        {"images": ["a.png"], "sentence": "One is red.", "label": "True"},
        {"images": ["a.png", "b.png"], "sentence": "One is red.", "label": "maybe"},
    ],
    "retrieval": [
        {"image": "broken.png", "caption": "a picture"},
        {"image": "../a.png", "caption": "a picture"},
        {"image": "c.png", "caption": ["", None]},
    ],
    "grounding": [
        {"image": "broken.png", "text": "the red thing", "bbox": [0, 0, 5, 5], "boxes": [[0, 0, 5, 5]]},
        {"image": "a.png", "text": "", "bbox": [0, 0, 5, 5], "boxes": [[0, 0, 5, 5]]},
        {"image": "a.png", "text": "the red thing", "bbox": [0, 0, 5, 5], "boxes": []},
    ],
}
