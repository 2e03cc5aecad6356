"""ALBEF (Align before Fuse, arXiv 2107.07651) for the Hugging Face ecosystem."""

import transformers
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from . import pipeline_albef
from .configuration_albef import PIPELINES, AlbefConfig, AlbefTextConfig, AlbefVisionConfig
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

AutoConfig.register("albef", AlbefConfig)
AutoModel.register(AlbefConfig, AlbefModel)
AutoModelForPreTraining.register(AlbefConfig, AlbefForPreTraining)
AutoProcessor.register(AlbefConfig, AlbefProcessor)
transformers.AutoModelForZeroShotImageClassification.register(AlbefConfig, AlbefForRetrieval)
transformers.AutoModelForVisualQuestionAnswering.register(AlbefConfig, AlbefForQuestionAnswering)
transformers.AutoModelForSequenceClassification.register(
    AlbefConfig, (AlbefForVisualEntailment, AlbefForVisualReasoning)
)

for _task, (_pipeline, _auto_class, _) in PIPELINES.items():
    PIPELINE_REGISTRY.register_pipeline(
        _task, getattr(pipeline_albef, _pipeline), pt_model=getattr(transformers, _auto_class), type="multimodal"
    )
# transformers has given some tasks up, and refuses them even where somebody brings a pipeline along.
getattr(transformers.pipelines, "REMOVED_TASKS", {}).pop("visual-question-answering", None)

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
