"""ALBEF (Align before Fuse, arXiv 2107.07651) for the Hugging Face ecosystem."""

import transformers
from transformers.pipelines import PIPELINE_REGISTRY

from . import pipeline_albef
from .compatibility_albef import allow_removed_task
from .configuration_albef import PIPELINES, AlbefConfig, AlbefTextConfig, AlbefVisionConfig
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
from .pipeline_albef import (
    ImageTextMatchingPipeline,
    ImageTextRetrievalPipeline,
    VisualEntailmentPipeline,
    VisualGroundingPipeline,
    VisualQuestionAnsweringPipeline,
    VisualReasoningPipeline,
)
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

for _task, (_pipeline, _auto_class, _) in PIPELINES.items():
    PIPELINE_REGISTRY.register_pipeline(
        _task, getattr(pipeline_albef, _pipeline), pt_model=getattr(transformers, _auto_class), type="multimodal"
    )
allow_removed_task("visual-question-answering")

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
    "ImageTextMatchingPipeline",
    "ImageTextRetrievalPipeline",
    "MomentumTeacher",
    "VisualEntailmentPipeline",
    "VisualGroundingPipeline",
    "VisualQuestionAnsweringPipeline",
    "VisualReasoningPipeline",
    "clean_caption",
]
