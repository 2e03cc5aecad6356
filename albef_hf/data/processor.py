"""The processor of a model that is new or converted."""

from pathlib import Path

from transformers import AutoConfig, BertTokenizer, BlipImageProcessorPil, PreTrainedTokenizerBase
from transformers.utils import logging

from ..configuration_albef import AlbefConfig
from ..images_albef import read_preprocessing
from ..processing_albef import AlbefProcessor

logger = logging.get_logger(f"transformers.{__name__}")


def embedded_tokenizer() -> BertTokenizer:
    """Return the tokenizer of BERT-base uncased, from the vocabulary that ships with this package."""
    return BertTokenizer.from_pretrained(Path(__file__).parent / "bert-base-uncased-vocab")


def make_processor(
    config: AlbefConfig, tokenizer: PreTrainedTokenizerBase, max_words: int = 30, vision_model: str | None = None
) -> AlbefProcessor:
    """Return a processor at the resolution of a model.

    Args:
        config: Configuration of the model.
        tokenizer: Its tokenizer.
        max_words: Maximum number of words of a caption.
        vision_model: Folder or Hub name of the image model that it started from, whose mean, standard deviation and
            resampling are used; those of CLIP without one, and for a DeiT, as in the original.
    """
    height, width = config.input_size
    settings = {}
    if vision_model and AutoConfig.from_pretrained(vision_model).model_type != "deit":
        settings = read_preprocessing(vision_model)
        if "image_mean" not in settings:
            logger.warning(
                f"{vision_model} has no preprocessor_config.json with image_mean: images are normalized with CLIP's "
                "mean and standard deviation. Add the file if the model was trained with others."
            )
    settings["size"] = {"height": height, "width": width}
    return AlbefProcessor(BlipImageProcessorPil(**settings), tokenizer, max_words=max_words)
