"""Functions that were replaced; each warns, and will be removed in the next release."""

import warnings
from typing import Any

from PIL import Image

from .captions import is_blank
from .images import load_image


def load_upright(value: Any, image_root: str | None = None) -> Image.Image:
    """Call `load_image` with `exif_transpose=True`."""
    _warn("load_upright", "load_image(..., exif_transpose=True)")
    return load_image(value, image_root, exif_transpose=True)


def says_something(text: str) -> bool:
    """Return the opposite of `is_blank`."""
    _warn("says_something", "not is_blank(...)")
    return not is_blank(text)


def _warn(name: str, replacement: str) -> None:
    message = f"albef_hf.data.{name} is deprecated and will be removed in the next release: use {replacement}."
    warnings.warn(message, FutureWarning, stacklevel=3)
