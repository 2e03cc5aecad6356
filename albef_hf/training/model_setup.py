"""A model that nobody has trained yet: its settings, checked, and a processor that fits."""

import json
from pathlib import Path
from typing import Any

from transformers import BlipImageProcessorPil, PreTrainedTokenizerBase

from ..configuration_albef import AlbefConfig
from ..processing_albef import AlbefProcessor
from ..utils.options import nearest


def read_model_config(source: str | None) -> dict[str, Any]:
    """Settings of an `AlbefConfig`, from a JSON file or text; none where there is no source.

    Raises:
        ValueError: If the source is neither, or a name is unknown.
    """
    if source is None:
        return {}
    try:
        settings = json.loads(source if source.lstrip().startswith("{") else Path(source).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"model_config is neither a JSON file nor a JSON text ({error}).") from error
    check_settings(settings, AlbefConfig().to_dict())
    return settings


def with_special_tokens(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Settings of an `AlbefConfig` in which answers begin, end and are padded with the tokens of the tokenizer.

    Those that the settings name themselves go: they were copied from a model with another tokenizer.
    """
    ids = {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {**settings, "text_config": {**(settings.get("text_config") or {}), **ids}}


def check_vocabulary(config: AlbefConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a `ValueError` for a tokenizer with ids that the model has no embedding for."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer has ids up to {largest}, the model embeds {config.text_config.vocab_size} tokens: set "
            f"vocab_size of text_config to {largest + 1}, or give the tokenizer the model was made for."
        )


def check_settings(settings: dict, known: dict) -> None:
    """Refuse a name in `settings`, at any depth, that `known` does not have."""
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"There is no model_config setting {name}{nearest(name, known)}")
        if name.endswith("_config") and isinstance(value, dict):
            check_settings(value, known[name])


def make_processor(config: AlbefConfig, tokenizer: PreTrainedTokenizerBase, max_words: int = 30) -> AlbefProcessor:
    """A processor at the resolution of a model."""
    size = config.vision_config.image_size
    images = BlipImageProcessorPil(size={"height": size, "width": size})
    return AlbefProcessor(images, tokenizer, max_words=max_words)
