"""Read images and convert them to RGB, in one way for training, processor, pipelines, search and demo."""

import base64
import contextlib
import io
import math
import os
import socket
import stat
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers import AutoConfig
from transformers.image_processing_base import ImageProcessingMixin

ImageSource = Image.Image | str | os.PathLike | io.BytesIO  # an image, its file, or its file in memory
MAX_SCANS = 20  # of a JPEG with the maximum of pixels; a smaller one may have more, since each scan visits all pixels
STRIP_PIXELS = 2**20
MAX_DOWNLOAD_BYTES = 100_000_000
CHANNELS = (1, 3, 4)  # of an array: gray, RGB, RGB with alpha
MAX_NORMALIZED = 16  # a brighter float is a pixel of 0 to 255: no mean and deviation normalize to such a value
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}  # names of timm
TO_8_BITS = (np.arange(2**16) / 257).astype(np.uint8)


class ImageTooLargeError(ValueError):
    """Raised for an image that would take too much memory or time to decode."""


def read_image(
    source: ImageSource,
    exif_transpose: bool = False,
    max_pixels: int | None = None,
    formats: Sequence[str] | None = None,
) -> Image.Image:
    """Read an image as RGB.

    Transparent pixels become white, 16-bit gray is scaled to 8 bits, and of an animation the first frame is read.

    Args:
        source: An image, its path, or its file in memory.
        exif_transpose: Rotate the image by its EXIF orientation, which the original's training does not do. Invalid
            EXIF is ignored.
        max_pixels: Maximum number of pixels, by default `PIL.Image.MAX_IMAGE_PIXELS`; see `open_image`.
        formats: Pillow's names of the file formats to accept, by default all but PostScript.

    Raises:
        OSError: If the file does not exist or cannot be read.
        ImageTooLargeError: If the image has too many pixels or JPEG scans.
        ValueError: If the image is PostScript, or the range of its pixels is unknown.
    """
    with open_image(source, max_pixels, formats) as image:
        if exif_transpose and needs_exif_transpose(image):  # before the conversion, which may drop EXIF
            with contextlib.suppress(Exception):
                return to_rgb(ImageOps.exif_transpose(image))
        converted = to_rgb(image)
        return converted.copy() if converted is source else converted  # what the caller has must not change with it


@contextlib.contextmanager
def open_image(
    source: ImageSource, max_pixels: int | None = None, formats: Sequence[str] | None = None
) -> Iterator[Image.Image]:
    """Open an image and check its size and its JPEG scans before it is decoded; raises the errors of `read_image`."""
    if isinstance(source, (str, os.PathLike)):
        _require_regular_file(source)
    if formats is not None:
        Image.init()
        formats = [name for name in formats if name in Image.OPEN]  # some builds of Pillow do not have AVIF
    try:
        with (
            contextlib.nullcontext(source)
            if isinstance(source, Image.Image)
            else Image.open(source, formats=formats) as image
        ):
            _check_cost(image, Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels)
            yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageTooLargeError(str(error)) from error


def _require_regular_file(path: str | os.PathLike) -> None:
    """Refuse folders, and pipes and terminals, whose reading may never end."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{os.fspath(path)} is a folder")
    if not stat.S_ISREG(mode):
        raise FileNotFoundError(f"{os.fspath(path)} is not a regular file")


def _check_cost(image: Image.Image, max_pixels: int | None) -> None:
    """Refuse an image that would be expensive to decode, unless it is decoded already."""
    file = getattr(image, "fp", None)
    if file is None:
        return
    if image.format == "EPS":
        raise ValueError("it is PostScript, a program that is not executed; convert it to PNG")
    pixels = image.width * image.height
    if max_pixels is not None and pixels > max_pixels:
        raise ImageTooLargeError(f"it has {pixels:,} pixels; at most {max_pixels:,} are read")
    if max_pixels is not None and image.format in ("JPEG", "MPO"):
        scans = _count_scans(file)
        if scans * pixels > MAX_SCANS * max_pixels:
            raise ImageTooLargeError(f"it is a JPEG of {scans:,} scans, which would take too long to decode")


def _count_scans(file: BinaryIO) -> int:
    """Count the markers that start a scan in a JPEG, including those of embedded thumbnails."""
    position = file.tell()
    scans = 0
    last = b""  # a marker may cross the border of two blocks
    file.seek(0)
    while block := file.read(2**20):
        scans += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(position)
    return scans


def needs_exif_transpose(image: Image.Image) -> bool:
    """Return True if the EXIF orientation says that the image must be rotated or mirrored."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except Exception:  # Pillow raises many kinds of errors on invalid EXIF
        return False


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, with transparent pixels as white; an image that is RGB is returned itself.

    Raises:
        ValueError: If it has no pixels, their range is unknown, or Pillow cannot convert it.
    """
    if 0 in image.size:
        raise ValueError(f"it is {image.width} by {image.height} pixels, which is empty")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of an unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):  # convert() would clip values above 255 to white
        image = _from_16_bits(image)
    if image.mode == "La":
        image = image.convert("LA")  # Pillow cannot convert premultiplied gray directly
    if image.has_transparency_data:
        return _on_white(image)
    image.load()  # `convert` would copy an image that is RGB already
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Paste a transparent image on white, a strip of rows at a time, which takes half the memory."""
    result = Image.new("RGB", image.size)
    rows = max(STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), box)
    return result


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits."""
    levels = np.asarray(image)
    lowest, highest = int(levels.min(initial=0)), int(levels.max(initial=0))
    if lowest < 0 or highest > 65535:
        raise ValueError(f"its pixels go from {lowest} to {highest}; 16-bit gray goes from 0 to 65535")
    if image.mode == "I" and 0 < highest <= 255:
        raise ValueError(f"its pixels are 32-bit integers up to {highest}, which may be 8-bit or 16-bit gray")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels = np.where(levels == transparent, 65535, levels)
    return Image.fromarray(TO_8_BITS[levels])


def fetch_image(source: ImageSource, exif_transpose: bool = False, timeout: float | None = None) -> Image.Image:
    """Read an image as RGB with `read_image`, also from a URL (http or https) or from base64.

    Args:
        source: An image, its path, its URL, or its file in base64.
        exif_transpose: As in `read_image`.
        timeout: Timeout of the URL in seconds.

    Raises:
        OSError: If it cannot be read.
        ValueError: As in `read_image`.
        TypeError: If the source is none of these.
    """
    if not isinstance(source, (Image.Image, str, os.PathLike)):
        raise TypeError(f"it is a {type(source).__name__}")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        timeout = socket.getdefaulttimeout() if timeout is None else timeout
        request = urllib.request.Request(source, headers={"User-Agent": "Mozilla/5.0 (compatible; transformers)"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            content = response.read(MAX_DOWNLOAD_BYTES + 1)
        if len(content) > MAX_DOWNLOAD_BYTES:
            raise ImageTooLargeError(f"it is larger than {MAX_DOWNLOAD_BYTES:,} bytes")
        source = io.BytesIO(content)
    elif isinstance(source, str) and not os.path.exists(source):
        encoded = source.partition(",")[2] if source.startswith("data:image/") else source
        try:
            source = io.BytesIO(base64.b64decode("".join(encoded.split()), validate=True))
        except ValueError as error:
            raise FileNotFoundError("there is no such file, and it is not base64") from error
    return read_image(source, exif_transpose)


def read_preprocessing(name: str) -> dict[str, Any]:
    """Return how an image model's own processor prepares images.

    Returns:
        `image_mean` and `image_std` of the channels, `resample` as Pillow's number, and `size`, height and width in
        pixels; each only if it is known.

    Raises:
        ValueError: If it reorders the channels.
    """
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # no file; models of timm have these settings in their configuration
        settings = {}
    timm = getattr(AutoConfig.from_pretrained(name), "pretrained_cfg", None) or {}
    size = _square_or_pair(settings.get("crop_size") or settings.get("size"))
    found = {
        "image_mean": settings.get("image_mean", timm.get("mean")),
        "image_std": settings.get("image_std", timm.get("std")),
        "resample": settings.get("resample", _RESAMPLING.get(timm.get("interpolation"))),
        "size": size or timm.get("input_size", [None])[1:] or None,
    }
    if settings.get("do_flip_channel_order"):
        raise ValueError(f"The processor of {name} reorders the channels to BGR, which AlbefProcessor does not.")
    if settings.get("do_normalize") is False:
        found |= {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    elif settings.get("include_top"):  # EfficientNet divides by the deviation twice
        found["image_std"] = [deviation**2 for deviation in found["image_std"]]
    if found["image_mean"] is not None:
        found |= _of_unit_range(found["image_mean"], found["image_std"], settings)
    return {setting: value for setting, value in found.items() if value is not None}


def _of_unit_range(mean: Sequence[float], std: Sequence[float], settings: dict[str, Any]) -> dict[str, list[float]]:
    """Return mean and deviation for pixels from 0 to 1, of an image processor that scales them to another range."""
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1
    scale *= 255
    offset = 1 if settings.get("rescale_offset") else 0  # pixels from -1 on
    if math.isclose(scale, 1) and not offset:
        return {}
    return {"image_mean": [(m + offset) / scale for m in mean], "image_std": [s / scale for s in std]}


def _square_or_pair(size: Any) -> list[int] | None:
    """Return height and width of a `size` or `crop_size` of transformers' image processors."""
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))
        return list(size) if all(size) else None
    return [size, size] if isinstance(size, int) else size


def array_to_image(array: np.ndarray | torch.Tensor, channels_first: bool | None = None) -> Image.Image:
    """Convert an array of pixels to an RGB image.

    Args:
        array: (height, width), (height, width, channels) or (channels, height, width), with 1, 3 or 4 channels.
            The range is 0 to 65535 for uint16 and 0 to 255 for other integers. Floats are in 0 to 1, or in 0 to 255 if
            one is above 16 or all are whole numbers. Booleans are black and white.
        channels_first: Whether the first axis is the channels, if the shape is ambiguous.

    Raises:
        ValueError: If the shape or the range of the values is ambiguous or none of these.
    """
    pixels, is_numpy = _to_numpy(array), isinstance(array, np.ndarray)
    shape = pixels.shape
    if pixels.ndim not in (2, 3) or 0 in shape:
        raise ValueError(f"An array of shape {shape} is not an image: pass (height, width, channels).")
    if pixels.ndim == 3:
        first, last = shape[0] in CHANNELS, shape[-1] in CHANNELS
        if channels_first is None and last and pixels.dtype == np.uint8 and is_numpy and shape[0] == shape[1]:
            channels_first = False  # the layout of Pillow; a square with 1, 3 or 4 rows
        if channels_first is None and first and last:
            raise ValueError(
                f"In an array of shape {shape} the first or the last axis may be the channels: pass input_data_format "
                '"channels_first" or "channels_last".'
            )
        channels_first = first if channels_first is None else channels_first
        if not (first if channels_first else last):
            raise ValueError(f"An array of shape {shape} has no axis of 1, 3 or 4 channels: convert it to RGB.")
        pixels = np.moveaxis(pixels, 0, -1) if channels_first else pixels
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return to_rgb(Image.fromarray(np.ascontiguousarray(_to_8_bits(pixels))))


def _to_numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.dtype == torch.bfloat16 else array  # NumPy has no bfloat16
        return array.numpy()
    return array


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        if 0 < pixels.max() <= 255:
            raise ValueError(f"A uint16 array up to {pixels.max()} may be 8-bit or 16-bit: convert it to uint8.")
        return TO_8_BITS[pixels]
    if pixels.dtype == bool:
        return pixels * np.uint8(255)
    if pixels.dtype.kind not in "iuf":
        raise ValueError(f"An array of {pixels.dtype} is not an image: pass 8-bit integers.")
    lowest, highest = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" and lowest >= 0 and highest <= 1:
        return (pixels * 255).round().astype(np.uint8)
    if lowest >= 0 and highest <= 255 and np.all(pixels == np.floor(pixels)):
        return pixels.astype(np.uint8)
    if lowest >= 0 and MAX_NORMALIZED < highest <= 255:
        return pixels.round().astype(np.uint8)
    raise ValueError(
        f"The array goes from {lowest} to {highest}, which is not a range of pixels: pass 8-bit integers, from 0 to "
        "255, or floats from 0 to 1. To pass preprocessed pixels, set do_resize=False, do_rescale=False and "
        "do_normalize=False."
    )


def is_array(value: Any) -> bool:
    """Return True for an array or a tensor, which may be one image or a batch of them."""
    return isinstance(value, (np.ndarray, torch.Tensor))


def is_prepared(images: Any) -> bool:
    """Return True for arrays of floats, (channels, height, width), or a batch of these."""
    if isinstance(images, (list, tuple)):
        return bool(images) and all(is_prepared(image) for image in images)
    return is_array(images) and "float" in str(images.dtype) and images.ndim in (3, 4) and images.shape[-3] in CHANNELS


def is_unit_range(images: Any) -> bool:
    """Return True for arrays of floats from 0 to 1, which a processor must not rescale."""
    if isinstance(images, (list, tuple)):
        return all(is_unit_range(image) for image in images)
    return is_array(images) and "float" in str(images.dtype) and bool(images.max() <= 1)


def list_images(images: Any, channels_first: bool | None = None) -> list[Image.Image]:
    """Read an image, an array, a batch of them, or a nested list of these as RGB images.

    As in training, EXIF orientation is ignored.

    Raises:
        ValueError: If an image cannot be read.
    """
    if isinstance(images, (list, tuple)):
        return [image for one in images for image in list_images(one, channels_first)]
    if is_array(images):
        return [array_to_image(one, channels_first) for one in (images if images.ndim == 4 else [images])]
    try:
        return [fetch_image(images)]
    except Exception as error:  # of the file system, of the network, of Pillow
        raise ValueError(
            f"The image {images!r:.100} cannot be read: {error!s:.400}. Pass a PIL image, an array, a path, a URL "
            "or base64."
        ) from error


__all__ = [
    "ImageTooLargeError",
    "array_to_image",
    "fetch_image",
    "list_images",
    "read_image",
    "read_preprocessing",
    "to_rgb",
]
