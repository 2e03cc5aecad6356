"""Image-text pairs: sources, reading, augmentation, masking and collation.

Names are loaded on first use, so that importing a light submodule, such as the options of a command, stays fast.
`albef_hf.data.sources` reads datasets by name and needs the datasets library.
"""

import importlib
from typing import Any

_MODULES = {  # the submodule of each public name
    "Augmentation": "augmentation",
    "EvaluationImages": "evaluation_images",
    "ImageTextPairs": "pairs",
    "ImageTextStream": "pairs",
    "InvalidSampleError": "row_errors",
    "Normalization": "augmentation",
    "PairReader": "pairs",
    "PretrainingCollator": "collator",
    "RowErrors": "row_errors",
    "Scenes": "scenes",
    "ShardOrder": "shard_order",
    "Shards": "shards",
    "SkipReason": "row_errors",
    "drop_image_columns": "evaluation_images",
    "embedded_tokenizer": "processor",
    "image_id": "evaluation_images",
    "image_ids": "evaluation_images",
    "is_blank": "captions",
    "load_image": "images",
    "load_upright": "deprecated",
    "make_processor": "processor",
    "mask_tokens": "collator",
    "says_something": "deprecated",
    "valid_captions": "captions",
    "valid_text": "captions",
}
_RENAMED = {  # aliases for one release
    "BadSampleError": "InvalidSampleError",
    "Findings": "RowErrors",
    "Issue": "SkipReason",
    "Pictures": "EvaluationImages",
    "picture_of": "image_id",
    "pictures_of": "image_ids",
    "usable_captions": "valid_captions",
    "usable_text": "valid_text",
    "without_pictures": "drop_image_columns",
}
__all__ = [name for name, module in _MODULES.items() if module != "deprecated"]


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        from ..compatibility_albef import renamed_attribute  # imports transformers

        __getattr__(_RENAMED[name])
        return renamed_attribute(globals(), _RENAMED, name)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
