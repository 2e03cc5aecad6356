"""Models with the weights of golden files, to be compared with what the original's code computed with them."""

import gzip
import json
import re
import tempfile
from pathlib import Path

import pytest
import torch
from paths import FIXTURES
from transformers import PreTrainedModel

from albef_hf import AlbefConfig, MomentumTeacher
from albef_hf.conversion.checkpoints import MODELS
from albef_hf.conversion.from_original import convert_checkpoint, split
from albef_hf.conversion.parameter_names import name_table

TASKS = {
    "pretrain": "pretraining",
    "retrieval": "retrieval",
    "vqa": "vqa",
    "nlvr": "nlvr2",
    "ve": "entailment",
    "pretrain_nlvr": "nlvr2-pretraining",
}


def load(name: str) -> dict:
    """A file of tensors that the original has computed."""
    return torch.load(FIXTURES / f"{name}_tiny.pt", weights_only=True)


def to_ours(
    tensors: dict[str, torch.Tensor], config: AlbefConfig, task: str = "pretraining", teacher: bool = False
) -> dict[str, torch.Tensor]:
    """The student's tensors, or the teacher's (the `_m` names), under our names."""
    ours, names = {}, name_table(task, config)
    for name, tensor in tensors.items():
        online = re.sub(r"^(\w+)_m\.", r"\1.", name)
        if online in names and (online != name) == teacher:
            ours |= split(names[online], tensor)
    return ours


def config_of(golden: dict) -> AlbefConfig:
    """The architecture of the golden files' models."""
    bert, vit = golden["bert_config"], golden["vit"]
    return AlbefConfig(
        projection_dim=golden["config"]["embed_dim"],
        vision_config={
            "hidden_size": vit["embed_dim"],
            "num_hidden_layers": vit["depth"],
            "num_attention_heads": vit["num_heads"],
            "intermediate_size": 4 * vit["embed_dim"],
            "image_size": golden["config"]["image_res"],
        },
        text_config={
            "vocab_size": bert["vocab_size"],
            "hidden_size": bert["hidden_size"],
            "num_hidden_layers": bert["fusion_layer"],
            "num_multimodal_layers": bert["num_hidden_layers"] - bert["fusion_layer"],
            "num_attention_heads": bert["num_attention_heads"],
            "intermediate_size": bert["intermediate_size"],
            "max_position_embeddings": bert["max_position_embeddings"],
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    )


def convert(golden: dict, task: str, folder: Path) -> Path:
    """The golden model, converted from a checkpoint in the original's names."""
    torch.save({"model": golden["state_dict"]}, folder / "original.pth")
    convert_checkpoint(folder / "original.pth", folder / "converted", task=task, config=config_of(golden))
    return folder / "converted"


def student_and_teacher(golden: dict, task: str = "pretraining") -> tuple[PreTrainedModel, MomentumTeacher]:
    """Both in float64 with the golden weights, as the converter leaves them.

    The original averages at the start of a step and so leaves its teacher one update behind, which is made up here.
    """
    with tempfile.TemporaryDirectory() as folder:
        converted = convert(golden, task, Path(folder))
        student = MODELS[task].from_pretrained(converted).double().train()
        teacher = MomentumTeacher.from_pretrained(converted, student, golden["config"]["momentum"]).double()
    teacher.update(student)
    return student, teacher


class ImposedNegatives:
    """Replaces `multinomial` by the original's draws, and keeps the weights it was asked to draw from."""

    def __init__(self, tape: list, monkeypatch: pytest.MonkeyPatch):
        self.drawn = [value for kind, value in tape if kind == "multinomial"]
        self.weights = []
        monkeypatch.setattr("albef_hf.losses_albef.multinomial", self)

    def __call__(self, weights: torch.Tensor, num_samples: int) -> torch.Tensor:
        assert num_samples == 1
        self.weights.append(weights)
        rows, self.drawn = self.drawn[: len(weights)], self.drawn[len(weights) :]
        return torch.stack(rows).view(-1, 1)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Finite, and off by no more than `tolerance` relative to the largest expected value (at least 1e-6)."""
    assert actual.shape == expected.shape, what
    assert torch.isfinite(actual).all() and torch.isfinite(expected).all(), what
    scale = max(expected.abs().max().item(), 1e-6)
    assert (actual - expected).abs().max().item() <= tolerance * scale, what


def assert_gradients(model: PreTrainedModel, expected: dict[str, torch.Tensor], tolerance: float = 1e-9) -> None:
    """Gradients under our names agree.

    Biases of keys have no gradient but rounding noise, which is compared with the largest gradient instead.
    """
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        scale = gradient.abs().max() if gradient.abs().max() > 1e-12 * largest else largest
        assert torch.isfinite(gradients[name]).all(), name
        assert (gradients[name] - gradient).abs().max() <= tolerance * scale, name


def original_shapes(name: str) -> dict[str, tuple[list[int], torch.dtype]]:
    """Names, shapes and types of one of the original's models, such as `vqa_base`."""
    listed = json.loads(gzip.decompress((FIXTURES / "original_keys.json.gz").read_bytes()))[name]
    return {key: (shape, getattr(torch, dtype.removeprefix("torch."))) for key, (shape, dtype) in listed.items()}


def random_state_dict(name: str) -> dict[str, torch.Tensor]:
    """Random weights in the names of one of the original's models; what it ties is one tensor, as in its files."""
    state = {}
    for key, (shape, dtype) in original_shapes(name).items():
        if key.endswith("position_ids"):
            state[key] = torch.arange(shape[1])[None]
        elif dtype == torch.int64:
            state[key] = torch.randint(0, 10, shape)
        else:
            state[key] = torch.randn(shape).to(dtype)
    fusion_layer = min(int(match[1]) for key in state if (match := re.search(r"layer\.(\d+)\.crossattention", key)))
    for key in state:
        if key.endswith("cls.predictions.decoder.weight"):
            state[key] = state[re.sub(r"cls\..*", "bert.embeddings.word_embeddings.weight", key)]
        elif key.endswith("cls.predictions.decoder.bias"):
            state[key] = state[key.replace("decoder.bias", "bias")]
        second = re.match(r"(.*\.layer\.)(\d+)(\.crossattention\.self\.(?:key|value)\.\w+)", key)
        if "nlvr" in name and second and (int(second[2]) - fusion_layer) % 2:
            state[key] = state[f"{second[1]}{int(second[2]) - 1}{second[3]}"]
    return state
