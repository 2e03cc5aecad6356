"""ALBEF (Align before Fuse, arXiv 2107.07651) for the Hugging Face ecosystem."""

from .configuration_albef import AlbefConfig, AlbefTextConfig, AlbefVisionConfig
from .modeling_albef import (
    AlbefForPreTraining,
    AlbefModel,
    AlbefMultimodalModel,
    AlbefTextModel,
    AlbefVisionModel,
)
from .momentum import FeatureQueue, MomentumTeacher
