"""Image-text pairs: where they come from, how they are read, augmented, masked and collated.

What reads datasets by name is in `albef_hf.data.sources`, which needs the datasets library.
"""

from .augmentation import Augmentation
from .collator import PretrainingCollator, embedded_tokenizer, mask_tokens
from .evaluation_images import Pictures, picture_of, pictures_of, without_pictures
from .pairs import (
    BadSampleError,
    ImageTextPairs,
    ImageTextStream,
    Issue,
    PairReader,
    load_image,
    load_upright,
    says_something,
    usable_captions,
    usable_text,
)
from .row_errors import Findings
from .scenes import Scenes
from .shards import ShardOrder, Shards

__all__ = [
    "Augmentation",
    "BadSampleError",
    "Findings",
    "ImageTextPairs",
    "ImageTextStream",
    "Issue",
    "PairReader",
    "Pictures",
    "PretrainingCollator",
    "Scenes",
    "ShardOrder",
    "Shards",
    "embedded_tokenizer",
    "load_image",
    "load_upright",
    "mask_tokens",
    "picture_of",
    "pictures_of",
    "says_something",
    "usable_captions",
    "usable_text",
    "without_pictures",
]
