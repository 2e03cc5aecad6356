"""Datasets of image-text pairs that survive bad ones: each is skipped, counted by reason and replaced."""

import enum
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..processing_albef import clean_caption
from .augmentation import Augmentation

ATTEMPTS = 1000  # unreadable pairs in a row after which the data, not the pair, is at fault


class Issue(enum.IntEnum):
    """What can be wrong with a pair. All but the last one skip it."""

    IMAGE_MISSING = 0
    IMAGE_OUTSIDE_ROOT = 1
    IMAGE_BROKEN = 2
    IMAGE_TOO_LARGE = 3
    CAPTION_EMPTY = 4
    CAPTION_CUT = 5


class BadSampleError(ValueError):
    """A pair that cannot be used, and why."""

    def __init__(self, issue: Issue, detail: str):
        super().__init__(f"{issue.name.lower()}: {detail}")
        self.issue = issue


def resolve_path(path: str, image_root: str | None) -> Path:
    """The file of a picture; with an image root, nothing outside of it is ever read."""
    if image_root is None:
        return Path(path)
    root = Path(image_root).resolve()
    resolved = (root / path).resolve()
    if not resolved.is_relative_to(root):
        raise BadSampleError(Issue.IMAGE_OUTSIDE_ROOT, path)
    return resolved


def load_image(value: Any, image_root: str | None = None) -> Image.Image:
    """Read a picture as RGB.

    Transparent pixels become white, 16-bit grey keeps its range, animations give their first frame.

    Args:
        value: A path, a Pillow image, or the `{"bytes": ..., "path": ...}` of an undecoded `datasets.Image`.
        image_root: Folder that paths are relative to.

    Raises:
        BadSampleError: If the file is missing, outside the root, broken, or larger than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(value, Image.Image):
        return _to_rgb(value)
    content = value.get("bytes") if isinstance(value, Mapping) else None
    path = value.get("path") if isinstance(value, Mapping) else value
    if content is None and not isinstance(path, (str, os.PathLike)):
        raise BadSampleError(Issue.IMAGE_MISSING, repr(value)[:100])
    file = resolve_path(os.fspath(path), image_root) if content is None else io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return _to_rgb(image)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise BadSampleError(Issue.IMAGE_MISSING, str(path)) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadSampleError(Issue.IMAGE_TOO_LARGE, f"{path}: {error}") from error
    except Exception as error:  # a decoder fed with garbage raises whatever it likes
        raise BadSampleError(Issue.IMAGE_BROKEN, f"{path}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # convert() would clip everything above 255 to white
        levels = np.asarray(image).astype(np.float64)
        image = Image.fromarray((levels / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


class PairReader:
    """Reads a row into a sample: pixels, a cleaned caption, and what was wrong on the way.

    Args:
        augmentation: Makes pixels of a picture.
        image_column: Name of the rows' picture.
        caption_column: Name of the rows' caption, a text or a list of texts of which one is drawn.
        image_root: Folder that paths are relative to.
        max_words: Words of a caption that are kept.

    A row may also have `mirrored_<caption_column>`: what is true of the picture with left and right swapped.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        image_column: str = "image",
        caption_column: str = "caption",
        image_root: str | None = None,
        max_words: int = 30,
    ):
        self.augmentation = augmentation
        self.image_column = image_column
        self.caption_column = caption_column
        self.image_root = image_root
        self.max_words = max_words

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Read one row.

        Returns:
            `pixel_values` (3, height, width), `caption`, `seed` for the masking, `issues` (a list).

        Raises:
            BadSampleError: If the pair cannot be used.
        """
        captions = self._captions(row, self.caption_column)
        choice = int(rng.integers(len(captions)))
        image = load_image(row[self.image_column], self.image_root)
        pixel_values, flipped = self.augmentation(image, rng)
        if flipped and row.get(f"mirrored_{self.caption_column}") is not None:
            captions = self._captions(row, f"mirrored_{self.caption_column}")
        whole = clean_caption(captions[choice], max_words=10**9)
        caption = clean_caption(captions[choice], self.max_words)
        issues = [Issue.CAPTION_CUT] if len(caption) < len(whole) else []
        return {"pixel_values": pixel_values, "caption": caption, "seed": int(rng.integers(2**62)), "issues": issues}

    def _captions(self, row: Mapping[str, Any], column: str) -> list[str]:
        captions = row[column]
        captions = [captions] if isinstance(captions, str) else captions or []
        captions = [caption for caption in captions if isinstance(caption, str) and clean_caption(caption)]
        if not captions:
            raise BadSampleError(Issue.CAPTION_EMPTY, repr(row[column])[:100])
        return captions


class ImageTextPairs(torch.utils.data.Dataset):
    """Pairs that can be indexed; what a sample looks like depends on seed, epoch and index alone.

    Args:
        rows: Anything with a length whose items are dictionaries, such as a `datasets.Dataset`.
        reader: Turns a row into a sample.
        seed: Seed of augmentation, choice of caption and masking.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], reader: PairReader, seed: int = 0):
        self.rows, self.reader, self.seed, self.epoch = rows, reader, seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Change the random choices; called by the data loader."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a row, or of another one, drawn at random, where the row is bad.

        Replacing bad pairs on the spot keeps all processes at the same number of batches.

        Raises:
            ValueError: If a thousand rows in a row are bad.
        """
        rng = np.random.default_rng((self.seed, self.epoch, index))
        issues: list[Issue] = []
        for _ in range(ATTEMPTS):
            try:
                sample = self.reader(self.rows[index], rng)
            except BadSampleError as error:
                issues.append(error.issue)
                index = int(rng.integers(len(self.rows)))
                last = error
            else:
                sample["issues"] += issues
                return sample
        raise _unreadable(last)


class ImageTextStream(torch.utils.data.IterableDataset):
    """Pairs that can only be read in order, without end: a stream starts over when it is exhausted.

    Args:
        rows: A `datasets.IterableDataset`, already split between processes.
        reader: Turns a row into a sample.
        seed: Seed of augmentation, choice of caption and masking.
    """

    def __init__(self, rows, reader: PairReader, seed: int = 0):
        self.rows, self.reader, self.seed = rows, reader, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        issues: list[Issue] = []
        epoch = 0
        while True:
            self.rows.set_epoch(epoch)
            epoch, rows_seen = epoch + 1, 0
            for row in self.rows:
                rows_seen += 1
                try:
                    sample = self.reader(row, rng)
                except BadSampleError as error:
                    issues.append(error.issue)
                    if len(issues) >= ATTEMPTS:
                        raise _unreadable(error) from error
                else:
                    sample["issues"] += issues
                    issues = []
                    yield sample
            if rows_seen == 0:  # more workers than shards: this one has nothing to read
                return


def _unreadable(last: BadSampleError) -> ValueError:
    return ValueError(
        f"{ATTEMPTS} pairs in a row could not be used; the last one: {last}. "
        "Check image_root, image_column and caption_column."
    )
