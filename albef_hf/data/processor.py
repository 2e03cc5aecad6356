"""The processor of a model that is new or converted."""

from pathlib import Path

from transformers import BertTokenizer, BlipImageProcessorPil, PreTrainedConfig, PreTrainedTokenizerBase

from ..processing_albef import AlbefProcessor


def embedded_tokenizer() -> BertTokenizer:
    """Return the tokenizer of BERT-base uncased, from the vocabulary that ships with this package."""
    return BertTokenizer.from_pretrained(Path(__file__).parent / "bert-base-uncased-vocab")


def make_processor(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_words: int = 30
) -> AlbefProcessor:
    """Return a processor at the resolution of a model."""
    size = config.vision_config.image_size
    images = BlipImageProcessorPil(size={"height": size, "width": size})
    return AlbefProcessor(images, tokenizer, max_words=max_words)
