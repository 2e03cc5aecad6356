"""ALBEF (Align before Fuse, arXiv 2107.07651) for the Hugging Face ecosystem."""

import transformers

from .configuration_albef import AlbefConfig, AlbefTextConfig, AlbefVisionConfig
from .modeling_albef import (
    AUTO_MODELS,
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

# With the package installed, the Auto classes know its models: nothing remote is run, no trust is asked for.
for _config in (AlbefConfig, AlbefTextConfig, AlbefVisionConfig):
    transformers.AutoConfig.register(_config.model_type, _config)
for _name, _models in AUTO_MODELS.items():
    getattr(transformers, _name).register(AlbefConfig, _models)
transformers.AutoModel.register(AlbefVisionConfig, AlbefVisionModel)
transformers.AutoModel.register(AlbefTextConfig, (AlbefTextModel, AlbefMultimodalModel))
transformers.AutoProcessor.register(AlbefConfig, AlbefProcessor)

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
