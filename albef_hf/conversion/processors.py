"""The processor of a converted model: cleans, tokenizes and truncates texts as the code that the model comes from."""

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..configuration_albef import AlbefConfig
from ..data import embedded_tokenizer, make_processor
from ..processing_albef import AlbefProcessor, without_separator
from .other_libraries import LAVIS, Library

logger = logging.get_logger(f"transformers.{__name__}")

# The length at which the original cuts texts in evaluation: in words, then in tokens; 30 each unless listed here.
DEFAULT_MAX_WORDS = 30
MAX_WORDS = {"vqa": 50}
UNLIMITED_TOKENS = ("vqa", "nlvr2", "entailment")

# LAVIS: in evaluation it cuts captions at 35 tokens, questions at 25, sentences at 40; all at 50 words.
LAVIS_MAX_WORDS = 50
LAVIS_MAX_TOKENS = {"vqa": 25, "nlvr2": 40, "entailment": 40}
LAVIS_MAX_CAPTION_TOKENS = 35
LAVIS_DELETED_CHARACTERS = '.!"()*#:;~'  # it keeps commas, apostrophes, hyphens and question marks


def make_task_processor(task: str, config: AlbefConfig, library: Library) -> AlbefProcessor | None:
    """Return the processor for the model's resolution and task; None if its vocabulary is not BERT-base uncased."""
    text = config.text
    tokenizer: PreTrainedTokenizerBase = embedded_tokenizer()
    if len(tokenizer) != text.vocab_size:
        logger.warning(
            f"No processor is saved: the vocabulary has {text.vocab_size} words, that of BERT-base uncased "
            f"{len(tokenizer)}. Save an AlbefProcessor with the model's tokenizer to the output folder."
        )
        return None
    if library is LAVIS:
        return _lavis_processor(task, config, tokenizer)
    if task in UNLIMITED_TOKENS:
        tokenizer = without_separator(tokenizer, max_length=text.max_tokens)
    return make_processor(config, tokenizer, MAX_WORDS.get(task, DEFAULT_MAX_WORDS))


def _lavis_processor(task: str, config: AlbefConfig, tokenizer: PreTrainedTokenizerBase) -> AlbefProcessor:
    """Return a processor that cleans texts as `lavis/processors/blip_processors.py` and ends them with `[SEP]`.

    Deleted characters become spaces in captions, and nothing in questions.
    """
    converted = without_separator(tokenizer, max_length=LAVIS_MAX_TOKENS.get(task, LAVIS_MAX_CAPTION_TOKENS))
    special = [(token, converted.convert_tokens_to_ids(token)) for token in (converted.cls_token, converted.sep_token)]
    converted.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return AlbefProcessor(
        make_processor(config, tokenizer).image_processor,
        converted,
        LAVIS_MAX_WORDS,
        add_separator=True,
        replacements=dict.fromkeys(LAVIS_DELETED_CHARACTERS, "" if task == "vqa" else " "),
    )
