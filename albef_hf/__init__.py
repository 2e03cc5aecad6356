"""ALBEF (Align before Fuse, arXiv 2107.07651) for the Hugging Face ecosystem.

Names are imported when they are used, and ALBEF is registered with transformers when transformers looks for it.
"""

import importlib
from typing import Any

from .registration import register_when_needed
from .utils import renamed_modules

__version__ = "0.1.0"

_NAMES = {
    "configuration_albef": ("AlbefConfig", "AlbefTextConfig", "AlbefVisionConfig"),
    "encoders_albef": ("AlbefMultimodalModel", "AlbefTextModel", "AlbefVisionModel"),
    "modeling_albef": (
        "AlbefForImageCaptioning",
        "AlbefForImageTextClassification",
        "AlbefForPreTraining",
        "AlbefForQuestionAnswering",
        "AlbefForRetrieval",
        "AlbefForTextAssignment",
        "AlbefForVisualEntailment",
        "AlbefForVisualReasoning",
        "AlbefModel",
    ),
    "momentum": ("FeatureQueue", "MomentumTeacher"),
    "pipeline_albef": (
        "ImageCaptioningPipeline",
        "ImageTextClassificationPipeline",
        "ImageTextMatchingPipeline",
        "ImageTextRetrievalPipeline",
        "PromptedImageClassificationPipeline",
        "VisualEntailmentPipeline",
        "VisualGroundingPipeline",
        "VisualQuestionAnsweringPipeline",
        "VisualReasoningPipeline",
    ),
    "processing_albef": ("AlbefProcessor", "WithNormalization", "clean_caption"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # so that it is looked up only once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_needed()
renamed_modules.install()
