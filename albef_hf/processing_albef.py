"""Processor of ALBEF: pictures to pixels, captions to tokens, cleaned and tokenized as the original does."""

import contextlib
import copy
import os
import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, TextKwargs, Unpack

from .images_albef import is_prepared, is_unit_range, list_images

BERT_TOKENS = ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")
DELETED_CHARACTERS = re.compile(r"""[,.'!?"()*#:;~]""")


def encodable(text: str) -> str:
    """The text with a question mark for what cannot be encoded, lone surrogates, which JSON allows."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def clean_caption(caption: str, max_words: int = 30, kept_tokens: Sequence[str] = ()) -> str:
    """Lower-case a caption, strip its punctuation and cut it (`pre_caption` in the original's `dataset/utils.py`).

    Args:
        caption: Any text; characters that cannot be encoded (lone surrogates) become question marks and go too.
        max_words: Words kept.
        kept_tokens: Tokens that stay as they are, as `added_tokens` returns them.

    Example:
        ```python
        >>> clean_caption("Two dogs (brown/white) play: fetch!")
        'two dogs brown white play fetch'

        ```
    """
    if kept_tokens:
        parts = re.split(f"({'|'.join(map(re.escape, kept_tokens))})", caption)
        cleaned = (part if part in kept_tokens else clean_caption(part, max_words) for part in parts)
        return " ".join(" ".join(part for part in cleaned if part).split(" ")[:max_words])
    caption = DELETED_CHARACTERS.sub("", encodable(caption).lower()).replace("-", " ").replace("/", " ")
    caption = re.sub(r"\s{2,}", " ", caption.replace("<person>", "person"))
    return " ".join(caption.rstrip("\n").strip(" ").split(" ")[:max_words])


# A call sets truncation and padding in the tokenizer, so threads that share one have to take turns. No process starts
# as the copy of one in which another thread is in the middle of a call, since that thread is not copied.
_TOKENIZER_LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_TOKENIZER_LOCK.acquire,
        after_in_parent=_TOKENIZER_LOCK.release,
        after_in_child=_TOKENIZER_LOCK.release,
    )


@contextlib.contextmanager
def _turn(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Wait for calls of other threads, and leave no setting of this call in the tokenizer."""
    with _TOKENIZER_LOCK:
        try:
            yield
        finally:
            forget_call_settings(tokenizer.backend_tokenizer)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that were added to a tokenizer beyond BERT's, the longest first."""
    known = {getattr(tokenizer, name) for name in BERT_TOKENS}
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} - known
    return sorted(added, key=len, reverse=True)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: str | list[str], **settings) -> BatchEncoding:
    """Tokenize texts in the one way of processor, training and evaluation; threads may share the tokenizer.

    Args:
        tokenizer: The processor's.
        texts: A text or a list of them, cleaned by `clean_caption` with the `added_tokens`.
        settings: Of the call, such as `truncation=True`. They do not stay in the tokenizer.

    Returns:
        What the tokenizer returns. Added tokens are whole; without any, BERT's special tokens are text.
    """
    with _turn(tokenizer):
        return tokenizer(texts, **{"split_special_tokens": not added_tokens(tokenizer), **settings})


_CHINESE_JAPANESE = "[\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]"
# Tokens do not tell whether there was a space beside a mark: these are the usual ways of writing, in this order.
_SPACING = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\d) ([.:]) (?=\d)", r"\1"),  # 2.5, 10:30
        (r"(?<=\d) , (?=\d{3}\b)", ","),  # 1,000
        (r"(?:^|(?<=[$£€¥]) )\. (?=\d)", "."),  # .5, $.50
        (r"\b(\w|ph) \. (?=\w\b)", r"\1."),  # u.s., p.m.
        (r"\bwww \. ", "www."),
        (r" \. (?=(?:com|edu|gov|net|org)\b)", "."),
        (r" & (?=\w\b)|(?<=\b\w) & ", "&"),  # m&m, at&t, but black & white
        (r"(?<=\w) (['’]) (?=(?:s|t|d|m|re|ve|ll)\b)", r"\1"),  # don't, levi's
        (r"(?<=s) (['’])", r"\1"),  # kids' room
        (r"(?<=[^\W\d]) (['’]) (?=[^\W\d])", r"\1"),  # o'clock
        (r"(?<=\d) (['’]) (?=\d)", r"\1"),  # 5'10
        (r" ?([-/\\_*+=<>^~|–—]) ?", r"\1"),  # t-shirt, 1/2
        (r" (['’\"])(?![ \w])|(?<=\d) (\")", r"\1\2"),  # 8', 6"
        (r"(?:^|(?<= ))(['’]) (?=\w)", r"\1"),  # 'twas, the '90s
        (r'(?<!\d)" ([^"]*?) ?"', r'"\1"'),
        (r"(?<=\w) ([$£€¥#])(?! \w)", r"\1"),  # 5$, c#
        (r" ([.,:;!?%)\]}”…])", r"\1"),
        (r"([(\[{$£€¥#@“]) ", r"\1"),
        (f" ?({_CHINESE_JAPANESE}) (?={_CHINESE_JAPANESE})", r"\1"),
    )
)


def join_words(words: Sequence[str]) -> str:
    """Write words and punctuation marks, which BERT's tokenizer separates, with the usual spaces.

    Example:
        ```python
        >>> join_words(["10", ":", "30", "p", ".", "m", "."]), join_words(["t", "-", "shirt", ",", "$", "5"])
        ('10:30 p.m.', 't-shirt, $5')

        ```
    """
    text = " ".join(words)
    for pattern, replacement in _SPACING:
        text = pattern.sub(replacement, text)
    return text.strip()


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
    if not settings and tokenize(tokenizer, "") == {"input_ids": [tokenizer.cls_token_id], "attention_mask": [1]}:
        tokenizer.split_special_tokens = True  # which a folder of an earlier version does not say
        return tokenizer  # with the settings that it has
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    forget_call_settings(backend)
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


def forget_call_settings(backend: Tokenizer) -> None:
    """Remove truncation and padding of the last call, which `tokenizer.json` would hand on as defaults."""
    backend.no_truncation()
    backend.no_padding()


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
            images: A picture or a list of them, also a path, an address, base64 or an array (see `array_to_image`).
                Each is converted to RGB as in training, and as there EXIF does not turn it. With `do_resize`,
                `do_rescale` and `do_normalize` off, floats (channels, height, width) pass as they are.
            text: A caption or a list of them; an empty one is valid and becomes `[CLS]` alone. Tokens that were added
                to the tokenizer stay whole; BERT's special tokens are text like any other.
            kwargs: Settings of the tokenizer and image processor, such as `return_tensors="pt"`.

        Returns:
            `pixel_values` (batch, 3, height, width), `input_ids` and `attention_mask` (batch, tokens).

        Raises:
            ValueError: If there is neither a picture nor a text, a picture cannot be read, or a text is not a string.
        """
        if images is None and text is None:
            raise ValueError("Nothing to process: give images, text, or both.")
        if text is not None:
            added = added_tokens(self.tokenizer)
            text = self._clean(text, added)
            kwargs = {"split_special_tokens": not added, **kwargs}
        if images is not None and not self._are_prepared(images, kwargs):
            images, kwargs = _read_images(images, kwargs)
        if text is None:
            return super().__call__(images=images, **kwargs)
        with _turn(self.tokenizer):
            return super().__call__(images=images, text=text, **kwargs)

    def _are_prepared(self, images: ImageInput, kwargs: dict[str, Any]) -> bool:
        """Return whether images are pixel values already, of which a call changes nothing."""
        settings = {**kwargs, **(kwargs.get("images_kwargs") or {})}
        steps = ("do_resize", "do_rescale", "do_normalize")
        is_on = (settings.get(step, getattr(self.image_processor, step, True)) for step in steps)
        return is_prepared(images) and not any(is_on)

    def encode_whole(self, text: str) -> list[int]:
        """Return the token ids of a text that is cleaned as in a call, but not cut."""
        cleaned = clean_caption(text, len(text), added_tokens(self.tokenizer))
        return tokenize(self.tokenizer, cleaned, truncation=False, verbose=False)["input_ids"]

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save the processor as it was made: what the last call truncated or padded to is not saved."""
        saved = copy.copy(self)
        with _turn(self.tokenizer):
            saved.tokenizer = copy.deepcopy(self.tokenizer)
        forget_call_settings(saved.tokenizer.backend_tokenizer)
        return super(AlbefProcessor, saved).save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def encode_answers(self, answers: str | list[str]) -> BatchEncoding:
        """Tokenize answers for question answering: `[CLS] answer [SEP]`, as they are but for upper case and accents.

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
        if added_tokens(self.tokenizer):
            for name in BERT_TOKENS:
                token = getattr(self.tokenizer, name)
                texts = [text.replace(token, token.lower()) for text in texts]  # which is text
        ids = tokenize(self.tokenizer, texts)["input_ids"]
        empty = [answer for answer, tokens in zip(answers, ids, strict=True) if not self.has_words(tokens)]
        if empty:
            raise ValueError(
                f"The answer {empty[0]!r} has no word that can be written with the vocabulary: leave it out."
            )
        end = self.tokenizer.sep_token_id
        padded = self.tokenizer.pad({"input_ids": [tokens + [end] for tokens in ids]}, return_tensors="pt")
        padded["labels"] = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
        return padded

    def has_words(self, token_ids: Sequence[int]) -> bool:
        """Whether there is more than `[CLS]` and words that the vocabulary lacks, each of which is an `[UNK]`."""
        return not {*token_ids} <= {self.tokenizer.cls_token_id, self.tokenizer.unk_token_id}

    def decode_answers(self, answer_ids: Sequence[Sequence[int]] | Sequence[int]) -> list[str]:
        """Return the text of (answers, tokens) ids, or of those of one answer, such as `generate` returns.

        It is written as people write it, "10:30" and "t-shirt", though tokens do not tell where spaces were. What
        the vocabulary lacks is not restored: accents, upper case, and unknown words, each of which is an `[UNK]`.
        Labels of -100 are padding.

        Raises:
            ValueError: If an id is not in the vocabulary.
        """
        answer_ids = answer_ids.tolist() if hasattr(answer_ids, "tolist") else [*answer_ids]
        special = {getattr(self.tokenizer, f"{name}_id") for name in BERT_TOKENS}  # those that were added are words
        unwritten = special - {self.tokenizer.unk_token_id}
        answers = []
        for ids in [answer_ids] if answer_ids and isinstance(answer_ids[0], int) else answer_ids:
            ids = [int(number) for number in ids if int(number) >= 0 and int(number) not in unwritten]
            if ids and max(ids) >= len(self.tokenizer):
                raise ValueError(
                    f"The answers have the token id {max(ids)}, but the tokenizer has {len(self.tokenizer)} tokens: "
                    "use the processor that the model was trained with."
                )
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            words = " ".join(tokens).replace(" ##", "").removeprefix("##").split(" ")
            answers.append(unicodedata.normalize("NFC", join_words(words)))  # Korean is in parts of its letters
        return answers

    def _clean(self, text: str | list[str], added: list[str]) -> str | list[str]:
        if isinstance(text, str):
            return clean_caption(text, self.max_words, added)
        if not isinstance(text, (list, tuple)) or not all(isinstance(caption, str) for caption in text):
            raise ValueError("text must be a string or a list of strings, one caption each.")
        if not text:
            raise ValueError("text is an empty list: give at least one caption, or no text.")
        return [clean_caption(caption, self.max_words, added) for caption in text]

    @property
    def model_input_names(self) -> list[str]:
        """Names of what the processor returns."""
        return ["pixel_values", "input_ids", "attention_mask"]


def _read_images(images: Any, kwargs: dict[str, Any]) -> tuple[list[Image.Image], dict[str, Any]]:
    """Read the images, and drop the settings of a call that are about arrays and no longer hold for images."""
    settings = {**kwargs, **(kwargs.get("images_kwargs") or {})}
    layout = settings.get("input_data_format")
    channels_first = None if layout is None else str(getattr(layout, "value", layout)) == "channels_first"
    read = list_images(images, channels_first)
    if not read:
        raise ValueError("images is an empty list: give at least one image, or no images.")
    dropped = {"input_data_format"}
    if settings.get("do_rescale") is False and is_unit_range(images):
        dropped.add("do_rescale")  # the images that were read go to 255
    kept = {name: value for name, value in kwargs.items() if name not in dropped}
    if kept.get("images_kwargs"):
        kept["images_kwargs"] = {k: v for k, v in kept["images_kwargs"].items() if k not in dropped}
    return read, kept


AlbefProcessor.register_for_auto_class()  # so that it is saved together with this file

__all__ = ["AlbefProcessor", "clean_caption"]
