"""Check the texts of rows."""

from collections.abc import Mapping
from typing import Any

from ..processing_albef import clean_caption
from .row_errors import InvalidSampleError, SkipReason
from .row_values import TEXT_KEYS, flatten_texts, unknown_keys


def valid_captions(captions: Any) -> list[str]:
    """Return the texts of a row that are not blank; see `flatten_texts` for the forms that a row may have.

    Raises:
        InvalidSampleError: If there is none.
    """
    texts = flatten_texts(captions)
    valid = [text for text in texts if isinstance(text, str) and not is_blank(text)]
    if not valid:
        unknown = next((text for text in texts if isinstance(text, Mapping)), None)
        detail = brief(captions) if unknown is None else unknown_keys(unknown, TEXT_KEYS)
        raise InvalidSampleError(SkipReason.CAPTION_EMPTY, detail)
    return valid


def valid_text(text: Any) -> str:
    """Return the only text of a row; see `valid_captions`.

    Raises:
        InvalidSampleError: If there is none, or more than one.
    """
    texts = valid_captions(text)
    if len(texts) > 1:
        raise InvalidSampleError(SkipReason.CAPTION_EMPTY, f"{brief(text)} are several texts instead of one")
    return texts[0]


def is_blank(text: str) -> bool:
    """Return True if nothing that can be printed is left of a text after cleaning."""
    return not any(character.isprintable() and not character.isspace() for character in clean_caption(text))


def brief(value: Any) -> str:
    """Return the start of the representation of a value, for error messages."""
    try:
        return repr(value)[:100]
    except RecursionError:  # lists in lists in lists
        return f"a {type(value).__name__} that is nested too deeply"
