"""Check what visitors send: images, texts and lists of texts."""

from typing import Any

from PIL import Image

from ..data import is_blank
from ..images_albef import ImageTooLargeError, read_image
from ..processing_albef import AlbefProcessor, replace_surrogates

MAX_CHARACTERS = 1_000
MAX_LINES = 100  # captions to score, or answers to choose from
MAX_PIXELS = 25_000_000  # decoding such an image takes about 300 MB
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # Pillow's names


def read_uploaded_image(path: str | None) -> Image.Image:
    """Read an image file as RGB, turned upright.

    Args:
        path: Path of the file, or None if there is none.

    Raises:
        ValueError: If there is no file, or it cannot be read.
    """
    if path is None:
        raise ValueError("There is no image yet. Drop one into the field, or pick an example.")
    try:
        return read_image(path, exif_transpose=True, max_pixels=MAX_PIXELS, formats=IMAGE_FORMATS)
    except ImageTooLargeError as error:
        raise ValueError(f"This image is too large: {error}. Please use a smaller one.") from error
    except Exception as error:  # Pillow raises many kinds of errors on broken files
        raise ValueError("This file cannot be read as an image: it is damaged, too large, or not an image.") from error


def read_text(text: Any, name: str) -> str:
    """Return a text without surrounding whitespace.

    Args:
        text: What the visitor has sent.
        name: What the text is, such as caption, for the error.

    Raises:
        ValueError: If it contains no word, is too long, or is not a text.
    """
    if not isinstance(text, str):
        raise ValueError(f"The {name} must be a text, not a {type(text).__name__}.")
    text = replace_surrogates(text).strip()
    if is_blank(text):
        raise ValueError(f"There is no {name} yet. Please write one.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"A {name} can have at most {MAX_CHARACTERS:,} characters; this one has {len(text):,}.")
    return text


def read_lines(text: Any, name: str) -> list[str]:
    """Return the lines of a text, without blank ones and duplicates.

    Args:
        text: What the visitor has sent.
        name: What each line is, such as caption, for the error.

    Raises:
        ValueError: If there is no line, there are too many, or one is too long.
    """
    if not isinstance(text, str):
        raise ValueError(f"The {name}s must be a text with one {name} per line, not a {type(text).__name__}.")
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(lines) > MAX_LINES:
        raise ValueError(f"There can be at most {MAX_LINES} {name}s, one per line; these are {len(lines):,}.")
    return [read_text(line, name) for line in lines or [""]]


def truncated_end(processor: AlbefProcessor, text: str) -> str:
    """Return the end of a text that the processor cuts off, as the tokenizer decodes it; empty if it fits."""
    tokens = processor.encode_whole(text)
    num_read = len(processor(text=[text])["input_ids"][0])
    return str(processor.tokenizer.decode(tokens[num_read:]))
