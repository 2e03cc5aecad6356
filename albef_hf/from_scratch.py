"""A model that nobody has trained yet: its settings, checked, and a processor that fits."""

import json
from pathlib import Path
from typing import Any

from transformers import BlipImageProcessorPil, PreTrainedTokenizerBase

from .configuration_albef import AlbefConfig
from .data import embedded_tokenizer
from .options import nearest
from .processing_albef import AlbefProcessor


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


def check_settings(settings: dict, known: dict) -> None:
    """Refuse a name in `settings`, at any depth, that `known` does not have."""
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"There is no model_config setting {name}{nearest(name, known)}")
        if name.endswith("_config") and isinstance(value, dict):
            check_settings(value, known[name])


def make_processor(
    config: AlbefConfig, tokenizer: PreTrainedTokenizerBase | None = None, max_words: int = 30
) -> AlbefProcessor:
    """A processor at the resolution of a model; with the vocabulary of BERT-base uncased, unless another is given."""
    size = config.vision_config.image_size
    images = BlipImageProcessorPil(size={"height": size, "width": size})
    return AlbefProcessor(images, tokenizer or embedded_tokenizer(), max_words=max_words)
