"""Image-text pairs: where they come from, how they are read, augmented, masked and collated."""

from .augmentation import Augmentation
from .collator import PretrainingCollator, mask_tokens
from .pairs import BadSampleError, ImageTextPairs, ImageTextStream, Issue, PairReader, load_image
from .scenes import Scenes
from .sources import embedded_tokenizer, load_hub_rows, read_annotations

__all__ = [
    "Augmentation",
    "BadSampleError",
    "ImageTextPairs",
    "ImageTextStream",
    "Issue",
    "PairReader",
    "PretrainingCollator",
    "Scenes",
    "embedded_tokenizer",
    "load_hub_rows",
    "load_image",
    "mask_tokens",
    "read_annotations",
]
