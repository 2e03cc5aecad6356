"""The processor of ALBEF: converts images to pixels, and cleans and tokenizes captions as the original does."""

import contextlib
import copy
import os
import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, TextKwargs

from .images_albef import is_prepared, is_unit_range, list_images

BERT_TOKENS = ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")
DELETED_CHARACTERS = re.compile(r"""[,.'!?"()*#:;~]""")


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON allows but which cannot be encoded, by question marks."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def clean_caption(
    caption: str,
    max_words: int = 30,
    kept_tokens: Sequence[str] = (),
    keep_case: bool = False,
    replacements: dict[str, str] | None = None,
) -> str:
    """Lowercase, clean and truncate a caption (`pre_caption` in the original's `dataset/utils.py`).

    Args:
        caption: Any text; lone surrogates, which cannot be encoded, are removed.
        max_words: Maximum number of words. A text without spaces, such as a Chinese one, counts as one word.
        kept_tokens: Tokens to leave unchanged, from `added_tokens`.
        keep_case: Keep case and punctuation, and clean white space only; see `AlbefProcessor`.
        replacements: What characters are replaced by, in place of the original's rules; see `AlbefProcessor`.

    Example:
        ```python
        >>> clean_caption("Two dogs (brown/white) play: fetch!")
        'two dogs brown white play fetch'

        ```
    """
    if keep_case:
        return " ".join(replace_surrogates(caption).split()[:max_words])
    if kept_tokens:
        parts = re.split(f"({'|'.join(map(re.escape, kept_tokens))})", caption)
        cleaned = (
            part if part in kept_tokens else clean_caption(part, max_words, replacements=replacements)
            for part in parts
        )
        return " ".join(" ".join(part for part in cleaned if part).split(" ")[:max_words])
    if replacements is not None:
        replaced = replace_surrogates(caption).lower().translate(str.maketrans(replacements))
        return " ".join(replaced.split()[:max_words])
    caption = DELETED_CHARACTERS.sub("", replace_surrogates(caption).lower()).replace("-", " ").replace("/", " ")
    caption = re.sub(r"\s{2,}", " ", caption.replace("<person>", "person"))
    return " ".join(caption.rstrip("\n").strip(" ").split(" ")[:max_words])


# A call sets truncation and padding in the tokenizer, so threads that share one must wait for each other. A fork also
# waits: another thread's call would never finish in the child process, which does not have that thread.
_TOKENIZER_LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_TOKENIZER_LOCK.acquire,
        after_in_parent=_TOKENIZER_LOCK.release,
        after_in_child=_TOKENIZER_LOCK.release,
    )


@contextlib.contextmanager
def _exclusive(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Wait for calls of other threads, and remove the settings of this call from the tokenizer at the end."""
    with _TOKENIZER_LOCK:
        try:
            yield
        finally:
            clear_truncation_and_padding(tokenizer.backend_tokenizer)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that were added to a tokenizer beyond the usual special ones, the longest first."""
    known = {getattr(tokenizer, name) for name in BERT_TOKENS}
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} - known
    return sorted(added, key=len, reverse=True)


def is_wordpiece(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True for the tokenizer of a BERT, whose pieces within a word start with `##`."""
    return isinstance(tokenizer.backend_tokenizer.model, WordPiece)


def is_lowercasing(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if a tokenizer does not distinguish upper and lower case, as that of BERT-base uncased."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and "A" not in normalizer.normalize_str("A")


def split_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Put a space into special tokens that are written in a text, so that they are split like other text.

    They would be special if tokens were added, and always with a SentencePiece vocabulary, which has them as pieces.
    """
    for name in BERT_TOKENS:
        token = getattr(tokenizer, name)
        if token:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: str | list[str], **settings) -> BatchEncoding:
    """Tokenize texts as processor, training and evaluation do; threads may share the tokenizer.

    Args:
        tokenizer: The tokenizer of the processor.
        texts: A text or a list of them, cleaned by `clean_caption` with the `added_tokens`.
        settings: Settings of the call, such as `truncation=True`; the tokenizer does not keep them.

    Returns:
        The output of the tokenizer. Added tokens are not split, special tokens are split like other text.
    """
    if isinstance(texts, str):
        texts = split_special_tokens(tokenizer, texts)
    else:
        texts = [split_special_tokens(tokenizer, text) for text in texts]
    with _exclusive(tokenizer):
        return tokenizer(texts, **{"split_special_tokens": not added_tokens(tokenizer), **settings})


_CHINESE_JAPANESE = "[\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]"
# Tokens do not tell whether there was a space beside a mark: these rules restore the usual spaces, in this order.
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
        (r" ([.,:;!?%)\]}”…،؛؟])", r"\1"),
        (r"([(\[{$£€¥#@“]) ", r"\1"),
        (f" ?({_CHINESE_JAPANESE}) (?={_CHINESE_JAPANESE})", r"\1"),
    )
)


def join_words(words: Sequence[str]) -> str:
    """Join words and punctuation marks, which BERT's tokenizer separates, with the usual spaces.

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
    """Return a tokenizer with the same vocabulary that emits `[CLS] x` without `[SEP]`, as the original's does.

    `[CLS]` and `[SEP]` are the tokenizer's own, for RoBERTa `<s>` and `</s>`.

    It is not a `BertTokenizer`, because that class adds `[SEP]` again when it is loaded. It splits a "[SEP]" in a text
    like other text, also if it is called directly, as transformers' own pipelines do. A SentencePiece vocabulary has
    special tokens as pieces, so texts have to go through `tokenize` or the processor there.

    Args:
        tokenizer: The tokenizer of a BERT or RoBERTa, or one that this function has made.
        settings: Defaults for calls of the processor, such as `max_length=512` instead of 30 tokens.

    Raises:
        ValueError: If the tokenizer lacks one of BERT's special tokens, or is not a fast tokenizer.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: choose a text model with a tokenizer.json, such as "
            "a multilingual one."
        )
    missing = [name for name in ("cls", "sep", "pad", "mask") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise ValueError(f"The tokenizer has no {', '.join(missing)} token; use that of a BERT or RoBERTa.")
    if not settings and tokenize(tokenizer, "") == {"input_ids": [tokenizer.cls_token_id], "attention_mask": [1]}:
        tokenizer.split_special_tokens = True  # folders of earlier versions do not have this setting
        return tokenizer
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    clear_truncation_and_padding(backend)
    cls, sep = (tokenizer.cls_token, tokenizer.cls_token_id), (tokenizer.sep_token, tokenizer.sep_token_id)
    backend.post_processor = TemplateProcessing(
        single=f"{cls[0]} $A", pair=f"{cls[0]} $A {sep[0]} $B:1 {sep[0]}:1", special_tokens=[cls, sep]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=is_wordpiece(tokenizer),
        **tokenizer.special_tokens_map,
        split_special_tokens=True,
        **settings,
    )


def clear_truncation_and_padding(backend: Tokenizer) -> None:
    """Remove truncation and padding of the last call, which would be saved in `tokenizer.json` as defaults."""
    backend.no_truncation()
    backend.no_padding()


class AlbefTextKwargs(TextKwargs, total=False):
    """Settings of the tokenizer for a call."""

    split_special_tokens: bool


class AlbefProcessorKwargs(ProcessingKwargs, total=False):
    """Settings of a call; transformers reads their defaults here up to 5.22, and from the processor since 5.23."""

    text_kwargs: AlbefTextKwargs
    _defaults = {"text_kwargs": {"padding": True, "truncation": True, "max_length": 30}}


class AlbefProcessor(ProcessorMixin):
    """Preprocess images and captions for ALBEF models.

    Images are resized (to a square by default, bicubic) and normalized, by default with CLIP's mean and standard
    deviation, or as the image model that a training started from. Captions are
    cleaned, truncated to 30 words, tokenized without `[SEP]`, truncated to 30 tokens and padded to the longest.
    Cleaning is the original's, in lower case without punctuation, if the tokenizer is uncased. For a cased one, only
    white space is cleaned.

    Args:
        image_processor: For example `BlipImageProcessor(size={"height": 256, "width": 256})`.
        tokenizer: The tokenizer of a BERT or RoBERTa, which is converted by `without_separator`. A tokenizer that was
            converted with settings keeps them, for example more than 30 tokens.
        max_words: Maximum number of words of a caption.
        keep_case: Clean only white space of captions; by default, if the tokenizer is cased. It is saved if True.
        add_separator: Use a tokenizer as it is that ends texts with `[SEP]`, as LAVIS does. It is saved if True.
        replacements: Characters with what replaces them in lower-case captions, instead of the original's cleaning. It
            is saved if given.
        prompt: Words that a captioning model was trained to continue, such as "a photo of"; None for another model.

    Raises:
        ValueError: If the tokenizer does not fit, or settings exclude each other.

    Example:
        ```python
        processor = AlbefProcessor.from_pretrained("you/albef")
        inputs = processor(images=image, text=["a dog in the snow", "a red car"], return_tensors="pt")
        ```
    """

    text_kwargs = AlbefProcessorKwargs._defaults["text_kwargs"]
    valid_processor_kwargs = AlbefProcessorKwargs

    def __init__(
        self,
        image_processor,
        tokenizer,
        max_words: int = 30,
        keep_case: bool | None = None,
        add_separator: bool = False,
        replacements: dict[str, str] | None = None,
        prompt: str | None = None,
        **kwargs,
    ):
        self.max_words = max_words
        self.add_separator = add_separator
        self.replacements = replacements
        self.prompt = prompt
        tokenizer = tokenizer if add_separator else without_separator(tokenizer)
        if add_separator and tokenize(tokenizer, "")["input_ids"][-1:] != [tokenizer.sep_token_id]:
            raise ValueError("The tokenizer does not end texts with its sep_token: leave out add_separator.")
        self.keep_case = not is_lowercasing(tokenizer) if keep_case is None else keep_case
        if self.keep_case and replacements is not None:
            raise ValueError("replacements are for lower-case captions: leave out either them or keep_case.")
        # transformers adds it only while it saves the processor for the first time.
        self.auto_map = {"AutoProcessor": f"processing_albef.{type(self).__name__}"}
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> "AlbefProcessor":
        """Build a saved processor as transformers does; those of earlier versions clean captions as the original."""
        return super().from_args_and_dict(args, {"keep_case": False, **processor_dict}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Serialize as transformers does, but the settings of few models only if they have been set."""
        rare = ("keep_case", "add_separator", "replacements", "prompt")
        settings = super().to_dict()
        return {name: value for name, value in settings.items() if name not in rare or value not in (None, False)}

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Preprocess images, texts, or both.

        Args:
            images: An image, path, URL, base64 or array (see `array_to_image`), or a list of them. They are converted
                to RGB as in training, and EXIF orientation is ignored as in training. If `do_resize`, `do_rescale` and
                `do_normalize` are off, floats (channels, height, width) are not changed.
            text: A caption or a list of them; an empty one becomes `[CLS]` alone. Tokens that were added to the
                tokenizer are not split; BERT's special tokens are split like other text.
            kwargs: Settings of the tokenizer and image processor, such as `return_tensors="pt"`.

        Returns:
            `pixel_values` (batch, 3, height, width), `input_ids` and `attention_mask` (batch, tokens).

        Raises:
            ValueError: If there are neither images nor texts, an image cannot be read, or a text is not a string.
        """
        if images is None and text is None:
            raise ValueError("Nothing to process: pass images, text, or both.")
        if text is not None:
            added = added_tokens(self.tokenizer)
            text = self._clean(text, added)
            kwargs = {"split_special_tokens": not added, **kwargs}
        if images is not None and not self._are_prepared(images, kwargs):
            images, kwargs = _read_images(images, kwargs)
        if text is None:
            return super().__call__(images=images, **kwargs)
        with _exclusive(self.tokenizer):
            return super().__call__(images=images, text=text, **kwargs)

    def _are_prepared(self, images: ImageInput, kwargs: dict[str, Any]) -> bool:
        """Return True if the images are pixel values that this call does not change."""
        settings = {**kwargs, **(kwargs.get("images_kwargs") or {})}
        steps = ("do_resize", "do_rescale", "do_normalize")
        is_on = (settings.get(step, getattr(self.image_processor, step, True)) for step in steps)
        return is_prepared(images) and not any(is_on)

    def encode_whole(self, text: str) -> list[int]:
        """Return the token ids of a text that is cleaned as in a call, but not truncated."""
        return tokenize(self.tokenizer, self.clean(text, len(text)), truncation=False, verbose=False)["input_ids"]

    def clean(self, text: str, max_words: int) -> str:
        """Return a text of at most `max_words`, cleaned as in a call; see `clean_caption`."""
        return clean_caption(text, max_words, added_tokens(self.tokenizer), self.keep_case, self.replacements)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save the processor without the truncation and padding of its last call."""
        saved = copy.copy(self)
        with _exclusive(self.tokenizer):
            saved.tokenizer = copy.deepcopy(self.tokenizer)
        clear_truncation_and_padding(saved.tokenizer.backend_tokenizer)
        return super(AlbefProcessor, saved).save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def encode_answers(self, answers: str | list[str]) -> BatchEncoding:
        """Tokenize answers for question answering as `[CLS] answer [SEP]`, not cleaned.

        An uncased tokenizer writes them in lower case and without accents.

        Lone surrogates, which cannot be encoded, become question marks.

        Args:
            answers: An answer or a list of them.

        Returns:
            `input_ids` and `attention_mask`, (answers, tokens), padded to the longest, and `labels` for the loss, with
            -100 for padding.

        Raises:
            ValueError: If there is no answer, or an answer has no known word or is not a string.
        """
        answers = [answers] if isinstance(answers, str) else list(answers)
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise ValueError("answers must be strings, and there must be at least one.")
        ids = tokenize(self.tokenizer, [replace_surrogates(answer) for answer in answers])["input_ids"]
        empty = [answer for answer, tokens in zip(answers, ids, strict=True) if not self.has_words(tokens)]
        if empty:
            raise ValueError(f"The answer {empty[0]!r} has no word that is in the vocabulary: remove it.")
        end = [] if self.add_separator else [self.tokenizer.sep_token_id]
        padded = self.tokenizer.pad({"input_ids": [tokens + end for tokens in ids]}, return_tensors="pt")
        padded["labels"] = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
        return padded

    def encode_captions(
        self, captions: str | list[str], prompt: str | None = None, max_length: int = 30
    ) -> BatchEncoding:
        """Tokenize captions for captioning as `[CLS] prompt caption [SEP]`, cleaned as in a call.

        Args:
            captions: A caption or a list of them.
            prompt: Words before each caption; by default those of the processor.
            max_length: Maximum number of tokens; a longer caption is cut, and then has no `[SEP]`.

        Returns:
            `input_ids` and `attention_mask`, (captions, tokens), padded to the longest, and `labels` for the loss,
            with -100 for `[CLS]`, prompt and padding.

        Raises:
            ValueError: If there is no caption, or the prompt leaves no room for one.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        start = self.encode_prompt(prompt)
        if len(start) >= max_length:
            raise ValueError(
                f"The prompt {prompt!r} has {len(start)} tokens, and max_length is {max_length}: shorten it."
            )
        end = self.tokenizer.sep_token_id
        texts = [self.encode_prompt(caption) for caption in captions]
        ids = [[*start, *tokens[1:], end][:max_length] for tokens in texts]
        padded = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        is_target = padded["attention_mask"].bool()
        is_target[:, : len(start)] = False
        padded["labels"] = padded["input_ids"].masked_fill(~is_target, -100)
        return padded

    def encode_prompt(self, prompt: str | None = None) -> list[int]:
        """Return the token ids of the words before a caption, `[CLS]` first; by default those of the processor."""
        prompt = (self.prompt or "") if prompt is None else prompt
        ids = tokenize(self.tokenizer, self._clean(prompt, added_tokens(self.tokenizer)))["input_ids"]
        return ids[:-1] if self.add_separator else ids

    def has_words(self, token_ids: Sequence[int]) -> bool:
        """Return True if there is a token besides `[CLS]`, `[SEP]`, `[UNK]` for an unknown word, and spaces."""
        ignored = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.unk_token_id)
        words = [token for token in token_ids if token not in ignored]
        return bool(self.tokenizer.decode(words).strip())

    def decode_answers(self, answer_ids: Sequence[Sequence[int]] | Sequence[int]) -> list[str]:
        """Return the text of (answers, tokens) ids, such as `generate` returns, or of the ids of one answer.

        Spaces, which BERT's tokens do not have, are written as usual: "10:30" and "t-shirt". Accents and upper case
        that an uncased tokenizer dropped are not restored, and an unknown word is an `[UNK]`. Ids of -100 are padding.

        Raises:
            ValueError: If an id is not in the vocabulary.
        """
        answer_ids = answer_ids.tolist() if hasattr(answer_ids, "tolist") else [*answer_ids]
        special = {getattr(self.tokenizer, f"{name}_id") for name in BERT_TOKENS}  # added tokens are words
        ignored = special - {self.tokenizer.unk_token_id}
        answers = []
        for ids in [answer_ids] if answer_ids and isinstance(answer_ids[0], int) else answer_ids:
            ids = [int(token_id) for token_id in ids if int(token_id) >= 0 and int(token_id) not in ignored]
            if ids and max(ids) >= len(self.tokenizer):
                raise ValueError(
                    f"The answers have the token id {max(ids)}, but the tokenizer has {len(self.tokenizer)} tokens: "
                    "use the processor that the model was trained with."
                )
            answers.append(unicodedata.normalize("NFC", self._decode(ids)))  # BERT's tokenizer splits Korean letters
        return answers

    def _decode(self, ids: list[int]) -> str:
        """Return the text of token ids, with the usual spaces if the tokens do not contain them."""
        if not is_wordpiece(self.tokenizer):
            return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
        tokens = self.tokenizer.convert_ids_to_tokens(ids)
        return join_words(" ".join(tokens).replace(" ##", "").removeprefix("##").split(" "))

    def _clean(self, text: str | list[str], added: list[str]) -> str | list[str]:
        def clean(caption: str) -> str:
            cleaned = clean_caption(caption, self.max_words, added, self.keep_case, self.replacements)
            return split_special_tokens(self.tokenizer, cleaned)

        if isinstance(text, str):
            return clean(text)
        if not isinstance(text, (list, tuple)) or not all(isinstance(caption, str) for caption in text):
            raise ValueError("text must be a string or a list of strings, one caption each.")
        if not text:
            raise ValueError("text is an empty list: pass at least one caption, or no text.")
        return [clean(caption) for caption in text]

    @property
    def model_input_names(self) -> list[str]:
        """Return the names of the processor's outputs."""
        return ["pixel_values", "input_ids", "attention_mask"]


def _read_images(images: Any, kwargs: dict[str, Any]) -> tuple[list[Image.Image], dict[str, Any]]:
    """Read the images, and drop settings of the call that hold for arrays but not for the images that were read."""
    settings = {**kwargs, **(kwargs.get("images_kwargs") or {})}
    layout = settings.get("input_data_format")
    channels_first = None if layout is None else str(getattr(layout, "value", layout)) == "channels_first"
    read = list_images(images, channels_first)
    if not read:
        raise ValueError("images is an empty list: pass at least one image, or no images.")
    dropped = {"input_data_format"}
    if settings.get("do_rescale") is False and is_unit_range(images):
        dropped.add("do_rescale")  # the images that were read have values up to 255
    kept = {name: value for name, value in kwargs.items() if name not in dropped}
    if kept.get("images_kwargs"):
        kept["images_kwargs"] = {k: v for k, v in kept["images_kwargs"].items() if k not in dropped}
    return read, kept


class WithNormalization(nn.Module):
    """Wrap a model so that it takes pixels in [0, 1]: normalization becomes part of the model and of its gradient.

    Attacks bound a change of these pixels, in steps of 1/255, and an exported model needs no preprocessing but
    resizing.

    Args:
        model: Any model that takes `pixel_values`.
        processor: Its processor. Mean and deviation are read off a black and a white image, whatever its settings are.

    Example:
        ```python
        wrapped = WithNormalization(model, processor)
        inputs = processor(images=images, text=texts, return_tensors="pt")
        inputs["pixel_values"] = wrapped.denormalize(inputs["pixel_values"]).requires_grad_()
        wrapped(**inputs).itm_logits[:, 1].sum().backward()  # fills inputs["pixel_values"].grad
        ```
    """

    def __init__(self, model: nn.Module, processor: AlbefProcessor):
        super().__init__()
        self.model = model
        extremes = [Image.new("RGB", (8, 8), color) for color in ("black", "white")]
        black, white = processor(images=extremes, return_tensors="pt")["pixel_values"][:, :, :1, :1]
        device = next(model.parameters()).device
        self.register_buffer("offset", black.to(device), persistent=False)
        self.register_buffer("scale", (white - black).to(device), persistent=False)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalize pixels in [0, 1], (..., channels, height, width), as the processor does.

        Raises:
            ValueError: If a pixel is outside [0, 1]; this is not checked while the model is compiled or exported.
        """
        if not torch.compiler.is_compiling() and not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"The pixels are between {pixels.min():.3g} and {pixels.max():.3g}: pass pixels in [0, 1], such as "
                "those that denormalize returns."
            )
        return pixels * self.scale + self.offset

    def denormalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the pixels in [0, 1] of what the processor returned, (..., channels, height, width)."""
        return ((pixel_values.to(self.scale) - self.offset) / self.scale).clamp(0, 1)

    def forward(self, *args: Any, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Call the model with normalized pixels; takes its other arguments."""
        return self.model(*args, pixel_values=self.normalize(pixel_values), **kwargs)


AlbefProcessor.register_for_auto_class()  # so that it is saved together with this file

__all__ = ["AlbefProcessor", "WithNormalization", "clean_caption"]
