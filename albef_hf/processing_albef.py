"""Processor of ALBEF: pictures to pixels, captions to tokens, cleaned and tokenized as the original does."""

import copy
import re
from collections.abc import Sequence

from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, TextKwargs, Unpack

BERT_TOKENS = ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")
DELETED_CHARACTERS = re.compile(r"""[,.'!?"()*#:;~]""")


def encodable(text: str) -> str:
    """The text with a question mark for what cannot be encoded, lone surrogates, which JSON allows."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def clean_caption(caption: str, max_words: int = 30) -> str:
    """Lower-case a caption, strip its punctuation and cut it (`pre_caption` in the original's `dataset/utils.py`).

    Args:
        caption: Any text; characters that cannot be encoded (lone surrogates) become question marks and go too.
        max_words: Words kept.

    Example:
        ```python
        >>> clean_caption("Two dogs (brown/white) play: fetch!")
        'two dogs brown white play fetch'

        ```
    """
    caption = DELETED_CHARACTERS.sub("", encodable(caption).lower()).replace("-", " ").replace("/", " ")
    caption = re.sub(r"\s{2,}", " ", caption.replace("<person>", "person"))
    return " ".join(caption.rstrip("\n").strip(" ").split(" ")[:max_words])


def without_separator(tokenizer: PreTrainedTokenizerBase, **settings) -> PreTrainedTokenizerFast:
    """The same vocabulary in a tokenizer that emits `[CLS] x` and no `[SEP]`, as the original's does.

    It is not a `BertTokenizer`, since that class puts its `[SEP]` back whenever it is loaded. And a "[SEP]" that
    somebody writes is five characters of text to it, whoever calls it: transformers' own pipelines do so themselves.

    Args:
        tokenizer: A BERT tokenizer, or one that this function has made.
        settings: What the tokenizer does where a call of the processor does not say otherwise, such as
            `max_length=512` instead of 30 tokens.

    Raises:
        ValueError: If the tokenizer lacks one of BERT's special tokens.
    """
    missing = [name for name in ("cls", "sep", "pad", "mask") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise ValueError(f"The tokenizer has no {', '.join(missing)} token; ALBEF needs a BERT tokenizer.")
    if not settings and tokenizer("") == {"input_ids": [tokenizer.cls_token_id], "attention_mask": [1]}:
        tokenizer.split_special_tokens = True  # which a folder of an earlier version does not say
        return tokenizer  # with the settings that it has
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    cls, sep = (tokenizer.cls_token, tokenizer.cls_token_id), (tokenizer.sep_token, tokenizer.sep_token_id)
    backend.post_processor = TemplateProcessing(
        single=f"{cls[0]} $A", pair=f"{cls[0]} $A {sep[0]} $B:1 {sep[0]}:1", special_tokens=[cls, sep]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=True,
        **tokenizer.special_tokens_map,
        split_special_tokens=True,
        **settings,
    )


class AlbefTextKwargs(TextKwargs, total=False):
    """Settings of the tokenizer in a call."""

    split_special_tokens: bool


class AlbefProcessorKwargs(ProcessingKwargs, total=False):
    """Settings of a call; transformers reads their defaults here up to 5.22, and on the processor since 5.23."""

    text_kwargs: AlbefTextKwargs
    _defaults = {"text_kwargs": {"padding": True, "truncation": True, "max_length": 30}}


class AlbefProcessor(ProcessorMixin):
    """Prepares pictures and captions for ALBEF models.

    Pictures are resized to a square (bicubic) and normalised by CLIP's mean and deviation; captions are cleaned,
    cut to 30 words, tokenized without `[SEP]`, padded to the longest and truncated to 30 tokens.

    Args:
        image_processor: Such as `BlipImageProcessor(size={"height": 256, "width": 256})`, whose settings are ALBEF's.
        tokenizer: A BERT tokenizer; its `[SEP]` is dropped. One of `without_separator` may keep more than 30 tokens.
        max_words: Words of a caption that are kept.

    Example:
        ```python
        processor = AlbefProcessor.from_pretrained("you/albef")
        inputs = processor(images=picture, text=["a dog in the snow", "a red car"], return_tensors="pt")
        ```
    """

    text_kwargs = AlbefProcessorKwargs._defaults["text_kwargs"]
    valid_processor_kwargs = AlbefProcessorKwargs

    def __init__(self, image_processor, tokenizer, max_words: int = 30, **kwargs):
        self.max_words = max_words
        self.auto_map = {"AutoProcessor": f"processing_albef.{type(self).__name__}"}  # as it is saved, from the start
        super().__init__(image_processor, without_separator(tokenizer), **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[AlbefProcessorKwargs],
    ) -> BatchFeature:
        """Prepare pictures, texts, or both.

        Args:
            images: A picture or a list of them.
            text: A caption or a list of them; an empty one is valid and becomes `[CLS]` alone. Tokens that were added
                to the tokenizer stay whole; BERT's special tokens are text like any other.
            kwargs: Settings of the tokenizer and image processor, such as `return_tensors="pt"`.

        Returns:
            `pixel_values` (batch, 3, height, width), `input_ids` and `attention_mask` (batch, tokens).

        Raises:
            ValueError: If there is neither a picture nor a text, or a text is not a string.
        """
        if images is None and text is None:
            raise ValueError("Nothing to process: give images, text, or both.")
        if text is not None:
            text = self._clean(text)
            kwargs = self._special_tokens_settings() | kwargs
        return super().__call__(images=images, text=text, **kwargs)

    def encode_answers(self, answers: str | list[str]) -> BatchEncoding:
        """Tokenize answers for question answering: `[CLS] answer [SEP]`, as they are but for upper case.

        Characters that cannot be encoded (lone surrogates) become question marks.

        Args:
            answers: An answer or a list of them.

        Returns:
            `input_ids` and `attention_mask`, (answers, tokens), padded to the longest; and `labels`, which are -100
            for the padding, for the head's loss.

        Raises:
            ValueError: If there is no answer, or one that has no token, or is not a string.
        """
        answers = [answers] if isinstance(answers, str) else list(answers)
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise ValueError("answers must be strings, and there must be at least one.")
        texts = [encodable(answer) for answer in answers]
        if settings := self._special_tokens_settings():
            for name in BERT_TOKENS:
                token = getattr(self.tokenizer, name)
                texts = [text.replace(token, token.lower()) for text in texts]  # which is text
        ids = self.tokenizer(texts, **settings)["input_ids"]
        empty = [answer for answer, tokens in zip(answers, ids, strict=True) if len(tokens) < 2]
        if empty:
            raise ValueError(f"The answer {empty[0]!r} has no word that can be written.")
        end = self.tokenizer.sep_token_id
        padded = self.tokenizer.pad({"input_ids": [tokens + [end] for tokens in ids]}, return_tensors="pt")
        padded["labels"] = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
        return padded

    def decode_answers(self, answer_ids: Sequence[Sequence[int]]) -> list[str]:
        """The words of (answers, tokens) ids, such as `generate` of `AlbefForQuestionAnswering` returns."""
        return [answer.strip() for answer in self.tokenizer.batch_decode(answer_ids, skip_special_tokens=True)]

    def _clean(self, text: str | list[str]) -> str | list[str]:
        added = self._added_tokens()
        if isinstance(text, str):
            return self._clean_around(added, text)
        if not isinstance(text, (list, tuple)) or not all(isinstance(caption, str) for caption in text):
            raise ValueError("text must be a string or a list of strings, one caption each.")
        return [self._clean_around(added, caption) for caption in text]

    def _clean_around(self, tokens: list[str], caption: str) -> str:
        """Clean a caption, of which some tokens stay as they are."""
        if not tokens:
            return clean_caption(caption, self.max_words)
        parts = re.split(f"({'|'.join(map(re.escape, tokens))})", caption)
        cleaned = (part if part in tokens else clean_caption(part, self.max_words) for part in parts)
        return " ".join(" ".join(part for part in cleaned if part).split(" ")[: self.max_words])

    def _added_tokens(self) -> list[str]:
        """Tokens that were added to the tokenizer beyond BERT's, the longest first."""
        known = {getattr(self.tokenizer, name) for name in BERT_TOKENS}
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()} - known
        return sorted(added, key=len, reverse=True)

    def _special_tokens_settings(self) -> dict[str, bool]:
        """Settings of the tokenizer under which it knows added special tokens, if there are any."""
        return {"split_special_tokens": False} if self._added_tokens() else {}

    @property
    def model_input_names(self) -> list[str]:
        """Names of what the processor returns."""
        return ["pixel_values", "input_ids", "attention_mask"]


AlbefProcessor.register_for_auto_class()  # so that it is saved together with this file

__all__ = ["AlbefProcessor", "clean_caption"]
