"""ALBEF (Align before Fuse, arXiv 2107.07651) for the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor

from .configuration_albef import AlbefConfig, AlbefTextConfig, AlbefVisionConfig
from .modeling_albef import (
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefModel,
    AlbefMultimodalModel,
    AlbefTextModel,
    AlbefVisionModel,
)
from .momentum import FeatureQueue, MomentumTeacher
from .processing_albef import AlbefProcessor, clean_caption

__version__ = "0.1.0"

AutoConfig.register("albef", AlbefConfig)
AutoModel.register(AlbefConfig, AlbefModel)
AutoModelForPreTraining.register(AlbefConfig, AlbefForPreTraining)
AutoProcessor.register(AlbefConfig, AlbefProcessor)

__all__ = [
    "AlbefConfig",
    "AlbefForPreTraining",
    "AlbefForQuestionAnswering",
    "AlbefForRetrieval",
    "AlbefForTextAssignment",
    "AlbefForVisualEntailment",
    "AlbefForVisualReasoning",
    "AlbefModel",
    "AlbefMultimodalModel",
    "AlbefProcessor",
    "AlbefTextConfig",
    "AlbefTextModel",
    "AlbefVisionConfig",
    "AlbefVisionModel",
    "FeatureQueue",
    "MomentumTeacher",
    "clean_caption",
]
