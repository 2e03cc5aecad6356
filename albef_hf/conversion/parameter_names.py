"""The names of all parameters in the original code (github.com/salesforce/ALBEF) and in albef_hf.

`name_table` maps one to the other. It is read in one direction to convert a checkpoint, and in the other to write a
model as a checkpoint of the original. This file imports neither torch nor transformers, so that `--help` is fast.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..configuration_albef import AlbefConfig, AlbefTextConfig

# Original name -> our names. There are several of ours where the original fuses parameters, as in `attn.qkv`.
Names = dict[str, tuple[str, ...]]

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
PROJECTIONS = {"vision_proj": "contrastive_head.image_projection", "text_proj": "contrastive_head.text_projection"}
CLASSIFIER = {"cls_head.0": "classifier.dense", "cls_head.2": "classifier.out_proj"}
# The tasks that the original has a checkpoint for, each with the modules of its head.
HEADS: dict[str, dict[str, str]] = {
    "pretraining": {**PROJECTIONS, "itm_head": "itm_head"},
    "retrieval": {**PROJECTIONS, "itm_head": "itm_head"},
    "vqa": {},
    "nlvr2": CLASSIFIER,
    "nlvr2-pretraining": {"vision_proj": PROJECTIONS["vision_proj"], "ta_head": "assignment_head"},
    "entailment": CLASSIFIER,
}
NOT_IN_TEACHER = ("temp", "itm_head.")  # prefixes of what the original's momentum model does not have
QUEUES = {
    "image_queue": "queue.image_features",
    "text_queue": "queue.text_features",
    "queue_ptr": "queue.pointer",
    "idx_queue": "queue.ids",
}
# Parameters that have no counterpart here, with the reason that is reported.
DROPPED = {
    "nlvr2-pretraining": {
        "temp": "image pairs are sampled at a constant temperature",
        "text_proj.weight": "this task does not compare texts with images by their projections",
        "text_proj.bias": "this task does not compare texts with images by their projections",
    },
}


def name_table(task: str, config: "AlbefConfig") -> Names:
    """Return the names of all parameters of one of the original's models, each with the names here.

    Two original names map to the same parameter where the original ties them.

    Args:
        task: A key of `HEADS`.
        config: The number of layers is read from it.
    """
    vision = config.vision
    text = config.text
    bert = bert_prefix(task)
    names = _vision_names(vision.num_hidden_layers)
    names |= _embedding_names(bert, "albef.text_model.embeddings")
    for index, layer in enumerate(_text_layers(task, text)):
        names |= module_names(layer, f"{bert}.encoder.layer.{index}.")
    if task == "pretraining":
        names |= _mlm_head_names("text_encoder", "albef.text_model.embeddings")
    elif task == "vqa":
        names |= _embedding_names("text_decoder.bert", "decoder.embeddings")
        names |= _mlm_head_names("text_decoder", "decoder.embeddings")
        for index in range(text.num_multimodal_layers):
            layer = _prefixed(TEXT_LAYER | CROSS_ATTENTION, f"decoder.layers.{index}")
            names |= module_names(layer, f"text_decoder.bert.encoder.layer.{index}.")
    names |= module_names(HEADS[task])
    if "text_proj" in HEADS[task]:
        names["temp"] = ("contrastive_head.temperature",)
    return names


def teacher_names(task: str, names: Names) -> Names:
    """Return the same table for the momentum model: `_m` after the first part there, `model.` in front here."""
    if task == "nlvr2-pretraining":  # the original trains it without a momentum model
        return {}
    return {
        re.sub(r"^(\w+)\.", r"\1_m.", original): tuple(f"model.{name}" for name in ours)
        for original, ours in names.items()
        if not original.startswith(NOT_IN_TEACHER)
    }


def queue_names(task: str) -> dict[str, str]:
    """Return the names of the feature queues; empty for a task that is trained without them."""
    if task == "retrieval":
        return QUEUES
    if task == "pretraining":
        return {original: name for original, name in QUEUES.items() if original != "idx_queue"}
    return {}


def bert_prefix(task: str) -> str:
    """Return the name of BERT in the original, which wraps it in a masked language model for pretraining."""
    return "text_encoder.bert" if task == "pretraining" else "text_encoder"


def module_names(modules: dict[str, str], prefix: str = "") -> Names:
    """Return the names of the weights and biases of modules, whose original names start with the prefix."""
    return {
        f"{prefix}{original}.{part}": (f"{name}.{part}",)
        for original, name in modules.items()
        for part in ("weight", "bias")
    }


def _prefixed(modules: dict[str, str], prefix: str) -> dict[str, str]:
    return {original: f"{prefix}.{name}" for original, name in modules.items()}


def _vision_names(layers: int) -> Names:
    model = "albef.vision_model"
    names: Names = {
        "visual_encoder.cls_token": (f"{model}.embeddings.cls_token",),
        "visual_encoder.pos_embed": (f"{model}.embeddings.position_embeddings",),
    }
    outside_layers = {"patch_embed.proj": f"{model}.embeddings.patch_embedding", "norm": f"{model}.norm"}
    names |= module_names(outside_layers, "visual_encoder.")
    for index in range(layers):
        for original, ours in VISION_LAYER.items():
            for part in ("weight", "bias"):
                names[f"visual_encoder.blocks.{index}.{original}.{part}"] = tuple(
                    f"{model}.layers.{index}.{name}.{part}" for name in ours
                )
    return names


def _embedding_names(original: str, ours: str) -> Names:
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    names: Names = {f"{original}.embeddings.{table}.weight": (f"{ours}.{table}.weight",) for table in tables}
    return names | module_names({"LayerNorm": f"{ours}.norm"}, f"{original}.embeddings.")


def _mlm_head_names(original: str, embeddings: str) -> Names:
    """Return the names of the masked-language-modeling head.

    The weight of its decoder is tied to the word embeddings, and the bias of its decoder to the bias of the head.
    """
    head = f"{original}.cls.predictions"
    names = module_names({"transform.dense": "mlm_head.dense", "transform.LayerNorm": "mlm_head.norm"}, f"{head}.")
    names[f"{head}.bias"] = ("mlm_head.out_proj.bias",)
    names[f"{head}.decoder.bias"] = ("mlm_head.out_proj.bias",)
    names[f"{head}.decoder.weight"] = (f"{embeddings}.word_embeddings.weight",)
    return names


def _text_layers(task: str, text: "AlbefTextConfig") -> Iterable[dict[str, str]]:
    """Yield the modules of each layer of the original's BERT: those of the text encoder, then those that fuse.

    For NLVR2 every fusing layer is followed by a second one, which attends to the second image of a pair. Both share
    the projections of keys and values.
    """
    for index in range(text.num_hidden_layers):
        yield _prefixed(TEXT_LAYER, f"albef.text_model.layers.{index}")
    for index in range(text.num_multimodal_layers):
        layer = _prefixed(TEXT_LAYER | CROSS_ATTENTION, f"albef.multimodal_model.layers.{index}")
        yield layer
        if task.startswith("nlvr2"):
            shared = {name: layer[name] for name in ("crossattention.self.key", "crossattention.self.value")}
            yield _prefixed(TEXT_LAYER | CROSS_ATTENTION, f"albef.multimodal_model.second_layers.{index}") | shared
