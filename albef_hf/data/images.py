"""Load the images of rows; every failure raises the same kind of error, with the reason."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..images_albef import ImageTooLargeError, read_image
from .row_errors import InvalidSampleError, SkipReason
from .row_values import address_problem, decode_base64_image, is_address, unknown_keys


def load_image(value: Any, image_root: str | None = None, exif_transpose: bool = False) -> Image.Image:
    """Load an image as RGB; see `images_albef.read_image` for the conversion.

    Args:
        value: A path, a Pillow image, an encoded image as bytes, base64, or the `{"bytes": ..., "path": ...}` of an
            undecoded `datasets.Image`.
        image_root: Folder that paths are relative to.
        exif_transpose: Turn the image upright by its EXIF orientation, which training does not do. Invalid EXIF is
            ignored.

    Raises:
        InvalidSampleError: If the file is missing, outside the root, broken, or larger than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    path = value.get("path") if isinstance(value, Mapping) else value
    name = "encoded" if isinstance(path, bytes) or path is None else path
    source = value if isinstance(value, Image.Image) else image_file(value, image_root)
    try:
        return read_image(source, exif_transpose)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise InvalidSampleError(SkipReason.IMAGE_MISSING, str(name)) from error
    except ImageTooLargeError as error:
        raise InvalidSampleError(SkipReason.IMAGE_TOO_LARGE, f"{name}: {error}") from error
    except Exception as error:  # decoders raise many kinds of errors on garbage
        raise InvalidSampleError(SkipReason.IMAGE_BROKEN, f"{name}: {error}") from error


def image_file(value: Any, image_root: str | None = None) -> Path | io.BytesIO:
    """Return the path or the content of an encoded image; for the arguments see `load_image`."""
    content = value.get("bytes") if isinstance(value, Mapping) else None
    path = value.get("path") if isinstance(value, Mapping) else value
    content = path if content is None else content
    if isinstance(content, (str, bytes)):
        try:
            decoded = decode_base64_image(content)
        except ValueError as error:
            raise InvalidSampleError(SkipReason.IMAGE_BROKEN, str(error)) from error
        if decoded is not None:
            return io.BytesIO(decoded)
        if isinstance(content, bytes):
            return io.BytesIO(content)
    if isinstance(path, str) and is_address(path):
        raise InvalidSampleError(SkipReason.IMAGE_MISSING, address_problem(path))
    if isinstance(value, Mapping) and not {"path", "bytes"} & {*value}:
        raise InvalidSampleError(SkipReason.IMAGE_MISSING, unknown_keys(value, ("path", "bytes")))
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidSampleError(SkipReason.IMAGE_MISSING, repr(value)[:100])
    return resolve_path(os.fspath(path), image_root)


def resolve_path(path: str, image_root: str | None) -> Path:
    """Return the file of an image; with an image root, files outside of it are refused, also behind links."""
    if image_root is None:
        return Path(path)
    root = Path(image_root).resolve()
    try:
        resolved = (root / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL bytes, lone surrogates, circular links
        raise InvalidSampleError(SkipReason.IMAGE_MISSING, repr(path)[:100]) from error
    if not resolved.is_relative_to(root):
        raise InvalidSampleError(SkipReason.IMAGE_OUTSIDE_ROOT, path)
    return resolved
