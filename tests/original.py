"""The original's parameter names, for comparing with tensors computed by its code."""

import re
from pathlib import Path

import pytest
import torch

from albef_hf import AlbefConfig, AlbefForPreTraining, MomentumTeacher

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).parents[2] / "shared"

_LAYER_NAMES = [
    (r"attention\.self\.query", "self_attn.q_proj"),
    (r"attention\.self\.key", "self_attn.k_proj"),
    (r"attention\.self\.value", "self_attn.v_proj"),
    (r"attention\.output\.dense", "self_attn.out_proj"),
    (r"attention\.output\.LayerNorm", "self_attn_norm"),
    (r"crossself_attn", "cross_attn"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"output\.LayerNorm", "mlp_norm"),
]
_NAMES = [
    (r"^temp$", "contrastive_head.temperature"),
    (r"^vision_proj\.", "contrastive_head.image_projection."),
    (r"^text_proj\.", "contrastive_head.text_projection."),
    (r"^visual_encoder\.cls_token$", "albef.vision_model.embeddings.cls_token"),
    (r"^visual_encoder\.pos_embed$", "albef.vision_model.embeddings.position_embeddings"),
    (r"^visual_encoder\.patch_embed\.proj\.", "albef.vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "albef.vision_model.norm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm1\.", r"albef.vision_model.layers.\1.self_attn_norm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm2\.", r"albef.vision_model.layers.\1.mlp_norm."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"albef.vision_model.layers.\1.self_attn.out_proj."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"albef.vision_model.layers.\1.mlp."),
    (r"^text_encoder\.bert\.embeddings\.LayerNorm\.", "albef.text_model.embeddings.norm."),
    (r"^text_encoder\.bert\.embeddings\.", "albef.text_model.embeddings."),
    (r"^text_encoder\.cls\.predictions\.transform\.dense\.", "mlm_head.dense."),
    (r"^text_encoder\.cls\.predictions\.transform\.LayerNorm\.", "mlm_head.norm."),
    (r"^text_encoder\.cls\.predictions\.bias$", "mlm_head.decoder.bias"),
    (r"^text_encoder\.cls\.predictions\.decoder\.", "mlm_head.decoder."),
]


def rename(name: str, text_layers: int) -> list[str]:
    """Our names of one of the original's parameters: three for a fused query, key and value."""
    fused = re.match(r"visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(\w+)", name)
    if fused:
        return [f"albef.vision_model.layers.{fused[1]}.self_attn.{part}_proj.{fused[2]}" for part in "qkv"]
    layer = re.match(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.(.*)", name)
    if layer:
        index, rest = int(layer[1]), layer[2]
        for pattern, replacement in _LAYER_NAMES:
            rest = re.sub(pattern, replacement, rest)
        stack = "text" if index < text_layers else "multimodal"
        return [f"albef.{stack}_model.layers.{index if stack == 'text' else index - text_layers}.{rest}"]
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return [name]


def to_ours(tensors: dict[str, torch.Tensor], text_layers: int, teacher: bool = False) -> dict[str, torch.Tensor]:
    """Student's (or teacher's, the `_m` names) tensors under our names."""
    ours = {}
    for name, tensor in tensors.items():
        if name.endswith(("position_ids", "_queue", "queue_ptr")) or ("_m." in name) != teacher:
            continue
        names = rename(name.replace("_m.", ".", 1), text_layers)
        ours.update(zip(names, tensor.chunk(len(names)) if len(names) > 1 else [tensor], strict=True))
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


def student_and_teacher(golden: dict) -> tuple[AlbefForPreTraining, MomentumTeacher]:
    """Both in float64 with the golden weights.

    The original averages at the start of a step and so leaves its teacher one update behind, which is made up here.
    """
    weights, layers = golden["state_dict"], golden["bert_config"]["fusion_layer"]
    student = AlbefForPreTraining(config_of(golden)).double().train()
    student.load_state_dict(to_ours(weights, layers))
    teacher = MomentumTeacher(student, golden["config"]["momentum"], golden["config"]["queue_size"]).double()
    report = teacher.model.load_state_dict(to_ours(weights, layers, teacher=True), strict=False)
    assert not report.unexpected_keys
    assert {name.rpartition(".")[0] for name in report.missing_keys} == {"itm_head", "contrastive_head"}
    teacher.queue.image_features.copy_(weights["image_queue"].T)
    teacher.queue.text_features.copy_(weights["text_queue"].T)
    teacher.queue.pointer.copy_(weights["queue_ptr"][0])
    teacher.update(student)
    return student, teacher


class ImposedNegatives:
    """Replaces `torch.multinomial` by the original's draws, and keeps the weights it was asked to draw from."""

    def __init__(self, tape: list, monkeypatch: pytest.MonkeyPatch):
        self.drawn = [value for kind, value in tape if kind == "multinomial"]
        self.weights = []
        monkeypatch.setattr(torch, "multinomial", self)

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
