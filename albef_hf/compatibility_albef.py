"""Compatibility with several versions of transformers and safetensors, and with names of former releases.

Repositories on the Hub have a copy of this file and are loaded with later versions of the libraries. The code checks
what the installed version offers, and does not compare version numbers.

One thing cannot be here: `AlbefProcessor` declares the defaults of its call under an old and a new name.
"""

import contextlib
import functools
import inspect
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from transformers import Cache, PreTrainedConfig, PreTrainedModel, configuration_utils
from transformers.masking_utils import create_causal_mask
from transformers.utils import logging

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# The oldest and the newest release of transformers that all tests passed with.
TESTED_VERSIONS = ("5.17.0", "5.24.0")
# A section of model cards.
VERSIONS = """The code in this repository was tested with transformers {} to {}. If it fails on a later release,
install one of these (`pip install "transformers>={},<={}"`), or ask the owner to run `albef renew` of a later
albef_hf. It renews the code and keeps the weights.""".format(*TESTED_VERSIONS, *TESTED_VERSIONS)

# transformers 5.24 renamed the argument of masks and the field of outputs; 5.40 removes the old name.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

# Models of transformers that the text side can start from, and whether their positions start behind the padding id.
TEXT_MODEL_TYPES = {"bert": False, "camembert": True, "roberta": True, "xlm-roberta": True}

# Parameter names of transformers' ViT, DeiT, BERT and RoBERTa, as (pattern, name in this package). They changed from
# 5.17 to 5.23, and each pattern matches both. Order matters: attention comes first, so that the remaining `output`
# belongs to the feed-forward part.
PRETRAINED_NAMES = [
    (r"^(?:vit|deit|bert|roberta)\.", ""),
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
    (r"^lm_head\.dense\.", "mlm_head.dense."),
    (r"^lm_head\.layer_norm\.", "mlm_head.norm."),
    (r"^lm_head\.bias$", "mlm_head.out_proj.bias"),
]


def sub_config_specs(classes: dict[str, type[PreTrainedConfig]]) -> dict[str, Any]:
    """Return `sub_configs_defaults` for `sub_configs`: transformers reads the new name since 5.20.

    In 5.20 alone it does not accept plain classes there; up to 5.19 it ignores the name.
    """
    spec = getattr(configuration_utils, "SubConfigSpec", None)
    return {name: spec(config_class) if spec else config_class for name, config_class in classes.items()}


def single_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Return the cache that was passed under one of its two names; see `CACHE_NAME`.

    Raises:
        ValueError: If it was passed under both names.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are names of the same argument: pass only cache.")
    return past_key_values if cache is None else cache


def enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; transformers 5.23 renamed the method, 6.0 removes the old name."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


def forget_attention_change(config: PreTrainedConfig) -> None:
    """Let `set_attn_implementation` change a submodel again; up to 5.19, transformers changes it only once."""
    if hasattr(config, "_attn_was_changed"):
        del config._attn_was_changed


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers from warning of missing and unused weights, for code that says so itself.

    Other warnings are kept, and an error shows the report that it refers to. The library's table, and its line about
    tied weights that are both missing ("This checkpoint seem corrupted"), are also printed for a BERT without a
    masked-language head.
    """
    library = logging.get_logger("transformers.modeling_utils")
    reports = []

    def is_other_warning(record: Any) -> bool:
        is_report = any(text in record.getMessage() for text in ("LOAD REPORT", "both are absent from the checkpoint"))
        if is_report:
            reports.append(record)
        return not is_report

    library.addFilter(is_other_warning)
    try:
        yield
    except Exception:
        library.removeFilter(is_other_warning)
        for report in reports:
            library.handle(report)
        raise
    finally:
        library.removeFilter(is_other_warning)


def follow_umask(files: Iterable[Path]) -> None:
    """Give saved weights the file mode of the umask: safetensors 0.8 makes them readable by their owner only.

    Links are skipped, and so are files of other users, which this process has not written.
    """
    for file in files:
        # Reading the umask would change it for other threads for a moment, so a new file is created to see its mode.
        probe = file.with_name(f".{file.name}.{os.getpid()}.unfinished")
        with contextlib.suppress(OSError):
            if not file.is_symlink():
                probe.touch()
                file.chmod(stat.S_IMODE(probe.stat().st_mode))
        probe.unlink(missing_ok=True)


def renamed_attribute(attributes: dict[str, Any], names: dict[str, str], name: str) -> Any:
    """Return an attribute of a module by its old name, with a warning; old names work for one release.

    Args:
        attributes: The module's `globals()`.
        names: The new name of each old one.
        name: The old name.

    Raises:
        AttributeError: If the module has no such attribute.
    """
    module = attributes["__name__"]
    if names.get(name) not in attributes:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warn_of_old_name(f"{module}.{name}", names[name], stacklevel=4)
    return attributes[names[name]]


def renamed_arguments(**names: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Return a decorator that accepts keyword arguments under their old names, with a warning, for one release.

    Args:
        names: The new name of each old one.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            for old, new in names.items():
                if old in kwargs:
                    warn_of_old_name(f"The argument {old} of {function.__qualname__}", new, stacklevel=3)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def warn_of_old_name(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name has changed; by default, the warning is about the caller of the calling function."""
    message = f"{old} is now called {new}; the old name will be removed in the next release."
    warnings.warn(message, FutureWarning, stacklevel=stacklevel)
