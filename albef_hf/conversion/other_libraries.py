"""Rename checkpoints of LAVIS and TorchMultimodal, so that they can be converted as those of the original.

Those of TCL (github.com/uta-smile/TCL) have the original's names and need nothing: TCL adds losses, no parameters.
"""

import re
from typing import NamedTuple

import torch

from .checkpoints import Weights

WORD_EMBEDDINGS = ".embeddings.word_embeddings.weight"
TOKEN_TYPE_EMBEDDINGS = ".embeddings.token_type_embeddings.weight"


class Library(NamedTuple):
    """Where a checkpoint comes from.

    Attributes:
        name: As in the model card.
        address: Of its code.
        notes: What to know about the converted model.
    """

    name: str
    address: str
    notes: tuple[str, ...] = ()


ORIGINAL = Library("the original code", "https://github.com/salesforce/ALBEF")
LAVIS = Library(
    "LAVIS",
    "https://github.com/salesforce/LAVIS",
    (
        "LAVIS has no token-type embeddings: they are zero here, which adds nothing",
        "the processor cleans texts as LAVIS does, and ends them with [SEP]",
        "the smoothing of labels by 0.1 in LAVIS belongs to its training, and here there is none: losses of answers "
        "are those without it, also where answers are ranked",
    ),
)
TORCHMULTIMODAL = Library("TorchMultimodal", "https://github.com/facebookresearch/multimodal")

# Patterns of TorchMultimodal's names, in the order in which they are replaced. torchvision's names of an MLP have
# changed; in the text encoder, where there is dropout, the second layer of an MLP has another index.
TORCHMULTIMODAL_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model_with_similarity\.(albef_model\.)?|^model\.", ""),
        (r"^vision_encoder(_m)?\.encoder\.", r"visual_encoder\1."),
        (r"^(visual_encoder\w*)\.class_token$", r"\1.cls_token"),
        (r"^(visual_encoder\w*)\.conv_proj\.", r"\1.patch_embed.proj."),
        (r"^(visual_encoder\w*)\.encoder\.pos_embedding$", r"\1.pos_embed"),
        (r"^(visual_encoder\w*)\.encoder\.ln\.", r"\1.norm."),
        (r"^(visual_encoder\w*)\.encoder\.layers\.encoder_layer_(\d+)\.", r"\1.blocks.\2."),
        (r"^(visual_encoder.*)\.ln_([12])\.", r"\1.norm\2."),
        (r"^(visual_encoder.*)\.self_attention\.in_proj_", r"\1.attn.qkv."),
        (r"^(visual_encoder.*)\.self_attention\.out_proj\.", r"\1.attn.proj."),
        (r"^(visual_encoder.*)\.mlp\.(?:0|linear_1)\.", r"\1.mlp.fc1."),
        (r"^(visual_encoder.*)\.mlp\.(?:3|linear_2)\.", r"\1.mlp.fc2."),
        (r"^answer_decoder(_m)?\.text_embeddings\.", r"text_decoder\1.bert.embeddings."),
        (r"^answer_decoder(_m)?\.multimodal_encoder\.", r"text_decoder\1.bert.encoder."),
        (r"^answer_decoder(_m)?\.prediction_head\.dense\.", r"text_decoder\1.cls.predictions.transform.dense."),
        (
            r"^answer_decoder(_m)?\.prediction_head\.layer_norm\.",
            r"text_decoder\1.cls.predictions.transform.LayerNorm.",
        ),
        (r"^answer_decoder(_m)?\.prediction_head\.decoder\.", r"text_decoder\1.cls.predictions.decoder."),
        (r"\.embeddings\.layer_norm\.", ".embeddings.LayerNorm."),
        (r"\.cross_attention", ".crossattention"),
        (r"\.((?:cross)?attention)\.(query|key|value)\.", r".\1.self.\2."),
        (r"\.((?:cross)?attention)\.output\.", r".\1.output.dense."),
        (r"\.((?:cross)?attention)_layernorm\.", r".\1.output.LayerNorm."),
        (r"\.feedforward\.model\.0\.", ".intermediate.dense."),
        (r"\.feedforward\.model\.[23]\.", ".output.dense."),
        (r"\.feedforward_layernorm\.", ".output.LayerNorm."),
    )
)


def with_original_names(state: Weights) -> tuple[Weights, Library]:
    """Return a checkpoint under the original's names, and the library that it comes from.

    A checkpoint of another origin is returned unchanged, as that of the original.
    """
    if any(re.match(r"(model|model_with_similarity\.albef_model)\.vision_encoder\.", name) for name in state):
        return _from_torchmultimodal(state), TORCHMULTIMODAL
    if _is_lavis(state):
        return _from_lavis(state), LAVIS
    return state, ORIGINAL


def _is_lavis(state: Weights) -> bool:
    """Return True for names of the original without token types; in BLIP all text layers attend to the image."""
    return (
        any(name.startswith("visual_encoder.blocks.") for name in state)
        and any(name.endswith(WORD_EMBEDDINGS) for name in state)
        and not any(name.endswith(TOKEN_TYPE_EMBEDDINGS) for name in state)
        and not any(re.match(r"text_encoder\.(bert\.)?encoder\.layer\.0\.crossattention\.", name) for name in state)
    )


def _from_lavis(state: Weights) -> Weights:
    """Add token-type embeddings of zero to each table of word embeddings."""
    zeros = {
        name.replace(WORD_EMBEDDINGS, TOKEN_TYPE_EMBEDDINGS): torch.zeros_like(words[:2])
        for name, words in state.items()
        if name.endswith(WORD_EMBEDDINGS)
    }
    return state | zeros


def _from_torchmultimodal(state: Weights) -> Weights:
    layers = {match[1] for name in state if (match := re.search(r"\btext_encoder\.encoder\.layer\.(\d+)\.", name))}

    def behind_text_encoder(match: re.Match) -> str:
        return f"text_encoder{match[1] or ''}.encoder.layer.{int(match[2]) + len(layers)}."

    renamed: Weights = {}
    for own, weight in state.items():
        name = own
        for pattern, replacement in TORCHMULTIMODAL_NAMES:
            name = pattern.sub(replacement, name)
        name = re.sub(r"^multimodal_encoder(_m)?\.layer\.(\d+)\.", behind_text_encoder, name)
        if name in renamed:
            raise ValueError(f"{own} and another name of the checkpoint are both {name} in the original.")
        renamed[name] = weight
        if name.endswith(".cls.predictions.decoder.bias"):  # two names of one parameter in the original
            renamed[name.replace(".decoder.bias", ".bias")] = weight
    return renamed
