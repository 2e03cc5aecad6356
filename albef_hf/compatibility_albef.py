"""Everything that depends on the installed versions of transformers and safetensors, each with its reason.

Folders on the Hub carry a copy of this file, while the library of whoever loads them moves on. So what the installed
version offers is looked up where that is possible; a version number is never compared.

One thing cannot be here: `AlbefProcessor` declares the defaults of its call under an old and a new name.
"""

import contextlib
import inspect
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import Cache, PreTrainedConfig, PreTrainedModel, configuration_utils, pipelines
from transformers.masking_utils import create_causal_mask

# The oldest and the newest release of transformers with which all tests passed.
TESTED_VERSIONS = ("5.17.0", "5.24.0")
# The section of model cards about them.
VERSIONS = """The code in this repository was tested with transformers {} to {}. If it fails on a later release,
install one of these (`pip install "transformers>={},<={}"`), or ask the owner to run
`python -m albef_hf.conversion.code_renewal` of a later albef_hf: it renews the code and keeps the weights.""".format(
    *TESTED_VERSIONS, *TESTED_VERSIONS
)

# transformers 5.24 renamed the argument of masks and the field of outputs; 5.40 drops the old name.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

# Parameter names of transformers' ViT, DeiT and BERT, as (pattern, name in this package). They moved between 5.17 and
# 5.23, and each pattern matches both. Order matters: attention comes first, so that the remaining `output` belongs to
# the feed-forward part.
PRETRAINED_NAMES = [
    (r"^(?:vit|deit|bert)\.", ""),
    (r"^(?:encoder\.)?layers?\.", "layers."),
    (r"^embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embedding."),
    (r"\.attention\.(?:self\.|attention\.)?(?:query|q_proj)\.", ".self_attn.q_proj."),
    (r"\.attention\.(?:self\.|attention\.)?(?:key|k_proj)\.", ".self_attn.k_proj."),
    (r"\.attention\.(?:self\.|attention\.)?(?:value|v_proj)\.", ".self_attn.v_proj."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".self_attn.out_proj."),
    (r"\.(?:attention\.output\.LayerNorm|layernorm_before)\.", ".self_attn_norm."),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    (r"\.(?:output\.LayerNorm|layernorm_after)\.", ".mlp_norm."),
    (r"^embeddings\.LayerNorm\.", "embeddings.norm."),
    (r"^layernorm\.", "norm."),
    (r"^cls\.predictions\.transform\.dense\.", "mlm_head.dense."),
    (r"^cls\.predictions\.transform\.LayerNorm\.", "mlm_head.norm."),
    (r"^cls\.predictions\.bias$", "mlm_head.out_proj.bias"),
]


def sub_config_specs(classes: dict[str, type[PreTrainedConfig]]) -> dict[str, Any]:
    """Return `sub_configs_defaults` for `sub_configs`: transformers reads the new name since 5.20.

    In 5.20 alone it does not accept plain classes there; up to 5.19 it ignores the name.
    """
    spec = getattr(configuration_utils, "SubConfigSpec", None)
    return {name: spec(config_class) if spec else config_class for name, config_class in classes.items()}


def single_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Return the cache under whichever of its two names it was passed; see `CACHE_NAME`.

    Raises:
        ValueError: If it was passed under both.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are two names of one argument: pass cache alone.")
    return past_key_values if cache is None else cache


def enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; transformers 5.23 renamed the method, and 6.0 drops the old name."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


def forget_attention_change(config: PreTrainedConfig) -> None:
    """Let `set_attn_implementation` change a submodel again, which transformers does only once up to 5.19."""
    if hasattr(config, "_attn_was_changed"):
        del config._attn_was_changed


def follow_umask(files: Iterable[Path]) -> None:
    """Let colleagues load weights that were just saved: safetensors 0.8 makes them readable by their owner alone.

    Links are skipped, and so are files of others, which this process has not written.
    """
    for file in files:
        # The umask cannot be read without changing it for other threads; a new file shows it.
        probe = file.with_name(f".{file.name}.{os.getpid()}.unfinished")
        with contextlib.suppress(OSError):
            if not file.is_symlink():
                probe.touch()
                file.chmod(stat.S_IMODE(probe.stat().st_mode))
        probe.unlink(missing_ok=True)


def allow_removed_task(task: str) -> None:
    """Let a pipeline be registered for a task that transformers removed; since 5.19 it refuses these names."""
    getattr(pipelines, "REMOVED_TASKS", {}).pop(task, None)
