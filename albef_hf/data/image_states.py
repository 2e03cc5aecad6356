"""States of a frozen image encoder, computed once and found by the content of an image."""

import functools
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .images import image_file, load_image

KEYS_FILE = "keys.npy"  # (images, 16) bytes, the key of each image
STATES_FILE = "states.npy"  # (images, 1 + tokens, width), float16
STATUS_FILE = "status.bin"  # a byte for each image
PENDING = 0  # the status of an image
ENCODED = 1
BROKEN = 2


def image_key(image: Any, image_root: str | None = None) -> bytes:
    """Return 16 bytes that identify an image by its content: the file, or the pixels of a Pillow image.

    Args:
        image: See `load_image`.
        image_root: Folder that paths are relative to.

    Raises:
        InvalidSampleError: If the file is missing or outside the root.
    """
    if isinstance(image, Image.Image):
        content = f"{image.size}".encode() + load_image(image, image_root).tobytes()  # as the encoder sees it
    else:
        source = image_file(image, image_root)
        try:
            content = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
        except OSError:
            load_image(image, image_root)  # raises the error with its reason
            raise
    return hashlib.blake2b(content, digest_size=16).digest()


def read_status(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of the images of a folder, (images, 16), and their status, (images,)."""
    keys = np.load(folder / KEYS_FILE)
    status = np.fromfile(folder / STATUS_FILE, np.uint8)
    return keys, status[: len(keys)]  # there are more if an extension was interrupted


class ImageStates:
    """States of the images that were encoded, memory-mapped.

    Args:
        folder: Written by `albef_hf.training.image_states`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        keys, status = read_status(folder)
        self.indices = {keys[index].tobytes(): int(index) for index in np.flatnonzero(status == ENCODED)}

    @functools.cached_property
    def states(self) -> np.ndarray:
        """Return all states, (images, 1 + tokens, width), which stay on the disk."""
        return np.load(self.folder / STATES_FILE, mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the memory map, which each process that loads data opens itself."""
        return {name: value for name, value in vars(self).items() if name != "states"}

    def read(self, image: Any, image_root: str | None = None) -> torch.Tensor:
        """Return the states of an image, (1 + tokens, width), in float16.

        Args:
            image: See `load_image`.
            image_root: Folder that paths are relative to.

        Raises:
            InvalidSampleError: If the image cannot be read.
            ValueError: If it was not encoded.
        """
        index = self.indices.get(image_key(image, image_root))
        if index is None:
            load_image(image, image_root)  # raises if it is broken, which is why it was not encoded
            raise ValueError(
                f"An image is not among the {len(self.indices):,} whose states are in {self.folder}; it was changed "
                "since the start. Start again with an empty cache_image_states."
            )
        return torch.from_numpy(np.array(self.states[index]))


class ImageRecorder:
    """Takes the place of `ImageStates`, and records which images are read.

    Attributes:
        images: Each image, and the folder that its path is relative to.
    """

    def __init__(self) -> None:
        self.images: list[tuple[Any, str | None]] = []

    def read(self, image: Any, image_root: str | None = None) -> torch.Tensor:
        """Record an image; return an empty tensor."""
        self.images.append((image, image_root))
        return torch.zeros(0)
